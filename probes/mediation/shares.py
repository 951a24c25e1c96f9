"""The share of a change in behaviour that goes through a part of the state at a layer.

Arithmetic on the outcomes of patched arms (`patching.py`). Y is a score of the text per question: log p(y⁺) − log p(y⁻), each a
mean over the answer's tokens. M0 is the reference, M1 the changed model; TE = Y1 − Y0. For a part P of the state at ℓ

    S(P) = (Y[M0 with P swapped in] − Y0) / TE          sufficiency
    N(P) = (Y1 − Y[M1 with P swapped out]) / TE          necessity
    M(P) = (S + N)/2                                     mediated share

and, as a part of what the layer carries at all, C = (M(P) − M_null)/(M(I) − M_null), with M_null the mean of M over the null's draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wellworn.probes.limits import FEWEST_DRAWS_FOR_P, FEWEST_NULL_DRAWS
from wellworn.probes.statistics.intervals import Estimate, FloatArray, question_interval, ratio_interval, standard_error

INSIDE, OUTSIDE, WHOLE = "inside", "outside", "whole"
MIN_STANDARD_ERRORS = 3.0
CARRIED_GATE = 0.2


@dataclass(frozen=True)
class Swapped:
    """The outcomes of one part, question by question.

    Attributes:
        into: Y of M0 with the part swapped in, [questions] or [runs, questions].
        out: Y of M1 with the part swapped out.
    """

    into: FloatArray
    out: FloatArray


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of all arms at one layer.

    Attributes:
        before: Y of M0, [questions] of one run, or [runs, questions] of several that answered the same questions.
        after: Y of M1.
        parts: `inside` (P), `outside` (I − P), `whole` (I), and any others.
        draws: the null's parts.
        matched: the same draws scaled to move the state as far as P does.
        doses: scale s → Y of M0 with s·P swapped in.
    """

    before: FloatArray
    after: FloatArray
    parts: Mapping[str, Swapped]
    draws: tuple[Swapped, ...] = ()
    matched: tuple[Swapped, ...] = ()
    doses: Mapping[float, FloatArray] | None = None

    @property
    def effect(self) -> FloatArray:
        """TE, question by question."""
        return self.after - self.before

    def mediated_effect(self, part: Swapped) -> FloatArray:
        """Return M(P)·TE, question by question."""
        return ((part.into - self.before) + (self.after - part.out)) / 2


@dataclass(frozen=True)
class Shares:
    """The shares of the effect that go through one part of the state.

    Attributes:
        sufficiency: S.
        necessity: N.
        mediated: M, their mean. The difference between S and N is order dependence (the part swapped first counts more or less), not an
            interval.
    """

    sufficiency: Estimate
    necessity: Estimate
    mediated: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        both = sorted([self.sufficiency.value, self.necessity.value])
        return {
            "sufficiency": self.sufficiency.to_json(),
            "necessity": self.necessity.to_json(),
            "mediated": self.mediated.to_json(),
            "order_dependence": both,
        }


@dataclass(frozen=True)
class ChanceShares:
    """The shares that spaces without a link to personas mediate.

    Attributes:
        draws: B.
        sufficiency: mean of S over draws.
        necessity: mean of N.
        mediated: M_null, the mean of M.
        high: the 95 % quantile of M.
        p: (1 + #{draws with M ≥ M(P)})/(1 + B); None below 199 draws, which say too little about a tail.
        matched: mean of M over draws that move the state as far as P does, one scalar a draw; None if there were none.
    """

    draws: int
    sufficiency: float
    necessity: float
    mediated: float
    high: float
    p: float | None
    matched: float | None


@dataclass(frozen=True)
class Mediation:
    """A mediation analysis at one layer.

    Attributes:
        effect: TE.
        standard_error: of TE, over questions, or over runs × questions.
        why: the reason why there are no shares (no trait change), else None.
        shares: of every part.
        null: chance; None without draws.
        mediated_of_carried: C; None where `carried_why` says why.
        carried_why: why there is no C.
        shapley: TE shared out among `existing` (P of the state), `new` (I − P) and `reading` (the adapter above the layer); sums to 1.
        doses: scale → share of TE that s·P alone brings about.
    """

    effect: Estimate
    standard_error: float
    why: str | None
    shares: Mapping[str, Shares]
    null: ChanceShares | None
    mediated_of_carried: Estimate | None
    carried_why: str | None
    shapley: Mapping[str, Estimate]
    doses: Mapping[float, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "effect": self.effect.to_json(),
            "standard_error": self.standard_error,
            "why": self.why,
            "shares": {name: shares.to_json() for name, shares in self.shares.items()},
            "null": vars(self.null) if self.null else None,
            "mediated_of_carried": self.mediated_of_carried.to_json() if self.mediated_of_carried else None,
            "carried_why": self.carried_why,
            "shapley": {name: share.to_json() for name, share in self.shapley.items()},
            "doses": [{"scale": scale, **share.to_json()} for scale, share in self.doses.items()],
        }


def mediate(outcomes: Outcomes) -> Mediation:
    """Turn outcomes into shares of the effect, with intervals over questions, or over runs × questions.

    All shares are ratios of means with Fieller intervals, because TE is estimated from the same questions. The null's mean is estimated
    from its draws, and its variance is carried into C.

    Args:
        outcomes: with the parts `inside`, `outside` and `whole`.

    Raises:
        ValueError: a part is missing, there are fewer than two questions, or an outcome is not finite.
    """
    missing = {INSIDE, OUTSIDE, WHOLE} - outcomes.parts.keys()
    if missing:
        raise ValueError(f"outcomes lack the parts {', '.join(sorted(missing))}")
    swapped = [y for part in (*outcomes.parts.values(), *outcomes.draws, *outcomes.matched) for y in (part.into, part.out)]
    if not all(np.isfinite(y).all() for y in (outcomes.before, outcomes.after, *swapped, *(outcomes.doses or {}).values())):
        raise ValueError("outcomes need finite scores; an arm has one that is not a number")
    effect = outcomes.effect
    estimate, error = question_interval(effect), standard_error(effect)
    if is_within_noise(effect):
        why = f"no trait change: {estimate.value:.3f}, not above 3 standard errors of {error:.3f}, so that shares of it mean nothing"
        return Mediation(estimate, error, why, {}, None, None, why, {}, {})
    shares = {name: _shares(outcomes, part) for name, part in outcomes.parts.items()}
    null = _chance(outcomes, shares[INSIDE].mediated.value) if outcomes.draws else None
    carried, carried_why = _mediated_of_carried(outcomes, shares[WHOLE].mediated)
    doses = {scale: ratio_interval(y - outcomes.before, effect) for scale, y in (outcomes.doses or {}).items()}
    return Mediation(estimate, error, None, shares, null, carried, carried_why, _shapley(outcomes), doses)


def is_within_noise(effect: FloatArray) -> bool:
    """Whether a mean effect, [questions] or [runs, questions], is no more than 3 standard errors, so that shares of it mean nothing."""
    # Not "less than": a change that does nothing at all has no error either.
    return bool(abs(effect.mean()) <= MIN_STANDARD_ERRORS * standard_error(effect))


def _shares(outcomes: Outcomes, part: Swapped) -> Shares:
    effect = outcomes.effect
    return Shares(
        ratio_interval(part.into - outcomes.before, effect),
        ratio_interval(outcomes.after - part.out, effect),
        ratio_interval(outcomes.mediated_effect(part), effect),
    )


def _chance(outcomes: Outcomes, observed: float) -> ChanceShares:
    total = float(outcomes.effect.mean())
    shares = np.array([float(outcomes.mediated_effect(draw).mean()) / total for draw in outcomes.draws])
    p = (1 + int((shares >= observed).sum())) / (1 + len(shares)) if len(shares) >= FEWEST_DRAWS_FOR_P else None
    matched = [float(outcomes.mediated_effect(draw).mean()) / total for draw in outcomes.matched]
    return ChanceShares(
        draws=len(shares),
        sufficiency=float(np.mean([(draw.into - outcomes.before).mean() for draw in outcomes.draws])) / total,
        necessity=float(np.mean([(outcomes.after - draw.out).mean() for draw in outcomes.draws])) / total,
        mediated=float(shares.mean()),
        high=float(np.quantile(shares, 0.95)),
        p=p,
        matched=float(np.mean(matched)) if matched else None,
    )


def _mediated_of_carried(outcomes: Outcomes, whole: Estimate) -> tuple[Estimate | None, str | None]:
    """Return C, or None and the reason why there is none."""
    held = f"{whole} of the effect"
    if not np.isfinite(whole.low):
        return None, f"what the layer carries is not known: M(I) is {held}"
    if whole.low < CARRIED_GATE:
        return None, f"carried elsewhere: the whole state at this layer mediates {held}, and a lower bound of {CARRIED_GATE} is needed"
    if len(outcomes.draws) < FEWEST_NULL_DRAWS:
        return None, f"what chance mediates is not known: {len(outcomes.draws)} null spaces were drawn, {FEWEST_NULL_DRAWS} are needed"
    moved = np.stack([outcomes.mediated_effect(draw) for draw in outcomes.draws])
    inside, carried = (outcomes.mediated_effect(outcomes.parts[name]) - moved.mean(0) for name in (INSIDE, WHOLE))
    variance = float(moved.reshape(len(moved), -1).mean(1).var(ddof=1)) / len(moved)
    # Where chance mediates as much as the whole state, the ratio of the two differences has no meaning, and may have either sign.
    towards = np.sign(outcomes.effect.mean())
    if towards * carried.mean() <= MIN_STANDARD_ERRORS * float(np.hypot(standard_error(carried), variance**0.5)):
        chance = float(moved.mean() / outcomes.effect.mean())
        return None, f"chance mediates {chance:.2f} of the effect, about as much as the whole state: {held}"
    return ratio_interval(inside, carried, offset_variance=variance, offset_df=len(moved) - 1.0), None


def _shapley(outcomes: Outcomes) -> dict[str, Estimate]:
    """Share TE out among P of the state, I − P of it, and the adapter above the layer: eight arms, weights 1/3, 1/6, 1/6, 1/3."""
    inside, outside, whole = (outcomes.parts[name] for name in (INSIDE, OUTSIDE, WHOLE))
    # value[p, o, r]: whether P, I − P and the blocks that read on are M1's.
    value = {
        (0, 0, 0): outcomes.before,
        (1, 0, 0): inside.into,
        (0, 1, 0): outside.into,
        (1, 1, 0): whole.into,
        (0, 0, 1): whole.out,
        (1, 0, 1): outside.out,
        (0, 1, 1): inside.out,
        (1, 1, 1): outcomes.after,
    }
    found = {}
    for player, name in enumerate(("existing", "new", "reading")):
        gain = np.zeros_like(outcomes.before)
        for a in (0, 1):
            for b in (0, 1):
                without = [a, b]
                without.insert(player, 0)
                having = [a, b]
                having.insert(player, 1)
                weight = 1 / 3 if a == b else 1 / 6
                gain = gain + weight * (value[having[0], having[1], having[2]] - value[without[0], without[1], without[2]])
        found[name] = ratio_interval(gain, outcomes.effect)
    return found
