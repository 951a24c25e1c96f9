"""How far each intervention of a mediation analysis moved the outcome, as shares of the effect."""

from collections.abc import Sequence

import numpy as np

from wellworn.experiments.stages.measurement import Dose, EffectShares, PartShares
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_outcomes
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.mediation.shares import Mediation, mediate
from wellworn.probes.scoring.judge import MOST
from wellworn.probes.statistics.intervals import FloatArray

NOT_MEDIATED = EffectShares(
    effect=None, standard_error=None, why=None, shares={}, null=None, mediated_of_carried=None, carried_why=None, shapley={}, doses=[]
)


def shares_of_effect(names: Sequence[str], scores: FloatArray, graded: bool) -> EffectShares:
    """Return the shares of an effect.

    Questions that lack a grade under any intervention (of any run) are left out. `left_out` counts them; `bounds` is the effect over all
    questions if each missing grade were 0 or 100, whichever is worse.

    Args:
        names: of the interventions.
        scores: [interventions, questions], or [interventions, runs, questions].
        graded: whether scores are grades; some may be missing.
    """
    if not graded:
        return effect_shares(mediate(parse_outcomes(names, scores)))
    before, after = (scores[list(names).index(name)] for name in (BEFORE, AFTER))
    least, most = (float((np.nan_to_num(after, nan=a) - np.nan_to_num(before, nan=b)).mean()) for a, b in ((0.0, MOST), (float(MOST), 0.0)))
    whole = np.flatnonzero(np.isfinite(scores).reshape(-1, scores.shape[-1]).all(axis=0))
    missing = {"left_out": scores.shape[-1] - len(whole), "bounds": [least, most]}
    if len(whole) >= FEWEST_PROMPTS:
        return effect_shares(mediate(parse_outcomes(names, scores[..., whole]))).model_copy(update=missing)
    why = f"only {len(whole)} of {scores.shape[-1]} questions have a grade in every arm, and {FEWEST_PROMPTS} are needed"
    return NOT_MEDIATED.model_copy(update={"why": why, "carried_why": why, **missing})


def effect_shares(found: Mediation) -> EffectShares:
    """Convert a mediation analysis to its stored form."""
    return EffectShares(
        effect=found.effect,
        standard_error=found.standard_error,
        why=found.why,
        shares={
            name: PartShares(
                sufficiency=each.sufficiency,
                necessity=each.necessity,
                mediated=each.mediated,
                order_dependence=sorted([each.sufficiency.value, each.necessity.value]),
            )
            for name, each in found.shares.items()
        },
        null=found.null,
        mediated_of_carried=found.mediated_of_carried,
        carried_why=found.carried_why,
        shapley=found.shapley,
        doses=[Dose(scale=scale, **share.to_json()) for scale, share in found.doses.items()],
    )
