"""The stage `teacher`: what the base answers while it is steered along a direction, for a student to be fine-tuned on.

A student's change has a known origin: the teacher differs from the base by one vector at one layer.
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


def teacher_stage(context: StudyContext, library: SpaceStages, arm: Distilled, name: str, questions: Sequence[Example], seed: int) -> Stage:
    """Answer questions with the base, to whose state a direction is added at every token.

    Args:
        context: the study's model.
        library: the persona space, with the direction that is asked for.
        arm: along what, how far, and at which layer.
        name: whose direction.
        questions: what is answered.
        seed: of a direction drawn by chance.
    """
    layer = resolve_layer(arm.layer, context.depth)
    asked = [example.question for example in questions]

    def compute(context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space = library.load(folders)
        vector = arm.strength * torch.from_numpy(steering_vector(space, layer, name, arm.along, seed)).float()
        [answers] = answer_questions(context, [(question, None) for question in asked], [None], tick, {layer: add_vector(vector)})
        return {"answers.json": answers}

    config = {**context.identity(), "questions": asked, "name": name, "tokens": context.study.answer_tokens}
    config |= {"layer": layer, "along": arm.along, "strength": arm.strength, "seed": seed if arm.along == "chance" else None}
    title = f"answers of the base steered along {name if arm.along == 'persona' else 'chance'}"
    return Stage(kind=kinds.TEACHER, config=config, inputs=library.inputs, title=title, compute=compute)


def steering_vector(space: PersonaSpace, layer: int, name: str, along: str, seed: int) -> FloatArray:
    """Return a persona's direction at a layer, [d_model], or one of its norm that chance puts outside the persona space.

    Raises:
        InputError: the direction was not found there, or no other trait's was, so that there is no space to be outside of.
    """
    which = list(space.names).index(name)
    direction = space.vectors[which, layer]
    if not space.found[which, layer]:
        raise InputError(f"the direction of {name} was not found in this model at layer {layer}; steer along another, or at another layer")
    if along == "persona":
        return np.asarray(direction)
    drawn_1D = space.outside(layer, float(np.linalg.norm(direction)), seed_for(seed, "teacher"), draws=1)
    return np.asarray(drawn_1D[0])
