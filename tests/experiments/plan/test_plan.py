"""Errors that can be found without computing are found before anything is computed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.conftest import refused


def test_a_number_format_whose_package_is_missing_is_refused_before_anything_is_computed(
    tiny_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "bitsandbytes" else find(name, *args))
    assert "dtype nf4 needs bitsandbytes" in refused(capsys, "run", tiny_study(dtype="nf4"), "--runs-dir", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
