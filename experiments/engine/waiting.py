"""Say that a server is waited for: next to the bar, and now and then in the log where no terminal shows one."""

import logging
import sys
import time
from collections.abc import Callable

from rich.markup import escape

from wellworn.experiments.engine.stage import TickFn, counter

# Seconds between two lines in the log.
LOG_EVERY = 30.0
_LOG = logging.getLogger("wellworn")


def now_and_then(show: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that shows each line, and logs one in `LOG_EVERY` seconds where there is no terminal."""
    last: float | None = None

    def notice(line: str) -> None:
        nonlocal last
        show(escape(line))
        now = time.monotonic()
        if not _in_terminal() and (last is None or now - last >= LOG_EVERY):
            last = now
            _LOG.warning("%s", line)

    return notice


def tick_and_notice(tick: TickFn, total: int) -> tuple[TickFn, Callable[[str], None]]:
    """Return a tick, and a function that shows a line in place of its note until the next tick."""
    finished = 0

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal finished
        finished = done
        tick(done, total, note)

    return show, now_and_then(lambda line: tick(finished, total, line))


def counter_and_notice(tick: TickFn, total: int, unit: str) -> tuple[Callable[[int], None], Callable[[str], None]]:
    """Return a `counter`, and a function that shows a line in place of its rate until more units are finished."""
    show, notice = tick_and_notice(tick, total)
    return counter(show, total, unit), notice


def _in_terminal() -> bool:
    # Bars are on standard output, or on standard error where that one holds the JSON.
    return sys.stdout.isatty() and sys.stderr.isatty()
