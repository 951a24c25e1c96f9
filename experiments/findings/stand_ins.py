"""Whether a run's own direction carries more than other directions do in its place, and how often those exceed chance.

Over a study the directions of traits make a matrix. Some directions carry much of any change, since traits have something in common, so a
large share of the own direction alone does not show that it is the trait's. With the traits of directions exchanged that stays, and only
the link of fine-tune and trait is broken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.nearest_personas import FEWEST_TRAITS, SHUFFLES
from wellworn.experiments.findings.outcome_changes import CONTRAST, TRAIT, OutcomeChange, parse_parts, pick_outcome
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.verdict import P_LEVEL
from wellworn.experiments.stages import stand_ins
from wellworn.experiments.stages.mediation_arms import parts_named
from wellworn.experiments.stages.pathways import CHANCE_OWN
from wellworn.probes.geometry.nearest import rank_of, specificity
from wellworn.probes.geometry.nulls import Null, rank_among
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.mediation.shares import Swapped
from wellworn.probes.statistics.intervals import FloatArray


class KindOfStandIn(Record):
    """Directions of one kind in place of the own one.

    Attributes:
        shares: direction → its share of the change.
        at_least: how many carry at least as much as the own direction.
        p: (1 + at_least)/(1 + their number).
        above_chance: how many exceed chance directions at p ≤ .05; null where none were drawn.
    """

    shares: Mapping[str, float]
    at_least: int
    p: float
    above_chance: int | None


class StandIns(Record):
    """Other directions in place of a run's own one, on the questions of chance directions.

    Attributes:
        own: the share of the own direction on these questions.
        kinds: `trait`, `instruction`, or `single` (random directions of single states) → what they carry.
    """

    own: float
    kinds: Mapping[str, KindOfStandIn]


class DirectionMatrix(Record):
    """Shares of one outcome's change that the directions of traits carry, each alone.

    Attributes:
        outcome: `trait` (answers with the trait) or `contrast` (what is specific to it).
        traits: that were trained and found, and whose change is clear; rows and columns.
        shares: fine-tune on a trait → the share that each trait's direction carries, the mean over runs.
        rank: of the own direction among these, the mean over traits.
        chance: the mean rank with the traits of directions exchanged.
        p: how often an exchange ranks them as high; null with fewer than four traits, which have too few exchanges.
    """

    outcome: str
    traits: Sequence[str]
    shares: Sequence[Sequence[float]]
    rank: float
    chance: float
    p: float | None


@dataclass(frozen=True)
class _InPlace:
    """What directions carry of one outcome's change: the own one, each in its place, and each chance direction."""

    own: float
    others: Mapping[str, float]
    chance: FloatArray


def stand_in_shares(run: RunResult) -> StandIns | None:
    """Return what other directions carry in place of a run's own one; None where that was not measured, or nothing changed."""
    found = _in_place(run, CONTRAST)
    if found is None or run.stand_ins is None:
        return None
    kind_of, kinds = run.stand_ins.facts.kinds, {}
    for kind in dict.fromkeys(kind_of.values()):
        mine = {name: share for name, share in found.others.items() if kind_of[name] == kind}
        rank = rank_among(found.own, list(mine.values()))
        above = sum(rank_among(share, found.chance).p <= P_LEVEL for share in mine.values()) if len(found.chance) else None
        kinds[kind] = KindOfStandIn(shares=mine, at_least=rank.at_least, p=rank.p, above_chance=above)
    return StandIns(own=found.own, kinds=kinds)


def direction_matrices(runs: Sequence[RunResult]) -> Sequence[DirectionMatrix]:
    """Return what traits' directions carry of each other's changes, for each outcome; none with fewer than two traits.

    Args:
        runs: of a study. Those count that are trained on a trait whose direction was found, and had those of other traits patched in its
            place.
    """
    found = (_matrix(runs, outcome) for outcome in (CONTRAST, TRAIT))
    return [each for each in found if each]


def _matrix(runs: Sequence[RunResult], outcome: str) -> DirectionMatrix | None:
    rows: dict[str, list[Mapping[str, float]]] = {}
    trained = [run for run in runs if run.entry.arm == "sft" and run.entry.trait and run.stand_ins]
    for run in trained:
        # Of a grid the first settings: fine-tunes of other sizes or doses do not repeat these.
        found = _in_place(run, outcome) if run.entry.settings == trained[0].entry.settings else None
        if found and run.stand_ins and run.entry.trait:
            kinds = run.stand_ins.facts.kinds
            of_traits = {name: share for name, share in found.others.items() if kinds[name] == stand_ins.TRAIT}
            rows.setdefault(run.entry.trait, []).append({run.entry.trait: found.own} | of_traits)
    # Columns are the traits that were trained, as far as all rows have their directions.
    traits = [trait for trait in rows if all(trait in shares for each in rows.values() for shares in each)]
    if len(traits) < 2:
        return None
    means = [[float(np.mean([shares[name] for shares in rows[trait]])) for name in traits] for trait in traits]
    ranks = np.array([[rank_of(row, i) for i in range(len(traits))] for row in means], dtype=float)
    found_rank = specificity(ranks, Null(seed_for(0, "direction matrix"), draws=SHUFFLES))
    p = found_rank.p if len(traits) >= FEWEST_TRAITS else None
    return DirectionMatrix(outcome=outcome, traits=traits, shares=means, rank=found_rank.rank, chance=found_rank.chance, p=p)


def _in_place(run: RunResult, outcome: str) -> _InPlace | None:
    """Return what directions carry of one run's change, on the questions of chance directions; None where it is not clear or not there."""
    patched, here = run.stand_ins, next(iter(run.pathways.values()), None)
    if patched is None or here is None or OWN not in here.facts.parts:
        return None
    change = OutcomeChange.of(outcome, [here])
    few = change.few
    if change.why or few is None:
        return None
    others = parse_parts(dict(zip(patched.facts.interventions, pick_outcome(outcome, patched.logprob), strict=True)))

    def share(part: Swapped) -> float:
        return float(few.mediated_effect(part).mean() / few.effect.mean())

    return _InPlace(
        own=share(few.parts[OWN]),
        others={name: share(others.parts[name]) for name in patched.facts.kinds},
        chance=np.array([share(few.parts[name]) for name in parts_named(here.facts.sampled, CHANCE_OWN)]),
    )
