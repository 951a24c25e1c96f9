"""Attack the engine and the store on tiny studies, and show what became of it.

    python -m tests.torture [PART ...] [--count N] [--seed N] [--folder DIR] [--json FILE]

Every part runs the small studies of `studies.py` in forked children of this process. After each attack the study is run to its end, and
compared with the same study in a runs folder where nothing happened: `compare.py` says in what. Exits with 1 where anything differs.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.torture import child, commands, disk, file_systems, kills, memory, planted, power
from tests.torture.ground import Ground
from tests.torture.hostile import doors
from tests.torture.hostile.campaign import campaign
from wellworn.data.saving import write_json


@dataclass(frozen=True)
class Part:
    """A kind of attack.

    Attributes:
        attack: (ground, how often) → how many attacks took effect.
        count: how often by default.
        title: what it does.
    """

    attack: Callable[[Ground, int], int]
    count: int
    title: str


PARTS = {
    "kills": Part(kills.kills, 270, "kills of forked children"),
    "drivers": Part(kills.drivers, 12, "kills of three drivers on one runs folder"),
    "commands": Part(commands.command_lines, 12, "kills of real command lines"),
    "ranks": Part(commands.two_ranks, 6, "kills of two ranks"),
    "power": Part(power.power_cuts, 50, "power cuts"),
    "disk": Part(disk.full_disks, 20, "full disks"),
    "memory": Part(memory.little_memory, 12, "little memory"),
    "locks": Part(file_systems.without_locks, 2, "file systems without locks"),
    "read-only": Part(file_systems.read_only, 3, "read-only file systems"),
    "clocks": Part(file_systems.wrong_clocks, 2, "clocks two years off"),
    "secrets": Part(planted.planted_secrets, 6, "secrets planted, files looked at"),
    "importers": Part(campaign(doors.importers), 3000, "hostile rows, documents and tables"),
    "traits": Part(campaign(doors.traits), 1000, "damaged traits"),
    "studies": Part(campaign(doors.studies), 2500, "hostile studies and overrides"),
    "adapters": Part(campaign(doors.adapters), 1000, "damaged adapters"),
    "models": Part(campaign(doors.whole_models), 1000, "damaged models"),
    "stores": Part(campaign(doors.stores), 1000, "damaged stores"),
    "replies": Part(campaign(doors.replies), 1000, "hostile replies of a judge"),
}


def main() -> int:
    """Run the parts; return how the process is to end."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if left out")
    parser.add_argument("--count", type=int, help="attacks of each part")
    parser.add_argument("--seed", type=int, default=0, help="random seed of all draws")
    parser.add_argument("--folder", type=Path, help="keeps the studies and their results for the next part, and what went wrong")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    child.load_all()
    # Attacks are on writing, so the bytes may as well be in memory: syncing a disk would take most of the time.
    shared = Path("/dev/shm")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="torture-", dir=shared if shared.is_dir() else None))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_attack(name, given.count or PARTS[name].count, folder.resolve(), given.seed) for name in given.parts or PARTS]
    _show(rows)
    if given.json:
        write_json(given.json, rows)
    return int(any(row["faults"] for row in rows))


def _attack(name: str, count: int, folder: Path, seed: int) -> dict[str, object]:
    """Run one part; return its row."""
    ground = Ground(folder, random.Random(f"{name} {seed}"))
    ground.prepare()
    start = time.monotonic()
    try:
        effective = PARTS[name].attack(ground, count)
    except RuntimeError as error:
        effective, ground.faults = 0, [*ground.faults, f"{name}: {error}"]
        sys.stderr.write(f"FAULT {name}: {error}\n")
    seconds = round(time.monotonic() - start)
    return {"part": name, "attacks": count, "effective": effective, "seconds": seconds, "seed": seed, "faults": ground.faults}


def _show(rows: list[dict[str, object]]) -> None:
    table = Table("attack", "asked for", "took effect", "faults", "seconds")
    for row in rows:
        faults = row["faults"]
        assert isinstance(faults, list)
        table.add_row(PARTS[str(row["part"])].title, str(row["attacks"]), str(row["effective"]), str(len(faults)), str(row["seconds"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
