"""Cut the power: kill a study, and shorten files that it wrote. What was synced survives a real cut; here nothing is spared."""

import os
from pathlib import Path

from tests.torture.child import command, killed_before_change, start
from tests.torture.ground import Ground
from tests.torture.kills import MOST_CHANGES

MOST_FILES = 4


def power_cuts(ground: Ground, count: int) -> int:
    """Cut the power while a study runs, or after it is finished, and run it again; return how many cuts were made."""
    for i in range(count):
        study, runs = ground.pick(i), ground.new_runs()
        work = command(ground.studies[study], runs)
        if ground.random.random() < 0.5:
            work = killed_before_change(ground.random.randint(1, 4 * MOST_CHANGES), runs, work)
        start(work).wait(ground.random.uniform(0, 1.5 * ground.seconds[study]))
        cut = shorten(ground, runs)
        ground.finish(f"power cut that shortened {cut}", study, runs)
    return count


def shorten(ground: Ground, runs: Path) -> list[str]:
    """Take the ends of a few files, half of the times of those written last; return what was cut."""
    files = sorted((path for path in runs.rglob("*") if path.is_file() and path.stat().st_size), key=lambda path: path.stat().st_mtime_ns)
    if ground.random.random() < 0.5:
        files = files[-2 * MOST_FILES :]
    cut = []
    for path in ground.random.sample(files, min(len(files), ground.random.randint(1, MOST_FILES))):
        size = ground.random.choice([0, ground.random.randrange(path.stat().st_size)])
        os.truncate(path, size)
        cut.append(f"{path.relative_to(runs)} to {size}")
    return cut
