"""What is asked of a chat server, what comes back, and a file that keeps it."""

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
    "unauthorized",  # no key, a wrong one, or one that may not
    "not_found",  # no such model or address
    "no_logprobs",  # the request was refused in words about log-probabilities: ask again without
    "refused_request",  # refused for another reason
    "unsendable",  # half of a surrogate pair in a message or a name, which no JSON can carry
    "too_large",
    "not_json",
    "malformed",  # JSON, and no chat completion
    "no_choices",
    "other_model",  # answered by another model than was asked
    "not_finite",  # a log-probability that is no number
    "content_filter",
    "refusal",  # said to be one by the server; one in plain words is a reply
    "empty",
    "most_cost",  # not asked, since what may be spent was spent
]


@dataclass(frozen=True)
class Ask:
    """One thing to ask a chat model.

    Asks that differ in nothing are one, asked once and kept once: give several samples of one prompt a `seed` each.

    Attributes:
        messages: the role and the text of each.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        seed: for sampling, where the server takes one.
        top_logprobs: how many log-probabilities of the first token to ask for; 0 for none.
        model: another model of the same server, an adapter for instance.
        more: further keys of the request, such as `repetition_penalty`, where the server knows them.
        behind: which model stands behind the server's name for it, where that is known: not sent, and part of the key, since two servers
            may call two models alike.
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
        """Return what the ask is called in a cache: a digest of all that the answer depends on, so neither address nor key."""
        parts = [self.model or model, self.messages, self.max_tokens, float(self.temperature), self.seed, self.top_logprobs]
        # What is not there keeps the keys of before.
        parts += [self.more] if self.more or self.behind else []
        parts += [self.behind] if self.behind else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a model answered.

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
    """Why there is no reply: a kind to count, and a short line to read. Tokens are those that it cost all the same."""

    kind: Kind
    detail: str
    tokens_in: int = 0
    tokens_out: int = 0


_REPLY = TypeAdapter(Reply)
# How long one process waits for the write of another.
LONGEST_LOCK = 60.0


class Responses:
    """Replies by key in one SQLite file, there for good once `keep` returns, whatever happens to the process or the machine then."""

    def __init__(self, path: Path | None, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        # A rollback journal, not a write-ahead log: that one shares memory between its users, which a network disk does not offer.
        with self._told():
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID")

    def known(self, keys: Iterable[str]) -> dict[str, Reply]:
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

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, full, not to be written
            raise InputError(f"{self.path}: cannot keep replies ({error})") from None
        except (sqlite3.DatabaseError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path}: no cache of replies, or a corrupt one ({reason}); delete it, and all is asked again") from None


@contextmanager
def kept(path: Path | None) -> Iterator[Responses]:
    """Open a cache of replies, made if it is not there; None keeps them in memory alone.

    Raises:
        InputError: the file cannot be opened, or is no cache.
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
