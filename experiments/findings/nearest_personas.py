"""The personas that runs come to resemble: those nearest the shift of one run or several, and whether they are the trained ones."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.stages.measurement import Measurement
from wellworn.probes.geometry.nearest import specificity
from wellworn.probes.geometry.nulls import Null

SHOWN = 5
# Four traits have 24 assignments.
FEWEST_TRAITS, SHUFFLES = 4, 9999


class Persona(Record):
    """A persona near a shift.

    Attributes:
        name: the trait or role.
        kind: `trait` or `role`.
        value: the cosine with its direction; for several runs, the mean.
        low: lower 95 % bound over prompts; for several runs, the lowest cosine.
        high: upper 95 % bound over prompts; for several runs, the highest cosine.
        found: whether the direction was found in this model; roles are not tested.
        beyond_chance: whether, in every run, `low` exceeds the 95 % quantile of the nearest of as many random directions.
    """

    name: str
    kind: Literal["trait", "role"]
    value: float
    low: float
    high: float
    found: bool
    beyond_chance: bool


class OwnRank(Record):
    """The rank of the trained trait among all personas.

    Attributes:
        rank: from 1, the nearest.
        of: how many personas there are.
    """

    rank: int
    of: int


class OwnRanks(Record):
    """The ranks of the trained trait in several runs.

    Attributes:
        ranks: one for each run.
        of: how many personas there are.
    """

    ranks: Sequence[int]
    of: int


class SpecificityRow(Record):
    """Whether fine-tunes lie nearest the traits that they were trained on.

    Attributes:
        traits: the number of trained traits.
        rank: the rank of the trained trait among all personas, the mean over traits.
        chance: the mean rank with traits permuted.
        p: of the permutation test.
    """

    traits: int
    rank: float
    chance: float
    p: float


def nearest_to_run(facts: Measurement) -> tuple[list[Persona], OwnRank | None]:
    """Return the personas nearest one run's shift, with intervals over prompts, and the rank of the trained one."""
    personas = facts.personas
    nearest = [
        Persona(
            **vars(each),
            found=_is_found(facts, each.name, each.kind),
            beyond_chance=personas.high is not None and each.low > personas.high,
        )
        for each in personas.nearest[:SHOWN]
    ]
    return nearest, OwnRank(rank=personas.rank, of=personas.of) if personas.rank else None


def nearest_to_group(runs: Sequence[RunResult]) -> tuple[list[Persona], float | None, OwnRanks | None]:
    """Return the personas nearest several runs' shifts, the mean chance level, and the rank of the trained one in each run.

    A persona's value is its mean cosine over runs, with the lowest and the highest as bounds; it is beyond chance if it is so in every run.
    Runs that are too noisy are left out.
    """
    measured = [run.facts for run in runs if run.facts and run.facts.personas.nearest]
    if not measured:
        return [], None, None
    of_runs = [{(each.name, each.kind): each for each in facts.personas.nearest} for facts in measured]
    highs = [facts.personas.high for facts in measured if facts.personas.high is not None]
    cosines = {persona: [each[persona].value for each in of_runs] for persona in of_runs[0]}
    ranks = [facts.personas.rank for facts in measured]
    nearest = [
        Persona(
            name=name,
            kind=kind,
            value=float(np.mean(cosines[name, kind])),
            low=min(cosines[name, kind]),
            high=max(cosines[name, kind]),
            found=all(_is_found(facts, name, kind) for facts in measured),
            beyond_chance=all(each[name, kind].low > high for each, high in zip(of_runs, highs, strict=True)),
        )
        for name, kind in sorted(cosines, key=lambda persona: -np.mean(cosines[persona]))[:SHOWN]
    ]
    known = [rank for rank in ranks if rank]
    own = OwnRanks(ranks=known, of=measured[0].personas.of) if len(known) == len(ranks) else None
    return nearest, float(np.mean(highs)), own


def _is_found(facts: Measurement, name: str, kind: str) -> bool:
    """Return whether a persona's direction was found in the model; roles are not tested."""
    return kind == "role" or name in facts.found


def study_specificity(results: Results) -> SpecificityRow | None:
    """Test whether fine-tunes lie nearest the traits that they were trained on: mean ranks among all personas, and a permutation p.

    None with fewer than four trained traits of the library, which have too few permutations.
    """
    ranks: dict[str, list[dict[str, int]]] = {}
    for run in results.runs:
        near = run.facts.personas.nearest if run.facts and run.entry.arm == "sft" else []
        if near and (trait := run.entry.trait) in results.index.library:
            ranks.setdefault(str(trait), []).append({each.name: i for i, each in enumerate(near, start=1) if each.kind == "trait"})
    if len(ranks) < FEWEST_TRAITS:
        return None
    trained = list(ranks)
    means = np.array([[np.mean([of_run[name] for of_run in ranks[trait]]) for name in trained] for trait in trained])
    found = specificity(means, Null(seed_for(0, "specificity"), draws=SHUFFLES))
    return SpecificityRow(traits=len(trained), **vars(found))
