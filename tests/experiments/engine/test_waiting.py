"""The wait for a server is shown next to the bar, and logged now and then where there is no terminal."""

import logging
from typing import Any

import pytest

from wellworn.experiments.engine import waiting
from wellworn.experiments.engine.waiting import counter_and_notice, now_and_then


def test_a_wait_takes_the_place_of_the_rate_until_more_is_done() -> None:
    shown: list[tuple[int, int, str]] = []
    progress, notice = counter_and_notice(lambda *figures: shown.append(figures), 10, "answers")
    notice("try 1")
    progress(3)
    notice("try 2 [b]")
    progress(1)
    assert [each[:2] for each in shown] == [(0, 10), (3, 10), (3, 10), (4, 10)]
    # What a server says is not markup.
    assert [shown[0][2], shown[2][2]] == ["try 1", r"try 2 \[b]"]
    assert all(each[2].endswith(" answers/s") for each in (shown[1], shown[3]))


@pytest.mark.parametrize(("terminal", "every", "lines"), [(False, 30.0, 1), (False, 0.0, 5), (True, 0.0, 0)])
def test_logged_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, terminal: bool, every: float, lines: int
) -> None:
    monkeypatch.setattr(waiting, "_in_terminal", lambda: terminal)
    monkeypatch.setattr(waiting, "LOG_EVERY", every)
    shown: list[Any] = []
    notice = now_and_then(shown.append)
    with caplog.at_level(logging.WARNING, "wellworn"):
        for i in range(5):
            notice(f"try {i} [b] %s")
    assert len(shown) == 5
    assert caplog.messages == [f"try {i} [b] %s" for i in range(lines)]
