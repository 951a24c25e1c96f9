"""The shares of mediation analyses, of one run or of several, under the names that a summary gives them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.measurement import Analysis, EffectShares, Graded, Known
from wellworn.probes.mediation.shares import INSIDE, OUTSIDE, WHOLE

# Outcomes besides the headline's.
OTHERS = ("surface", "response", "generated")


class MediatedShares(Record):
    """The shares of a mediation analysis, of the effect, in the persona space without the run's own direction.

    Attributes:
        sufficiency: S, its part of the state put into the reference.
        necessity: N, the same taken out of the run.
        mediated: M, the mean of the two.
        carried: M(I), of the whole state at the layer.
        mediated_of_carried: C = (M − chance) / (M(I) − chance).
        null_mean: chance: the mean M of random spaces of the same size.
        null_high: its 95 % quantile.
        null_matched: the mean of draws scaled to move the state as far as the persona part.
        null_p: p against these draws; null below 199 of them.
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
    """The shares of another outcome than the headline's, or of other tokens.

    Attributes:
        effect: its change.
    """


class _WithGrades(Record):
    why: str | None
    known: Known | None
    graded: Graded | None
    left_out: int | None
    bounds: Sequence[float] | None


class GeneratedShares(_WithGrades, OutcomeShares):
    """The shares of what patched arms say.

    Attributes:
        effect: the change of its score.
        why: why there are no shares, in words.
        known: how the score discriminates known answers.
        graded: who graded what was said; null where contrast pairs score it.
        left_out: questions without a grade in some arm.
        bounds: what the change would be if each missing grade were 0, or 100, whichever is worse.
    """


class OtherOutcomes(Record):
    """The shares of the outcomes besides the headline's.

    Attributes:
        surface: on training-like answers.
        response: where the response's tokens alone were swapped.
        generated: of what patched arms say.
    """

    surface: OutcomeShares
    response: OutcomeShares
    generated: GeneratedShares


def mediated_shares(found: EffectShares | None) -> MediatedShares:
    """Return the numbers of a mediation analysis; none where there is no analysis, or it found no effect to share out."""
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
    """Return the shares of the other outcomes, each with its effect; of what was said, with how well its score discriminates.

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
            # Answers whose label is known are the same for all runs.
            known=scored[0].known if scored else None,
            graded=_who_graded(scored),
            left_out=said and said.left_out,
            bounds=said and said.bounds,
        ),
    )


def _who_graded(scored: Sequence[Analysis]) -> Graded | None:
    """Return who graded what runs said, and why how many grades are missing; None where nobody did."""
    graded = [each.graded for each in scored if each.graded]
    if not graded:
        return None
    failures = sum((Counter(each.failures) for each in graded), Counter[str]())
    return Graded(judge=graded[0].judge, drawn=any(each.drawn for each in graded), failures=dict(failures.most_common()))
