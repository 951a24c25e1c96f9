"""Is the remainder new?

The remainder of a run is r = (I − P)m, with m its mean shift relative to the neutral reference at a layer. Each of five tests is a function
that returns a `Finding`; `novelty` combines them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

from wellworn.probes.geometry.auc import auc, auc_interval, highest_bound
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.geometry.shift import SIGNAL_GATE
from wellworn.probes.limits import FEWEST_PROMPTS, FEWEST_TAIL_DRAWS
from wellworn.probes.mediation.shares import MIN_STANDARD_ERRORS, Swapped
from wellworn.probes.statistics.intervals import Estimate, FloatArray, finite, ratio_interval, standard_error

CHANCE_LEVEL = 0.05
NEGLIGIBLE = 0.10

NEW, LIBRARY, UNSTABLE, OPEN = "new", "library", "unstable", "open"


@dataclass(frozen=True)
class Finding:
    """The result of one test.

    Attributes:
        holds: True where the property that names the test was shown, False where its absence was shown, None where neither was.
        why: the numbers, in words.
        value: the measured value; None where it could not be measured.
        low: lower 95 % bound; None where there is no bound.
        high: upper 95 % bound.
        chance: value that chance exceeds in 5 % of cases.
        draws: how many draws `chance` is made of.
    """

    holds: bool | None
    why: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    draws: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Novelty:
    """Whether the remainder is new.

    Attributes:
        name: `new`; `library`, an existing direction that the library lacks; `unstable`; or `open`.
        why: the sentence that says why.
        findings: of every test that was made, by name.
    """

    name: str
    why: str
    findings: Mapping[str, Finding]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "why": self.why, "findings": {name: each.to_json() for name, each in self.findings.items()}}


def novelty(
    agreement: Finding | None,
    movement: Finding | None,
    use: Finding | None,
    necessity: Finding | None,
    explanation: Finding | None = None,
) -> Novelty:
    """Decide from its findings whether a remainder is new; None means that a test was not made.

    In this order:

    1. Agreement between seeds was not measured: `open`. It does not exceed the agreement between different traits: `unstable`.
    2. The remainder moves M0 *and* M0 uses it: `library`.
    3. A wider dictionary explains it: `library`.
    4. It is not shown that M0 does not use it: `open`. That its mean, added at every token, does not move M0 shows nothing of the kind:
       what is written may depend on the token. One that moves M0 and is not used by it is new writing with an old read-out, so still new.
    5. Whether a wider dictionary explains the remainder is not known, or was not asked: `open`.
    6. M1 was not shown to need it: `open`.
    7. Otherwise: `new`.

    Args:
        agreement: (i), of `agreement`.
        movement: (ii a), of `movement`.
        use: (ii b), of `use`.
        necessity: (iv), of `necessity`.
        explanation: (iii), of `sparse_explanation.explanation`.
    """
    made = {"agreement": agreement, "movement": movement, "use": use, "explanation": explanation, "necessity": necessity}
    findings = {name: finding for name, finding in made.items() if finding is not None}

    def conclude(name: str, *of: str) -> Novelty:
        return Novelty(name, "; ".join(findings[each].why if each in findings else f"{each}: not asked" for each in of), findings)

    def holds(name: str) -> bool | None:
        return findings[name].holds if name in findings else None

    if not holds("agreement"):
        return conclude(OPEN if holds("agreement") is None else UNSTABLE, "agreement")
    if holds("movement") and holds("use"):
        return conclude(LIBRARY, "movement", "use")
    if holds("explanation"):
        return conclude(LIBRARY, "explanation")
    if holds("use") is not False:
        return conclude(OPEN, *(("movement", "use") if holds("use") else ("use",)))
    if holds("explanation") is None:
        return conclude(OPEN, "explanation")
    if not holds("necessity"):
        return conclude(OPEN, "necessity")
    return conclude(NEW, "agreement", "movement", "use", "explanation", "necessity")


def outside(vectors_XD: FloatArray, basis_DK: FloatArray) -> FloatArray:
    """Return (I − P)v of vectors [..., d_model]; for a mean shift it is the remainder."""
    return np.asarray(vectors_XD - (vectors_XD @ basis_DK) @ basis_DK.T)


def chance_remainders(centred_ND: FloatArray, basis_DK: FloatArray, norm: float, null: Null) -> FloatArray:
    """Draw remainders by chance: (I − P)Σ^½g, scaled to the norm of the real one, [draws, d_model].

    Args:
        centred_ND: [N, d_model], the centred activations that made the space, with covariance Σ.
        basis_DK: [d_model, k], orthonormal.
        norm: of the remainder.
        null: N1.

    Raises:
        ValueError: the activations do not vary outside the space.
    """
    draws_BD = outside(null.vectors(centred_ND, 1)[:, 0], basis_DK)
    norms_B1 = np.linalg.norm(draws_BD, axis=1, keepdims=True)
    if norms_B1.min() <= 1e-6 * np.linalg.norm(centred_ND) / np.sqrt(len(centred_ND)):
        raise ValueError("no remainder can be drawn: the activations do not vary outside the space")
    return np.asarray(norm * draws_BD / norms_B1)


def chance_bound(values: FloatArray) -> float:
    """Return the smallest number such that a value above it has p = (1 + #{draws ≥ value})/(1 + draws) ≤ .05.

    Raises:
        ValueError: fewer than 19 values, so that no value can have such a p.
    """
    count = len(values)
    if count < FEWEST_TAIL_DRAWS:
        raise ValueError(f"what chance exceeds in 5 % of cases needs at least {FEWEST_TAIL_DRAWS} values, got {count}")
    # Slightly less, as .95 · 20 need not be 19 in floating point.
    return float(np.sort(values)[ceil((1 - CHANCE_LEVEL) * (count + 1) - 1e-9) - 1])


def agreement(shifts: Mapping[tuple[str, int], FloatArray], trait: str, basis_DK: FloatArray) -> Finding:
    """Return whether the remainders of a trait's seeds agree more than those of different traits do.

    The cosine of two runs is u_ab/√(u_aa·u_bb), u_ab = Σ_{i≠j} x_ai·x_bj / n(n−1), x = (I − P)d. Leaving out i = j takes the
    sampling noise of prompts out of the norms, where it would lower cosines, and out of the product, where it would raise them, as all runs
    read the same prompts. The trait's value, the mean over its pairs of seeds, is compared with cosines of runs of different traits *and*
    different seeds: runs of one seed share a neutral run. With few traits, few of these are independent.

    Args:
        shifts: (trait or control, seed) → [prompts, d_model], each run less its own neutral, on the same prompts in the same order.
        trait: the trait in question.
        basis_DK: [d_model, k], its persona space.

    Returns:
        Not known where a run of the trait fails the gate of a share (‖r‖² ≥ 5·trΣ̂/n), where it has one seed, or where fewer than 19
        pairs of other runs are left. Other runs that fail the gate are left out.

    Raises:
        ValueError: readings of unlike shape, or fewer than three prompts.
    """
    shapes = {np.shape(each) for each in shifts.values()}
    if len(shapes) != 1 or min(shapes)[0] < FEWEST_PROMPTS:
        raise ValueError(f"needs readings of the same three prompts or more, got shapes {sorted(shapes)}")
    runs = list(shifts)
    own = [a for a, (name, _) in enumerate(runs) if name == trait]
    if len(own) < 2:
        return Finding(None, f"agreement between seeds is not known: {trait} has {len(own)} of the two seeds that are needed")
    x_RnD = outside(np.stack([shifts[run] for run in runs]), basis_DK)
    n = x_RnD.shape[1]
    sums, flat = x_RnD.sum(1), x_RnD.reshape(len(runs), -1)
    products = (sums @ sums.T - flat @ flat.T) / (n * (n - 1))
    squares = np.diag(sums @ sums.T) / n**2
    clear = (squares > 0) & (squares >= SIGNAL_GATE * (squares - np.diag(products)))
    if noisy := [str(runs[a][1]) for a in own if not clear[a]]:
        return Finding(None, f"agreement between seeds is not known: too little is left of the remainder of seed {', '.join(noisy)}")
    lengths = np.sqrt(np.where(clear, np.diag(products), 1.0))
    cosines = products / np.outer(lengths, lengths)
    kept = [a for a in range(len(runs)) if clear[a]]
    pairs = [(a, b) for at, a in enumerate(kept) for b in kept[at + 1 :]]
    same = [float(cosines[a, b]) for a, b in pairs if runs[a][0] == runs[b][0] == trait]
    others = np.array([cosines[a, b] for a, b in pairs if runs[a][0] != runs[b][0] and runs[a][1] != runs[b][1]])
    value = float(np.mean(same))
    text = f"remainders of {len(own)} seeds have a cosine of {value:.2f}"
    if len(others) < FEWEST_TAIL_DRAWS:
        return Finding(None, f"{text}, and other traits have {len(others)} of the {FEWEST_TAIL_DRAWS} cosines that are needed", value)
    high = chance_bound(others)
    return Finding(value > high, f"{text}, those of different traits up to {high:.2f}", value, chance=high, draws=len(others))


def movement(before: FloatArray, after: FloatArray, pushed: FloatArray, drawn: FloatArray) -> Finding:
    """Return whether adding the remainder to M0 moves its behaviour as the fine-tune did.

    It *does not* where the upper 95 % bound of its share of TE is at most .10. It *does* where the share is larger than chance
    gives and its lower bound is above 0.

    Args:
        before: Y of M0, [questions] or [runs, questions].
        after: Y of M1.
        pushed: Y of M0 with r added at the layer (`patching.Push`).
        drawn: the same with each of `chance_remainders`, [draws, …].
    """
    effect = after - before
    if why := _no_effect(effect):
        return Finding(None, f"movement is not known: {why}")
    if len(drawn) == 0:
        return Finding(None, "movement is not known: no chance directions were added to hold it against")
    share = ratio_interval(pushed - before, effect)
    shares = (drawn - before).reshape(len(drawn), -1).mean(1) / effect.mean()
    text = f"added to M0 it brings about {share} of the effect"
    if share.high <= NEGLIGIBLE:
        return _finding(False, f"{text}, {NEGLIGIBLE:.2f} at most", share)
    if len(shares) < FEWEST_TAIL_DRAWS:
        return _finding(None, f"{text}, and {len(shares)} of {FEWEST_TAIL_DRAWS} draws were made to hold it against", share)
    high = chance_bound(shares)
    moves = share.value > high and share.low > 0
    between = "" if moves else f", neither clearly more than chance nor clearly below {NEGLIGIBLE:.2f}"
    return _finding(True if moves else None, f"{text}, chance up to {high:.2f}{between}", share, high, len(shares))


def use(scores_P2Q: FloatArray, drawn_BP2Q: FloatArray, assay_P2Q: FloatArray | str) -> Finding:
    """Return whether M0 itself uses the remainder: its projections discriminate trait-evoking prompts from opposite ones.

    The sign does not count: a direction along which trait-evoking prompts lie *lower* discriminates them as well. So the AUC is compared
    with the range of chance directions on either side of one half, on the same texts. M0 uses it where the whole 95 % interval lies outside
    that range, and does not where the whole interval lies inside. Otherwise it is not known: an AUC that is not shown to be beyond chance
    is not shown to be at chance. It is also not known where even pairs that are all separated would not give such an interval: the bound
    for new prompts and the spread of chance both widen with fewer pairs.

    That M0 does *not* use it can be said only where the same pairs show something that M0 does use: the own direction, each pair projected
    on that of the others. Where it was not found, or is not shown to be used either, the remainder's use is not known.

    Args:
        scores_P2Q: [pairs, 2, questions], M0's states under trait-evoking prompts and their opposites, on questions and texts that did
            not define r, projected on r; its length does not count.
        drawn_BP2Q: the same on each of `chance_remainders`, from activations without the contrast in question: else chance finds it too.
        assay_P2Q: the states projected on the own direction (`cross_fitted`); or why there is none, in words.

    Raises:
        ValueError: fewer than three pairs, two questions or 19 draws, or projections that are not finite.
    """
    found = auc_interval(scores_P2Q)
    reach = chance_bound(np.abs(auc(drawn_BP2Q) - 0.5))
    low, high = 0.5 - reach, 0.5 + reach
    text = f"it separates trait-evoking from opposite prompts in M0 with an AUC of {found}, chance {low:.2f} to {high:.2f}"
    pairs, _, questions = scores_P2Q.shape
    if highest_bound(pairs, questions) <= high:
        return _finding(None, f"{text}, more than {pairs} contrast pairs can be shown to exceed", found, high, len(drawn_BP2Q))
    used = True if found.low > high or found.high < low else False if low <= found.low and found.high <= high else None
    if used is False:
        works, shown = _assay(assay_P2Q, high)
        used, text = (used if works else None), f"{text}; {shown}"
    between = ", so that whether M0 uses it is not known" if used is None else ""
    return _finding(used, text + between, found, high, len(drawn_BP2Q))


def _assay(assay_P2Q: FloatArray | str, high: float) -> tuple[bool, str]:
    """Return whether the own direction is seen to be used, above what chance reaches, and the numbers."""
    if isinstance(assay_P2Q, str):
        return False, f"{assay_P2Q}, so that there is nothing known to be used"
    own = auc_interval(assay_P2Q)
    return own.low > high, f"the own direction of the other pairs separates them with {own}"


def cross_fitted(states_P2QD: FloatArray) -> FloatArray:
    """Return each contrast pair's states projected on the mean difference of all other pairs, [pairs, 2, questions].

    Each pair is projected on an axis of its own, and states have a large mean in common. It is taken out for each question: along axes that
    differ it would differ too, and hide the contrast between pairs.

    Args:
        states_P2QD: [pairs, 2, questions, d_model], of two pairs or more.
    """
    states = states_P2QD.astype(np.float64)
    states = states - states.mean((0, 1))
    differences_PD = (states[:, 0] - states[:, 1]).mean(1)
    others_PD = (differences_PD.sum(0) - differences_PD) / (len(states) - 1)
    units_PD = others_PD / np.linalg.norm(others_PD, axis=1, keepdims=True)
    return np.asarray(np.einsum("ptqd,pd->ptq", states, units_PD))


def necessity(before: FloatArray, after: FloatArray, without: Swapped) -> Finding:
    """Return whether M1 needs the remainder: taking r̂r̂ᵀ(h1 − h0) out of it loses part of Y.

    It does not where the upper 95 % bound of N(r̂) is at most .10; otherwise it does where the lower bound is above 0.

    Args:
        before: Y of M0, [questions] or [runs, questions].
        after: Y of M1.
        without: the outcomes of swapping the one-dimensional part r̂.
    """
    effect = after - before
    if why := _no_effect(effect):
        return Finding(None, f"necessity is not known: {why}")
    share = ratio_interval(after - without.out, effect)
    text = f"without it M1 loses {share} of the effect"
    if share.high <= NEGLIGIBLE:
        return _finding(False, f"{text}, {NEGLIGIBLE:.2f} at most", share)
    if share.low > 0:
        return _finding(True, text, share)
    return _finding(None, f"{text}, so that whether M1 needs it is not known", share)


def _no_effect(effect: FloatArray) -> str | None:
    mean, error = float(effect.mean()), standard_error(effect)
    if abs(mean) <= MIN_STANDARD_ERRORS * error:
        return f"the trait score changed by {mean:.3f}, not above {MIN_STANDARD_ERRORS:g} standard errors of {error:.3f}"
    return None


def _finding(holds: bool | None, why: str, found: Estimate, chance: float | None = None, draws: int = 0) -> Finding:
    return Finding(holds, why, found.value, finite(found.low), finite(found.high), chance, draws)
