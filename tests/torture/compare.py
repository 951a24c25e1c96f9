"""What must be so when a study is finished, whatever happened before: bytes, stages, and nothing left over."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.experiments.engine.manifest import MANIFEST, Manifest

SUMMARY, REPORT = "summary.json", "report.html"
# What a study's own folder holds.
OF_STUDY = {SUMMARY, REPORT, "study.json"}
# What a report says of how its stages came about: their times, and the commits that computed them.
ORIGIN = re.compile(rb"<summary>Stages \(.*?</details>|<th scope=\"row\">commit</th><td>.*?</td>", re.DOTALL)
# A manifest's inode, and the time of its last change: written again, a file has others.
Written = dict[str, tuple[int, int]]


def differences(study: str, runs: Path, expected: Path) -> list[str]:
    """Compare a finished study with the same one in a runs folder where nothing happened.

    Its summary has the same bytes, and so has its report apart from the times of stages; its stages have the same ids, and their files the
    same checksums.
    """
    found = [f"{study}/{name} differs" for name in (SUMMARY, REPORT) if _bytes(runs / study / name) != _bytes(expected / study / name)]
    mine, theirs = _checksums(runs), _checksums(expected)
    found += [f"stage {name} differs" for name, files in mine.items() if files != theirs.get(name)]
    return found + [f"stage {name} is missing" for name in theirs if name not in mine]


def left_over(runs: Path) -> list[str]:
    """Return all paths of a runs folder that a finished study does not have: half-written files, work folders, files of no manifest.

    Files of locks stay, as another process may be about to open one.
    """
    known = {runs / "stages"}
    for folder in _stages(runs):
        try:
            files = [folder / name for name in Manifest.read(folder).files]
        except InputError:
            continue
        known |= {folder, folder / MANIFEST, folder.with_name(f"{folder.name}.lock"), *files}
        known |= {parent for file in files for parent in file.parents}
    for index in runs.glob("*/study.json"):
        known |= {index.parent, *(index.with_name(name) for name in OF_STUDY)}
    return sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path not in known)


def manifests(runs: Path) -> Written:
    """Return when each manifest was written."""
    found: Written = {}
    for path in (runs / "stages").glob(f"*/{MANIFEST}"):
        stat = path.stat()
        found[path.parent.name] = (stat.st_ino, stat.st_mtime_ns)
    return found


@dataclass
class Once:
    """Watches that no manifest is written twice, which a stage that is computed twice would do."""

    seen: Written = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def look(self, runs: Path) -> None:
        """Compare all manifests with those seen before."""
        now = manifests(runs)
        self.twice += [f"stage {name} was computed twice" for name, was in self.seen.items() if now.get(name) != was]
        self.seen |= now

    def forget(self) -> None:
        """Let everything be computed again, as what was written may have been lost."""
        self.seen.clear()


def _stages(runs: Path) -> list[Path]:
    return [path for path in (runs / "stages").glob("*-*") if path.is_dir()]


def _checksums(runs: Path) -> dict[str, dict[str, str]]:
    found = {}
    for folder in _stages(runs):
        if (folder / MANIFEST).is_file():
            found[folder.name] = dict(read_json(folder / MANIFEST)["files"])
    return found


def _bytes(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    return ORIGIN.sub(b"", path.read_bytes()) if path.name == REPORT else path.read_bytes()
