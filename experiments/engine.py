"""Walk the stages of a study: each once, whoever else is at work in the same runs folder."""

import errno
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data.errors import InputError
from experiments.progress import Display, Tick
from experiments.ranks import Ranks
from experiments.stages import Bench, Stage, write_output
from experiments.store import Store

POLL_SECONDS = 0.5
FULL_DISK_BYTES = 1_000_000


def ordered(targets: Sequence[Stage]) -> list[Stage]:
    """Return the targets and all they need, each once, inputs before what uses them."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.id not in seen:
            for needed in stage.inputs:
                visit(needed)
            seen[stage.id] = stage

    for target in targets:
        visit(target)
    return list(seen.values())


def run(targets: Sequence[Stage], store: Store, bench: Bench, ranks: Ranks, console: Console, quiet: bool = False) -> None:
    """Finish the targets and all they need.

    Stages that are finished are left alone; stages that another live process holds are waited for
    while others are done. After an error everything that was finished stays finished.

    Raises:
        InputError: a stage cannot be computed, a finished one is corrupt, or the disk is full.
    """
    stages = ordered(targets)
    todo = [stage for stage in stages if not ranks.from_main(lambda s=stage: store.done(s.id))]  # type: ignore[misc]
    for stage in todo:
        if stage.check is not None:
            stage.check()
    with Display(console, len(stages), quiet=quiet or not ranks.main) as display:
        for _ in range(len(stages) - len(todo)):
            display.skipped()
        announced = False
        while todo:
            taken = ranks.from_main(lambda: _next(todo, store))
            if taken is None:
                if not announced:
                    waiting = {s.id for s in todo}
                    display.waiting([s.title for s in todo if not any(n.id in waiting for n in s.inputs)])
                    announced = True
                time.sleep(POLL_SECONDS)
                continue
            stage = next(s for s in todo if s.id == taken)
            todo.remove(stage)
            try:
                if ranks.from_main(lambda s=stage: store.done(s.id)):  # type: ignore[misc]
                    display.skipped()
                else:
                    with display.stage(stage.title) as tick:
                        _compute(stage, store, bench, ranks, tick)
            finally:
                if ranks.main:
                    store.release(stage.id)


def _next(todo: Sequence[Stage], store: Store) -> str | None:
    """Return the id of a stage whose inputs are finished and whose lock is ours now."""
    waiting = {stage.id for stage in todo}
    for stage in todo:
        if not any(needed.id in waiting for needed in stage.inputs) and store.acquire(stage.id):
            return stage.id
    return None


def _compute(stage: Stage, store: Store, bench: Bench, ranks: Ranks, tick: Tick) -> None:
    start = time.perf_counter()
    error: Exception | None = None
    try:
        folder = ranks.from_main(lambda: store.begin(stage.id))
        if stage.everywhere or ranks.main:
            inputs = [store.path(needed.id) for needed in stage.inputs]
            output = stage.compute(bench, inputs, folder, tick)
            if ranks.main:
                write_output(folder, output)
                store.publish(stage.id, stage.facts(time.perf_counter() - start))
    except Exception as caught:
        error = _explained(caught, store.root)
        if ranks.world > 1 and not isinstance(error, InputError):
            # The other ranks may be inside a collective of their own: gathering errors would wait for them
            # until the time-out. Ending this process makes the launcher end them.
            raise error from caught
    ranks.together(error)


def _explained(error: Exception, root: Path) -> Exception:
    """Turn a full disk, which each library reports in its own way, into one message."""
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or shutil.disk_usage(root).free < FULL_DISK_BYTES:
        return InputError(f"the disk that holds {root} is full; make room and run again: finished stages are kept")
    return error
