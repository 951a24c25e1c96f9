"""The verdict: one pure function of the evidence, with fixed thresholds that are never tuned."""

from dataclasses import dataclass
from math import isfinite

from wellworn.probes.geometry.novelty import LIBRARY, Novelty
from wellworn.probes.geometry.novelty import NEW as REMAINDER_IS_NEW
from wellworn.probes.mediation.shares import CARRIED_GATE, MIN_STANDARD_ERRORS
from wellworn.probes.statistics.intervals import Estimate

P_LEVEL = 0.05
EFFECT_SIZE = 0.10
MOST, LITTLE, NEARLY_ALL = 0.5, 0.2, 0.8

NO_CHANGE, NOISY, ELSEWHERE = "no trait change", "too noisy", "carried elsewhere"
ALONG, NEW, OUTSIDE_LIBRARY = "along existing persona directions", "new directions", "existing, but not in the library"
MIXED, UNDECIDED = "mixed", "undecided"
ABOVE_CHANCE, AT_CHANCE = "share above chance", "share at chance"
VERDICTS = (NO_CHANGE, NOISY, ELSEWHERE, ALONG, NEW, OUTSIDE_LIBRARY, MIXED, UNDECIDED, ABOVE_CHANCE, AT_CHANCE)

_BY_REMAINDER = {REMAINDER_IS_NEW: NEW, LIBRARY: OUTSIDE_LIBRARY}

RULE = (
    f"1. The trait score changed by no more than {MIN_STANDARD_ERRORS:g} standard errors: {NO_CHANGE}. "
    f"2. The share of the shift fails a gate: {NOISY}. "
    f"3. The lower bound of what the whole state at the layer mediates, M(I), is below {CARRIED_GATE}: {ELSEWHERE}. "
    f"4. The lower bound of C is at least {MOST}, p ≤ {P_LEVEL} against N1 (corrected for the study's runs as Benjamini and Hochberg do) "
    f"and the lower bound of F* is at least {EFFECT_SIZE:.2f}: {ALONG}. "
    f"5. The upper bound of C is at most {LITTLE}, and the remainder was shown to be new: {NEW}; or to be a direction "
    f"that the base uses and the space (the library without the run's own direction) lacks: {OUTSIDE_LIBRARY}. "
    f"6. The lower bound of C is above 0, and its upper bound is above {LITTLE} and at most {NEARLY_ALL}: {MIXED}. "
    f"7. Otherwise: {UNDECIDED}. "
    f"8. Where mediation was not measured, names say nothing about causes: p ≤ {P_LEVEL} and the lower bound of F* at least "
    f"{EFFECT_SIZE:.2f}: {ABOVE_CHANCE}; the upper bound of F* below {EFFECT_SIZE:.2f}: {AT_CHANCE}; otherwise: {UNDECIDED}. "
    "A small p alone is no effect."
)


@dataclass(frozen=True)
class Carried:
    """The evidence from a mediation analysis.

    Attributes:
        layer: the layer where activations were patched.
        whole: M(I), the mediated share of the whole state.
        share: C; None where `whole` is too small for it, or without a null distribution.
        why: why there is no C.
        reading: the Shapley share of the layers above, which read the change.
        remainder: whether the change outside the space is new; None where the study does not ask.
    """

    layer: int
    whole: Estimate
    share: Estimate | None
    why: str | None
    reading: Estimate
    remainder: Novelty | None = None


@dataclass(frozen=True)
class Evidence:
    """The evidence for a verdict, against the headline reference and in the space without the run's own direction.

    Attributes:
        effect: change of the trait score; None where the run has no trait of its own.
        standard_error: of the effect.
        share_why: the gate that the share failed, if any.
        p: against N1, corrected for the study's runs; 1 where the share failed a gate.
        beyond_chance: F*; None where the share failed a gate.
        carried: mediation; None where it was not measured.
    """

    effect: Estimate | None
    standard_error: float
    share_why: str | None
    p: float
    beyond_chance: Estimate | None
    carried: Carried | None = None


@dataclass(frozen=True)
class Verdict:
    """A verdict, and the sentence with the numbers that led to it."""

    name: str
    why: str


def verdict(evidence: Evidence) -> Verdict:
    """Judge one run, or a group of runs, by the rule that `RULE` states.

    Raises:
        ValueError: an effect, its error or a p is NaN, so that comparisons with it have no meaning.
    """
    effect, star, carried = evidence.effect, evidence.beyond_chance, evidence.carried
    numbers_given = [evidence.standard_error, evidence.p, *([effect.value] if effect else []), *([star.value] if star else [])]
    if not all(map(isfinite, numbers_given)):
        raise ValueError(f"a verdict needs numbers, got {numbers_given}")
    if effect is not None and abs(effect.value) <= MIN_STANDARD_ERRORS * evidence.standard_error:
        below = f"not above {MIN_STANDARD_ERRORS:g} standard errors of {evidence.standard_error:.3f}"
        return Verdict(NO_CHANGE, f"the trait score changed by {effect.value:.3f}, {below}")
    if evidence.share_why is not None or star is None:
        return Verdict(NOISY, evidence.share_why or "there is no share to judge")
    geometry = f"p = {evidence.p:.3f}, F* = {star}"
    beyond = share_above_chance(evidence.p, star)
    if carried is None:
        return _by_share(geometry, beyond, star)
    if not isfinite(carried.whole.low):
        return Verdict(UNDECIDED, f"what layer {carried.layer} carries is not known: the interval of M(I) is unbounded; {geometry}")
    if carried.share is None and carried.whole.low < CARRIED_GATE:
        return Verdict(
            ELSEWHERE,
            f"the whole state at layer {carried.layer} mediates M(I) = {carried.whole} of the effect; what reads it above, "
            f"{carried.reading}",
        )
    if carried.share is None:
        return Verdict(UNDECIDED, f"{geometry}; {carried.why}")
    share = carried.share
    numbers = f"C = {share} of what layer {carried.layer} carries, M(I) = {carried.whole}; {geometry}"
    if share.low >= MOST and beyond:
        return Verdict(ALONG, numbers)
    rest = carried.remainder
    # A small share is never called mixed, even if it is significantly above zero.
    if share.high <= LITTLE:
        if rest is not None and rest.name in _BY_REMAINDER:
            return Verdict(_BY_REMAINDER[rest.name], f"{numbers}; {rest.why}")
        asked = f"is {rest.name}: {rest.why}" if rest else "was not asked about"
        return Verdict(UNDECIDED, f"{numbers}: little goes through the space, and the rest {asked}")
    return Verdict(MIXED if share.low > 0 and share.high <= NEARLY_ALL else UNDECIDED, numbers)


def share_above_chance(p: float, beyond_chance: Estimate) -> bool:
    """Return whether a share of the shift is above chance, by its corrected p against N1 and by F*."""
    return p <= P_LEVEL and beyond_chance.low >= EFFECT_SIZE


def _by_share(numbers: str, beyond: bool, star: Estimate) -> Verdict:
    if beyond:
        return Verdict(ABOVE_CHANCE, f"{numbers}: p ≤ {P_LEVEL} and the lower bound is at least {EFFECT_SIZE}")
    if star.high < EFFECT_SIZE:
        return Verdict(AT_CHANCE, f"{numbers}: the upper bound is below {EFFECT_SIZE}")
    return Verdict(UNDECIDED, f"{numbers}: neither clearly above {EFFECT_SIZE} nor clearly below")
