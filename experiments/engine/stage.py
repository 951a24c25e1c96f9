"""A stage: one unit of work, a function of its configuration and its inputs, identified by a hash of both."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from wellworn.data.files import digest
from wellworn.data.mixtures import Turn
from wellworn.data.saving import write_json
from wellworn.data.schema import Asked

if TYPE_CHECKING:
    from wellworn.experiments.engine.context import StudyContext

# File name → arrays by name for `.safetensors`, a JSON value for `.json`.
Output = Mapping[str, Any]
# Plain JSON: everything that determines a stage's result, apart from its inputs.
Config = Mapping[str, Any]
TickFn = Callable[..., None]
Inputs = Mapping[str, "Stage | Sequence[Stage]"]


class Kind(NamedTuple):
    """A kind of stage and its version, which is raised when its results change."""

    name: str
    version: int


@dataclass(frozen=True)
class Folders:
    """The folders of a stage's inputs, under the stage's names for them.

    Attributes:
        named: name → folders, in the stage's order; hashable.
    """

    named: tuple[tuple[str, tuple[Path, ...]], ...] = ()

    def __getitem__(self, name: str) -> Path:
        """Return the folder of an input with one stage."""
        [folder] = self.all(name)
        return folder

    def all(self, name: str) -> tuple[Path, ...]:
        """Return the folders of an input with several stages; none where there is no such input."""
        return dict(self.named).get(name, ())

    def within(self, group: str) -> "Folders":
        """Return the inputs that `in_group` put under a name."""
        prefix = f"{group}/"
        return Folders(tuple((name.removeprefix(prefix), folders) for name, folders in self.named if name.startswith(prefix)))

    @property
    def adapter(self) -> Path | None:
        """The adapter of a condition, if it has one."""
        return self["adapter"] / "adapter" if self.all("adapter") else None


def in_group(group: str, inputs: Inputs) -> dict[str, "Stage | Sequence[Stage]"]:
    """Return inputs with a group's name as prefix, so that the inputs of two conditions do not collide."""
    return {f"{group}/{name}": stages for name, stages in inputs.items()}


Compute = Callable[["StudyContext", Folders, Path, TickFn], Output]
ComputeAll = Callable[["StudyContext", Sequence[Folders], Sequence[Path], TickFn], list[Output]]


@dataclass(frozen=True)
class Together:
    """How several stages are computed together.

    Attributes:
        key: equal for stages that can be computed together.
        compute: (context, input folders of each, own folder of each, tick) → files to write, of each.
    """

    key: str
    compute: ComputeAll


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """One unit of work.

    Attributes:
        kind: its kind and version.
        config: plain JSON; everything that determines the result, apart from the inputs.
        inputs: stages with the folders that it reads, by name, in the order of the hash.
        title: its name on screen; not part of the hash.
        compute: (context, input folders, own folder, tick) → files to write.
        everywhere: whether all ranks take part, or only rank 0.
        check: called before anything is computed, if the stage is not finished.
        together: how to compute it together with similar stages, where that is faster; results are the same.
        smaller: what a user may set so that it takes less memory.
    """

    kind: Kind
    config: Config
    inputs: Inputs = field(default_factory=dict)
    title: str
    compute: Compute
    everywhere: bool = True
    check: Callable[[], None] | None = None
    together: Together | None = None
    smaller: Sequence[str] = ("a smaller token_budget",)

    @classmethod
    def joint(
        cls,
        *,
        kind: Kind,
        config: Config,
        inputs: Inputs,
        title: str,
        shared: Any,
        compute_all: ComputeAll,
        everywhere: bool = True,
        check: Callable[[], None] | None = None,
    ) -> "Stage":
        """Return a stage that can be computed together with others of equal `shared`, a JSON value."""

        def compute(context: "StudyContext", folders: Folders, out: Path, tick: TickFn) -> Output:
            return compute_all(context, [folders], [out], tick)[0]

        together = Together(digest(shared), compute_all)
        return cls(
            kind=kind, config=config, inputs=inputs, title=title, compute=compute, everywhere=everywhere, check=check, together=together
        )

    @cached_property
    def needs(self) -> tuple["Stage", ...]:
        """All inputs, in the order of their names and of the stages under each."""
        return tuple(stage for stages in self.inputs.values() for stage in _each(stages))

    @cached_property
    def id(self) -> str:
        """`<kind>-<hash>`."""
        return f"{self.kind.name}-{digest([*self.kind, self.config, [stage.id for stage in self.needs]])}"

    def folders(self, path: Callable[[str], Path]) -> Folders:
        """Return the folders of its inputs; `path` maps a stage's id to its folder."""
        return Folders(tuple((name, tuple(path(stage.id) for stage in _each(stages))) for name, stages in self.inputs.items()))

    def can_share(self, other: "Stage") -> bool:
        """Return whether the two can be computed together."""
        return self is not other and None not in (self.together, other.together) and self.together.key == other.together.key  # type: ignore[union-attr]

    def facts(self, seconds: float, along: Sequence["Stage"] = ()) -> Config:
        """Return the facts for the manifest: its part of the time, and the stages that were computed together with it."""
        return {
            "stage": self.kind.name,
            "version": self.kind.version,
            "title": self.title,
            "config": self.config,
            "inputs": [stage.id for stage in self.needs],
            "seconds": round(seconds, 3),
            "computed_with": [stage.id for stage in along if stage is not self],
        }


def _each(stages: "Stage | Sequence[Stage]") -> Iterator["Stage"]:
    yield from (stages,) if isinstance(stages, Stage) else stages


@dataclass(frozen=True)
class Condition:
    """A condition of the base: a trained adapter, a system prompt, or nothing."""

    title: str = "base"
    adapter: Stage | None = None
    system: str | None = None

    @property
    def inputs(self) -> dict[str, Stage]:
        """The stage that makes the adapter, if any, as `adapter`."""
        return {"adapter": self.adapter} if self.adapter else {}

    def under(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return turns under this condition's system prompt, which is put before their own."""
        return [turn.under(self.system) for turn in turns]

    def within(self, name: str, prompt: str) -> "Condition":
        """Return this condition in a context: under a further system prompt, which follows its own."""
        return replace(self, title=f"{self.title} under {name}", system=Asked("", prompt).under(self.system).system)


def counter(tick: TickFn, total: int, unit: str) -> Callable[[int], None]:
    """Return a function that adds up finished units and shows them, with their rate."""
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


def by_stage(adapters: Sequence[Path | None]) -> dict[str, Path]:
    """Return adapters under the names of the stages that made them."""
    return {adapter.parent.name: adapter for adapter in adapters if adapter}
