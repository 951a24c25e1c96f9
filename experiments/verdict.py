"""The verdict on a run: one pure function whose thresholds are fixed and never tuned."""

from dataclasses import dataclass

from probes.nulls import NullShare
from probes.shift import Share
from probes.stats import Estimate

P_LEVEL = 0.05
EFFECT_SIZE = 0.10
MIN_STANDARD_ERRORS = 3.0

RULE = (
    "1. The change in the trait score is less than 3 standard errors: no trait change. "
    "2. The share fails a gate: too noisy. "
    "3. p ≤ .05 against the covariance-matched null N1 and the lower bound of F* is at least .10: share above chance. "
    "4. The upper bound of F* is below .10: share at chance. "
    "5. Otherwise: undecided. A small p alone is no effect. These names say nothing about causes."
)


@dataclass(frozen=True)
class Verdict:
    """A verdict, and the sentence with the numbers that led to it."""

    name: str
    why: str


def verdict(effect: Estimate | None, standard_error: float, share: Share, null: NullShare | None) -> Verdict:
    """Judge one run from its trait effect and its share against N1.

    Args:
        effect: change of the trait score; None where the run has no trait of its own.
        standard_error: of the paired per-question differences behind `effect`.
        share: F, with the gate that failed if any.
        null: F against N1; None where nothing moves, which fails a gate.
    """
    if effect is not None and abs(effect.value) < MIN_STANDARD_ERRORS * standard_error:
        return Verdict(
            "no trait change", f"the trait score changed by {effect.value:.3f}, less than 3 standard errors of {standard_error:.3f}"
        )
    if share.why is not None:
        return Verdict("too noisy", share.why)
    assert null is not None
    star = null.effect
    numbers = f"p = {null.p:.3f}, F* = {star.value:.2f} [{star.low:.2f}, {star.high:.2f}]"
    if null.p <= P_LEVEL and star.low >= EFFECT_SIZE:
        return Verdict("share above chance", f"{numbers}: p ≤ {P_LEVEL} and the lower bound is at least {EFFECT_SIZE}")
    if star.high < EFFECT_SIZE:
        return Verdict("share at chance", f"{numbers}: the upper bound is below {EFFECT_SIZE}")
    return Verdict("undecided", f"{numbers}: neither clearly above {EFFECT_SIZE} nor clearly below")
