"""Secrets stay out of all that a study stores and shows, wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from tests.experiments.conftest import Call
from tests.probes.scoring.servers import Request, behaving, completion
from wellworn.data.errors import InputError
from wellworn.experiments.commands.options import chat_config
from wellworn.experiments.findings.results import INDEX
from wellworn.experiments.study_file import load_study
from wellworn.experiments.study_sections import ChatConfig
from wellworn.probes.scoring import retries
from wellworn.probes.scoring.endpoint import EndpointConfig

Write = Callable[..., Path]
# Of no known shape, so that nothing but its name or its variable gives it away.
PLANTED = "hunter2/Zq"
KEY, HUB = 'judge/7f3e9a\\"51c8', "HubValue77aa55"
AT = "http://127.0.0.1:8000/v1"
SETTINGS: list[dict[str, Any]] = [
    {"judge": {"url": f"http://me:{PLANTED}@127.0.0.1/v1", "model": "m"}},
    {"judge": {"url": f"{AT}?api_key={PLANTED}", "model": "m"}},
    {"judge": {"url": f"{AT}#{PLANTED}", "model": "m"}},
    {"judge": {"url": AT, "model": "m", "key_env": PLANTED}},
    {"judge": {"url": AT, "model": "m", "api_key": PLANTED}},
    {"judge": {"url": AT, "model": "m", "more": {"api_key": PLANTED}}},
    {"judge": {"url": AT, "model": "m", "more": {"extra_headers": [{"Authorization": f"Bearer {PLANTED}"}]}}},
    {"judge": {"url": AT, "model": "m", "more": {"x": f"https://me:{PLANTED.replace('/', '-')}@host"}}},
    {"server": {"url": AT, "model": "m", "more": {"extra": {"password": PLANTED}}}},
    {"chat": {"template_kwargs": {"secret": PLANTED}}},
    {"train": {"sft": {"hub_token": PLANTED}}},
    {"train": {"sft": {"push_to_hub_token": PLANTED}}},
    {"train": {"lora": {"token": PLANTED}}},
    {"grid": {"train.sft.hub_token": [PLANTED]}},
    {"variants": {"a": {"judge": {"url": AT, "model": "m", "more": {"api_key": PLANTED}}}}},
    {"variants": {"a": {"judge.more.api_key": PLANTED}}},
    {"api_key": PLANTED},
]


def parts(secret: str) -> set[str]:
    """Return ways in which most of a secret may be written."""
    ways = {secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/"), quote(secret, safe="")}
    return {way[start : start + 8] for way in ways for start in range(len(way) - 7)}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_secret_in_a_study_is_refused_unseen(settings: dict[str, Any], tiny_study: Write, tmp_path: Path, wellworn: Call) -> None:
    study = tiny_study(**settings)
    [(key, value)] = settings.items()
    plain = tiny_study("plain")
    runs = tmp_path / "runs"
    for given in ([study], [plain, f"{key}={json.dumps(value)}"]):
        done = wellworn("run", *given, "--runs-dir", runs)
        assert done.code == 2
        assert not [part for secret in (PLANTED, PLANTED.replace("/", "-")) for part in parts(secret) if part in done.out + done.err]
        assert "key_env" in done.err or "environment" in done.err
    assert not runs.exists()


@pytest.mark.parametrize(
    "override",
    ["judge.more.api_key={}", "judge.more.password=@{}", "judge.more={{api_key: {}", "train.sft.hub_token={}", "api_key {}", "password={}"],
)
def test_nor_is_one_of_the_command_line_quoted(override: str) -> None:
    with pytest.raises(InputError, match="secret") as error:
        load_study("quickstart", [override.format(PLANTED)])
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize("pair", ["api_key {}", "template_kwargs={{token: {}", "template_kwargs.token={}"])
def test_nor_is_one_of_an_option_quoted(pair: str) -> None:
    with pytest.raises(InputError, match="secret") as error:
        chat_config([pair.format(PLANTED)])
    assert PLANTED not in str(error.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: EndpointConfig(url=AT, model="m", more={"api_key": PLANTED}),
        lambda: EndpointConfig(url=f"http://me:{PLANTED}@host", model="m"),
        lambda: EndpointConfig(url=AT, model="m", key_env=PLANTED),
        lambda: ChatConfig(template_kwargs={"token": PLANTED}),
    ],
)
def test_nor_does_another_door_let_it_in(build: Callable[[], Any]) -> None:
    with pytest.raises(ValidationError) as error:
        build()
    assert PLANTED not in str(error.value)


def echo(key: str) -> Callable[[Request], None]:
    """Grade every other answer, and echo the key in one way after another."""
    ways: list[dict[str, Any] | str] = [
        {"text": f"Your key is {key}."},
        {"text": None, "message": {"refusal": f"{key} may not"}},
        {"text": "7", "model": key},
        {"text": "7", "choices": [], "error": key},
        f"<html>{key}</html>",
        f"/login?token={quote(key, safe='')}",
        json.dumps({"error": key}),
        json.dumps({"error": key}).replace("/", "\\/"),
        180 * " " + 140 * "x" + key,
    ]

    def behave(request: Request) -> None:
        with request.server.lock:
            number = request.server.count = getattr(request.server, "count", -1) + 1  # type: ignore[attr-defined]
        way = {"text": "40", "tops": [("40", -0.01)]} if number % 2 == 0 else ways[number // 2 % len(ways)]
        body = way if isinstance(way, str) else json.dumps(completion(request.ask, **way))
        request.send(body, 400 if isinstance(way, str) else 200, {"X-Echo": quote(key)})

    return behave


def test_a_run_stores_and_shows_no_secret(
    tiny_study: Write, tmp_path: Path, wellworn: Call, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("THE_JUDGE", KEY)
    monkeypatch.setenv("HF_TOKEN", HUB)
    runs = tmp_path / "runs"
    caplog.set_level("WARNING")
    with behaving(echo(KEY)) as server:
        judge = {"url": server.url, "model": "judge", "key_env": "THE_JUDGE", "concurrency": 2}
        study = tiny_study(runs=[{"arm": "prompted", "trait": "pirate"}], mediate=None, scores={"pairs": 2}, judge=judge)
        done = wellworn("run", study, "--runs-dir", runs, "--json", tmp_path / "runs-summary.json")
    assert done.code == 0, done.err
    assert set(server.keys) == {f"Bearer {KEY}"}
    # Far more echoes than there are ways.
    assert len(server.asks) > 40
    files = [path for path in [*runs.rglob("*"), tmp_path / "runs-summary.json"] if path.is_file()]
    assert {INDEX, "manifest.json", "replies.sqlite", "report.html", "summary.json"} <= {path.name for path in files}
    shown = (done.out + done.err + caplog.text).encode()
    for part in parts(KEY) | parts(HUB):
        assert part.encode() not in shown
        assert [path for path in files if part.encode() in path.read_bytes()] == []
