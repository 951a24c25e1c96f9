"""The stage `confined`: a fine-tune that can write along some directions alone, or everywhere but along them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.nested_space import chance_directions, nested_space
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.training import SMALLER, Training, train_adapter
from wellworn.lora.arms import Confined
from wellworn.lora.sharded import refuse_fsdp
from wellworn.lora.train_config import check_keys
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.reading.layers import resolve_layer
from wellworn.probes.statistics.intervals import FloatArray

# In Llama, Qwen, Gemma, Mistral and Phi 3; GPT-NeoX; OPT; GPT-2.
LAST_WRITERS = ("down_proj", "dense_4h_to_h", "fc2")


def confined_stage(context: StudyContext, space_stages: SpaceStages, arm: Confined, own: str, training: Training) -> Stage:
    """Fine-tune a LoRA adapter that writes along some directions alone, or everywhere but along them, at every adapted layer.

    Args:
        context: the study's model.
        space_stages: the persona space, with the run's own direction.
        arm: which directions.
        own: the name of the run's own direction.
        training: what it is trained on; the modules are those through which blocks write last, whatever it says.
    """
    config = training.config
    at = resolve_layer(context.study.layer, context.depth)

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        from wellworn.lora.confine import Confinement

        bases = directions_to_write(space_stages.load(folders), list(range(context.depth)), at, own, arm.to)
        confined = {
            layer: Confinement(torch.from_numpy(basis).float(), arm.outside, reset=arm.reset and layer <= at)
            for layer, basis in bases.items()
        }
        context.drop()
        base = context.load()
        modules = config.model_copy(update={"lora": config.lora | {"target_modules": last_writers(base.model)}})
        return train_adapter(context, base, replace(training, config=modules), out, tick, confined)

    def check() -> None:
        check_keys(config)
        if arm.reset:
            refuse_fsdp("a confined arm with reset")

    plain = {**context.identity(), **training.facts, "to": arm.to, "outside": arm.outside, "own": own, "layer": at}
    plain |= {"reset": True} if arm.reset else {}
    return Stage(
        kind=kinds.CONFINED,
        config=plain,
        inputs=space_stages.inputs,
        title=training.title,
        compute=compute,
        check=check,
        smaller=SMALLER,
    )


def directions_to_write(space: PersonaSpace, layers: Sequence[int], at: int, own: str, to: str) -> dict[int, FloatArray]:
    """Return the bases [d_model, k] that a confined fine-tune writes along, at each layer.

    Raises:
        InputError: the own direction was not found, or nothing can be drawn in its place.
    """
    nested = nested_space(space, layers, at, own)
    if OWN not in nested.names:
        raise InputError(f"the direction of {own} was not found in this model at layer {at}; confine to another, or at another layer")
    if to == "own":
        return nested.part(OWN)
    if to == "space":
        return nested.part(nested.names[-1])
    drawn = chance_directions(space, layers, at, own, draws=1)
    if not drawn:
        raise InputError("too few personas were found to draw a direction in place of the own one")
    return drawn[0]


def last_writers(model: nn.Module) -> list[str]:
    """Return the names of the modules through which blocks write to the residual stream last.

    Raises:
        InputError: the model has none of the names that are known.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if not (found := [name for name in LAST_WRITERS if name in names]):
        raise InputError(f"confined: this model has none of the modules {', '.join(LAST_WRITERS)}, through which blocks write last")
    return found
