"""The personas nearest to a shift: its cosine with each direction, without the shift's own noise, and the largest cosine by chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from wellworn.probes.geometry.nulls import Null
from wellworn.probes.geometry.shift import SIGNAL_GATE, debiased_norms
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.statistics.intervals import Estimate, FloatArray


@dataclass(frozen=True)
class Nearest:
    """The cosines of one shift with many directions.

    Attributes:
        cosines: one for each direction, signed, with an interval over prompts.
        high: the 95 % quantile of the *largest* cosine with as many directions drawn by chance.
        why: why there are none, or None.
    """

    cosines: Sequence[Estimate]
    high: float | None
    why: str | None


def nearest(differences_nD: FloatArray, directions_KD: FloatArray, centred_ND: FloatArray, null: Null, level: float = 0.95) -> Nearest:
    """Compare a mean shift with directions.

    cos = m·v̂/√D with D = ‖m‖² − trΣ̂/n, the squared norm without the noise of prompts, which would make every cosine too small. The
    interval is the jackknife's over prompts. Chance is the largest cosine with K directions Σ^½g, drawn B times, so that the nearest of
    many is compared with the nearest of as many.

    Args:
        differences_nD: [prompts, d_model], one paired difference a prompt.
        directions_KD: [K, d_model]; their lengths do not count.
        centred_ND: [N, d_model], the centred activations, with covariance Σ.
        null: source of the draws.
        level: coverage.

    Returns:
        No cosines, with the reason, where ‖m‖² is below 5·trΣ̂/n (the gate of a share).

    Raises:
        ValueError: fewer than three prompts, or a direction of zeros.
    """
    n = len(differences_nD)
    if n < FEWEST_PROMPTS:
        raise ValueError(f"a cosine with an interval needs at least {FEWEST_PROMPTS} prompts, got {n}")
    lengths_K = np.linalg.norm(directions_KD, axis=1)
    if not lengths_K.all():
        raise ValueError("a direction of zeros has no cosine with anything")
    squared, noise = debiased_norms(differences_nD)
    if squared <= 0 or squared + noise < SIGNAL_GATE * noise:
        signal = (squared + noise) / noise if noise > 0 else 0.0
        return Nearest((), None, f"too noisy: ‖m‖² is {signal:.1f} times its sampling noise, {SIGNAL_GATE:g} are needed")
    units_KD = directions_KD / lengths_K[:, None]
    cosines_K = units_KD @ differences_nD.mean(0) / np.sqrt(squared)
    left_nK = np.stack([_cosines(np.delete(differences_nD, i, 0), units_KD) for i in range(n)])
    error_K = np.sqrt((n - 1) / n * ((left_nK - left_nK.mean(0)) ** 2).sum(0))
    half_K = float(special.stdtrit(n - 1, 0.5 + level / 2)) * error_K
    drawn_B = largest_by_chance(differences_nD.mean(0) / np.sqrt(squared), len(units_KD), centred_ND, null)
    estimates = [Estimate(float(c), float(c - h), float(c + h)) for c, h in zip(cosines_K, half_K, strict=True)]
    return Nearest(estimates, float(np.quantile(drawn_B, 0.95)), None)


def _cosines(differences_nD: FloatArray, units_KD: FloatArray) -> FloatArray:
    squared, _ = debiased_norms(differences_nD)
    return np.asarray(units_KD @ differences_nD.mean(0) / np.sqrt(max(squared, np.finfo(float).tiny)))


def largest_by_chance(unit_D: FloatArray, count: int, centred_ND: FloatArray, null: Null) -> FloatArray:
    """Return the largest cosine of a unit vector with `count` directions Σ^½g, draw by draw [B].

    Args:
        unit_D: [d_model].
        count: directions in each draw; draws are made one at a time to save memory.
        centred_ND: [N, d_model], the centred activations, with covariance Σ.
        null: source of the draws.
    """
    # In the axes of Σ the draws are independent, and few axes matter.
    _, scale, axes = np.linalg.svd(centred_ND / np.sqrt(len(centred_ND)), full_matrices=False)
    kept = scale > 1e-3 * scale.max()
    scale, along = scale[kept], (axes[kept] @ unit_D)
    rng = np.random.default_rng(null.seed)
    out = np.empty(null.draws)
    for draw in range(null.draws):
        vectors = rng.standard_normal((count, len(scale))) * scale
        out[draw] = (vectors @ along / np.linalg.norm(vectors, axis=1)).max()
    return out


def rank_of(cosines: Sequence[float], which: int) -> int:
    """Return the rank of one cosine among all, 1 for the largest; ties count against it."""
    return sum(cosine >= cosines[which] for cosine in cosines)


@dataclass(frozen=True)
class Specificity:
    """Whether fine-tunes lie nearest to the traits that they were trained on.

    Attributes:
        rank: of the trained trait among all personas, the mean over traits.
        chance: the mean rank expected under random assignments of traits.
        p: how often a random assignment of traits gives as low a mean rank.
    """

    rank: float
    chance: float
    p: float


def specificity(ranks_TT: FloatArray, null: Null) -> Specificity:
    """Compare the ranks of trained traits with those under a random assignment of traits to fine-tunes.

    Some directions rank high with every fine-tune, since many traits have something in common. So a trained trait's rank means little by
    itself. Permuting traits keeps that, and breaks only the link between fine-tune and trait.

    Args:
        ranks_TT: ranks_TT[t, u] is the rank of trait u's direction in fine-tunes on t, the mean over runs.
        null: source of the draws.

    Raises:
        ValueError: fewer than two traits.
    """
    count = len(ranks_TT)
    if count < 2:
        raise ValueError(f"traits can be taken for each other among two and more, got {count}")
    rng = np.random.default_rng(null.seed)
    own = float(np.trace(ranks_TT)) / count
    drawn = [float(ranks_TT[np.arange(count), rng.permutation(count)].mean()) for _ in range(null.draws)]
    return Specificity(own, float(ranks_TT.mean()), (1 + sum(each <= own + 1e-9 for each in drawn)) / (1 + null.draws))
