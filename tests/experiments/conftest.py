"""Studies on the tiny model, whose directions are declared found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.stages import persona_space


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.split())


@pytest.fixture
def wellworn(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: Any) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return call


Call = Callable[..., Outcome]


def command(*arguments: object) -> None:
    """Run a command that has to succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code in (0, None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that has to be refused, and return the message on one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model has no personas, so whatever was estimated counts as found."""
    find_all(monkeypatch)


def find_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever is estimated count as found, until the patch is undone."""
    estimate = persona_space.estimate

    def found(*args: Any) -> Any:
        directions = estimate(*args)
        return replace(directions, found=np.ones_like(directions.found))

    monkeypatch.setattr(persona_space, "estimate", found)


def finished(study: Path, tmp_path: Path) -> Path:
    """Run a study; return its runs folder."""
    command("run", study, "--runs-dir", tmp_path / "runs")
    return tmp_path / "runs"


def stages_of(runs: Path, kind: str) -> dict[str, Path]:
    """Return the finished stages of a kind by title."""
    return {read_json(path / "manifest.json")["title"]: path for path in (runs / "stages").glob(f"{kind}-*") if path.is_dir()}
