"""Show progress: a live bar in a terminal, one line per stage elsewhere."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Progress over stages and inside the current one; silent if `quiet`."""

    def __init__(self, console: Console, total: int, quiet: bool = False) -> None:
        self.console, self.total, self.quiet = console, total, quiet
        self.live = console.is_terminal and not quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
            transient=True,
        )
        self._all = self._bars.add_task("[bold]stages", total=total)
        self._finished = 0

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def skip(self) -> None:
        """Count a stage that was finished before."""
        self._advance()

    @contextmanager
    def stages(self, titles: Sequence[str]) -> Iterator["Tick"]:
        """Show the progress of a stage, or of several that are computed together."""
        title = heading(titles)
        task = self._bars.add_task(title, total=None)
        start = time.perf_counter()
        try:
            yield Tick(self._bars, task, title)
        finally:
            self._bars.remove_task(task)
        seconds = (time.perf_counter() - start) / len(titles)
        for each in titles:
            self._advance()
            if not self.quiet:
                self.console.print(f"[{self._finished:>3}/{self.total}] {each}: {seconds:.1f} s", markup=False, highlight=False)

    def announce_wait(self, holders: Mapping[str, str]) -> None:
        """Say that other processes hold every stage that could be done next: title → who holds it."""
        for title, holder in holders.items():
            self.say(f"waiting for another process: {title}, held by {holder}")

    def say(self, line: str) -> None:
        """Show a line of text."""
        if not self.quiet:
            self.console.print(line, markup=False, highlight=False)

    def _advance(self) -> None:
        self._finished += 1
        self._bars.update(self._all, completed=self._finished)


class Tick:
    """Progress inside one stage."""

    def __init__(self, bars: Progress, task: object, title: str) -> None:
        self._bars, self._task, self._title = bars, task, title

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` units are done."""
        self._bars.update(self._task, completed=done, total=total, description=f"{self._title}{f' · {note}' if note else ''}")  # type: ignore[arg-type]


def heading(titles: Sequence[str]) -> str:
    """Return a name for several stages: the first one's, and the number of others."""
    return titles[0] + (f" and {len(titles) - 1} more" if len(titles) > 1 else "")
