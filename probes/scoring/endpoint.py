"""Ask an OpenAI-compatible chat server: OpenAI, `vllm serve` with adapters as models, `transformers serve`.

Every reply is kept as it arrives, so after any interruption the next call asks only for the missing ones. An ask without a reply gets a
`Failure` with a kind in its place; the caller counts failures and decides.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from wellworn.data.errors import InputError
from wellworn.data.schema import Text
from wellworn.data.secrets import SecretError, looks_secret, note_variable, refuse_secrets
from wellworn.probes.scoring.responses import Ask, Failure, Kind, Reply, Responses, kept
from wellworn.probes.scoring.retries import Line

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from wellworn.probes.scoring.wire import Wire

# The keys that a request sets itself.
OWNED = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "logprobs", "top_logprobs", "n", "stream"}


def _address(url: str) -> str:
    if "@" in url or "?" in url or "#" in url:
        raise SecretError("must hold no password, query or fragment; a key comes from the environment")
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        named = False
    if not named:
        raise ValueError("must be the address of a server, such as http://127.0.0.1:8000/v1")
    return url


def _variable(name: str) -> str:
    # The key itself may be given in place of a name.
    if not (name.isascii() and name.isidentifier()) or looks_secret(name):
        raise SecretError("must be the name of an environment variable, and not the key: letters, digits and _, no digit first")
    return name


class EndpointConfig(BaseModel):
    """An OpenAI-compatible chat server, and how it may be used.

    Attributes:
        url: its base address. Example: http://127.0.0.1:8000/v1.
        model: the model's name on the server. Example: Qwen/Qwen2.5-7B-Instruct.
        key_env: environment variable that holds the server's key; a server that needs no key is asked without. Example: MY_API_KEY.
        concurrency: requests sent at the same time. Unit: requests. Example: 8.
        retries: further tries of a request that failed for a passing reason, about 24 seconds each at most. At a rate limit, the minutes
            without any answer after which it gives up. Unit: tries. Example: 5.
        timeout: time limit of one request. Unit: seconds. Example: 120.
        requests_per_minute: rate limit, retries included; null sets none. Unit: requests per minute. Example: 500.
        price: price of tokens read, and of tokens written; null if not known. Unit: dollars per million tokens. Example: [0.15, 0.6].
        most_cost: cost limit, after which no more requests are sent; requests under way are still paid for. It needs `price`.
            Unit: dollars. Example: 5.
        more: further keys of each request, if the server knows them. Example: {chat_template_kwargs: {enable_thinking: false}}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_address)]
    model: Text
    key_env: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(ge=1)] = 8
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: PositiveFloat = 60.0
    requests_per_minute: PositiveFloat | None = None
    price: tuple[NonNegativeFloat, NonNegativeFloat] | None = None
    most_cost: PositiveFloat | None = None
    more: Annotated[dict[str, Any], AfterValidator(refuse_secrets)] = {}

    @field_validator("more")
    @classmethod
    def _not_ours(cls, keys: dict[str, Any]) -> dict[str, Any]:
        if ours := OWNED & keys.keys():
            raise ValueError(f"{', '.join(sorted(ours))} are set by the suite; leave them out")
        return keys

    @model_validator(mode="after")
    def _check_price(self) -> "EndpointConfig":
        if self.most_cost is not None and self.price is None:
            raise ValueError("most_cost needs a price: [dollars per million tokens read, dollars per million tokens written]")
        return self

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return dollars for tokens read, and written; None without a price."""
        return None if self.price is None else (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6

    def less(self, spent: float) -> "EndpointConfig":
        """Return the same with the rest of `most_cost` after some dollars: one limit for several calls."""
        return self if self.most_cost is None else self.model_copy(update={"most_cost": max(self.most_cost - spent, 0.0)})


@dataclass
class Budget:
    """The use of one server by several calls: its `most_cost` is one limit for all of them.

    Attributes:
        spent: dollars, so far.
        asked: requests that were sent, so far.
        cached: requests that the cache answered, so far.
    """

    spent: float = 0.0
    asked: int = 0
    cached: int = 0

    def left(self, server: EndpointConfig) -> EndpointConfig:
        """Return the server with what is left of its limit."""
        return server.less(self.spent)

    def add(self, cost: float | None, asked: int, cached: int) -> None:
        """Count one more call."""
        self.spent += cost or 0.0
        self.asked += asked
        self.cached += cached


@dataclass(frozen=True)
class Answers:
    """The results of a call.

    Attributes:
        replies: one for each ask, in their order.
        asked: different asks that were sent, however often each was tried.
        cached: different asks that the cache answered.
        tokens_in: tokens read for what was sent, where the server says.
        tokens_out: tokens written.
        cost: dollars; None without a price.
    """

    replies: list[Reply | Failure]
    asked: int
    cached: int
    tokens_in: int
    tokens_out: int
    cost: float | None

    @property
    def failures(self) -> dict[Kind, int]:
        """How many asks failed, by kind, the most frequent first."""
        return dict(Counter(each.kind for each in self.replies if isinstance(each, Failure)).most_common())


def ask(
    config: EndpointConfig,
    asks: Sequence[Ask],
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Answers:
    """Send asks to a chat server, several at a time; return the reply or failure of each, in their order.

    An ask with a reply in the cache is not sent, and equal asks are sent once. Failures are not kept.

    Args:
        config: the server.
        asks: what to ask.
        cache: the file that keeps replies, made if it is not there; processes may share it.
        progress: called with the number of asks just settled.
        notice: called with a line before each wait for a server that fails: which request, its tries, and the seconds until the next.

    Raises:
        InputError: the extra `judge` is not installed, the key is malformed, the cache cannot be used, or no reply can be had: five asks in
            a row failed for a reason that lies with the server. Fewer do if they are all, and found no server, no access, no such model, or
            another one.

    Example:
        >>> config = EndpointConfig(url="http://127.0.0.1:8000/v1", model="judge")
        >>> ask(config, [Ask((("user", "What is the capital of Peru?"),), max_tokens=8)]).replies[0].text  # doctest: +SKIP
        'Lima.'
    """
    asks, keys = _keyed(config, asks)
    wanted, times = dict(zip(keys, asks, strict=True)), Counter(keys)
    with kept(cache) as responses:
        settled: dict[str, Reply | Failure] = dict(responses.look_up(wanted))
        cached = len(settled)
        answered = {wanted[key].model or config.model: wanted[key] for key in settled}
        if progress and cached:
            progress(sum(times[key] for key in settled))

        def settle(key: str, outcome: Reply | Failure) -> None:
            settled[key] = outcome
            if progress:
                progress(times[key])

        spent = _Spent(config)
        if todo := {key: each for key, each in wanted.items() if key not in settled}:
            try:
                asyncio.run(_ask_all(config, todo, answered, responses, spent, settle, notice))
            except ExceptionGroup as errors:  # the first of several workers that failed
                raise errors.exceptions[0] from None
    return Answers([settled[key] for key in keys], spent.asked, cached, spent.tokens_in, spent.tokens_out, spent.cost)


def forget(config: EndpointConfig, asks: Sequence[Ask], cache: Path | None) -> None:
    """Keep the replies to asks no longer, because they are wrong.

    Raises:
        InputError: the cache cannot be used.
    """
    with kept(cache) as responses:
        responses.forget(_keyed(config, asks)[1])


def _keyed(config: EndpointConfig, asks: Sequence[Ask]) -> tuple[Sequence[Ask], list[str]]:
    """Return asks with the server's own settings, and the keys of their replies."""
    asks = [replace(each, more={**config.more, **each.more}) for each in asks] if config.more else asks
    return asks, [each.key(config.model) for each in asks]


@dataclass
class _Spent:
    """The running totals of a call."""

    config: EndpointConfig
    asked: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, outcome: Reply | Failure) -> None:
        self.tokens_in += outcome.tokens_in
        self.tokens_out += outcome.tokens_out

    @property
    def cost(self) -> float | None:
        return self.config.cost(self.tokens_in, self.tokens_out)

    @property
    def used_up(self) -> bool:
        return self.config.most_cost is not None and (self.cost or 0.0) >= self.config.most_cost


async def _ask_all(
    config: EndpointConfig,
    todo: Mapping[str, Ask],
    answered: dict[str, Ask],
    responses: Responses,
    spent: _Spent,
    settle: Callable[[str, Reply | Failure], None],
    notice: Callable[[str], None] | None,
) -> None:
    connected = _import_connection(config)
    left, keeper = iter(enumerate(todo.items(), start=1)), _Keeper(responses)

    async def work(line: Line) -> None:
        for number, (key, each) in left:  # shared: every ask goes to the one worker that takes it
            if spent.used_up:
                settle(key, Failure("most_cost", f"not asked: {spent.cost:.4f} of {config.most_cost:g} dollars are spent"))
                continue
            outcome = await line.ask(each, key, number)
            spent.asked += 1
            spent.add(outcome)
            if isinstance(outcome, Reply):
                await keeper.keep(key, outcome)
            settle(key, outcome)
            if config.most_cost is not None and isinstance(outcome, Reply) and not outcome.tokens_in:
                raise InputError(f"{config.url}: does not say how many tokens it reads, so most_cost cannot be kept; leave it out")
            if isinstance(outcome, Failure) and (again := await line.stop_if_silent(each, outcome)):
                spent.add(again)

    async with connected(config.url, _key(config), config.timeout, config.concurrency) as wire, asyncio.TaskGroup() as workers:
        line = Line(wire, config, len(todo), answered, notice)
        for _ in range(min(config.concurrency, len(todo))):
            workers.create_task(work(line))


class _Keeper:
    """Keeps replies as they arrive: those that arrive while others are being written are then written together.

    A write waits for the disk, for longer than some servers take to answer; a write for each reply would slow them down.
    """

    def __init__(self, responses: Responses) -> None:
        self._responses = responses
        self._waiting: dict[str, Reply] = {}
        self._writing = asyncio.Lock()

    async def keep(self, key: str, reply: Reply) -> None:
        self._waiting[key] = reply
        async with self._writing:
            if key in self._waiting:
                batch, self._waiting = self._waiting, {}
                await asyncio.to_thread(self._responses.keep, batch)


def check(config: EndpointConfig) -> None:
    """Check, without sending a request, that a server can be asked.

    Raises:
        InputError: the extra `judge` is not installed, or the key is malformed.
    """
    _import_connection(config)
    _key(config)


def _import_connection(config: EndpointConfig) -> "Callable[..., AbstractAsyncContextManager[Wire]]":
    try:
        from wellworn.probes.scoring.wire import connected
    except ModuleNotFoundError as error:
        raise InputError(f"{config.url}: asking a server needs {error.name}; install the extra: pip install -e '.[judge]'") from None
    return connected


def _key(config: EndpointConfig) -> str:
    note_variable(config.key_env)
    key = os.environ.get(config.key_env, "").strip()
    # Anything else is not allowed in a header, and the error about it would quote the key.
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"${config.key_env}: holds something that is no API key")
    return key
