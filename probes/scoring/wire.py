"""One request to an OpenAI-compatible chat server, and its reply or failure.

This imports the optional `openai`: import it where it is used, by `probes.scoring.endpoint`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
import openai
from pydantic import BaseModel, BeforeValidator, FailFast, FiniteFloat, NonNegativeInt, ValidationError

from wellworn.data.errors import InputError
from wellworn.data.secrets import BLANK, SHORTEST, blanked
from wellworn.probes.scoring.responses import Ask, Failure, Kind, Reply

# The most bytes that are read of an answer, whatever a server sends.
MOST_BYTES = 2_000_000
# Characters of a failure's detail.
LONGEST_DETAIL = 200
# Seconds; a running server accepts a connection at once, however long it then takes to answer.
LONGEST_CONNECT = 10.0


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, list) else value


class _Top(BaseModel):
    token: str
    logprob: FiniteFloat


class _Token(BaseModel):
    top_logprobs: Annotated[list[_Top], FailFast()] = []


class _Logprobs(BaseModel):
    content: Annotated[list[_Token], BeforeValidator(_first)] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0


class _Completion(BaseModel):
    """The parts of a chat completion that are read: the first token of the first choice, and nothing of the rest."""

    model: str | None = None
    choices: Annotated[list[_Choice], BeforeValidator(_first)] | None = None
    usage: _Usage | None = None


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends soon after `MOST_BYTES`, however much of it there is."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            yield part
            size += len(part)
            if size > MOST_BYTES:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream)
    # A few compressed bytes can expand to gigabytes. Compression was not requested; such a body is read as it is, which is not JSON.
    response.headers.pop("content-encoding", None)


class Wire:
    """An open client of one server."""

    def __init__(self, client: openai.AsyncOpenAI, key: str, timeout: float) -> None:
        self._client = client
        # As it is, and as JSON or an address would write it.
        self._secrets = {key, key.replace("/", "\\/"), quote(key, safe="")} if len(key) >= SHORTEST else set()
        self._timeout = timeout

    async def send(self, ask: Ask, model: str) -> tuple[Reply | Failure, float]:
        """Send one request, once; return its reply or failure, and the seconds that the server asks to wait."""
        tops = {"logprobs": True, "top_logprobs": ask.top_logprobs} if ask.top_logprobs else {}
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in ask.messages],
            "max_completion_tokens": ask.max_tokens,  # newer models refuse the older max_tokens
            "temperature": ask.temperature,
            **({} if ask.seed is None else {"seed": ask.seed}),
            **tops,
            **({"extra_body": dict(ask.more)} if ask.more else {}),
        }
        try:
            # The library's own limit is on each read: a server that sends a byte now and then would never time out.
            async with asyncio.timeout(self._timeout):
                answer = await self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            return self._status_failure(error, ask), _retry_after(error.response.headers.get("retry-after", ""))
        except openai.APIConnectionError as error:
            return self._connection_failure(error.__cause__), 0.0
        except TimeoutError:
            return Failure("timeout", f"no whole answer within {self._timeout:g} s"), 0.0
        except UnicodeEncodeError:
            return Failure("unsendable", "a message or the model's name holds half of a surrogate pair, which is not a character"), 0.0
        return read(answer.content, ask, model, self._redact), 0.0

    def _connection_failure(self, cause: BaseException | None) -> Failure:
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
            return Failure("connection", _short(self._redact(f"no connection: {cause or type(cause).__name__}")))
        if isinstance(cause, httpx2.TimeoutException):
            return Failure("timeout", f"no whole answer within {self._timeout:g} s")
        return Failure("broken_off", _short(self._redact(f"{type(cause).__name__}: {cause}")))

    def _status_failure(self, error: openai.APIStatusError, ask: Ask) -> Failure:
        # A redirect is not followed, and says where to.
        text = error.response.text or error.response.headers.get("location", "")
        return Failure(_kind(error.status_code, text if ask.top_logprobs else ""), _short(self._redact(f"{error.status_code}: {text}")))

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, BLANK)
        return blanked(text)


@asynccontextmanager
async def connected(url: str, key: str, timeout: float, connections: int) -> AsyncIterator[Wire]:
    """Open a client for as long as the block lasts; it connects with the first request.

    Args:
        url: the base, such as `http://127.0.0.1:8000/v1`.
        key: the API key, or an empty text.
        timeout: seconds that a request may take, until its answer is read.
        connections: most at a time.

    Raises:
        InputError: the url is not valid.
    """
    try:
        http = openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [_bound]},
            follow_redirects=False,  # a key goes where its owner sent it
            timeout=httpx2.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT)),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",
            max_retries=0,  # `probes.scoring.endpoint` retries: at its own pace, and also where an answer breaks off
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},
        )
    except httpx2.InvalidURL as error:
        raise InputError(f"{url}: no address of a server ({error})") from None
    async with client:
        yield Wire(client, key, timeout)


def read(body: bytes, ask: Ask, model: str, redact: Callable[[str], str] = str) -> Reply | Failure:
    """Read the body of a chat completion.

    Args:
        body: the bytes.
        ask: what was asked.
        model: name of the model that is asked.
        redact: blanks out what must not be kept or shown.
    """
    if len(body) > MOST_BYTES:
        return Failure("too_large", f"an answer of more than {MOST_BYTES:,} bytes")
    try:
        answer = _Completion.model_validate_json(body)
    except ValidationError as error:
        found = {each["type"]: f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)}
        if "json_invalid" in found:
            return Failure("not_json", _short(redact(f"no JSON: {body.decode(errors='replace')}" if body.strip() else "an empty body")))
        return Failure("not_finite" if "finite_number" in found else "malformed", _short(next(iter(found.values()))))
    usage = answer.usage or _Usage()

    def failure(kind: Kind, detail: str) -> Failure:
        return Failure(kind, _short(redact(detail)), usage.prompt_tokens, usage.completion_tokens)

    if not answer.choices:
        return failure("no_choices", f"no choices: {body.decode(errors='replace')}")
    if not _same(model, answer.model):
        return failure("other_model", f"asked {model}, answered by {answer.model}")
    choice = answer.choices[0]
    if choice.finish_reason == "content_filter":
        return failure("content_filter", "withheld by the server's content filter")
    if choice.message.refusal:
        return failure("refusal", choice.message.refusal)
    text = redact(choice.message.content or "")
    content = choice.logprobs.content if choice.logprobs and ask.top_logprobs else None
    tops = tuple((redact(top.token), top.logprob) for top in content[0].top_logprobs) if content else ()
    if not text and not tops:
        return failure("empty", f"no text; it ended by {choice.finish_reason}")
    return Reply(text, choice.finish_reason == "stop", tops or None, usage.prompt_tokens, usage.completion_tokens)


def _same(asked: str, answered: str | None) -> bool:
    """Return whether a model is the one asked for: by its name, a date behind it (gpt-4o-2024-08-06), or a revision (name@main)."""
    return answered is not None and re.fullmatch(rf"{re.escape(asked)}(-\d[\d-]*|@\S+)?", answered) is not None


def _kind(status: int, about: str) -> Kind:
    if status == 429:
        return "rate_limit"
    if "logprob" in about.lower():
        return "no_logprobs"
    if status == 408:
        return "timeout"
    if status >= 500:
        return "server"
    if status in (401, 403):
        return "unauthorized"
    return "not_found" if status == 404 or status < 400 else "refused_request"


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header; 0 for none and for a date, which falls back on the usual wait."""
    return float(value) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) else 0.0


def _short(text: str) -> str:
    """Return one printable line. Redact the text first: half of a key would escape redaction."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 5 * LONGEST_DETAIL]).split())
    return line if len(line) <= LONGEST_DETAIL else line[: LONGEST_DETAIL - 3] + "..."
