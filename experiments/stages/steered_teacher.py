"""The stage `teacher`: answers of the base while it is steered along a direction, as training data for a student.

The origin of a student's change is known: the teacher differs from the base by one vector at one layer.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wellworn.data.errors import InputError
from wellworn.data.schema import Example, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.answers import answer_questions
from wellworn.experiments.stages.loaded_space import PersonaSpace
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.lora.arms import Distilled
from wellworn.probes.reading.hooks import add_vector
from wellworn.probes.reading.layers import resolve_layer
from wellworn.probes.statistics.intervals import FloatArray


def teacher_stage(
    context: StudyContext, space_stages: SpaceStages, arm: Distilled, name: str, questions: Sequence[Example], seed: int
) -> Stage:
    """Answer questions with the base while a direction is added to its residual stream at every token.

    Args:
        context: the study's model.
        space_stages: the persona space with the direction.
        arm: the kind of direction, the strength, and the layer.
        name: the persona with the direction.
        questions: the questions to answer.
        seed: random seed of a random direction.
    """
    layer = resolve_layer(arm.layer, context.depth)
    asked = [example.asked for example in questions]

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = space_stages.load(folders)
        vector = arm.strength * torch.from_numpy(steering_vector(space, layer, name, arm.along, seed)).float()
        [answers] = answer_questions(context, asked, [None], tick, {layer: add_vector(vector)})
        return {"answers.json": answers}

    config = {**context.identity(), "questions": [each.facts for each in asked], "name": name, "tokens": context.study.answer_tokens}
    config |= {"layer": layer, "along": arm.along, "strength": arm.strength, "seed": seed if arm.along == "chance" else None}
    title = f"answers of the base steered along {name if arm.along == 'persona' else 'chance'}"
    return Stage(kind=kinds.TEACHER, config=config, inputs=space_stages.inputs, title=title, compute=compute)


def steering_vector(space: PersonaSpace, layer: int, name: str, along: str, seed: int) -> FloatArray:
    """Return a persona's direction at a layer, [d_model], or a random one of the same norm outside the persona space.

    Raises:
        InputError: the direction was not found there, or no other trait's was, so that there is no space.
    """
    which = list(space.names).index(name)
    direction = space.vectors[which, layer]
    if not space.found[which, layer]:
        raise InputError(f"the direction of {name} was not found in this model at layer {layer}; steer along another, or at another layer")
    if along == "persona":
        return np.asarray(direction)
    drawn_1D = space.outside(layer, float(np.linalg.norm(direction)), seed_for(seed, "teacher"), draws=1)
    return np.asarray(drawn_1D[0])
