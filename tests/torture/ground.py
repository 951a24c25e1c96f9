"""Where attacks take place: studies that were finished with nothing in their way, each in a runs folder of its own, and copies of none."""

import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.child import End, command, start
from tests.torture.compare import Once, differences, left_over
from tests.torture.studies import kinds_missing, write_studies
from wellworn.data.files import read_json
from wellworn.data.saving import write_json
from wellworn.probes.reading import shards

LONGEST_SECONDS = 600.0


@dataclass
class Ground:
    """Studies with their results, and a folder for attacks.

    Attributes:
        folder: holds everything.
        random: draws what is attacked, and when.
        studies: name to the study's file.
        seconds: name to the time that the whole study takes.
        faults: what was found wrong.
    """

    folder: Path
    random: random.Random
    studies: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        """Write the studies, and finish each of them without an attack, unless that was done in an earlier part.

        Raises:
            RuntimeError: a study fails by itself, or the studies lack a kind of stage.
        """
        done = self.folder / "seconds.json"
        if not done.is_file():
            _succeed("studies", start(lambda: write_studies(self.folder)).wait(LONGEST_SECONDS))
        self.studies = {path.stem: path for path in sorted(self.folder.glob("*.yaml"))}
        if not done.is_file():
            ends = {study: _succeed(study, self.run(study, self.expected(study))) for study in self.studies}
            write_json(done, {study: end.seconds for study, end in ends.items()})
        self.seconds = read_json(done)
        if missing := set.intersection(*(kinds_missing(self.expected(study)) for study in self.studies)):
            raise RuntimeError(f"the studies have no stage of the kinds {sorted(missing)}")
        # From here on readings save after every batch: these are too short to save once, and attacks are to hit what was saved.
        shards.SAVE_SECONDS = 0.0

    def expected(self, study: str) -> Path:
        """Return the runs folder of a study that nothing happened to."""
        return self.folder / "expected" / study

    def pick(self, at: int) -> str:
        """Return the study that an attack is on; all take turns."""
        return sorted(self.studies)[at % len(self.studies)]

    def new_runs(self) -> Path:
        """Return an empty folder for an attack."""
        return Path(tempfile.mkdtemp(prefix="attack-", dir=self.folder))

    def run(self, study: str, runs: Path) -> End:
        """Run a study to its end."""
        return start(command(self.studies[study], runs)).wait(LONGEST_SECONDS)

    def finish(self, what: str, study: str, runs: Path, once: Once | None = None) -> bool:
        """Run a study to its end after an attack, and note what is then wrong; remove the folder if nothing is."""
        end = self.run(study, runs)
        found = [f"exit code {end.code}: {end.said[-1500:]}"] if end.code else []
        if once:
            once.look(runs)
            found += once.twice
        found += differences(study, runs, self.expected(study)) + [f"{path} is left" for path in left_over(runs)]
        if fine := self.note(what, study, runs, found):
            shutil.rmtree(runs, ignore_errors=True)
        return fine

    def note(self, what: str, study: str, runs: Path, found: list[str]) -> bool:
        """Note what is wrong after an attack; return whether nothing is."""
        if found:
            self.faults.append(f"{what} on {study} ({runs}): " + "; ".join(found))
        sys.stderr.write(f"{what} on {study}: {'fine' if not found else f'FAULT {found}'}\n")
        return not found


def _succeed(what: str, end: End) -> End:
    if end.code:
        raise RuntimeError(f"{what}: ended with {end.code} where nothing was in its way:\n{end.said}")
    return end
