"""How much of a change is written along nested spaces: shares of one run, or of runs that differ in their seed alone."""

from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.outcome_changes import stack_runs
from wellworn.experiments.findings.pathways import Chance, chance_record, in_all_runs
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.written import EXCEPT, WrittenOutcomes
from wellworn.probes.mediation.pathways import OWN, floor
from wellworn.probes.mediation.shares import is_within_noise
from wellworn.probes.statistics.intervals import FloatArray, ratio_interval


class Written(Record):
    """How much of a change of log p(y⁺) is written along nested spaces, against one reference.

    Attributes:
        reference: `neutral` or `base`.
        layers: the layers whose writes are confined; at others the model is the reference.
        why: why there are no shares, in words.
        inside: nested space → the share that writes inside it alone bring about, W(UUᵀ); `outside` stands for the whole state.
        outside: nested space → the share that writes outside it alone bring about, W(I − UUᵀ). The two need not sum to one.
        chance_own: the share inside chance directions in place of the own one.
    """

    reference: str
    layers: Sequence[int]
    why: str | None
    inside: Mapping[str, Interval]
    outside: Mapping[str, Interval]
    chance_own: Chance | None


def written_shares(runs: Sequence[RunResult]) -> Mapping[str, Written] | None:
    """Return what is written along nested spaces against each reference, the headline's first; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
    """
    measured = in_all_runs([run.written for run in runs], lambda one, other: one.facts == other.facts)
    return {reference: _written(reference, each) for reference, each in measured.items()} or None


def _written(reference: str, measured: Sequence[WrittenOutcomes]) -> Written:
    facts = measured[0].facts
    outcomes = dict(zip(facts.parts, stack_runs([each.logprob for each in measured]), strict=True))
    effect = outcomes[AFTER] - outcomes[BEFORE]
    why = None
    if not facts.layers:
        why = "no adapter writes at or below the layer"
    elif is_within_noise(effect) or effect.mean() <= 0:
        why = "the change is within its noise, or away from the trait"
    if why:
        return Written(reference=reference, layers=facts.layers, why=why, inside={}, outside={}, chance_own=None)
    moved = {name: each - outcomes[BEFORE] for name, each in outcomes.items() if name not in (BEFORE, AFTER)}
    shares = {name: ratio_interval(each, effect) for name, each in moved.items()}
    return Written(
        reference=reference,
        layers=facts.layers,
        why=None,
        inside={name: each for name, each in shares.items() if not name.startswith(EXCEPT)},
        outside={name.removeprefix(EXCEPT): each for name, each in shares.items() if name.startswith(EXCEPT)},
        chance_own=_chance(measured, effect, outcomes[BEFORE], moved),
    )


def _chance(measured: Sequence[WrittenOutcomes], effect: FloatArray, before: FloatArray, moved: Mapping[str, FloatArray]) -> Chance | None:
    facts = measured[0].facts
    few = list(facts.questions)
    if facts.draws < 2 or OWN not in moved or not effect[..., few].mean() > 0:
        return None
    draws = stack_runs([each.sampled for each in measured]) - before[..., few]
    return chance_record(floor(effect[..., few], draws, moved[OWN][..., few]))
