"""Take the memory away: a study in a small address space says what would fit, or is aborted, and is finished when there is more."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.child import command, start
from tests.torture.disk import one_message
from tests.torture.ground import Ground

# Of training, of reading, and of mediation.
STUDIES = ("taught", "outside", "trained")
# Libraries abort where they cannot report an error, which nothing in Python can turn into a message.
ABORTS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
PART_OF_PEAK = 0.6


def little_memory(ground: Ground, count: int) -> int:
    """Run studies in address spaces of so many sizes, up to nearly what they take; return how many were too small."""
    short = 0
    for i in range(count):
        study, runs = STUDIES[i % len(STUDIES)], ground.new_runs()
        more = int(PART_OF_PEAK * (i + 1) / count * _growth(ground, study))
        end = start(_limited(command(ground.studies[study], runs), more)).wait()
        short += end.code != 0
        what = f"{more / 1e6:,.0f} MB of memory"
        found = [] if end.code in (0, *ABORTS) else one_message(end, "memory")
        if ground.note(what, study, runs, found):
            ground.finish(f"more memory after {what}", study, runs)
    return short


def _growth(ground: Ground, study: str) -> int:
    """Return by how many bytes a study's address space grows."""
    file, runs = ground.folder / "growth", ground.new_runs()

    def work() -> None:
        before = _size("VmSize")
        try:
            command(ground.studies[study], runs)()
        finally:
            file.write_text(str(_size("VmPeak") - before), encoding="utf-8")

    start(work).wait()
    shutil.rmtree(runs)
    return int(file.read_text(encoding="utf-8"))


def _limited(work: Callable[[], Any], more: int) -> Callable[[], Any]:
    def run() -> None:
        most = _size("VmSize") + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        work()

    return run


def _size(which: str) -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:")))
