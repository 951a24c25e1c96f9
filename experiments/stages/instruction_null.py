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
from wellworn.experiments.stages.loaded_space import NO_SPACE
from wellworn.experiments.stages.measure import has_shift
from wellworn.experiments.stages.persona_directions import asked_digest, directions_stage
from wellworn.experiments.stages.persona_space import SpaceStages, space_stage
from wellworn.experiments.stages.readings import load_responses
from wellworn.probes.geometry.nulls import Null, null_shares
from wellworn.probes.statistics.intervals import FloatArray

INSTRUCTIONS = "instructions.json"
NOT_ASKED = "the study names no instructions"
OF_ROLES = "the space is made of roles, and instructions are too few to make one in its place"
# Subsets overlap: more of them know little more, and they make no p.
DRAWS = 199


class InstructionShares(Record):
    """What `instructions.json` holds.

    Attributes:
        asked: the instructions that are drawn from.
        found: those of them that pass the test of reliability.
        directions: how many make a draw, which is as many as make the persona space.
        shares: of the run's shift, one a draw.
        why: why there are none, in words.
    """

    asked: Sequence[str]
    found: Sequence[str]
    directions: int
    shares: Sequence[float]
    why: str | None


@dataclass(frozen=True)
class Instructions:
    """The directions of instructions, estimated and judged as those of traits are.

    Attributes:
        names: of the instructions.
        space: the stage with their directions, and where each was found.
    """

    names: tuple[str, ...]
    space: Stage


def load_instruction_stages(context: StudyContext, instructions: Sequence[Instruction], examples: Sequence[Example]) -> Instructions:
    """Return the stages that make the directions of instructions, each of equally many contrast pairs.

    These are as many as the study asks for, or as the instruction with the fewest has. A direction is compared with the covariance of the
    instructions' own activations, as a trait's is against the library's.

    Raises:
        InputError: fewer extraction questions than the study asks for.
    """
    pairs = min(context.study.contrast_pairs, *(len(each.contrast_pairs) for each in instructions))
    directions = [directions_stage(context, each, examples, pairs) for each in instructions]
    names = tuple(each.name for each in instructions)
    return Instructions(names, space_stage(names, directions, [asked_digest(context, examples)] * len(names), "directions of instructions"))


def instructions_stage(
    title: str, layer: int, own: str | None, library: SpaceStages, instructions: Instructions, before: Stage, after: Stage
) -> Stage:
    """Draw the null N2 of one run's headline share.

    Args:
        title: of the run.
        layer: where its share is read.
        own: its trait; the direction is left out of the space, and an instruction of the same name out of the draws.
        library: the persona space.
        instructions: what makes spaces in its place.
        before: the reference's reading of plain answers.
        after: the run's.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space = library.load(folders.within("space"))
        arrays = load_file(folders["instructions"] / "space.safetensors")
        asked = [i for i, name in enumerate(instructions.names) if name != own]
        # Whatever the extraction makes of an instruction is drawn: without directions that are mostly noise a model that follows few
        # instructions would have no null.
        found = [instructions.names[i] for i in asked if arrays["found"][i, layer] > 0.5]
        old, new = (load_responses(folders[when], layer) for when in ("before", "after"))
        members = space.members(layer, own)
        shares, why = (
            draw(new - old, arrays["vectors"][asked, layer].astype(np.float64), len(members)) if not members.roles else ([], OF_ROLES)
        )
        names = [instructions.names[i] for i in asked]
        return {INSTRUCTIONS: InstructionShares(asked=names, found=found, directions=len(members), shares=shares, why=why).to_json()}

    inputs = {**in_group("space", library.inputs), "instructions": instructions.space, "before": before, "after": after}
    config, title = {"layer": layer, "own": own}, f"{title} among instructions"
    return Stage(kind=kinds.INSTRUCTIONS, config=config, inputs=inputs, title=title, compute=compute, everywhere=False)


def draw(differences_nD: FloatArray, vectors_RD: FloatArray, count: int) -> tuple[list[float], str | None]:
    """Return a shift's shares in the spaces of random subsets of instructions.

    Args:
        differences_nD: [prompts, d_model], the shift.
        vectors_RD: [instructions, d_model], their directions.
        count: as many as make a subset, which is as many as make the persona space.

    Returns:
        One share for each subset; and in words why there are none, else None.
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
