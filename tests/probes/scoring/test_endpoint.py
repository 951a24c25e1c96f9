"""Every request goes over the loopback to a real server, good or bad."""

import json
import logging
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.probes.scoring.servers import Behaviour, Request, Server, behaving, chat_server, completion, drips, hangs, pours, says, sends
from tests.tiny import ROOT
from wellworn.data.errors import InputError
from wellworn.probes.scoring import responses, retries
from wellworn.probes.scoring.endpoint import Answers, EndpointConfig, ask
from wellworn.probes.scoring.responses import Ask, Failure, Reply, kept
from wellworn.probes.scoring.wire import LONGEST_DETAIL, MOST_BYTES, read

KEY = "sk-test/4f9d1c7e8a2b"
TOPS = [("7", -0.1), ("8", -2.5)]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retries, "PATIENCE_AT_LIMIT", 0.5)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def config(server: Server, **changes: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": server.url, "model": "judge", "retries": 2, **changes})


def asks(count: int, **changes: Any) -> list[Ask]:
    return [Ask((("user", f"question {i}"),), **{"max_tokens": 4, **changes}) for i in range(count)]


def texts(answers: Answers) -> list[str]:
    return [each.text if isinstance(each, Reply) else each.kind for each in answers.replies]


def outcome(*behaviours: Behaviour, **changes: Any) -> Reply | Failure:
    """What comes of one ask with log-probabilities."""
    with behaving(*behaviours) as server:
        return ask(config(server, **changes), asks(1, top_logprobs=5)).replies[0]


def failure(*behaviours: Behaviour, **changes: Any) -> Failure:
    found = outcome(*behaviours, **changes)
    assert isinstance(found, Failure), found
    assert found.detail.isprintable()
    assert 0 < len(found.detail) <= LONGEST_DETAIL
    return found


def completion_body(**changes: Any) -> str:
    return json.dumps(completion({"model": "judge", "messages": []}, **changes))


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# What is sent, and what comes back.


def test_a_reply_and_the_request_that_it_answers() -> None:
    with behaving(says("7", TOPS)) as server:
        one = Ask((("system", "Be brief."), ("user", "How much?")), max_tokens=3, temperature=0.5, seed=11, top_logprobs=2, model="adapter")
        answers = ask(config(server), [one])
    assert answers == Answers([Reply("7", True, tuple(TOPS), tokens_in=4, tokens_out=1)], 1, 0, 4, 1, None)
    assert answers.failures == {}
    assert server.asks == [
        {
            "model": "adapter",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How much?"}],
            "max_completion_tokens": 3,
            "temperature": 0.5,
            "seed": 11,
            "logprobs": True,
            "top_logprobs": 2,
        }
    ]


def test_neither_seed_nor_log_probabilities_unless_asked_for() -> None:
    with behaving(says("7", TOPS)) as server:
        assert ask(config(server), asks(1)).replies == [Reply("7", True, None, 2, 1)]
    assert set(server.asks[0]) == {"model", "messages", "max_completion_tokens", "temperature"}


def test_order_is_kept_where_the_first_is_answered_last() -> None:
    def first_last(request: Request) -> None:
        while len(request.server.asks) < 20:
            time.sleep(0.01)
        says()(request)

    seen: list[int] = []
    with behaving(first_last, says()) as server:
        answers = ask(config(server), asks(20), progress=seen.append)
    assert texts(answers) == [f"question {i}" for i in range(20)]
    assert seen == [1] * 20


def test_as_many_at_a_time_as_allowed_and_no_more() -> None:
    together, within, most = threading.Barrier(4), 0, 0

    def together_only(request: Request) -> None:
        nonlocal within, most
        with request.server.lock:
            within += 1
            most = max(most, within)
        together.wait(30)
        with request.server.lock:
            within -= 1
        says()(request)

    with behaving(together_only) as server:
        assert ask(config(server, concurrency=4), asks(12)).failures == {}
    assert most == 4


def test_nothing_to_ask() -> None:
    with behaving(says()) as server:
        assert ask(config(server), []) == Answers([], 0, 0, 0, 0, None)


# What may pass.


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert outcome(sends("busy", status), sends("busy", status), says("7", TOPS)) == Reply("7", True, tuple(TOPS), 2, 1)


@pytest.mark.parametrize(("status", "kind"), [(500, "server"), (503, "server"), (408, "timeout")])
def test_what_does_not_pass_is_a_failure_after_all_retries(status: int, kind: str) -> None:
    with behaving(sends('{"error": "busy"}', status)) as server:
        answers = ask(config(server), asks(2))
    assert answers.replies == [Failure(kind, f'{status}: {{"error": "busy"}}')] * 2  # type: ignore[arg-type]
    assert answers.failures == {kind: 2}
    assert (answers.asked, len(server.asks)) == (2, 6)


def test_waits_as_long_as_the_server_asks() -> None:
    with behaving(sends("busy", 429, {"Retry-After": "0.4"}), says("7")) as server:
        assert texts(ask(config(server), asks(1))) == ["7"]
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize("wish", ["3600", "9" * 400, "nan", "-1", "Fri, 31 Dec 2199 23:59:59 GMT", "soon"])
def test_but_no_longer_than_the_longest_wait(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.01)
    assert outcome(sends("busy", 429, {"Retry-After": wish}), says("7", TOPS)) == Reply("7", True, tuple(TOPS), 2, 1)


@pytest.mark.parametrize("behaviour", [hangs, drips])
def test_a_server_that_takes_too_long(behaviour: Behaviour) -> None:
    with behaving(behaviour) as server:
        answers = ask(config(server, timeout=0.2, retries=1), asks(1))
    assert answers.replies == [Failure("timeout", "no whole answer within 0.2 s")]
    assert len(server.asks) == 2


def test_an_answer_that_breaks_off() -> None:
    broken = sends('{"choices": [', claimed=1000)
    assert failure(broken).kind == "broken_off"
    assert outcome(broken, says("7", TOPS)) == Reply("7", True, tuple(TOPS), 2, 1)


# What does not, and is not tried again.


def test_a_truncated_answer_is_a_reply() -> None:
    assert outcome(says("seven hun", choice={"finish_reason": "length"})) == Reply("seven hun", False, None, 2, 2)


NOT_TRIED_AGAIN: dict[str, tuple[str, Behaviour]] = {
    "html": ("not_json", sends("<html><body>Sign in</body></html>", headers={"Content-Type": "text/html"})),
    "nothing": ("not_json", sends("")),
    "garbage": ("not_json", sends(bytes(range(256)) * 50)),
    "half a document": ("not_json", sends('{"model": "judge", "choices": [')),
    "nested": ("not_json", sends("[" * 100_000)),
    "half a surrogate pair": ("not_json", says("\ud800")),
    "a gzip": ("not_json", sends(b"\x1f\x8b\x08" + bytes(50), headers={"Content-Encoding": "gzip"})),
    "a number": ("malformed", sends("7")),
    "a text for a message": ("malformed", says("7", choice={"message": "7"})),
    "a number for a text": ("malformed", says("7", message={"content": 7})),
    "less than no tokens": ("malformed", says("7", usage={"prompt_tokens": -5, "completion_tokens": 1})),
    "an error in a good answer": ("no_choices", sends('{"error": {"message": "out of memory"}}')),
    "no choices": ("no_choices", says("7", choices=[])),
    "other model": ("other_model", says("7", model="judge-mini")),
    "no model": ("other_model", says("7", model=None)),
    "refusal": ("refusal", says(message={"content": None, "refusal": "I can't\nhelp with that."})),
    "content filter": ("content_filter", says("", choice={"finish_reason": "content_filter"})),
    "empty": ("empty", says("")),
    "no text": ("empty", says(message={"content": None})),
    "nan": ("not_finite", says("7", [("7", float("nan"))])),
    "minus infinity": ("not_finite", says("7", [("7", -0.1), ("8", float("-inf"))])),
    "a quoted nan": ("not_finite", says("7", [("7", "NaN")])),  # type: ignore[list-item]
    "too large a number": ("not_finite", sends(completion_body(text="7", tops=TOPS).replace("-2.5", "-1e999"))),
    "bad request": ("refused_request", sends('{"error": {"message": "the prompt is too long"}}', 400)),
    "unprocessable": ("refused_request", sends("{}", 422)),
    "no log-probabilities": ("no_logprobs", sends("{\"detail\": \"Unexpected fields in the request: {'top_logprobs'}\"}", 422)),
    "log-probabilities break it": ("no_logprobs", sends("LogProbs are not implemented", 500)),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TRIED_AGAIN)
def test_failures_that_another_try_would_not_mend(case: str) -> None:
    kind, behaviour = NOT_TRIED_AGAIN[case]
    # Two asks, so that even one that is hopeless in a row of five is a failure and no error here.
    with behaving(behaviour, says("7")) as server:
        answers = ask(config(server, concurrency=1), asks(2, top_logprobs=5))
    found = answers.replies[0]
    assert isinstance(found, Failure)
    assert found.kind == kind
    assert found.detail.isprintable()
    assert 0 < len(found.detail) <= LONGEST_DETAIL
    assert texts(answers)[1] == "7"
    assert len(server.asks) == 2


def test_words_about_log_probabilities_matter_only_where_they_were_asked_for() -> None:
    with behaving(sends("no logprobs", 400)) as server:
        assert ask(config(server), asks(1)).failures == {"refused_request": 1}


def test_a_server_that_ignores_the_wish_for_log_probabilities() -> None:
    assert outcome(says("7")) == Reply("7", True, None, 2, 1)
    assert outcome(says("7", choice={"logprobs": {"content": [{"token": "7", "logprob": -0.1}]}})) == Reply("7", True, None, 2, 1)


def test_a_first_token_without_text_is_no_empty_answer() -> None:
    assert outcome(says("", TOPS, choice={"finish_reason": "length"})) == Reply("", False, tuple(TOPS), 2, 0)


@pytest.mark.parametrize("name", ["judge", "judge-2024-08-06", "judge-0613", "judge@main"])
def test_the_name_with_a_date_or_a_revision_is_the_same_model(name: str) -> None:
    assert outcome(says("7", model=name)) == Reply("7", True, None, 2, 1)


def test_what_a_failure_cost_is_counted() -> None:
    with behaving(says("one two", choice={"finish_reason": "content_filter"})) as server:
        answers = ask(config(server, price=(1e6, 2e6)), asks(1))
    assert (answers.tokens_in, answers.tokens_out, answers.cost) == (2, 2, 6.0)


@pytest.mark.parametrize("status", [200, 500])
def test_of_a_very_long_answer_only_the_beginning_is_read(status: int) -> None:
    with behaving(pours(10, status)) as server:
        ask(config(server, retries=0), asks(1))  # imports, once
        tracemalloc.start()
        answers = ask(config(server, retries=0), asks(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert answers.failures == {"too_large" if status == 200 else "server": 1}
    # The parts and the whole of them; all ten megabytes would be some twenty.
    assert peak < 4 * MOST_BYTES


def test_a_message_that_no_json_can_carry() -> None:
    with behaving(says()) as server:
        answers = ask(config(server), [Ask((("user", "half \ud83d"),), max_tokens=4), *asks(1)])
    assert answers.failures == {"unsendable": 1}
    assert len(server.asks) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("model", "choices", "message", "content", "refusal", "finish_reason", "logprobs", "top_logprobs", "token", "logprob", "usage")


@st.composite
def damaged_body(draw: st.DrawFn) -> bytes:
    """A completion with anything at all in place of one of its values, or in place of a piece of its text."""
    whole = completion({"model": "judge", "messages": []}, "7", TOPS)
    field, value = draw(st.sampled_from(FIELDS)), draw(JSON)

    def spoil(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: value if key == field else spoil(inner) for key, inner in node.items()}
        return [spoil(inner) for inner in node] if isinstance(node, list) else node

    body = json.dumps(spoil(whole)).encode()
    start, end = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
    return body[:start] + draw(st.binary(max_size=4)) + body[end:] if draw(st.booleans()) else body


@given(damaged_body())
@settings(max_examples=300, deadline=None)
def test_whatever_a_server_sends_is_a_reply_or_a_named_failure(body: bytes) -> None:
    found = read(body, asks(1, top_logprobs=5)[0], "judge")
    if isinstance(found, Reply):
        assert found.text or found.tops
    else:
        assert found.detail.isprintable()
        assert len(found.detail) <= LONGEST_DETAIL


# Where nothing can succeed.


def test_no_server_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 60.0)  # a wait would show
    url = f"http://127.0.0.1:{closed_port()}/v1"
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"{url}, model judge: no connection: .*; start the server, or correct url"):
        ask(EndpointConfig(url=url, model="judge"), asks(100))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (sends('{"error": "no such key"}', 401), "401: .*no such key.*set \\$OPENAI_API_KEY"),
        (sends("forbidden", 403), "403: forbidden; set"),
        (sends('{"message": "The model `judge` does not exist."}', 404), "404: .*does not exist.*correct url"),
        (sends("", 307, {"Location": "http://127.0.0.1:9/v1"}), "307: http://127.0.0.1:9/v1; correct url"),
        (says("7", model="other"), "asked judge, answered by other; correct model"),
    ],
)
def test_five_hopeless_failures_in_a_row_end_it(behaviour: Behaviour, words: str) -> None:
    with behaving(behaviour) as server, pytest.raises(InputError, match=f"{server.url}, model judge: {words}"):
        ask(config(server, concurrency=1), asks(100))
    assert len(server.asks) == 5


def test_a_server_lost_midway_ends_it_with_all_replies_kept(tmp_path: Path) -> None:
    with behaving(*[says()] * 7, sends("gone", 404)) as server:
        with pytest.raises(InputError, match="404: gone"):
            ask(config(server, concurrency=1), asks(100), tmp_path / "cache")
        # Five, and one more that was answered before.
        assert len(server.asks) == 13
    with behaving(says()) as server:
        answers = ask(config(server), asks(100), tmp_path / "cache")
    assert (answers.cached, answers.asked, len(server.asks)) == (7, 93, 93)


def test_a_few_of_them_among_others_do_not_end_it() -> None:
    with behaving(*[sends("no", 403), says(), sends("no", 404)] * 6, says()) as server:
        answers = ask(config(server, concurrency=1), asks(20))
    assert answers.failures == {"unauthorized": 6, "not_found": 6}


def test_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with behaving(says()) as server:
        ask(config(server), asks(1), tmp_path / "cache")
        monkeypatch.setitem(sys.modules, "openai", None)
        monkeypatch.delitem(sys.modules, "wellworn.probes.scoring.wire")
        # What is kept needs no server.
        assert ask(config(server), asks(1), tmp_path / "cache").cached == 1
        with pytest.raises(InputError, match=r"needs openai; install the extra: pip install -e '.\[judge\]'"):
            ask(config(server), asks(2), tmp_path / "cache")


# The cache.


def test_replies_are_kept_and_failures_are_not(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache.sqlite"
    with behaving(says("7", TOPS), sends("no", 400), says("8")) as server:
        first = ask(config(server, concurrency=1), asks(3, top_logprobs=5), cache)
        assert (first.asked, first.cached, texts(first)) == (3, 0, ["7", "refused_request", "8"])
        seen: list[int] = []
        again = ask(config(server), asks(3, top_logprobs=5), cache, seen.append)
        assert (again.asked, again.cached, texts(again)) == (1, 2, ["7", "8", "8"])
        assert again.replies[0] == first.replies[0]
        assert seen == [2, 1]
    assert len(server.asks) == 4


def test_the_key_holds_what_the_answer_depends_on(tmp_path: Path) -> None:
    base = Ask((("user", "q"),), max_tokens=4)
    others = [
        Ask((("system", "q"),), max_tokens=4),
        Ask((("user", "q"), ("user", "")), max_tokens=4),
        Ask((("user", "q"),), max_tokens=5),
        Ask((("user", "q"),), max_tokens=4, temperature=1.0),
        Ask((("user", "q"),), max_tokens=4, seed=0),
        Ask((("user", "q"),), max_tokens=4, top_logprobs=1),
        Ask((("user", "q"),), max_tokens=4, model="adapter"),
    ]
    assert len({each.key("judge") for each in [base, *others]}) == 8
    assert base.key("judge") == Ask((("user", "q"),), max_tokens=4, temperature=0, model="judge").key("other")


def test_what_occurs_twice_is_sent_once() -> None:
    seen: list[int] = []
    with behaving(says()) as server:
        answers = ask(config(server), [*asks(3), *asks(4)], progress=seen.append)
    assert texts(answers) == [f"question {i}" for i in (0, 1, 2, 0, 1, 2, 3)]
    assert (answers.asked, len(server.asks), sorted(seen)) == (4, 4, [1, 2, 2, 2])


ODD = ["\x00", "a\x00b", "\x1b[31m\r\n\t\x7f", "\u2028\u2029\u0085\ufeff", "\U0001f600 \U0010ffff", "'; DROP TABLE replies; --", "é" * 5000]


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = [Ask((("user", text),), max_tokens=4, top_logprobs=1) for text in ODD]

    def echo(request: Request) -> None:
        text = request.ask["messages"][0]["content"]
        says(text, [(text, -0.1 - len(text) / 3)])(request)

    with behaving(echo) as server:
        first = ask(config(server), odd, tmp_path / "cache")
        again = ask(config(server), odd, tmp_path / "cache")
    assert texts(first) == ODD
    assert again.replies == first.replies
    assert again.asked == 0


def test_none_of_a_thousand_kept_replies_is_asked_for(tmp_path: Path) -> None:
    with kept(tmp_path / "cache") as cache:
        cache.keep({each.key("judge"): Reply("7", True, tuple(TOPS)) for each in asks(1000)})
    with behaving(says()) as server:
        again = ask(config(server), asks(1000), tmp_path / "cache")
    assert (again.cached, again.asked, again.replies) == (1000, 0, [Reply("7", True, tuple(TOPS))] * 1000)
    assert server.asks == []


def start_process(url: str, cache: Path, count: int) -> subprocess.Popen[str]:
    """Start a process that asks, and prints a line for each reply."""
    program = (
        # What was started in the background of a shell ignores the interruption that it is sent.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from wellworn.probes.scoring.endpoint import EndpointConfig, ask\n"
        "from wellworn.probes.scoring.responses import Ask\n"
        f"asks = [Ask((('user', f'question {{i}}'),), max_tokens=4) for i in range({count})]\n"
        f"ask(EndpointConfig(url={url!r}, model='judge'), asks, Path({str(cache)!r}), lambda more: print(more, flush=True))\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_what_was_answered_outlives_an_interruption(tmp_path: Path, ending: signal.Signals) -> None:
    cache = tmp_path / "cache"
    with behaving(*[says()] * 15, hangs) as server, start_process(server.url, cache, 40) as process:
        assert process.stdout
        for _ in range(15):
            assert process.stdout.readline() == "1\n"
        process.send_signal(ending)
        # Far less than the minute that the requests under way might take.
        process.wait(30)
    assert process.returncode in (-ending, 130)
    with behaving(says()) as server:
        answers = ask(config(server), asks(40), cache)
    assert (answers.cached, answers.asked, len(server.asks)) == (15, 25, 25)
    assert texts(answers) == [f"question {i}" for i in range(40)]


def test_two_models_of_one_name_share_no_replies(tmp_path: Path) -> None:
    """The model behind a name is part of the cache key, and is not sent."""
    with behaving(says()) as server:
        for behind in ("one@1", "other@2", "one@1", None):
            ask(config(server), [replace(asks(1)[0], behind=behind)], tmp_path / "cache")
        assert len(server.asks) == 3
        assert not any("behind" in sent for sent in server.asks)


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with behaving(says()) as server:
        for process in [start_process(server.url, cache, 60) for _ in range(2)]:
            output, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            assert sum(map(int, output.split())) == 60
        sent = len(server.asks)
        answers = ask(config(server), asks(60), cache)
    assert 60 <= sent <= 120
    assert (answers.cached, len(server.asks)) == (60, sent)


def spoil_file(cache: Path) -> None:
    cache.write_bytes(b"not a database at all\n" * 100)


def spoil_pages(cache: Path) -> None:
    whole = cache.read_bytes()
    cache.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))


def spoil_row(cache: Path) -> None:
    with closing(sqlite3.connect(cache)) as connection, connection:
        connection.execute("UPDATE replies SET reply = '{\"text\": 5}'")


def spoil_schema(cache: Path) -> None:
    """The complaint about it quotes bytes that are not UTF-8."""
    cache.write_bytes(cache.read_bytes().replace(b"CREATE TABLE replies", b"CREATE TABLE \xda\xff\xda lies"))


@pytest.mark.parametrize("spoil", [spoil_file, spoil_pages, spoil_row, spoil_schema])
def test_a_corrupt_cache_is_refused_by_name(tmp_path: Path, spoil: Any) -> None:
    cache = tmp_path / "cache"
    with behaving(says()) as server:
        ask(config(server), asks(50), cache)
        spoil(cache)
        with pytest.raises(InputError, match=rf"{cache}: no cache of replies, or a corrupt one .*delete it") as error:
            ask(config(server), asks(50), cache)
    assert "\n" not in str(error.value)
    assert len(server.asks) == 50


def test_a_cache_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with behaving(says()) as server:
        for cache in (tmp_path, tmp_path / "file" / "cache"):
            with pytest.raises(InputError, match=f"{cache}: cannot be opened as a cache of replies"):
                ask(config(server), asks(1), cache)
    assert server.asks == []


def test_a_cache_that_another_holds_for_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "LONGEST_LOCK", 0.05)
    cache = tmp_path / "cache"
    with kept(cache), closing(sqlite3.connect(cache, isolation_level=None, check_same_thread=False)) as other:

        def locks(request: Request) -> None:
            other.execute("BEGIN EXCLUSIVE")
            says()(request)

        with behaving(locks, says()) as server, pytest.raises(InputError, match=rf"{cache}: cannot keep replies \(database is locked\)"):
            ask(config(server, concurrency=1), asks(20), cache)


# The key.


def echoes(body: str, status: int = 200) -> Behaviour:
    """Answer with a body in which KEY stands for what the request brought along."""

    def echo(request: Request) -> None:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        escaped = body.replace("ESCAPED", key.replace("/", "\\/")).replace("QUOTED", quote(key, safe=""))
        request.send(escaped.replace("KEY", key).replace('"judge"', json.dumps(request.ask["model"])), status, {"X-Echo": "none"})

    return echo


LEAKS = [
    echoes(completion_body(text="Your key is KEY.", tops=[("KEY", -0.1)])),
    echoes(completion_body(text=None, message={"refusal": "KEY may not"})),
    echoes(completion_body(text="7", model="KEY")),
    echoes("<html>KEY</html>"),
    echoes('{"error": {"message": "KEY"}}'),
    echoes(completion_body(text="KEY", choice={"message": "KEY"})),
    # A line that is cut must not end within the key.
    *[echoes(" " * spaces + "x" * x + "KEY", 400) for x in range(150, 200, 7) for spaces in (0, 800)],
    echoes('{"error": "ESCAPED"}', 400),
    echoes("/login?key=QUOTED", 400),
    echoes("KEY", 429),
    echoes("KEY", 500),
]


def test_the_key_is_sent_and_never_seen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    # Answers in between, as failures alone would end it.
    with behaving(*[each for leak in LEAKS for each in (leak, says("7", TOPS))]) as server:
        settings = config(server, key_env="JUDGE_KEY", concurrency=1, retries=0)
        answers = ask(settings, asks(2 * len(LEAKS), top_logprobs=1), tmp_path / "cache")
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert len(answers.replies) == 2 * len(LEAKS)
    assert answers.replies[0] == Reply("Your key is [secret].", True, (("[secret]", -0.1),), 0, 4)
    assert "[secret]" in repr(answers.replies[1:])
    told = repr(answers) + repr(settings) + settings.model_dump_json() + caplog.text + "".join(capfd.readouterr())
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for part in [KEY[8:], *(KEY[:size] for size in range(8, len(KEY)))]:
        assert part not in told
        assert part.encode() not in stored
    with (
        behaving(echoes("who is KEY?", 401)) as server,
        pytest.raises(InputError, match=r"401: who is \[secret\]\?; set \$JUDGE_KEY") as error,
    ):
        ask(config(server, key_env="JUDGE_KEY"), asks(9))
    assert KEY not in "".join(map(repr, (error.value, error.value.__cause__, error.value.__context__)))


@pytest.mark.parametrize("key", ["sk-one\nsk-two-1234", "sk with blanks", "sk-ключ"])
def test_what_can_be_no_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with behaving(says()) as server, pytest.raises(InputError, match=r"^\$OPENAI_API_KEY: holds something that is no API key$"):
        ask(config(server), asks(1))
    assert server.asks == []


def test_words_that_stand_for_no_key_are_not_blanked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert outcome(says("none of them", TOPS)) == Reply("none of them", True, tuple(TOPS), 2, 3)


# Limits.


def test_no_faster_than_allowed() -> None:
    with behaving(sends("busy", 500), says()) as server:
        start = time.monotonic()
        ask(config(server, requests_per_minute=1200), asks(9))
        # Ten requests, one of them a retry.
        assert time.monotonic() - start >= 9 * 0.05
    assert len(server.asks) == 10


def test_stops_once_the_money_is_spent(tmp_path: Path) -> None:
    with behaving(says("7")) as server:
        # Two words read and one written: four dollars.
        limited = config(server, concurrency=1, price=(1e6, 2e6), most_cost=7)
        answers = ask(limited, asks(10), tmp_path / "cache")
        assert answers.failures == {"most_cost": 8}
        assert answers.replies[2] == Failure("most_cost", "not asked: 8.0000 of 7 dollars are spent")
        assert (answers.cost, answers.asked, answers.tokens_in, answers.tokens_out) == (8.0, 2, 4, 2)
        # The next call spends anew, on what is missing.
        assert ask(limited, asks(4), tmp_path / "cache").cost == 8.0
    assert len(server.asks) == 4


def test_money_cannot_be_counted_where_the_server_counts_no_tokens() -> None:
    with behaving(says("7", usage=None)) as server:
        assert ask(config(server, price=(1, 1)), asks(1)).cost == 0.0
        with pytest.raises(InputError, match="does not say how many tokens"):
            ask(config(server, price=(1, 1), most_cost=1), asks(1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "must be the address"),
        ({"url": "ftp://127.0.0.1/v1"}, "must be the address"),
        ({"url": "http:///v1"}, "must be the address"),
        ({"url": "http://127.0.0.1:99999/v1"}, "must be the address"),
        ({"url": "http://me:secret@127.0.0.1/v1"}, "no password"),
        ({"url": "http://127.0.0.1/v1?key=1"}, "no password, query"),
        ({"most_cost": 5}, "needs a price"),
        ({"key_env": "sk-1"}, "key_env"),
        ({"timeout": float("inf")}, "finite"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"key": "sk"}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EndpointConfig(**{"url": "http://127.0.0.1:8000/v1", "model": "judge", **changes})


# The server that other tests put a model behind.


def test_a_chat_server_gives_what_it_is_asked_for() -> None:
    def answer(messages: Sequence[dict[str, str]], max_tokens: int, ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]] | None]:
        text = f"{messages[-1]['content']} {max_tokens} {ask['model']}"
        return text, None if ask["model"] == "plain" else [("a", -3.0), ("b", -0.1), ("c", -2.0)]

    with chat_server(answer) as server:
        replies = ask(config(server), [*asks(1), *asks(1, top_logprobs=2), *asks(1, top_logprobs=2, model="plain")]).replies
    assert [each.tops for each in replies if isinstance(each, Reply)] == [None, (("b", -0.1), ("c", -2.0)), None]
    assert [each.text for each in replies if isinstance(each, Reply)] == ["question 0 4 judge"] * 2 + ["question 0 4 plain"]
