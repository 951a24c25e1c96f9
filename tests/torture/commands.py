"""Kill real command lines, and the two processes of a launcher, instead of forked children."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.tiny import ROOT
from tests.torture.compare import Once, differences, left_over
from tests.torture.ground import Ground

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Its sums are taken in another order than one process takes them: it is compared with two ranks that nothing happened to.
RANKS_STUDY = "taught"
# A process that starts anew imports its libraries first.
IMPORTS_SECONDS = 8.0
LONGEST_SECONDS = 600.0


def command_lines(ground: Ground, count: int) -> int:
    """Kill `wellworn run` in processes of its own; return how many were killed."""
    return _kill_series(ground, count, [], {study: ground.expected(study) for study in ground.studies})


def two_ranks(ground: Ground, count: int) -> int:
    """Kill a study on two ranks, launcher and ranks alike; return how many times."""
    expected = ground.folder / "two-ranks"
    if not (expected / RANKS_STUDY / "report.html").is_file():
        _start(ground, RANKS_STUDY, expected, LAUNCHER).wait(LONGEST_SECONDS)
    return _kill_series(ground, count, LAUNCHER, {RANKS_STUDY: expected})


def _kill_series(ground: Ground, count: int, launcher: list[str], expected: dict[str, Path]) -> int:
    killed = series = 0
    while killed < count:
        study, runs, once = sorted(expected)[series % len(expected)], ground.new_runs(), Once()
        series += 1
        for _ in range(min(5, count - killed)):
            process = _start(ground, study, runs, launcher)
            moment = IMPORTS_SECONDS * ground.random.random() + 0.5 * ground.seconds[study] * ground.random.random()
            killed += _kill_after(moment, process)
            once.look(runs)
        process = _start(ground, study, runs, launcher)
        said, _ = process.communicate(timeout=LONGEST_SECONDS)
        once.look(runs)
        found = [f"exit code {process.returncode}: {said[-1500:]}"] if process.returncode else []
        found += once.twice + differences(study, runs, expected[study]) + [f"{path} is left" for path in left_over(runs)]
        ground.note("kills of command lines" if not launcher else "kills of two ranks", study, runs, found)
    return killed


def _start(ground: Ground, study: str, runs: Path, launcher: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    arguments = [*launcher, "-m", "wellworn", "run", str(ground.studies[study]), "--runs-dir", str(runs)]
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _kill_after(seconds: float, process: subprocess.Popen[str]) -> bool:
    """Kill a process and all that it started, after so many seconds; return whether it still ran."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    ran = process.poll() is None
    if ran:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in family:
            try:
                each.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family[:-1], timeout=10)
    process.communicate()
    return ran
