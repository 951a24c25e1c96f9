"""The store of finished stages: content-addressed folders that appear whole or not at all."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wellworn.data.errors import InputError
from wellworn.data.files import read_text, sha256

MANIFEST = "manifest.json"
WORK = "work"
REPLIES = "replies.sqlite"


class Store:
    """Folders `<runs-dir>/stages/<stage>-<hash>/`, each finished by a manifest written last.

    A stage without a manifest counts as not run, and is run again. A stage with files that do not match their checksums is an error, and
    the message names it. Only one process works on a stage at a time (a file lock that ends with its process).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"
        self._locks: dict[str, FileLock] = {}
        self._checked: set[str] = set()

    def create(self) -> None:
        """Make the folders.

        Raises:
            InputError: they cannot be made.
        """
        try:
            self.stages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--runs-dir {self.root}: cannot be written ({error.strerror})") from None

    @property
    def replies(self) -> Path:
        """The file that keeps the replies of servers."""
        return self.root / REPLIES

    def path(self, stage_id: str) -> Path:
        """Return the folder of a stage, finished or not."""
        return self.stages / stage_id

    def done(self, stage_id: str) -> bool:
        """Return whether a stage is finished; its checksums are verified once per process.

        Raises:
            InputError: a file of a finished stage is missing or changed.
        """
        folder = self.path(stage_id)
        if not (folder / MANIFEST).is_file():
            return False
        if stage_id not in self._checked:
            try:
                files = read_json(folder / MANIFEST)["files"]
            except (InputError, KeyError, TypeError):
                raise InputError(f"{folder / MANIFEST}: corrupt; delete the folder {folder} and run again") from None
            for name, checksum in files.items():
                if not (folder / name).is_file() or sha256(folder / name) != checksum:
                    raise InputError(f"{folder / name}: missing or changed since it was written; delete the folder {folder} and run again")
            self._checked.add(stage_id)
        return True

    def acquire(self, stage_id: str) -> bool:
        """Take a stage's lock without waiting; return whether it is ours now."""
        lock = self._locks.setdefault(stage_id, FileLock(f"{self.path(stage_id)}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self, stage_id: str) -> None:
        """Give a stage's lock back."""
        self._locks[stage_id].release()

    def begin(self, stage_id: str) -> Path:
        """Return a clean folder to write a stage into; its work folder outlives a kill."""
        folder = self.path(stage_id)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name != WORK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / WORK).mkdir(exist_ok=True)
        return folder

    def publish(self, stage_id: str, facts: Mapping[str, Any]) -> None:
        """Finish a stage: checksum its files, write the manifest, and then remove its work folder."""
        folder = self.path(stage_id)
        paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {str(path): sha256(folder / path) for path in paths if path.parts[0] != WORK}
        write_json(folder / MANIFEST, {**facts, "commit": commit(), "versions": versions(), "files": files})
        shutil.rmtree(folder / WORK, ignore_errors=True)
        self._checked.add(stage_id)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by atomic rename; refuses NaN, keeps key order."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text by atomic rename: a reader sees the old file or the new one, whole."""
    # Named by process, as several may finish the same study at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: corrupt ({error})") from None


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results."""
    names = ("wellworn", "torch", "transformers", "peft", "trl", "accelerate", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


@cache
def commit() -> str | None:
    """Return the suite's git commit where it runs from a checkout; recorded, never hashed."""
    try:
        result = subprocess.run(  # nosec B607 # the user's own git, wherever it is
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() or None
