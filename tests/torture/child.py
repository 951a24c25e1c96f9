"""Start the command line in a child, and kill it: after some time, or before one of its changes of the file system.

Children are forked from one process that has imported all libraries, and so start at once. Forking is sound only while that process has a
single thread, and never computes itself; both are checked.
"""

import importlib
import os
import pkgutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import wellworn

POLL_SECONDS = 0.005
# A library may need a thread for a moment, while it is imported.
THREAD_SECONDS = 5.0
# Calls that change the file system, of those that Python announces to audit hooks; opening for writing is another.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclass(frozen=True)
class End:
    """How a child ended.

    Attributes:
        code: exit code; minus the number of the signal that killed it.
        said: its standard output and error.
        seconds: how long it lived.
    """

    code: int
    said: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


@dataclass(frozen=True)
class Child:
    """A child under way."""

    process: int
    said: Path
    started: float

    def wait(self, kill_after: float | None = None) -> End:
        """Wait until it ends, and kill it after so many seconds if it has not."""
        while True:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            seconds = time.monotonic() - self.started
            if ended:
                text = self.said.read_text(encoding="utf-8", errors="replace")
                self.said.unlink()
                return End(os.waitstatus_to_exitcode(status), text, seconds)
            if kill_after is not None and seconds > kill_after:
                os.kill(self.process, signal.SIGKILL)
                kill_after = None
            time.sleep(POLL_SECONDS)


def load_all() -> None:
    """Import every module of the suite, and so the libraries that they use.

    Raises:
        RuntimeError: a library started a thread, which a fork would lose.
    """
    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(wellworn.__path__, "wellworn."):
        if "lm_eval" not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    check_single_thread()


def check_single_thread() -> None:
    """Make sure that this process may be forked.

    Raises:
        RuntimeError: it has further threads.
    """
    end = time.monotonic() + THREAD_SECONDS
    while (threads := len(os.listdir("/proc/self/task"))) != 1 and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if threads != 1:
        raise RuntimeError(f"{threads} threads run in this process, which then cannot be forked")


def start(work: Callable[[], Any]) -> Child:
    """Start some work in a forked child."""
    check_single_thread()
    handle, name = tempfile.mkstemp(prefix="torture-")
    process = os.fork()
    if process:
        os.close(handle)
        return Child(process, Path(name), time.monotonic())
    for stream in (1, 2):
        os.dup2(handle, stream)
    os._exit(_exit_code(work))


def _exit_code(work: Callable[[], Any]) -> int:
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def command(study: Path, runs: Path) -> Callable[[], Any]:
    """Return the work of `wellworn run`."""
    from wellworn.experiments.cli import main

    return lambda: main(["run", str(study), "--runs-dir", str(runs)])


def killed_before_change(number: int, runs: Path, work: Callable[[], Any]) -> Callable[[], Any]:
    """Return work that kills itself right before one of its changes of the file system in a folder, counted from 1."""

    def run() -> None:
        left = number

        def hook(event: str, arguments: Sequence[Any]) -> None:
            nonlocal left
            if _changes(event, arguments, runs):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return run


def _changes(event: str, arguments: Sequence[Any], runs: Path) -> bool:
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and str(arguments[0]).startswith(str(runs))
    return event in CHANGES and str(arguments[0]).startswith(str(runs))
