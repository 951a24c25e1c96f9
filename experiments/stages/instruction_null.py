"""The null N2: the share of a run's shift in spaces of instructions that are no character."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.schema import Example, Instruction, seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Output, Stage, TickFn
from wellworn.experiments.stages.loaded_space import NO_SPACE
from wellworn.experiments.stages.measure import moves
from wellworn.experiments.stages.persona_space import Library, directions_stage, questions_asked, space_stage
from wellworn.experiments.stages.readings import responses
from wellworn.probes.geometry.nulls import Null, null_shares, rank_among
from wellworn.probes.statistics.intervals import FloatArray

INSTRUCTIONS = "instructions.json"
NOT_ASKED = "the study names no instructions"
OF_ROLES = "the space is made of roles, and instructions are too few to make one in its place"
# Subsets overlap: more of them know little more, and they make no p.
DRAWS = 199


@dataclass(frozen=True)
class Instructions:
    """The directions of instructions, estimated and judged as those of traits are.

    Attributes:
        names: of the instructions.
        space: the stage with their directions, and where each was found.
    """

    names: tuple[str, ...]
    space: Stage


def instructions_of(context: StudyContext, instructions: Sequence[Instruction], examples: Sequence[Example]) -> Instructions:
    """Return the stages that make the directions of instructions, each of equally many contrast pairs.

    These are as many as the study asks for, or as the instruction with the fewest has. A direction is held against the covariance of the
    instructions' own activations, as a trait's is against the library's.

    Raises:
        InputError: fewer extraction questions than the study asks for.
    """
    pairs = min(context.study.contrast_pairs, *(len(each.contrast_pairs) for each in instructions))
    directions = [directions_stage(context, each, examples, pairs) for each in instructions]
    names = tuple(each.name for each in instructions)
    return Instructions(
        names, space_stage(names, directions, [questions_asked(context, examples)] * len(names), "directions of instructions")
    )


def instructions_stage(
    title: str, layer: int, own: str | None, library: Library, instructions: Instructions, before: Stage, after: Stage
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

    def compute(_bench: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        space, (made, *read) = library.load(inputs)
        arrays = load_file(made / "space.safetensors")
        asked = [i for i, name in enumerate(instructions.names) if name != own]
        # Whatever the extraction makes of an instruction is drawn: without directions that are mostly noise a model that follows few
        # instructions would have no null.
        found = [instructions.names[i] for i in asked if arrays["found"][i, layer] > 0.5]
        old, new = (responses(folder, layer) for folder in read)
        members = space.members(layer, own)
        if members.roles:
            drawn = {"directions": len(members), "shares": [], "why": OF_ROLES}
        else:
            drawn = draw(new - old, arrays["vectors"][asked, layer].astype(np.float64), len(members))
        return {INSTRUCTIONS: {"asked": [instructions.names[i] for i in asked], "found": found, **drawn}}

    inputs = (*library.inputs, instructions.space, before, after)
    return Stage("instructions", 2, {"layer": layer, "own": own}, inputs, f"{title} among instructions", compute, everywhere=False)


def draw(differences_nD: FloatArray, vectors_RD: FloatArray, count: int) -> dict[str, Any]:
    """Return a shift's shares in the spaces of random subsets of instructions.

    Args:
        differences_nD: [prompts, d_model], the shift.
        vectors_RD: [instructions, d_model], their directions.
        count: as many as make a subset, which is as many as make the persona space.

    Returns:
        `directions`, the count; `shares`, one for each subset; and in words `why` there are none, else None.
    """
    facts: dict[str, Any] = {"directions": count, "shares": [], "why": None}
    if count == 0:
        return facts | {"why": NO_SPACE}
    if len(vectors_RD) <= count:
        needed = f"{count + 1} are needed for subsets of {count}, as many as make the persona space"
        return facts | {"why": f"instructions asked: {len(vectors_RD)}; {needed}"}
    if not moves(differences_nD):
        return facts | {"why": "nothing is left of the shift once its noise is taken out"}
    subsets = Null(seed_for(0, "instructions"), DRAWS).subsets(len(vectors_RD), count)
    return facts | {"shares": null_shares(differences_nD, vectors_RD[subsets]).tolist()}


def among_instructions(share: float, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Hold a run's share against the draws: a count and no p, for subsets have instructions in common."""
    return {
        "mean": float(np.mean(drawn["shares"])),
        "high": float(np.quantile(drawn["shares"], 0.95)),
        "at_or_above": rank_among(share, drawn["shares"]).at_least,
        "draws": len(drawn["shares"]),
        "asked": len(drawn["asked"]),
        "found": len(drawn["found"]),
        "directions": drawn["directions"],
    }
