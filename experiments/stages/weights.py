"""The stage `weights`: where a run's update writes, layer by layer, against the persona space."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Output, Stage, TickFn, adapter_of
from wellworn.experiments.stages.persona_space import Library
from wellworn.lora import models
from wellworn.probes.geometry.weights import summary, writes

WEIGHTS = "weights.json"


def weights_stage(context: StudyContext, condition: Condition, turns: Sequence[Turn], own: str | None, library: Library) -> Stage:
    """Take the share of what an adapter writes that lies in the persona space, at every layer that has one.

    Args:
        context: the study's model.
        condition: with the adapter.
        turns: what the base reads, to know the inputs of what is adapted.
        own: the run's trait, whose direction is left out of the space.
        library: the space.
    """

    def compute(context: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        space, rest = library.load(inputs)
        members = {layer: space.members(layer, own) for layer in range(context.depth)}
        bases = {layer: space.basis(layer, some) for layer, some in members.items() if some}
        facts: dict[str, Any] = {"why": None if bases else space.no_space(context.depth - 1, own), "writes": [], "together": None}
        adapter = adapter_of(rest)
        assert adapter is not None  # the condition has one
        chat = context.chat(context.base)
        rows = [chat.encode(turn) for turn in turns]
        name = adapter.parent.name
        if bases:
            try:
                with models.adapted(context.base, {name: adapter}) as model:
                    found = writes(model, rows, [name], bases, token_budget=context.study.token_budget)[name]
                facts |= {"writes": [asdict(each) for each in found], "together": asdict(summary(found))}
            except InputError as unknown:
                # Where the weights do not tell (DoRA, a model that normalises what its layers write), all else is still measured.
                facts["why"] = str(unknown).replace(f"adapter {name!r}", "the adapter")
        return {WEIGHTS: facts}

    config = {**context.identity(), "turns": fingerprint(turns), "own": own}
    inputs = (*library.inputs, *condition.inputs)
    return Stage("weights", 1, config, inputs, f"where {condition.title} writes", compute, everywhere=False)
