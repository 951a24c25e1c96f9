"""Chat servers on this machine's loopback: one that misbehaves as told, and a proper one with whatever behind it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]
Tops = Sequence[tuple[str, float]]
Answer = Callable[[Messages, int, dict[str, Any]], tuple[str, Tops | None]]


class Server(ThreadingHTTPServer):
    """Notes every request, and hands it to `behave`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behave: Callable[["Request", int], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behave = behave
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.asks: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.written = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what is tested."""


class Request(BaseHTTPRequestHandler):
    """One request as a behaviour sees it: what was asked, and ways to answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    ask: dict[str, Any]

    def do_POST(self) -> None:
        self.ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asks)
            self.server.asks.append(self.ask)
            self.server.keys.append(self.headers.get("Authorization", ""))
            self.server.times.append(time.monotonic())
        if self.path != "/v1/chat/completions":
            self.send(json.dumps({"detail": "Not Found"}), 404)
        else:
            self.server.behave(self, number)

    def send(self, body: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None, claimed: int | None = None) -> None:
        """Write an answer, whose length may be a lie."""
        body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = claimed is not None

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the output of tests clean."""


Behaviour = Callable[[Request], None]


def completion(
    ask: Mapping[str, Any],
    text: str | None,
    tops: Tops | None = None,
    message: Mapping[str, Any] | None = None,
    choice: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a chat completion, with other fields in its message, in its choice and in itself."""
    content = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in tops or ()]
    tokens_in = sum(len(message["content"].split()) for message in ask["messages"])
    tokens_out = len((text or "").split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": ask["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **(message or {})},
                "finish_reason": "stop",
                "logprobs": {"content": [{**content[0], "top_logprobs": content}]} if content else None,
                **(choice or {}),
            }
        ],
        "usage": {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out},
        **changes,
    }


def says(text: str | None = None, tops: Tops | None = None, **changes: Any) -> Behaviour:
    """Answer; without a text, with the last message."""
    return lambda request: request.send(
        json.dumps(completion(request.ask, request.ask["messages"][-1]["content"] if text is None else text, tops, **changes))
    )


def sends(body: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None, claimed: int | None = None) -> Behaviour:
    """Answer with these very bytes."""
    return lambda request: request.send(body, status, headers, claimed)


def hangs(request: Request) -> None:
    """Never answer."""
    request.server.closing.wait()
    request.close_connection = True


def drips(request: Request) -> None:
    """Answer a byte at a time, with no end."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    while not request.server.closing.wait(0.05):
        request.wfile.write(b" ")


def pours(megabytes: int, status: int = 200) -> Behaviour:
    """Answer with so many megabytes of JSON, and count what could be written."""

    def pour(request: Request) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(megabytes * 1_000_000 + 2))
        request.end_headers()
        request.wfile.write(b'"')
        for _ in range(megabytes * 10):
            request.wfile.write(b"x" * 100_000)
            request.server.written += 100_000
        request.wfile.write(b'"')

    return pour


@contextmanager
def _serving(behave: Callable[[Request, int], None]) -> Iterator[Server]:
    server = Server(behave)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def behaving(*behaviours: Behaviour) -> Iterator[Server]:
    """Serve the first request by the first behaviour, and so on; the last one serves all that follow."""
    with _serving(lambda request, number: behaviours[min(number, len(behaviours) - 1)](request)) as server:
        yield server


@contextmanager
def chat_server(answer: Answer) -> Iterator[Server]:
    """Serve `answer(messages, max_tokens, ask)`, a text and the first token's log-probabilities or None, one request at a time.

    `ask` is the whole request. Log-probabilities are sent where they are asked for, so many of them as are asked for, the likeliest first.
    """
    lock = threading.Lock()

    def behave(request: Request, _: int) -> None:
        ask = request.ask
        with lock:
            text, tops = answer(ask["messages"], ask.get("max_completion_tokens") or ask.get("max_tokens") or 16, ask)
        if tops is not None:
            tops = sorted(tops, key=lambda top: -top[1])[: ask.get("top_logprobs", 0)] if ask.get("logprobs") else None
        request.send(json.dumps(completion(ask, text, tops)))

    with _serving(behave) as server:
        yield server
