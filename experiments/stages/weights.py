"""The stage `weights`: the share of a run's weight update that writes into the persona space, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Condition, Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.lora import adapters as lora_adapters
from wellworn.probes.geometry.weights import Summary, Write, summary, writes

WEIGHTS = "weights.json"


class UpdateWrites(Record):
    """The content of `weights.json`.

    Attributes:
        why: why nothing is known, in words.
        writes: one entry for every linear layer that writes into the residual stream, at every layer that has a space.
        together: the summary of all of them.
    """

    why: str | None
    writes: Sequence[Write]
    together: Summary | None


def weights_stage(context: StudyContext, condition: Condition, turns: Sequence[Turn], own: str | None, space_stages: SpaceStages) -> Stage:
    """Measure the share of an adapter's writes that lies in the persona space, at every layer that has one.

    Args:
        context: the study's model.
        condition: with the adapter.
        turns: texts that the base reads, to sample the inputs of adapted modules.
        own: the run's trait; its direction is left out of the space.
        space_stages: the space.
    """

    def compute(context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        members = {layer: space.members(layer, own) for layer in range(context.depth)}
        bases = {layer: space.basis(layer, some) for layer, some in members.items() if some}
        why = None if bases else space.no_space(context.depth - 1, own)
        found: list[Write] = []
        adapter = folders.adapter
        assert adapter is not None  # the condition has one
        chat = context.chat(context.base)
        rows = [chat.encode(turn) for turn in turns]
        name = adapter.parent.name
        if bases:
            try:
                with lora_adapters.adapted(context.base, {name: adapter}) as model:
                    found = list(writes(model, rows, [name], bases, token_budget=context.study.token_budget)[name])
            except InputError as unknown:
                # Some weights cannot be analysed (DoRA, a model that normalises its layers' outputs); everything else is still measured.
                why = str(unknown).replace(f"adapter {name!r}", "the adapter")
        return {WEIGHTS: UpdateWrites(why=why, writes=found, together=summary(found) if found else None).to_json()}

    config = {**context.identity(), "turns": fingerprint(turns), "own": own}
    inputs = {**in_group("space", space_stages.inputs), **condition.inputs}
    title = f"where {condition.title} writes"
    return Stage(kind=kinds.WEIGHTS, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)
