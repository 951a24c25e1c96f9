"""Servers that fail each request, and servers that are well and cannot answer some."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.probes.scoring.servers import Behaviour, Request, Server, behaving, drips, hangs, says, sends
from wellworn.data.errors import InputError
from wellworn.probes.scoring import retries
from wellworn.probes.scoring.endpoint import EndpointConfig, ask
from wellworn.probes.scoring.responses import Ask, Failure, Kind, Reply
from wellworn.probes.scoring.retries import ABOUT_THE_ASK, HOPELESS, IN_A_ROW, PASSING, remedy

# Waits are so many times shorter here.
FASTER = 200


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_WAIT", "LONGEST_WAIT", "PATIENCE", "PATIENCE_AT_LIMIT"):
        monkeypatch.setattr(retries, name, getattr(retries, name) / FASTER)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(server: Server, **changes: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": server.url, "model": "judge", "key_env": "NO_KEY", **changes})


def asks(count: int, **changes: Any) -> list[Ask]:
    return [Ask((("user", f"question {i}"),), **{"max_tokens": 4, **changes}) for i in range(count)]


def kinds(replies: Sequence[Reply | Failure]) -> list[str]:
    return ["reply" if isinstance(each, Reply) else each.kind for each in replies]


def odd_ones(behaviour: Behaviour, odd: int) -> Behaviour:
    """Behave so for the first questions, and answer the others."""

    def behave(request: Request) -> None:
        number = int(request.ask["messages"][0]["content"].split()[1])
        (behaviour if number < odd else says("7"))(request)

    return behave


# Behaviour → the kind that is named, and its remedy.
FAILING: dict[str, tuple[Behaviour, str, str]] = {
    "500": (sends("out of memory", 500), "server", "see the server's log"),
    "busy": (sends("busy", 503, {"Retry-After": "3600"}), "server", "see the server's log"),
    "limit": (sends("slow down", 429), "rate limit", "set requests_per_minute to what this server allows"),
    "quota": (sends("slow down", 429, {"Retry-After": "86400"}), "rate limit", "set requests_per_minute"),
    "hangs": (hangs, "timeout", "raise timeout, or lower concurrency"),
    "drips": (drips, "timeout", "raise timeout"),
    "broken": (sends('{"choices": [', claimed=1000), "broken off", "see the server's log"),
    "html": (sends("<html>Sign in</html>"), "not json", "correct url"),
    "nothing": (sends(""), "not json", "correct url"),
    "malformed": (sends("7"), "malformed", "correct url"),
    "no choices": (says("7", choices=[]), "no choices", "correct url"),
    "too large": (sends(json.dumps("x" * 2_000_001)), "too large", "correct url"),
    "not finite": (says("7", [("7", float("nan"))]), "not finite", "another number format"),
    "refused": (sends("unknown key", 422), "refused request", "see what it refuses"),
    "no key": (sends("no key", 401), "unauthorized", "set $NO_KEY"),
    "no model": (sends("no model", 404), "not found", "let the server load it"),
    "other": (says("7", model="other"), "other model", "correct model"),
}


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("case", FAILING)
def test_a_server_that_fails_each_request_is_given_up_soon(case: str, concurrency: int) -> None:
    behaviour, kind, words = FAILING[case]
    start = time.monotonic()
    with behaving(behaviour) as server, pytest.raises(InputError) as error:
        ask(config(server, concurrency=concurrency, timeout=0.1 if kind == "timeout" else 30.0), asks(1000, top_logprobs=1))
    took = time.monotonic() - start
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{server.url}, model judge: ")
    assert words in message
    assert f"({kind} × {IN_A_ROW} in a row: {len(server.asks)} tries in " in message or concurrency > 1
    assert f"{kind} × " in message
    # Two minutes, or five at a rate limit, and what the requests themselves take.
    assert took < (300 if kind == "rate limit" else 120) / FASTER + 3.0


def test_mixed_failures_end_it_too() -> None:
    mixed = [sends("a", 500), sends("b", 403), sends("c", 400)] * 20
    with behaving(*mixed) as server, pytest.raises(InputError, match=r"unauthorized × \d, .*in a row"):
        ask(config(server, concurrency=1, retries=0), asks(100))
    assert len(server.asks) == IN_A_ROW


ABOUT_A_TEXT: dict[str, Behaviour] = {
    "refusal": says(message={"content": None, "refusal": "I can't."}),
    "content_filter": says("", choice={"finish_reason": "content_filter"}),
    "empty": says(""),
    "no_logprobs": sends("logprobs are not supported", 422),
}


@pytest.mark.parametrize("kind", ABOUT_A_TEXT)
def test_what_is_about_a_text_never_ends_it(kind: str) -> None:
    with behaving(ABOUT_A_TEXT[kind]) as server:
        assert kinds(ask(config(server), asks(30, top_logprobs=1)).replies) == [kind] * 30
    assert len(server.asks) == 30


def test_what_cannot_be_sent_never_ends_it() -> None:
    with behaving(says("7")) as server:
        found = ask(config(server), [Ask((("user", f"{i} \ud83d"),), max_tokens=4) for i in range(10)])
    assert found.failures == {"unsendable": 10}


@pytest.mark.parametrize("behaviour", [sends("too long", 400), sends("crashed", 500), sends("flagged", 403), says("7", choices=[])])
def test_texts_that_a_server_cannot_answer_do_not_end_it(behaviour: Behaviour, tmp_path: Path) -> None:
    """It answers others, at first or in an earlier call, and is asked one of them again."""
    with behaving(odd_ones(behaviour, 12)) as server:
        questions = asks(14)
        questions = [questions[13], *questions[:13]]
        found = ask(config(server, concurrency=1, retries=1), questions, tmp_path / "cache")
        assert [each == "reply" for each in kinds(found.replies)] == [True, *[False] * 12, True]
        # An interrupted command finds them all in a row.
        again = ask(config(server, concurrency=1, retries=1), questions, tmp_path / "cache")
    assert (again.cached, again.asked) == (2, 12)
    assert again.replies == found.replies


def test_what_is_asked_once_more_is_paid_for() -> None:
    with behaving(odd_ones(sends("too long", 400), 5)) as server:
        questions = asks(6)
        found = ask(config(server, concurrency=1, price=(1e6, 0)), [questions[5], *questions[:5]])
    assert (found.asked, len(server.asks), found.tokens_in, found.cost) == (6, 7, 4, 4.0)


def test_an_adapter_that_is_not_served_ends_it_though_the_base_answers() -> None:
    def base_alone(request: Request) -> None:
        (says("7") if request.ask["model"] == "judge" else sends("no such model", 404))(request)

    with behaving(base_alone) as server, pytest.raises(InputError, match="model adapter: 404: no such model"):
        ask(config(server, concurrency=1), [*asks(3), *asks(20, model="adapter")])
    assert len(server.asks) == 3 + IN_A_ROW


def test_a_slow_rate_limit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far more is asked than passes at a time: each waits for longer than the retries of one ask, and none is lost."""
    passed = 0.0

    def limited(request: Request) -> None:
        nonlocal passed
        with request.server.lock:
            now = time.monotonic()
            passes = now - passed >= 0.1
            passed = now if passes else passed
        (says("7") if passes else sends("slow down", 429))(request)

    # The first five waits are 0.03 s at most.
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.0005)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.05)
    with behaving(limited) as server:
        assert kinds(ask(config(server, concurrency=8), asks(16)).replies) == ["reply"] * 16
    assert len(server.asks) > 2 * 16


def test_without_retries_a_rate_limit_is_not_waited_for() -> None:
    with behaving(sends("slow down", 429), says("7")) as server:
        assert kinds(ask(config(server, concurrency=1, retries=0), asks(2)).replies) == ["rate_limit", "reply"]


def test_each_wait_is_told() -> None:
    told: list[str] = []
    with behaving(says("7"), sends("busy\x1b[31m" + 90 * "x", 500), sends("slow down", 429), says("7")) as server:
        ask(config(server, concurrency=1), asks(2), notice=told.append)
    assert len(told) == 2
    assert told[0].startswith("request 2 of 2, try 1 of 6: 500: busy [31mxxxx")
    assert "...; next in " in told[0]
    assert told[1] == "request 2 of 2, try 2: 429: slow down; next in 0 s"


def test_replies_before_the_end_are_kept(tmp_path: Path) -> None:
    with behaving(*[says("7")] * 7, sends("out of memory", 500)) as server, pytest.raises(InputError, match="500: out of memory"):
        ask(config(server, concurrency=1), asks(100), tmp_path / "cache")
    with behaving(says("7")) as server:
        assert ask(config(server), asks(100), tmp_path / "cache").cached == 7


def test_each_kind_that_may_end_it_has_a_remedy() -> None:
    settings = EndpointConfig(url="http://127.0.0.1:1/v1", model="judge")
    for kind in set(get_args(Kind)) - ABOUT_THE_ASK:
        assert remedy(kind, settings)
    assert not ABOUT_THE_ASK & (HOPELESS | PASSING)
