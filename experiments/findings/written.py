"""How much of a change is written along nested spaces: shares of one run, or of runs that differ in their seed alone."""

from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.outcome_changes import CONTRAST, TRAIT, is_there, pick_outcome, stack_runs
from wellworn.experiments.findings.pathways import Chance, chance_record, in_all_runs
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.written import EXCEPT, WrittenFacts, WrittenOutcomes
from wellworn.probes.mediation.pathways import OWN, floor
from wellworn.probes.mediation.shares import is_within_noise
from wellworn.probes.statistics.intervals import FloatArray, question_interval, ratio_interval


class WrittenShares(Record):
    """How much of the change of one outcome is written along nested spaces.

    Attributes:
        effect: the change, in nats per token.
        why: why there are no shares, in words.
        inside: nested space → the share that writes inside it alone bring about, W(UUᵀ); `outside` stands for the whole state.
        outside: nested space → the share that writes outside it alone bring about, W(I − UUᵀ). The two need not sum to one.
        chance_own: the share inside chance directions in place of the own one.
    """

    effect: Interval
    why: str | None
    inside: Mapping[str, Interval]
    outside: Mapping[str, Interval]
    chance_own: Chance | None


class Written(Record):
    """How much of a change is written along nested spaces, against one reference.

    Attributes:
        reference: `neutral` or `base`.
        layers: the layers whose writes are confined; at others the model is the reference.
        trait: of log p(y⁺), answers that show the trait.
        contrast: of log p(y⁺) − log p(y⁻), what is specific to the trait; the headline.
    """

    reference: str
    layers: Sequence[int]
    trait: WrittenShares
    contrast: WrittenShares


def written_shares(runs: Sequence[RunResult]) -> Mapping[str, Written] | None:
    """Return what is written along nested spaces against each reference, the headline's first; None where that was not measured.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
    """
    measured = in_all_runs([run.written for run in runs], lambda one, other: one.facts == other.facts)
    return {reference: _written(reference, each) for reference, each in measured.items()} or None


def _written(reference: str, measured: Sequence[WrittenOutcomes]) -> Written:
    facts = measured[0].facts
    logprob, sampled = (stack_runs([getattr(each, name) for each in measured]) for name in ("logprob", "sampled"))
    trait, contrast = (_shares(facts, pick_outcome(kind, logprob), pick_outcome(kind, sampled)) for kind in (TRAIT, CONTRAST))
    return Written(reference=reference, layers=facts.layers, trait=trait, contrast=contrast)


def _shares(facts: WrittenFacts, logprob: FloatArray, sampled: FloatArray) -> WrittenShares:
    outcomes = dict(zip(facts.parts, logprob, strict=True))
    before = outcomes.pop(BEFORE)
    effect = outcomes.pop(AFTER) - before
    size = question_interval(effect)
    why = None
    if not facts.layers:
        why = "no adapter writes at or below the layer"
    elif is_within_noise(effect) or effect.mean() <= 0:
        why = "the change is within its noise, or away from the trait"
    if why:
        return WrittenShares(effect=size, why=why, inside={}, outside={}, chance_own=None)
    moved = {name: each - before for name, each in outcomes.items()}
    shares = {name: ratio_interval(each, effect) for name, each in moved.items()}
    return WrittenShares(
        effect=size,
        why=None,
        inside={name: each for name, each in shares.items() if not name.startswith(EXCEPT)},
        outside={name.removeprefix(EXCEPT): each for name, each in shares.items() if name.startswith(EXCEPT)},
        chance_own=_chance(facts, effect, sampled, before, moved),
    )


def _chance(
    facts: WrittenFacts, effect: FloatArray, sampled: FloatArray, before: FloatArray, moved: Mapping[str, FloatArray]
) -> Chance | None:
    few = list(facts.questions)
    if facts.draws < 2 or OWN not in moved or not is_there(effect[..., few], effect):
        return None
    return chance_record(floor(effect[..., few], sampled - before[..., few], moved[OWN][..., few]))
