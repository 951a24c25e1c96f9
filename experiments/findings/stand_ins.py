"""Whether a run's own direction carries more than other directions do in its place, and how often those exceed chance."""

from collections.abc import Mapping

import numpy as np

from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.outcome_changes import specific
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.verdict import P_LEVEL
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_part, parts_named
from wellworn.experiments.stages.pathways import CHANCE_OWN, PathwayOutcomes
from wellworn.experiments.stages.stand_ins import StandInOutcomes
from wellworn.probes.geometry.nulls import rank_among
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.mediation.shares import Outcomes, is_within_noise
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


def stand_in_shares(run: RunResult) -> StandIns | None:
    """Return what other directions carry in place of a run's own one; None where that was not measured, or nothing changed."""
    found = run.stand_ins
    if found is None or not run.pathways:
        return None
    here = next(iter(run.pathways.values()))
    outcomes = dict(zip(found.facts.interventions, specific(found.logprob), strict=True))
    change = Outcomes(outcomes[BEFORE], outcomes[AFTER], {})
    if is_within_noise(change.effect) or change.effect.mean() <= 0:
        return None
    shares = {name: _share(change, outcomes, name) for name in found.facts.kinds}
    own = _own_share(here, found)
    if own is None:
        return None
    chance = _chance_shares(here)
    kinds = {}
    for kind in dict.fromkeys(found.facts.kinds.values()):
        mine = {name: share for name, share in shares.items() if found.facts.kinds[name] == kind}
        rank = rank_among(own, list(mine.values()))
        above = sum(rank_among(share, chance).p <= P_LEVEL for share in mine.values()) if len(chance) else None
        kinds[kind] = KindOfStandIn(shares=mine, at_least=rank.at_least, p=rank.p, above_chance=above)
    return StandIns(own=own, kinds=kinds)


def _share(change: Outcomes, outcomes: Mapping[str, FloatArray], name: str) -> float:
    swapped = parse_part(outcomes, name)
    assert swapped is not None  # every direction was patched both ways
    return float(change.mediated_effect(swapped).mean() / change.effect.mean())


def _own_share(here: PathwayOutcomes, found: StandInOutcomes) -> float | None:
    """Return the own direction's share on the questions of the stand-ins; None where it was not found."""
    facts = here.facts
    if OWN not in facts.parts:
        return None
    scores = dict(zip(facts.interventions, specific(here.logprob)[:, found.facts.questions], strict=True))
    return _share(Outcomes(scores[BEFORE], scores[AFTER], {}), scores, OWN)


def _chance_shares(here: PathwayOutcomes) -> FloatArray:
    """Return the shares of the chance directions, on their questions."""
    facts = here.facts
    few = dict(zip(facts.interventions, specific(here.logprob)[:, list(facts.questions)], strict=True))
    few |= dict(zip(facts.sampled, specific(here.sampled), strict=True))
    change = Outcomes(few[BEFORE], few[AFTER], {})
    return np.array([_share(change, few, name) for name in parts_named(facts.sampled, CHANCE_OWN)])
