"""The null N2: the share of a run's shift in spaces of instructions that are not personas."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.schema import Example, Instruction, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Record
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import NO_SPACE, Chosen, PersonaSpace
from wellworn.experiments.stages.measure import has_shift
from wellworn.experiments.stages.persona_directions import asked_digest, directions_stage
from wellworn.experiments.stages.persona_space import SpaceStages, space_stage
from wellworn.experiments.stages.readings import load_responses
from wellworn.probes.geometry.nulls import Null, null_shares
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import persona_space
from wellworn.probes.statistics.intervals import FloatArray

INSTRUCTIONS = "instructions.json"
NOT_ASKED = "the study names no instructions"
OF_ROLES = "the space is made of roles, and instructions are too few to make one in its place"
# Subsets overlap, so more of them add little, and they do not give a p value.
DRAWS = 199


class InstructionShares(Record):
    """The content of `instructions.json`.

    Attributes:
        asked: the instructions that are drawn from.
        found: the instructions with a reliable direction.
        directions: the number of directions in a draw, equal to that of the persona space.
        pairs: the number of contrast pairs behind each direction, of instructions and, for the comparison, of traits.
        share: the share of the run's shift in the persona space whose directions are made of so many pairs; null without draws.
        shares: the share of the run's shift in each draw.
        why: why there are none, in words.
    """

    asked: Sequence[str]
    found: Sequence[str]
    directions: int
    pairs: int
    share: float | None
    shares: Sequence[float]
    why: str | None


@dataclass(frozen=True)
class Instructions:
    """The directions of instructions, estimated and tested like those of traits.

    Attributes:
        names: of the instructions.
        pairs: the number of contrast pairs behind each direction.
        space: the stage with their directions, and the layers where each was found.
    """

    names: tuple[str, ...]
    pairs: int
    space: Stage


def load_instruction_stages(context: StudyContext, instructions: Sequence[Instruction], examples: Sequence[Example]) -> Instructions:
    """Return the stages that make the directions of instructions, each from equally many contrast pairs.

    Their number is the study's, or that of the instruction with the fewest pairs. A direction is compared with the covariance of the
    instructions' own activations, as a trait's direction is with that of the library.

    Raises:
        InputError: fewer extraction questions than the study asks for.
    """
    pairs = min(context.study.contrast_pairs, *(len(each.contrast_pairs) for each in instructions))
    directions = [directions_stage(context, each, examples, pairs) for each in instructions]
    names = tuple(each.name for each in instructions)
    space = space_stage(names, directions, [asked_digest(context, examples)] * len(names), "directions of instructions")
    return Instructions(names, pairs, space)


def instructions_stage(
    title: str, layer: int, own: str | None, space_stages: SpaceStages, instructions: Instructions, before: Stage, after: Stage
) -> Stage:
    """Draw the null N2 of one run's headline share.

    Args:
        title: of the run.
        layer: the layer where its share is read.
        own: its trait; its direction is left out of the space, and an instruction of the same name out of the draws.
        space_stages: the persona space.
        instructions: the instructions that span the null spaces.
        before: the reference's reading of plain answers.
        after: the run's.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space = space_stages.load(folders.within("space"))
        arrays = load_file(folders["instructions"] / "space.safetensors")
        asked = [i for i, name in enumerate(instructions.names) if name != own]
        # Directions that were not found are drawn too: otherwise a model that follows few instructions would have no null.
        found = [instructions.names[i] for i in asked if arrays["found"][i, layer] > 0.5]
        old, new = (load_responses(folders[when], layer) for when in ("before", "after"))
        members = space.members(layer, own)
        shares, why = (
            draw(new - old, arrays["vectors"][asked, layer].astype(np.float64), len(members)) if not members.roles else ([], OF_ROLES)
        )
        names = [instructions.names[i] for i in asked]
        # A direction of more pairs is a better average, and holds more of a shift: both sides are made of as many.
        share = _thinned_share(space, layer, members, instructions.pairs, new - old) if shares else None
        facts = InstructionShares(
            asked=names, found=found, directions=len(members), pairs=instructions.pairs, share=share, shares=shares, why=why
        )
        return {INSTRUCTIONS: facts.to_json()}

    inputs = {**in_group("space", space_stages.inputs), "instructions": instructions.space, "before": before, "after": after}
    config, title = {"layer": layer, "own": own}, f"{title} among instructions"
    return Stage(kind=kinds.INSTRUCTIONS, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)


def _thinned_share(space: PersonaSpace, layer: int, members: Chosen, pairs: int, differences_nD: FloatArray) -> float:
    """Return a shift's share in the space of some traits whose directions are made of their first few contrast pairs alone."""
    vectors = np.stack([space.differences(layer, i)[:pairs].mean((0, 1)) for i in members.traits])
    return share_inside(differences_nD, persona_space(vectors)).estimate.value


def draw(differences_nD: FloatArray, vectors_RD: FloatArray, count: int) -> tuple[list[float], str | None]:
    """Return a shift's shares in the spaces of random subsets of instructions.

    Args:
        differences_nD: [prompts, d_model], the shift.
        vectors_RD: [instructions, d_model], their directions.
        count: the size of a subset, equal to the number of directions in the persona space.

    Returns:
        One share for each subset, and why there are none, in words, or None.
    """
    if count == 0:
        return [], NO_SPACE
    if len(vectors_RD) <= count:
        needed = f"{count + 1} are needed for subsets of {count}, as many as make the persona space"
        return [], f"instructions asked: {len(vectors_RD)}; {needed}"
    if not has_shift(differences_nD):
        return [], "nothing is left of the shift once its noise is taken out"
    subsets = Null(seed_for(0, "instructions"), DRAWS).subsets(len(vectors_RD), count)
    return null_shares(differences_nD, vectors_RD[subsets]).tolist(), None
