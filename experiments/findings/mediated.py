"""The shares of mediation analyses of one run or several, under the names of the summary."""

from collections import Counter
from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.measurement import EffectShares, Graded, Known
from wellworn.probes.mediation.shares import INSIDE, OUTSIDE, WHOLE

# Outcomes other than the headline's.
OTHERS = ("surface", "response", "generated")


class MediatedShares(Record):
    """The shares of the effect that the persona space without the run's own direction mediates.

    Attributes:
        sufficiency: S, the persona part of the state put into the reference.
        necessity: N, the persona part taken out of the run.
        mediated: M, the mean of the two.
        carried: M(I), the share of the whole state at the layer.
        mediated_of_carried: C = (M − chance) / (M(I) − chance).
        null_mean: chance, the mean M of random spaces of the same size.
        null_high: its 95 % quantile.
        null_matched: the mean of draws scaled to move the state as far as the persona part.
        null_p: p against these draws; null with fewer than 199 draws.
        complement: M of all but the persona space.
        shapley: the effect shared out among `existing`, `new` and `reading`.
    """

    sufficiency: Interval | None = None
    necessity: Interval | None = None
    mediated: Interval | None = None
    carried: Interval | None = None
    mediated_of_carried: Interval | None = None
    null_mean: float | None = None
    null_high: float | None = None
    null_matched: float | None = None
    null_p: float | None = None
    complement: Interval | None = None
    shapley: Mapping[str, Interval] | None = None


class _WithEffect(Record):
    effect: Interval | None


class OutcomeShares(MediatedShares, _WithEffect):
    """The shares of an outcome other than the headline's, or of other tokens.

    Attributes:
        effect: the change of this outcome.
    """


class _WithGrades(Record):
    why: str | None
    known: Known | None
    graded: Graded | None
    left_out: int | None
    bounds: Sequence[float] | None


class GeneratedShares(_WithGrades, OutcomeShares):
    """The shares of the patched models' own answers.

    Attributes:
        effect: the change of the answers' score.
        why: why there are no shares, in words.
        known: how well the score discriminates answers of known label.
        graded: the judge that graded the answers; null where contrast pairs score them.
        left_out: number of questions without a grade under some intervention.
        bounds: the change if each missing grade were 0 or 100, whichever is worse.
    """


class OtherOutcomes(Record):
    """The shares of outcomes other than the headline's.

    Attributes:
        surface: shares on training-like answers.
        response: shares where only the response's tokens were patched.
        generated: shares of the patched models' own answers.
    """

    surface: OutcomeShares
    response: OutcomeShares
    generated: GeneratedShares


def mediated_shares(found: EffectShares | None) -> MediatedShares:
    """Return the numbers of a mediation analysis; all None where there is no analysis, or no effect."""
    if found is None or found.why is not None:
        return MediatedShares()
    inside, null = found.shares[INSIDE], found.null
    return MediatedShares(
        sufficiency=inside.sufficiency,
        necessity=inside.necessity,
        mediated=inside.mediated,
        carried=found.shares[WHOLE].mediated,
        mediated_of_carried=found.mediated_of_carried,
        null_mean=null and null.mediated,
        null_high=null and null.high,
        null_matched=null and null.matched,
        null_p=null and null.p,
        complement=found.shares[OUTSIDE].mediated,
        shapley=found.shapley,
    )


def other_outcomes(found: Mapping[str, EffectShares | None], runs: Sequence[RunResult]) -> OtherOutcomes:
    """Return the shares of the other outcomes, each with its effect; for generated answers also how well their score discriminates.

    Args:
        found: outcome → its analysis, of one run or over several.
        runs: the runs.
    """
    said = found["generated"]
    scored = [each for run in runs if run.facts and (each := run.facts.analysis("generated"))]
    outcomes = {name: {"effect": each and each.effect, **vars(mediated_shares(each))} for name, each in found.items()}
    return OtherOutcomes(
        surface=OutcomeShares(**outcomes["surface"]),
        response=OutcomeShares(**outcomes["response"]),
        generated=GeneratedShares(
            **outcomes["generated"],
            why=said and said.why,
            # Answers of known label are the same for all runs.
            known=scored[0].known if scored else None,
            graded=pool_graded([each.graded for each in scored if each.graded]),
            left_out=said and said.left_out,
            bounds=said and said.bounds,
        ),
    )


def pool_graded(graded: Sequence[Graded]) -> Graded | None:
    """Return the judge of several runs' answers, with counts of missing grades by reason; None where nothing was graded."""
    if not graded:
        return None
    failures = sum((Counter(each.failures) for each in graded), Counter[str]())
    return Graded(judge=graded[0].judge, drawn=any(each.drawn for each in graded), failures=dict(failures.most_common()))
