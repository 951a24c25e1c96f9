"""Odd file systems: without locks, read-only, and with a clock that is two years off."""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from typing import Any

from tests.torture.child import command, killed_before_change, start
from tests.torture.disk import mount, one_message
from tests.torture.ground import Ground
from tests.torture.kills import MOST_CHANGES

TWO_YEARS = 2 * 365 * 86_400.0


def without_locks(ground: Ground, count: int) -> int:
    """Let `flock` fail as it does on file systems without locks, or on those whose lock server is gone; return how many."""
    for i, code in enumerate((errno.ENOSYS, errno.ENOLCK)[:count]):
        study, runs = ground.pick(i), ground.new_runs()
        work = _flock_fails(command(ground.studies[study], runs), code)
        end = start(killed_before_change(MOST_CHANGES, runs, work)).wait()
        if not end.killed:
            ground.note(f"flock fails ({errno.errorcode[code]})", study, runs, one_message(end, "on a file system with locks"))
        else:
            # Its locks are files that nobody removes but the next process on this machine.
            end = start(work).wait()
            ground.note("flock fails after a kill", study, runs, [end.said[-1500:]] if end.code else [])
        ground.finish(f"locks after {errno.errorcode[code]}", study, runs)
    return min(count, 2)


def read_only(ground: Ground, count: int) -> int:
    """Make the file system read-only before a study, in the middle, and after it; return how many."""
    for i, changes in enumerate((1, MOST_CHANGES, None)[:count]):
        study, runs = ground.pick(i), ground.new_runs()
        mount(runs, "size=512m")
        try:
            work = command(ground.studies[study], runs)
            start(killed_before_change(changes, runs, work) if changes else work).wait()
            mount(runs, "remount,ro")
            ground.note(
                "a read-only file system", study, runs, one_message(ground.run(study, runs), "Read-only file system|can only be read")
            )
            mount(runs, "remount,rw")
            ground.finish("a file system that may be written again", study, runs)
        finally:
            os.system(f"umount {runs}")
    return min(count, 3)


def wrong_clocks(ground: Ground, count: int) -> int:
    """Kill a study, and go on with a clock, or with files, of two years before or after; return how many."""
    for i, off in enumerate((TWO_YEARS, -TWO_YEARS)[:count]):
        study, runs = ground.pick(i), ground.new_runs()
        work = command(ground.studies[study], runs)
        start(killed_before_change(MOST_CHANGES, runs, work)).wait()
        start(killed_before_change(MOST_CHANGES, runs, _clock(work, off))).wait()
        for path in runs.rglob("*"):
            os.utime(path, (time.time() - off, time.time() - off))
        ground.finish(f"clocks {off / TWO_YEARS * 2:+.0f} years off", study, runs)
    return min(count, 2)


def _flock_fails(work: Callable[[], Any], code: int) -> Callable[[], Any]:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    def run() -> None:
        fcntl.flock = fail
        work()

    return run


def _clock(work: Callable[[], Any], off: float) -> Callable[[], Any]:
    def run() -> None:
        true = time.time
        time.time = lambda: true() + off
        work()

    return run
