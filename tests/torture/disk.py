"""Fill the disk: a study on a small file system says which disk is full, and goes on when there is room."""

import re
import subprocess
from pathlib import Path

from tests.torture.child import End
from tests.torture.ground import Ground

ROOM = "512m"


def full_disks(ground: Ground, count: int) -> int:
    """Run studies on disks of so many sizes, up to nearly enough for their stages, or for all; return how many were full."""
    full = 0
    for i in range(count):
        study = ground.pick(i)
        # A page is much larger than all that these studies compute, so half of the disks fill up before there is one.
        kept = ground.expected(study) / ("stages" if i % 2 else ".")
        need = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        runs, size = ground.new_runs(), max(4096, int(need * (i + 1) / (count + 1)))
        mount(runs, f"size={size}")
        try:
            end = ground.run(study, runs)
            full += end.code != 0
            what = f"a disk of {size:,} bytes, {need:,} needed"
            found = one_message(end, rf"{runs}\b.*\bis full") if end.code else []
            mount(runs, f"remount,size={ROOM}")
            ground.note(what, study, runs, found)
            ground.finish(f"more room after {what}", study, runs)
        finally:
            subprocess.run(["umount", str(runs)], check=True)
    return full


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory, or change one.

    Raises:
        RuntimeError: this user may not mount.
    """
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"needs a user who may mount a file system: {done.stderr.strip()}")


def one_message(end: End, pattern: str) -> list[str]:
    """Return what is wrong with how a command failed: it ends with 2 and one message that has a pattern, and with no traceback."""
    said = " ".join(end.said.split())
    found = [] if end.code == 2 else [f"exit code {end.code}"]
    _, _, message = said.partition("error:")
    if not re.search(pattern, message) or "error:" in message or "Traceback" in said:
        found.append(f"no single message with {pattern!r}, but: {end.said[-1500:]}")
    return found
