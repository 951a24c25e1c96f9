"""A stage: one unit of work, a function of its configuration and its inputs, named by a hash of both."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from wellworn.data.files import digest
from wellworn.data.mixtures import Turn
from wellworn.experiments.engine.store import write_json

if TYPE_CHECKING:
    from wellworn.experiments.engine.context import StudyContext

Output = Mapping[str, Any]
TickFn = Callable[..., None]


@dataclass(frozen=True)
class Together:
    """How several stages are computed in one go.

    Attributes:
        key: the same for all stages that may be.
        compute: (context, input folders of each, own folder of each, tick) → files to write, of each.
    """

    key: str
    compute: Callable[["StudyContext", Sequence[list[Path]], Sequence[Path], TickFn], list[Output]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work.

    Attributes:
        kind: name of the stage, with `version` the integer beside it.
        config: plain JSON; all that decides the result apart from the inputs.
        inputs: stages whose folders are read.
        title: what to call it on screen; not part of the hash.
        compute: (context, input folders, own folder, tick) → files to write.
        everywhere: whether all ranks take part, or rank 0 alone.
        check: run before anything is computed, if the stage is not finished.
        together: how to compute it along with others like it, where that is faster; results are the same.
    """

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: tuple["Stage", ...]
    title: str
    compute: Callable[["StudyContext", list[Path], Path, TickFn], Output]
    everywhere: bool = True
    check: Callable[[], None] | None = None
    together: Together | None = None

    @cached_property
    def id(self) -> str:
        """`<kind>-<hash>`."""
        return f"{self.kind}-{digest([self.kind, self.version, self.config, [stage.id for stage in self.inputs]])}"

    def facts(self, seconds: float, along: Sequence["Stage"] = ()) -> dict[str, Any]:
        """Return what the manifest records: its part of the time, and which stages were computed in the same go."""
        return {
            "stage": self.kind,
            "version": self.version,
            "title": self.title,
            "config": self.config,
            "inputs": [stage.id for stage in self.inputs],
            "seconds": round(seconds, 3),
            "computed_with": [stage.id for stage in along if stage is not self],
        }


@dataclass(frozen=True)
class Condition:
    """What the base is run under: a trained adapter, a system prompt, or nothing."""

    title: str = "base"
    adapter: Stage | None = None
    system: str | None = None

    @property
    def inputs(self) -> tuple[Stage, ...]:
        """The stage that makes the adapter, if any."""
        return (self.adapter,) if self.adapter else ()

    def under(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return the turns as they are read under this condition."""
        return [Turn(t.question, t.answer, self.system) for t in turns] if self.system else list(turns)


def counter(tick: TickFn, total: int, unit: str) -> Callable[[int], None]:
    """Return a function that adds to what is done and shows it, with its rate."""
    done, start = 0, time.perf_counter()

    def progress(more: int) -> None:
        nonlocal done
        done += more
        tick(done, total, f"{done / (time.perf_counter() - start):,.0f} {unit}/s")

    return progress


def write_output(folder: Path, output: Output) -> None:
    """Write a stage's files: tensors for `.safetensors`, JSON for `.json`."""
    for name, value in output.items():
        if name.endswith(".safetensors"):
            (folder / name).write_bytes(save({key: np.ascontiguousarray(array) for key, array in value.items()}))
        else:
            write_json(folder / name, value)


def adapter_of(inputs: Sequence[Path]) -> Path | None:
    """Return the adapter among a stage's inputs, if there is one."""
    return next((folder / "adapter" for folder in inputs if (folder / "adapter").is_dir()), None)


def named(adapters: Sequence[Path | None]) -> dict[str, Path]:
    """Name adapters after the stages that made them."""
    return {adapter.parent.name: adapter for adapter in adapters if adapter}
