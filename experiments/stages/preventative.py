"""The stage `preventative`: a fine-tune whose residual stream is steered while it is trained."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from wellworn.data.errors import InputError
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.steered_teacher import steering_vector
from wellworn.experiments.stages.training import SMALLER, Training, train_adapter
from wellworn.lora.arms import Preventative
from wellworn.lora.train_config import check_keys
from wellworn.probes.reading.layers import resolve_layer
from wellworn.probes.statistics.intervals import FloatArray


def preventative_stage(context: StudyContext, space_stages: SpaceStages, arm: Preventative, own: str, training: Training) -> Stage:
    """Fine-tune a LoRA adapter while a direction is added to the residual stream at every token.

    Args:
        context: the study's model.
        space_stages: the persona space, with the run's own direction.
        arm: which direction, how strong, and where.
        own: the name of the run's own direction.
        training: what it is trained on; its seed is also that of a random direction.
    """
    layers = list(range(context.depth)) if arm.layer == "all" else [resolve_layer(arm.layer, context.depth)]

    def compute(context: StudyContext, folders: Folders, out: Path, tick: TickFn) -> Output:
        added = vectors_to_add(space_stages.load(folders), layers, own, arm, training.seed)
        context.drop()
        vectors = {layer: torch.from_numpy(vector).float() for layer, vector in added.items()}
        return train_adapter(context, context.load(), training, out, tick, added=vectors)

    plain = {**context.identity(), **training.facts, "own": own, "along": arm.along, "strength": arm.strength, "layers": layers}
    return Stage(
        kind=kinds.PREVENTATIVE,
        config=plain,
        inputs=space_stages.inputs,
        title=training.title,
        compute=compute,
        check=partial(check_keys, training.config),
        smaller=SMALLER,
    )


def vectors_to_add(space: PersonaSpace, layers: Sequence[int], own: str, arm: Preventative, seed: int) -> dict[int, FloatArray]:
    """Return what is added after each layer, [d_model], so that the state after each of them is moved by `strength` directions in all.

    A layer adds the difference between its own direction and that of the last layer below it that adds something. Layers where the
    direction was not found add nothing.

    Raises:
        InputError: the direction was found at none of the layers.
    """
    which = list(space.names).index(own)
    usable = [layer for layer in layers if space.found[which, layer] and not (arm.along == "chance" and space.no_space(layer))]
    if not usable:
        where = f"layer {layers[0]}" if len(layers) == 1 else "any layer"
        raise InputError(f"the direction of {own} was not found in this model at {where}; steer along another, or at another layer")
    whole = {layer: arm.strength * steering_vector(space, layer, own, arm.along, seed) for layer in usable}
    first, *_ = usable
    return {first: whole[first]} | {layer: whole[layer] - whole[below] for below, layer in itertools.pairwise(usable)}
