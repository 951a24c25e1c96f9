"""Trying a judge on answers whose label is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import refused
from tests.probes.scoring.servers import behaving, chat_server, sends
from wellworn.data.catalog import load_trait
from wellworn.data.errors import InputError
from wellworn.experiments.cli import main
from wellworn.experiments.commands.try_judge import try_judge
from wellworn.experiments.study_sections import ChatConfig
from wellworn.probes.scoring import retries

PIRATE = load_trait("pirate").split("evaluate")


def knows_pirates(messages: list[dict[str, str]], _longest: int, _ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Grade an answer by where it stands, a little apart for each."""
    asked = messages[-1]["content"]
    [which] = [i for i, example in enumerate(PIRATE) if example.question in asked]
    whole, plain = str(PIRATE[which].positive) in asked, str(PIRATE[which].negative) in asked
    grade = (70 if whole else 10 if plain else 40) + which // 2
    return str(grade), [(str(grade), -0.01)]


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["try-judge", *arguments])
    assert ended.value.code in (0, None)


def test_a_server_that_knows_pirates_tells_them_apart(tiny_model: Path, tmp_path: Path) -> None:
    with chat_server(knows_pirates) as server:
        given = ["pirate", "--url", server.url, "--model", "judge", "--base", str(tiny_model), "--runs-dir", str(tmp_path)]
        run(*given, "--json", str(tmp_path / "a.json"))
        asked = len(server.asks)
        run(*given, "--json", str(tmp_path / "b.json"))
        assert len(server.asks) == asked
    [row] = json.loads((tmp_path / "a.json").read_text())
    assert (row["answers"], row["graded"], row["drawn"], row["complaints"]) == (3 * len(PIRATE), 3 * len(PIRATE), False, [])
    judge = row["judge"]
    assert (judge["shown"], judge["half"], judge["absent"], judge["bounds"]) == (81.5, 51.5, 21.5, None)
    assert judge["separation"] == judge["order"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert 0 <= row["contrast"]["separation"]["low"] <= row["contrast"]["separation"]["value"] <= row["contrast"]["separation"]["high"] <= 1
    assert 0 <= row["chosen"] <= 1
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_a_server_that_does_not_draw_is_named(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(lambda messages, *_: (str(len(messages[-1]["content"]) % 90), None)) as server:
        given = ["pirate", "--url", server.url, "--model", "judge", "--base", str(tiny_model), "--runs-dir", str(tmp_path)]
        run(*given, "--json", str(tmp_path / "a.json"))
    [row] = json.loads((tmp_path / "a.json").read_text())
    assert (row["drawn"], row["alike"], len(row["complaints"])) == (True, True, 1)
    assert "do_sample: true" in capsys.readouterr().out


def test_a_server_that_fails_is_waited_for_aloud_and_given_up(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.001)
    with behaving(sends("out of [memory", 500)) as server:
        given = ["pirate", "--url", server.url, "--model", "judge", "--base", tiny_model, "--runs-dir", tmp_path]
        said = refused(capsys, "try-judge", *given)
    assert f"{server.url}, model judge: 500: out of [memory; see the server's log, or go on later (server × " in said
    # One line of a great many.
    assert caplog.messages.count("request 1 of 1, try 1 of 6: 500: out of [memory; next in 0 s") == 1
    assert len([line for line in caplog.messages if "next in" in line]) == 1


def test_what_a_judge_cannot_do_is_said(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its context is too short for the rubric, which is counted and no grade; the description of a control fits.
    run("pirate", "reference_code", "--model", str(tiny_model), "--runs-dir", str(tmp_path), "--json", str(tmp_path / "a.json"))
    pirate, code = json.loads((tmp_path / "a.json").read_text())
    assert pirate["graded"] < pirate["answers"]
    assert pirate["complaints"]
    assert code["name"] == "reference_code"
    assert code["graded"] + sum(int(each.split(" for ")[1].split()[0]) for each in code["complaints"] if "no grade" in each) == 96
    assert "no grade for" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown trait 'piratical'"):
        try_judge(["piratical"], str(tiny_model), None, ChatConfig(), tmp_path / "x", None, None)  # type: ignore[arg-type]
