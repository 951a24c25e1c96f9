"""Try a request again where that may help, say so meanwhile, and give up on a server that answers nothing.

A failure is about the one ask (a refusal) or about the server (a rate limit). Those about an ask are counted, and never end a call. Those
about the server end it after five in a row. First an ask that the server answered before is sent once more: where that one is answered
again, the failures are those of texts that this server cannot answer, and the call goes on.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wellworn.data.errors import InputError
from wellworn.probes.scoring.responses import Ask, Failure, Kind, Reply

if TYPE_CHECKING:
    from wellworn.probes.scoring.endpoint import EndpointConfig
    from wellworn.probes.scoring.wire import Wire

# Seconds before the first retry, doubled for each that follows, and the most that is ever waited, also where a server asks for more.
FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
# Seconds for each of `retries` in which a server may answer nothing, and asks are still tried again. Most rate limits are per minute.
PATIENCE = 24.0
PATIENCE_AT_LIMIT = 60.0
# So many asks without a reply, one after another, end a call.
IN_A_ROW = 5
# Even fewer do if there are no more asks.
HOPELESS: frozenset[Kind] = frozenset({"connection", "unauthorized", "not_found", "other_model"})
# Another try may help.
PASSING: frozenset[Kind] = frozenset({"rate_limit", "server", "timeout", "connection", "broken_off"})
# A server that is well gives these, too. Without log-probabilities the caller asks in another way.
ABOUT_THE_ASK: frozenset[Kind] = frozenset({"refusal", "content_filter", "empty", "unsendable", "most_cost", "no_logprobs"})
# Characters of a failure's detail in a line of progress.
LONGEST_REASON = 60


@dataclass
class _Silence:
    """Failures of a server since it last answered.

    Attributes:
        since: time of the first failed try; None if the last try was answered.
        tries: failed tries.
        asks: asks that have failed for good, by kind.
    """

    since: float | None = None
    tries: int = 0
    asks: Counter[Kind] = field(default_factory=Counter)

    def lasts(self, now: float) -> float:
        """Return its seconds so far."""
        return 0.0 if self.since is None else now - self.since


@dataclass
class Line:
    """Sends the asks of one call to a server, at its pace.

    Attributes:
        wire: the open client.
        config: the server.
        total: the number of asks in this call.
        answered: an ask that the server answered, for each of its models.
        notice: called with a line before each wait.
    """

    wire: "Wire"
    config: "EndpointConfig"
    total: int
    answered: dict[str, Ask] = field(default_factory=dict)
    notice: Callable[[str], None] | None = None
    _reached: bool = False
    _next_turn: float = 0.0
    _silence: _Silence = field(default_factory=_Silence)
    _checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, ask: Ask, key: str, number: int) -> Reply | Failure:
        """Send one ask until it is answered or another try cannot help.

        Args:
            ask: what to ask.
            key: its key in the cache.
            number: its number in this call, from 1.
        """
        tries = 0
        while True:
            outcome, wished = await self._try(ask)
            tries += 1
            if isinstance(outcome, Reply):
                self.answered[self._model(ask)] = ask
                return outcome
            left = self._time_left(outcome.kind, tries)
            if left <= 0:
                if outcome.kind not in ABOUT_THE_ASK:
                    self._silence.asks[outcome.kind] += 1
                return outcome
            # Spread by the ask's own key, so that asks refused together are not retried together.
            usual = FIRST_WAIT * 2 ** min(tries - 1, 16) * (1 + int(key[:8], 16) / 2**32)
            wait = min(max(usual, wished), LONGEST_WAIT, left)
            if self.notice:
                self.notice(self._describe_wait(outcome, number, tries, wait))
            await asyncio.sleep(wait)

    async def stop_if_silent(self, ask: Ask, failure: Failure) -> Reply | Failure | None:
        """End the call if the server has answered nothing for too many asks in a row.

        Returns:
            The outcome of an earlier ask that was sent once more; None if none was.

        Raises:
            InputError: says which failures, how many, for how long, and the remedy.
        """
        async with self._checking:
            if failure.kind in ABOUT_THE_ASK or not self._silent(failure.kind):
                return None
            known = self.answered.get(self._model(ask))
            again = (await self._try(known))[0] if known else None
            if self._silent(failure.kind):
                raise InputError(self._describe_silence(ask, failure))
            return again

    async def _try(self, ask: Ask) -> tuple[Reply | Failure, float]:
        await self._turn()
        outcome, wished = await self.wire.send(ask, self._model(ask))
        self._reached = self._reached or isinstance(outcome, Reply) or outcome.kind != "connection"
        if isinstance(outcome, Reply) or outcome.kind in ABOUT_THE_ASK:
            self._silence = _Silence()
        else:
            self._silence.tries += 1
            if self._silence.since is None:
                self._silence.since = _now()
        return outcome, wished

    async def _turn(self) -> None:
        if self.config.requests_per_minute is None:
            return
        turn = max(_now(), self._next_turn)
        self._next_turn = turn + 60 / self.config.requests_per_minute
        await asyncio.sleep(turn - _now())

    def _time_left(self, kind: Kind, tries: int) -> float:
        """Return the seconds in which an ask may still be tried again; 0 if it may not."""
        # A server that never answered is not there; one that did may be restarting.
        if kind not in PASSING or not self._reached:
            return 0.0
        # At a rate limit an ask waits for as long as others are answered: there are more tries than of a server that fails.
        if kind != "rate_limit" and tries > self.config.retries:
            return 0.0
        patience = self.config.retries * (PATIENCE_AT_LIMIT if kind == "rate_limit" else PATIENCE)
        return patience - self._silence.lasts(_now())

    def _silent(self, kind: Kind) -> bool:
        count = self._silence.asks.total()
        return count >= (min(IN_A_ROW, self.total) if kind in HOPELESS else IN_A_ROW)

    def _model(self, ask: Ask) -> str:
        return ask.model or self.config.model

    def _describe_wait(self, failure: Failure, number: int, tries: int, wait: float) -> str:
        of = "" if failure.kind == "rate_limit" else f" of {self.config.retries + 1}"
        reason = failure.detail if len(failure.detail) <= LONGEST_REASON else failure.detail[: LONGEST_REASON - 3] + "..."
        return f"request {number:,} of {self.total:,}, try {tries}{of}: {reason}; next in {wait:.0f} s"

    def _describe_silence(self, ask: Ask, failure: Failure) -> str:
        asks, tries = self._silence.asks, self._silence.tries
        kinds = ", ".join(f"{kind.replace('_', ' ')} × {count}" for kind, count in asks.most_common())
        return (
            f"{self.config.url}, model {self._model(ask)}: {failure.detail}; {remedy(failure.kind, self.config)} "
            f"({kinds} in a row: {tries} tries in {self._silence.lasts(_now()):.0f} s, none answered)"
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def remedy(kind: Kind, config: "EndpointConfig") -> str:
    """Return what to do about a server that answers nothing."""
    foreign = "correct url (it mostly ends in /v1): this is not an answer of an OpenAI-compatible server"
    remedies: Mapping[Kind, str] = {
        "connection": "start the server, or correct url",
        "unauthorized": f"set ${config.key_env} to a key that this server takes",
        "not_found": "correct url (it mostly ends in /v1) or model, or let the server load it",
        "other_model": "correct model",
        "rate_limit": "set requests_per_minute to what this server allows, lower concurrency, raise retries, or go on later",
        "server": "see the server's log, or go on later",
        "broken_off": "see the server's log, or go on later",
        "timeout": "raise timeout, or lower concurrency",
        "refused_request": "see what it refuses; further keys of a request are under more",
        "not_finite": "the model's log-probabilities are not finite; serve it in another number format",
        "not_json": foreign,
        "malformed": foreign,
        "no_choices": foreign,
        "too_large": foreign,
    }
    return remedies[kind]
