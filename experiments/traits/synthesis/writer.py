"""Texts that a chat server writes piece by piece; a piece is requested again only if its text cannot be used."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.data.schema import seed_for
from wellworn.data.written import UnfitError, read_texts
from wellworn.probes.scoring.endpoint import EndpointConfig, ask
from wellworn.probes.scoring.responses import Ask, Failure, Kind, Reply, kept

# Limit for one piece in one call; kept replies do not count.
TRIES = 4
# Failures that another draw may avoid. Other kinds were already retried, or would be refused again.
AGAIN: frozenset[Kind] = frozenset({"refusal", "content_filter", "empty", "malformed", "not_json", "no_choices", "too_large", "not_finite"})
MOST_COST: Kind = "most_cost"
TEMPERATURE = 1.0


@dataclass(frozen=True)
class Piece:
    """One text, or texts that belong together, to be written.

    Attributes:
        id: its row, or another name; unique among pieces that are written together.
        field: of that row.
        request: the request to the server, without the part about JSON.
        keys: of the JSON object to reply with.
    """

    id: str
    field: str
    request: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A written piece.

    Attributes:
        texts: by key.
        piece: the piece.
        prompt: digest of the request of the successful try.
        seed: random seed of that request.
    """

    texts: Mapping[str, str]
    piece: Piece
    prompt: str
    seed: int


# Raises an `UnfitError` for texts that cannot be used, given the pieces written before.
Fits = Callable[[Piece, Mapping[str, str], Mapping[str, Written]], None]


@dataclass
class _Open:
    """A piece that is not written yet."""

    piece: Piece
    number: int = 0
    complaint: str | None = None
    tries: int = 0

    def ask(self, number: int, seed: int, longest: int) -> Ask:
        # Otherwise a server without seeds would repeat the same reply.
        again = f"\n\nAn earlier try could not be used: {self.complaint}. Write another." if self.complaint else ""
        shape = ", ".join(f'"{key}": "…"' for key in self.piece.keys)
        text = f"{self.piece.request}{again}\n\nReply with one JSON object and nothing else: {{{shape}}}"
        drawn = seed_for(seed, self.piece.id, self.piece.field, number)
        return Ask((("user", text),), longest, temperature=TEMPERATURE, seed=drawn)


@dataclass
class Tally:
    """The number of distinct requests, and the tokens that were read and written for them."""

    asks: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, asks: int, tokens_in: int, tokens_out: int) -> None:
        """Add to the counts."""
        self.asks, self.tokens_in, self.tokens_out = self.asks + asks, self.tokens_in + tokens_in, self.tokens_out + tokens_out


class Writer:
    """A server that writes, with one budget for all requests.

    Args:
        server: the server.
        cache: the file that keeps its replies.
        seed: random seed of all requests.
        longest: length limit of a reply, in tokens.
        spent: cost in dollars of all replies in the cache, including those of later pieces.
        sends: whether to send requests that the cache cannot answer.

    Attributes:
        sent: the requests that were sent.
        kept: the requests that the cache answered, with their original cost.
        rejected: counts of unusable replies and failures, by kind.
        reasons: the first reason of each kind.
    """

    def __init__(
        self, server: EndpointConfig, cache: Path, seed: int, longest: int, spent: float | None = None, sends: bool = True
    ) -> None:
        self._server, self._cache, self._seed, self._longest = server, cache, seed, longest
        self._spent, self._sends = spent or 0.0, sends
        self._last: float | None = None
        self.sent, self.kept = Tally(), Tally()
        self.rejected: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    @property
    def cost(self) -> float | None:
        """Cost in dollars of the requests sent; None without a price."""
        return self._server.cost(self.sent.tokens_in, self.sent.tokens_out)

    @property
    def cost_in_all(self) -> float | None:
        """The same, including the original cost of the cache's replies."""
        now, kept = self.cost, self._server.cost(self.kept.tokens_in, self.kept.tokens_out)
        return None if now is None or kept is None else now + max(self._spent, kept)

    def write(
        self, pieces: Sequence[Piece], fits: Fits, progress: Callable[[int], None], notice: Callable[[str], None] | None = None
    ) -> tuple[dict[str, Written], dict[str, str]]:
        """Have pieces written.

        Each is requested up to `TRIES` times; a further request says what was wrong with the last try. Replies in the cache come first.

        Args:
            pieces: the pieces to write.
            fits: raises for texts that cannot be used.
            progress: called with the number of pieces that are written, or have an unread reply.
            notice: called with a line before each wait for a server that fails.

        Returns:
            The written pieces by id, and for the others the kind of the last failure.

        Raises:
            InputError: as `ask`; earlier replies are kept.
        """
        got: dict[str, Written] = {}
        why: dict[str, str] = {}
        todo = [_Open(piece) for piece in pieces]
        while todo:
            asks, known = self._asks(todo)
            new = [each for each in asks if each not in known]
            start = len(got) + len(asks) - len(new)
            progress(start)
            replies = dict(zip(new, self._send(new, start, progress, notice), strict=True)) | known
            again = []
            for each, asked in zip(todo, asks, strict=True):
                each.tries += asked not in known
                reason = self._settle(each, asked, replies[asked], fits, got)
                if reason is None:
                    continue
                why[each.piece.id] = reason
                if each.tries < TRIES and (isinstance(replies[asked], Reply) or reason in AGAIN):
                    again.append(each)
            todo = again
        return got, {name: reason for name, reason in why.items() if name not in got}

    def _asks(self, todo: Sequence[_Open]) -> tuple[list[Ask], dict[Ask, Reply]]:
        """Return the next request of each piece, and the replies that are already kept.

        Failures are not kept; if a later try of a piece has a kept reply, that one is used.
        """
        chains = [[each.ask(number, self._seed, self._longest) for number in range(each.number, each.number + TRIES)] for each in todo]
        keys = {ask_: ask_.key(self._server.model) for chain in chains for ask_ in chain}
        with kept(self._cache) as responses:
            found = responses.look_up(keys.values())
        asks, known = [], {}
        for each, chain in zip(todo, chains, strict=True):
            at = next((i for i, ask_ in enumerate(chain) if keys[ask_] in found), 0)
            each.number += at
            asks.append(chain[at])
            if (reply := found.get(keys[chain[at]])) is not None:
                known[chain[at]] = reply
                self.kept.add(1, reply.tokens_in, reply.tokens_out)
        return asks, known

    def _send(
        self, asks: Sequence[Ask], settled: int, progress: Callable[[int], None], notice: Callable[[str], None] | None
    ) -> list[Reply | Failure]:
        """Send requests within the remaining budget and the rate limit; `settled` pieces are done already."""
        if not asks:
            return []
        server = self._server.less(self.cost_in_all or 0.0)
        if not self._sends or server.most_cost == 0:
            return [Failure(MOST_COST, "not asked") for _ in asks]
        if server.requests_per_minute is not None and self._last is not None:
            time.sleep(max(0.0, self._last + 60 / server.requests_per_minute - time.monotonic()))

        def settle(count: int) -> None:
            nonlocal settled
            settled += count
            progress(settled)

        try:
            answers = ask(server, asks, self._cache, settle, notice)
        except InputError as error:
            raise InputError(f"{error}; what was written is kept in {self._cache}; the same command goes on") from None
        self._last = time.monotonic()
        self.sent.add(answers.asked, answers.tokens_in, answers.tokens_out)
        return answers.replies

    def _settle(self, each: _Open, asked: Ask, reply: Reply | Failure, fits: Fits, got: dict[str, Written]) -> str | None:
        """Take a usable reply and return None; otherwise prepare the piece for another try, and return the kind of failure."""
        if isinstance(reply, Failure):
            return self._useless(each, reply.kind, reply.detail)
        try:
            texts = read_texts(reply.text, each.piece.keys)
            fits(each.piece, texts, got)
        except UnfitError as error:
            kind, detail = (error.kind, error.detail) if reply.finished else ("cut off", "it was cut off before its end; write less")
            each.complaint = detail
            return self._useless(each, kind, detail)
        got[each.piece.id] = Written(texts, each.piece, digest(asked.messages), asked.seed or 0)
        return None

    def _useless(self, each: _Open, kind: str, detail: str) -> str:
        each.number += 1
        if kind != MOST_COST:  # this one was never sent
            self.rejected[kind] += 1
            self.reasons.setdefault(kind, detail)
        return kind
