"""A limit on time and memory for what others wrote as a program: chat templates, and the patterns of adapters."""

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from wellworn.data.errors import InputError

Result = TypeVar("Result")
# Far more than honest ones take: a template takes a millisecond, and a few kilobytes.
SECONDS = 2.0
BYTES = 2**28


class LimitError(InputError):
    """A program of others ran for too long, or took too much memory. It would do so again."""


def run_bounded(what: str, work: Callable[[], Result], seconds: float = SECONDS, size: int = BYTES) -> Result:
    """Return what some work returns, and stop it if it runs without end, or fills the memory.

    Time is limited in the main thread, and memory on Linux: elsewhere Python has no means to stop what runs.

    Args:
        what: what runs, for the complaint.
        work: does it.
        seconds: time limit.
        size: bytes that the process may take in addition to what it holds.

    Raises:
        LimitError: a limit was reached.
    """
    # A context manager would not do: an alarm may come while it is entered or left, where nothing of it would catch the error.
    running = True

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal running
        if running:
            running = False
            raise _TooLongError

    timed = threading.current_thread() is threading.main_thread() and os.name == "posix"
    handler, timer = (signal.signal(signal.SIGALRM, stop), signal.getitimer(signal.ITIMER_REAL)) if timed else (None, (0.0, 0.0))
    memory = _limit_memory(size) if sys.platform == "linux" else None
    try:
        try:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            found = work()
            running = False
        # An alarm during this is one during the work.
        except BaseException:
            running = False
            raise
    except _TooLongError:
        raise LimitError(f"{what}: runs for more than {seconds:g} s") from None
    except MemoryError:
        raise LimitError(f"{what}: takes more than {size / 2**20:,.0f} MiB of memory") from None
    finally:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, memory)
        if timed:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)
    return found


class _TooLongError(BaseException):
    """Passes by whoever catches errors of all kinds inside of the work."""


def _limit_memory(size: int) -> tuple[int, int]:
    """Let the process take so many bytes more; return the limits of before."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb", buffering=0) as pages:
        held = int(pages.read(64).split()[0]) * resource.getpagesize()
    most = min(each for each in (held + size, soft, hard) if each != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    return before
