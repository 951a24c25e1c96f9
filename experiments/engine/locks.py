"""One process at a time works on a stage: a lock a stage, which ends with its process, and says who holds it."""

import os
import platform
import time
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from wellworn.data.errors import InputError

# More than a holder's number and host take; anything longer is not a lock of ours.
_MOST_BYTES = 300


class Locks:
    """Files `<stage>.lock` in a folder.

    They are locks of the operating system. A file system that has none gets a file that is there while a stage is held; after a crash on
    another machine it stays, as nobody can tell whether that process lives.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, FileLock] = {}

    def path(self, stage_id: str) -> Path:
        """Return the file of a stage's lock."""
        return self.folder / f"{stage_id}.lock"

    def acquire(self, stage_id: str) -> bool:
        """Take a stage's lock without waiting; return whether it is ours now.

        Raises:
            InputError: the file system has no locks, or refuses this one.
        """
        path = self.path(stage_id)
        lock = self._held.setdefault(stage_id, FileLock(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); give a --runs-dir that this user may write, on a file system with locks"
            ) from None
        # The other kind names its holder by itself.
        if not isinstance(lock, SoftFileLock):
            path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
        return True

    def release(self, stage_id: str) -> None:
        """Give a stage's lock back."""
        self._held[stage_id].release()

    def holder(self, stage_id: str) -> str:
        """Say who holds a stage's lock, since when, and what to do if that process is gone."""
        path = self.path(stage_id)
        try:
            with path.open("rb") as file:
                process, host, *_ = file.read(_MOST_BYTES).decode(errors="replace").split("\n")
            age = time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            return f"another process ({path})"
        # The clocks of two machines differ.
        since = f", for {max(0, round(age / 60))} min" if age < 36_000 else f", for {age / 3600:,.0f} h"
        remedy = "" if host == platform.node() else "; if that process is gone, delete the file"
        return f"process {process} on {host}{since} ({path}{remedy})"
