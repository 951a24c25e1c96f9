"""Kill a study again and again until it is finished, and compare it with one that was never killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.child import command, killed_before_change, start
from tests.torture.compare import Once
from tests.torture.ground import Ground

# Kills of one study at most, so that its late stages are reached as well.
MOST_OF_ONE = 20
# The longest time to a kill: a part of what the whole study takes.
PART = 0.15
# Between two kills lie so many changes of the file system at most; a study makes hundreds.
MOST_CHANGES = 60


def kills(ground: Ground, count: int) -> int:
    """Kill forked children: half after some time, half right before a change of the file system. Return how many were killed."""
    killed = series = 0
    while killed < count:
        study, runs, once = ground.pick(series), ground.new_runs(), Once()
        series, of_this = series + 1, 0
        while of_this < min(MOST_OF_ONE, count - killed):
            end = _one(ground, study, runs)
            once.look(runs)
            if not end:
                break
            of_this += 1
        ground.finish(f"{of_this} kills", study, runs, once)
        killed += of_this
    return killed


def _one(ground: Ground, study: str, runs: Path) -> bool:
    """Run a study that is killed at a random moment; return whether it was, and not finished before."""
    work = command(ground.studies[study], runs)
    if ground.random.random() < 0.5:
        work = killed_before_change(ground.random.randint(1, MOST_CHANGES), runs, work)
        return start(work).wait().killed
    return start(work).wait(ground.random.uniform(0, PART * ground.seconds[study])).killed


def drivers(ground: Ground, count: int, together: int = 3) -> int:
    """Kill three drivers that share a runs folder, each at a moment of its own. Return how many were killed."""
    killed = series = 0
    while killed < count:
        study, runs, once = ground.pick(series), ground.new_runs(), Once()
        series += 1
        for _ in range(2):
            work: Callable[[], Any] = command(ground.studies[study], runs)
            children = [start(work) for _ in range(together)]
            moments = sorted(ground.random.uniform(0, ground.seconds[study]) for _ in children)
            killed += sum(child.wait(moment).killed for child, moment in zip(children, moments, strict=True))
            once.look(runs)
        last = [start(command(ground.studies[study], runs)) for _ in range(together)]
        codes = [child.wait(600).code for child in last]
        once.look(runs)
        if any(codes):
            ground.faults.append(f"three drivers on {study}: exit codes {codes}")
        ground.finish("kills of three drivers", study, runs, once)
    return killed
