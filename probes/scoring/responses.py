"""Requests to a chat server, their replies, and a file that keeps them."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from wellworn.data.errors import InputError

Kind = Literal[
    "rate_limit",  # too many requests, after all retries
    "server",  # an error of the server's own, after all retries
    "timeout",  # no whole answer in time, after all retries
    "connection",  # no connection could be made
    "broken_off",  # the connection ended within the answer, after all retries
    "unauthorized",  # no key, a wrong one, or one without permission
    "not_found",  # no such model or address
    "no_logprobs",  # the request was refused in words about log-probabilities: ask again without
    "refused_request",  # refused for another reason
    "unsendable",  # half of a surrogate pair in a message or a name, which no JSON can carry
    "too_large",
    "not_json",
    "malformed",  # JSON, and no chat completion
    "no_choices",
    "other_model",  # answered by a model other than the one asked
    "not_finite",  # a log-probability that is not a number
    "content_filter",
    "refusal",  # marked as one by the server; a refusal in plain words is a reply
    "empty",
    "most_cost",  # not asked, since the cost limit was reached
]


@dataclass(frozen=True)
class Ask:
    """One thing to ask a chat model.

    Equal asks are sent once and kept once: give several samples of one prompt a `seed` each.

    Attributes:
        messages: the role and the text of each.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        seed: for sampling, where the server takes one.
        top_logprobs: how many log-probabilities of the first token to ask for; 0 for none.
        model: another model of the same server, an adapter for instance.
        more: further keys of the request, such as `repetition_penalty`, where the server knows them.
        behind: the model behind the server's name for it, where known. It is not sent, but is part of the key, since two servers may use
            one name for two models.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    top_logprobs: int = 0
    model: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    behind: str | None = None

    def key(self, model: str) -> str:
        """Return the ask's key in a cache: a digest of all that the answer depends on, which excludes the address and the API key."""
        parts = [self.model or model, self.messages, self.max_tokens, float(self.temperature), self.seed, self.top_logprobs]
        # Absent fields are left out, so that older keys stay valid.
        parts += [self.more] if self.more or self.behind else []
        parts += [self.behind] if self.behind else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    Attributes:
        text: the answer.
        finished: whether the model ended it; False where the longest answer cut it off.
        tops: the first token's likeliest tokens with their log-probabilities; None where none were asked for or the server gives none.
        tokens_in: tokens read, 0 where the server does not say.
        tokens_out: tokens written, 0 where the server does not say.
    """

    text: str
    finished: bool
    tops: tuple[tuple[str, float], ...] | None
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there is no reply: a kind to count, and a short line to read. Tokens are those that it cost nevertheless."""

    kind: Kind
    detail: str
    tokens_in: int = 0
    tokens_out: int = 0


_REPLY = TypeAdapter(Reply)
# How long one process waits for the write of another.
LONGEST_LOCK = 60.0


class Responses:
    """Replies by key in one SQLite file; once `keep` returns, they survive a crash of process or machine."""

    def __init__(self, path: Path | None, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        # A rollback journal, not a write-ahead log: that one shares memory between its users, which a network disk does not offer.
        with self._told():
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID")

    def look_up(self, keys: Iterable[str]) -> dict[str, Reply]:
        """Return the replies that are kept.

        Raises:
            InputError: the file cannot be read, or is corrupt.
        """
        with self._told():
            # One transaction, so that the file is locked once and not for every key.
            self._connection.execute("BEGIN")
            rows = [(key, self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()) for key in keys]
            self._connection.execute("COMMIT")
            return {key: _REPLY.validate_json(row[0]) for key, row in rows if row}

    def keep(self, replies: Mapping[str, Reply]) -> None:
        """Keep replies, all or none; of two processes that ask the same, the first to answer is kept.

        Raises:
            InputError: the file cannot be written.
        """
        rows = [(key, _REPLY.dump_json(reply)) for key, reply in replies.items()]
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)
            self._connection.execute("COMMIT")

    def forget(self, keys: Iterable[str]) -> None:
        """Keep replies no longer, so that they are asked for again.

        Raises:
            InputError: the file cannot be written.
        """
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in keys])
            self._connection.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, not to be written
            raise InputError(f"{self.path}: cannot keep replies ({error})") from None
        except (sqlite3.DatabaseError, ValidationError, UnicodeDecodeError) as error:  # the last: its complaint quotes the file
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path}: no cache of replies, or a corrupt one ({reason}); delete it, and all is asked again") from None


@contextmanager
def kept(path: Path | None) -> Iterator[Responses]:
    """Open a cache of replies, made if it is not there; None keeps them in memory alone.

    Raises:
        InputError: the file cannot be opened, or is not a cache.
    """
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Transactions are begun here and nowhere else; writes come from another thread, one at a time.
        connection = sqlite3.connect(path or ":memory:", timeout=LONGEST_LOCK, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(f"{path}: cannot be opened as a cache of replies ({error})") from None
    with closing(connection):
        yield Responses(path, connection)
