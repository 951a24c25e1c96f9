"""The store of finished stages: content-addressed folders that appear whole or not at all."""

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wellworn.data.errors import InputError
from wellworn.data.files import sha256
from wellworn.data.saving import is_left, sync, write_json
from wellworn.experiments.engine.locks import Locks
from wellworn.experiments.engine.manifest import MANIFEST, Manifest, NotAManifestError

WORK = "work"
REPLIES = "replies.sqlite"


class Store:
    """Folders `<runs-dir>/stages/<stage>-<hash>/`, each finished by a manifest written last.

    A stage without a manifest counts as not run, and is run again; so does one with files of other sizes than its manifest says, which a
    power failure cut short. A stage with files that do not match their checksums is an error, and the message names it. Only one process
    works on a stage at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"
        self.locks = Locks(self.stages)
        self._checked: set[str] = set()
        self._cut: dict[str, str] = {}

    def create(self) -> None:
        """Make the folders, and clear away what processes left that were stopped while they wrote.

        Raises:
            InputError: they cannot be made.
        """
        try:
            self.stages.mkdir(parents=True, exist_ok=True)
            for part in (*self.root.glob("*.part"), *self.root.glob("*/*.part")):
                if is_left(part):
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"--runs-dir {self.root}: cannot be written ({error.strerror})") from None

    @property
    def replies(self) -> Path:
        """The file that keeps the replies of servers."""
        return self.root / REPLIES

    def path(self, stage_id: str) -> Path:
        """Return the folder of a stage, finished or not.

        Raises:
            InputError: this is not the id of a stage.
        """
        if not re.fullmatch(r"[\w-]+", stage_id):
            raise InputError(f"{stage_id!r}: is not the id of a stage; run the study again")
        return self.stages / stage_id

    def done(self, stage_id: str) -> bool:
        """Return whether a stage is finished; its files are verified once per process.

        Raises:
            InputError: a file of a finished stage is changed, or its folder is a symbolic link.
        """
        folder = self._own(stage_id)
        if not (folder / MANIFEST).is_file():
            return False
        if stage_id not in self._checked:
            try:
                manifest = Manifest.read(folder)
            except NotAManifestError:
                raise
            except InputError:
                self._cut[stage_id] = f"{MANIFEST} cannot be read"
                return False
            if cut := _find_cut(folder, manifest):
                self._cut[stage_id] = cut
                return False
            for name, checksum in manifest.files.items():
                if sha256(folder / name) != checksum:
                    raise InputError(f"{folder / name}: changed since it was written; delete the folder {folder} and run again")
            # Of a process that was stopped after it wrote the manifest.
            shutil.rmtree(folder / WORK, ignore_errors=True)
            self._checked.add(stage_id)
        return True

    def cut(self, stage_id: str) -> str | None:
        """Return the file that makes a stage with a manifest unfinished, and what is wrong with it; None for others."""
        return self._cut.get(stage_id)

    def begin(self, stage_id: str) -> Path:
        """Return a clean folder to write a stage into; its work folder outlives a kill.

        Raises:
            InputError: the folder is a symbolic link: what it points to belongs to something else.
        """
        folder = self._own(stage_id)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif path.name != WORK:
                shutil.rmtree(path)
        (folder / WORK).mkdir(exist_ok=True)
        return folder

    def publish(self, stage_id: str, facts: Mapping[str, Any]) -> None:
        """Finish a stage: checksum its files, write the manifest, and then remove its work folder.

        All is on the disk before the manifest is, so that after a power failure a manifest speaks of whole files.
        """
        folder = self.path(stage_id)
        paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [str(path) for path in paths if path.parts[0] != WORK]
        for name in names:
            sync(folder / name)
        for inner in {(folder / name).parent for name in names}:
            sync(inner)
        files = {name: sha256(folder / name) for name in names}
        sizes = {name: (folder / name).stat().st_size for name in names}
        write_json(folder / MANIFEST, {**facts, "commit": commit(), "versions": versions(), "files": files, "sizes": sizes})
        shutil.rmtree(folder / WORK, ignore_errors=True)
        self._checked.add(stage_id)

    def _own(self, stage_id: str) -> Path:
        folder = self.path(stage_id)
        if folder.is_symlink():
            raise InputError(
                f"{folder}: is a symbolic link, and a stage's folder is written and emptied by the suite; "
                "delete the link (to keep stages elsewhere, give that place as --runs-dir)"
            )
        return folder


def _find_cut(folder: Path, manifest: Manifest) -> str | None:
    """Return what keeps a stage with a manifest from being finished: a file that is missing, or of another size than it was."""
    for name in manifest.files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != (was := manifest.sizes.get(name, size)):
            return f"{name} has {size:,} bytes of {was:,}"
    return None


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
