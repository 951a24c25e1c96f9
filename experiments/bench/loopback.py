"""A judge's server on this machine's loopback, without a model: it measures how fast the suite sends requests and reads its cache."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any


class GradingServer(ThreadingHTTPServer):
    """Grades every request, by log-probabilities of whole numbers.

    Attributes:
        asked: how many requests it has answered.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.lock = threading.Lock()
        self.asked = 0

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: GradingServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked += 1
        body = json.dumps(_completion(asked)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a line for each request would take longer than the request."""


def _completion(asked: dict[str, Any]) -> dict[str, Any]:
    """Return two likely grades, which depend on the whole request."""
    digest = hashlib.sha256(json.dumps(asked["messages"]).encode()).digest()
    # Two digits show the suite that whole numbers are single tokens.
    grade, other = 10 + digest[0] % 45, 55 + digest[1] % 45
    part = 0.5 + digest[2] / 600
    tops = [{"token": str(grade), "logprob": log(part)}, {"token": str(other), "logprob": log(1 - part)}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": str(grade)},
                "finish_reason": "stop",
                "logprobs": {"content": [{**tops[0], "top_logprobs": tops}]},
            }
        ],
        "usage": {"prompt_tokens": len(asked["messages"][-1]["content"].split()), "completion_tokens": 1},
    }


@contextmanager
def grading_server() -> Iterator[GradingServer]:
    """Yield a server that grades until the block ends."""
    with GradingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
