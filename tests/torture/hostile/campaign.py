"""Bring hostile things in at a door, case by case, in processes that may hang or die."""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.torture.child import POLL_SECONDS, start
from tests.torture.ground import Ground
from tests.torture.hostile.doors import Door
from tests.torture.hostile.watch import Watch
from wellworn.lora.embedded import cache_dir

# A case that takes longer hangs.
SECONDS = 10.0
# Cases of one process.
BATCH = 100
# What a process of cases may use beyond what it begins with. Unit: bytes.
MEMORY = 8 << 30
TAKEN, REFUSED = "taken", "refused"


def campaign(door: Door) -> Callable[[Ground, int], int]:
    """Return the attack on a door: so many cases, drawn from their numbers; it returns how many of them were refused."""

    def attack(ground: Ground, count: int) -> int:
        work = Path(tempfile.mkdtemp(prefix=f"{door.__name__}-", dir=ground.folder))
        seed, found, number, faults = ground.random.random(), Counter[str](), 0, len(ground.faults)
        while number < count:
            outcomes = _run_batch(door, ground, work, seed, range(number, min(number + BATCH, count)))
            for at, outcome in enumerate(outcomes, start=number):
                found[outcome if outcome in (TAKEN, REFUSED) else "fault"] += 1
                if outcome not in (TAKEN, REFUSED):
                    ground.note(f"case {at} drawn from {seed}", door.__name__, work / f"case-{at}", [outcome])
            number += len(outcomes)
        sys.stderr.write(f"{door.__name__}: {dict(found)}\n")
        if len(ground.faults) == faults:
            shutil.rmtree(work)
        return found[REFUSED]

    return attack


def _run_batch(door: Door, ground: Ground, work: Path, seed: float, numbers: range) -> list[str]:
    """Run cases in a process until all are done, or one hangs or ends it; return what became of them."""
    log = work / "log"
    log.write_text("", encoding="utf-8")
    child = start(lambda: _try_all(door, ground, work, seed, numbers))
    while not os.waitpid(child.process, os.WNOHANG)[0]:
        time.sleep(POLL_SECONDS)
        # The log changes after each case.
        if time.time() - log.stat().st_mtime > SECONDS and _alive(child.process):
            os.kill(child.process, signal.SIGKILL)
            os.waitpid(child.process, 0)
            break
    outcomes = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if len(outcomes) < len(numbers):
        late = time.time() - log.stat().st_mtime > SECONDS
        said = child.said.read_text(encoding="utf-8", errors="replace")[-1000:]
        outcomes.append(f"{f'hangs for more than {SECONDS:g} s' if late else 'the process ended'}: {said}")
        _keep(work, numbers[len(outcomes) - 1])
    child.said.unlink()
    return outcomes


def _alive(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


def _try_all(door: Door, ground: Ground, work: Path, seed: float, numbers: range) -> None:
    """Try cases one after another, and write a line for each."""
    most = MEMORY + _address_space()
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    folder = work / "case"
    tempfile.tempdir = str(work / "temporary")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    watch = Watch([work, cache_dir()])
    with (work / "log").open("a", encoding="utf-8") as log:
        for number in numbers:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            outcome = _try(door, ground, Random(f"{seed} {number}"), folder)
            if watch.seen:
                outcome = f"{outcome}; outside its folders it {', '.join(watch.seen)}"
                watch.seen.clear()
            if outcome not in (TAKEN, REFUSED):
                _keep(work, number)
            log.write(f"{json.dumps(outcome)}\n")
            log.flush()


def _try(door: Door, ground: Ground, rng: Random, folder: Path) -> str:
    try:
        return TAKEN if door(ground, rng, folder) else REFUSED
    except Exception:
        return traceback.format_exc()[-3000:]


def _keep(work: Path, number: int) -> None:
    """Keep a case's folder."""
    (work / "case").rename(work / f"case-{number}")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
