"""Digests of a model's files, each computed once: kept in the suite's cache as long as a file is the same by all that its folder says."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from wellworn.data.files import sha256
from wellworn.data.saving import write_json

# A file that was written so shortly before it was read may be written again without a later time.
RACY_NS = 2_000_000_000

# Size, time of the last change of the contents, of anything, and inode. Times in nanoseconds.
Mark = list[int]


def kept_digests(folder: Path, paths: Sequence[Path], cache: Path) -> list[str]:
    """Return the SHA-256 of files of a folder, without reading those that are as they were when they were last read.

    Args:
        folder: their folder, by which they are known.
        paths: the files.
        cache: the folder where digests are kept; where it cannot be written to, all files are read each time.

    Raises:
        InputError: a file cannot be read.
    """
    place = cache / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.json"
    known = _load(place)
    found: list[str] = []
    kept: dict[str, tuple[Mark, str]] = {}
    for path in paths:
        name = path.relative_to(folder).as_posix()
        mark, now = _mark(path), time.time_ns()
        before, digest = known.get(name, (None, ""))
        if before != mark:
            digest = sha256(path)
        found.append(digest)
        if before == mark or (_mark(path) == mark and now - max(mark[1:3]) > RACY_NS):
            kept[name] = mark, digest
    if kept != known:
        _save(place, kept)
    return found


def _mark(path: Path) -> Mark:
    try:
        facts = path.stat()
    except OSError:
        # What is wrong is said when it is read.
        return []
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def _load(place: Path) -> dict[str, tuple[Mark, str]]:
    try:
        return {str(name): (list(mark), str(digest)) for name, (mark, digest) in json.loads(place.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(place: Path, kept: dict[str, tuple[Mark, str]]) -> None:
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, kept)
