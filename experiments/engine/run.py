"""Run the stages of a study, each once, even if other processes use the same runs folder."""

import errno
import os
import re
import resource
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from wellworn.data.errors import InputError, MemoryShortError, describe_os_error, describe_out_of_memory, is_out_of_memory
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.progress import Display, Tick, heading
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.stage import Folders, Output, Stage, write_output
from wellworn.experiments.engine.store import Store
from wellworn.lora.memory import smaller_dtypes
from wellworn.probes.reading.across_ranks import alone

POLL_SECONDS = 0.5
FULL_DISK_BYTES = 1_000_000
# Stages computed together: enough to share work, and few enough to leave some to other processes.
MOST_TOGETHER = 9


def in_order(targets: Sequence[Stage]) -> list[Stage]:
    """Return the targets and all their inputs, each once, inputs first."""
    seen: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.id not in seen:
            for needed in stage.needs:
                visit(needed)
            seen[stage.id] = stage

    for target in targets:
        visit(target)
    return list(seen.values())


def run(
    targets: Sequence[Stage],
    store: Store,
    context: StudyContext,
    ranks: Ranks,
    console: Console,
    quiet: bool = False,
    wait: bool = True,
) -> bool:
    """Finish the targets and all their inputs, and return whether all are finished.

    Finished stages are skipped. If another live process holds a stage, others are done first, and then this one is waited for, unless
    `wait` is false. After an error, finished stages stay finished.

    Raises:
        InputError: a stage cannot be computed, a finished one is corrupt, or the disk is full.
    """
    stages = in_order(targets)
    todo = [stage for stage in stages if not ranks.from_main(lambda s=stage: store.done(s.id))]  # type: ignore[misc]
    for stage in todo:
        if stage.check is not None:
            stage.check()
    with Display(console, len(stages), quiet=quiet or not ranks.main) as display:
        for _ in range(len(stages) - len(todo)):
            display.skip()
        for stage in todo:
            if cut := ranks.from_main(lambda s=stage: store.cut(s.id)):  # type: ignore[misc]
                display.say(f"{stage.title}: is computed again, as {cut} (was there a power failure?)")
        announced = False
        while todo:
            taken = ranks.from_main(lambda: _next(todo, store))
            if not taken and not wait:
                return False
            if not taken:
                if not announced:
                    display.announce_wait({s.title: store.locks.holder(s.id) for s in _ready(todo)})
                    announced = True
                time.sleep(POLL_SECONDS)
                continue
            stages = [stage for stage in todo if stage.id in taken]
            todo[:] = [stage for stage in todo if stage.id not in taken]
            try:
                # Another process may just have finished some of them.
                done = ranks.from_main(lambda: [s.id for s in stages if store.done(s.id)])  # noqa: B023
                for _ in done:
                    display.skip()
                _compute_all([s for s in stages if s.id not in done], store, context, ranks, display)
            finally:
                if ranks.main:
                    for stage in stages:
                        store.locks.release(stage.id)
    return True


def _next(todo: Sequence[Stage], store: Store) -> list[str]:
    """Return the ids of stages with finished inputs, after taking their locks: one, or several to compute together."""
    ready = _ready(todo)
    # Stages that can be computed together come last, as more of them are ready by then.
    for stage in sorted(ready, key=lambda each: each.together is not None):
        if not store.locks.acquire(stage.id):
            continue
        taken = [stage.id]
        for other in ready:
            if len(taken) < MOST_TOGETHER and stage.can_share(other) and store.locks.acquire(other.id):
                taken.append(other.id)
        return taken
    return []


def _ready(todo: Sequence[Stage]) -> list[Stage]:
    """Return the stages that wait for no other."""
    waiting = {stage.id for stage in todo}
    return [stage for stage in todo if not any(needed.id in waiting for needed in stage.needs)]


def _compute_all(stages: Sequence[Stage], store: Store, context: StudyContext, ranks: Ranks, display: Display) -> None:
    """Compute stages together; if that fails, one by one, so that the failing one is named and those before it are kept."""
    try:
        if stages:
            _compute(stages, store, context, ranks, display)
    except InputError as error:
        if len(stages) == 1 or (ranks.world > 1 and not _joint(error)) or ranks.from_main(lambda: _full(store.root)):
            raise
        # Some may have been published before the error.
        done = ranks.from_main(lambda: [stage.id for stage in stages if store.done(stage.id)])
        for stage in stages:
            if stage.id not in done:
                _compute([stage], store, context, ranks, display)


def _compute(stages: Sequence[Stage], store: Store, context: StudyContext, ranks: Ranks, display: Display) -> None:
    error: Exception | None = None
    with display.stages([stage.title for stage in stages]) as tick:
        start = time.perf_counter()
        try:
            folders = ranks.from_main(lambda: [store.begin(stage.id) for stage in stages])
            if stages[0].everywhere or ranks.main:
                # A sum over ranks that take no part would be waited for without end.
                with nullcontext() if stages[0].everywhere else alone():
                    outputs = _outputs(stages, [stage.folders(store.path) for stage in stages], folders, context, tick)
                if ranks.main:
                    seconds = (time.perf_counter() - start) / len(stages)
                    for stage, folder, output in zip(stages, folders, outputs, strict=True):
                        write_output(folder, output)
                        store.publish(stage.id, stage.facts(seconds, stages))
        except Exception as caught:
            error = _explain(caught, stages, store.root, context)
            if ranks.world > 1 and not _joint(error):
                # The other ranks may be inside a collective of their own: gathering errors would wait for them
                # until the time-out. Ending this process makes the launcher end them.
                raise error from caught
        ranks.together(error)


def _outputs(
    stages: Sequence[Stage], inputs: Sequence[Folders], folders: Sequence[Path], context: StudyContext, tick: Tick
) -> list[Output]:
    [first, *others] = stages
    if first.together is not None and others:
        return first.together.compute(context, inputs, folders, tick)
    return [first.compute(context, inputs[0], folders[0], tick)]


def _joint(error: Exception) -> bool:
    """Whether all ranks come upon an error at the same place."""
    return isinstance(error, InputError) and not isinstance(error, MemoryShortError)


def _explain(error: Exception, stages: Sequence[Stage], root: Path, context: StudyContext) -> Exception:
    """Turn the various errors of a full disk or memory into one message; add the stage's name to an error of its input."""
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _full(root):
        return InputError(f"the disk that holds {root} is full; make room and run again: finished stages are kept")
    if refused := _refused(error):
        return InputError(f"{heading([stage.title for stage in stages])}: {describe_os_error(refused)}; finished stages are kept")
    if is_out_of_memory(error):
        may = ", ".join([*stages[0].smaller, *(f"dtype={each}" for each in smaller_dtypes(context.dtype))])
        return MemoryShortError(
            f"{heading([stage.title for stage in stages])}: {describe_out_of_memory(error)}; finished stages are kept. "
            f"What lets it fit: {may}"
        )
    if isinstance(error, InputError):
        return InputError(f"{heading([stage.title for stage in stages])}: {error}")
    return error


def _refused(error: Exception) -> OSError | None:
    """Return an error of the file system, which libraries that write files by themselves put into words only."""
    if isinstance(error, OSError):
        return error if error.errno else None
    number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    if number is None and "PytorchStreamWriter failed writing file" in str(error):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return OSError(errno.EIO if limit == resource.RLIM_INFINITY else errno.EFBIG, "a checkpoint cannot be written")
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _full(root: Path) -> bool:
    return shutil.disk_usage(root).free < FULL_DISK_BYTES
