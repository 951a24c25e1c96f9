"""The state shift of a fine-tune and its share inside a persona space."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from wellworn.probes.geometry.directions import FOUND_RELIABILITY
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.statistics.intervals import Estimate, FloatArray, fieller, ratio_interval

SIGNAL_GATE = 5.0
WIDTH_GATE = 0.5
COMMON_GATE = 0.1
BASIS_TOLERANCE = 1e-4

# Shares at equal steps of the angle between the shift and the space, where the interval's ends are searched.
SHARES = np.sin(np.linspace(0, np.pi / 2, 101)) ** 2


@dataclass(frozen=True)
class Share:
    """The share F of a shift inside a space.

    Attributes:
        estimate: F with its interval; bounds are infinite where the set is unbounded.
        signal: ‖m‖² over trΣ̂/n.
        why: the gate that failed, or None where F may be reported.
    """

    estimate: Estimate
    signal: float
    why: str | None


@dataclass(frozen=True)
class Cosine:
    """The cosine of a shift with one direction, without the noise of either.

    Attributes:
        squared: cos², unclipped: noise may carry it a little below 0 or above 1. None where it is refused.
        value: its root with the sign of the shift along the direction; zero where cos² is below zero.
        why: what is too noisy, or None.
    """

    squared: float | None
    value: float | None
    why: str | None


@dataclass(frozen=True)
class Products:
    """The statistics that a share needs: products of the differences' parts inside (first) and outside the space.

    Attributes:
        squares: [2, prompts], ‖dᵢ‖².
        along: [2, prompts], dᵢ · Σⱼ dⱼ.
        spread: [2, 2], estimates of tr(AΣBΣ) with A and B the projections inside and outside; see `spread`.
    """

    squares: FloatArray
    along: FloatArray
    spread: FloatArray


def debiased_norms(differences_nD: FloatArray) -> tuple[float, float]:
    """Return D = ‖m‖² − trΣ̂/n, the squared norm without its sampling noise, and trΣ̂/n itself."""
    n = len(differences_nD)
    mean = differences_nD.mean(0)
    noise = float(((differences_nD - mean) ** 2).sum() / (n - 1) / n)
    return float(mean @ mean) - noise, noise


def share_inside(differences_nD: FloatArray, basis_DK: FloatArray, level: float = 0.95) -> Share:
    """Return the share of the mean shift that lies inside a space, with sampling noise removed.

    Args:
        differences_nD: [prompts, d_model], one paired difference a prompt.
        basis_DK: [d_model, k], orthonormal.
        level: coverage.

    Raises:
        ValueError: fewer than three prompts, differences that are not finite, or columns that are not orthonormal.
    """
    n = len(differences_nD)
    if n < FEWEST_PROMPTS:
        raise ValueError(f"a share needs at least three prompts, got {n}")
    if not np.isfinite(differences_nD).all():
        raise ValueError("a share needs finite differences; a prompt's state is not a number")
    _check_basis(basis_DK)
    d = np.asarray(differences_nD, dtype=np.float64)
    inside = d @ basis_DK
    parts = (inside, d - inside @ basis_DK.T)
    squares = np.stack([(part**2).sum(1) for part in parts])
    along = np.stack([part @ part.sum(0) for part in parts])
    centred = [part - part.mean(0) for part in parts]
    return share_of(Products(squares, along, spread(np.stack([part @ part.T for part in centred]))), level)


def share_of(products: Products, level: float = 0.95) -> Share:
    """Return the share from products of the differences alone.

    F = N/D with N = Σ_{i≠j} dᵢᵀP dⱼ / n(n−1) and D = Σ_{i≠j} dᵢᵀdⱼ / n(n−1). The plain ratio ‖Pm‖²/‖m‖² is
    biased, because noise adds to both sums. The interval is the score interval {f : (N − fD)² ≤ t²·V(f)}, unclipped.
    N − fD is a U-statistic with the kernel xᵀAy, A = P − fI, so by Hoeffding's decomposition its variance is 4μᵀAΣAμ/n + 2tr(AΣAΣ)/n(n−1).
    It is evaluated under the hypothesis, as in Wilson's interval for a proportion: at a μ of squared norm D and share f along the observed
    parts of m, p̂ inside and q̂ outside. This makes the first term 4D·f(1−f)/n · Var((1−f)^½ dᵢ·p̂ − f^½ dᵢ·q̂). A variance at m itself,
    such as the jackknife's, is small where a small share is underestimated: such intervals are the shortest and miss most, and a gate on
    width would prefer them.

    Args:
        products: of at least three differences.
        level: coverage.
    """
    n = products.squares.shape[1]
    inside, outside = _off_diagonal(products.squares, products.along)
    total = float(inside + outside)
    noise = (float(products.squares.sum()) / n - total) / n
    signal = (total + noise) / noise if noise > 0 else float("inf")
    if total <= 0:
        return Share(Estimate(float("nan"), -np.inf, np.inf), signal, _gate(signal, -np.inf, np.inf))
    norms = np.sqrt(np.maximum(products.along.sum(1), 0)) / n
    scores = np.divide(products.along, n * norms[:, None], out=np.zeros_like(products.along), where=norms[:, None] > 0)
    t2 = float(special.stdtrit(n - 1, 0.5 + level / 2)) ** 2
    low, high = _score_set(float(inside), total, 4 * total / n * np.cov(scores), 2 / (n * (n - 1)) * products.spread, t2)
    return Share(Estimate(float(inside) / total, low, high), signal, _gate(signal, low, high))


def share_over_runs(differences_RnD: FloatArray, basis_DK: FloatArray, level: float = 0.95) -> Share:
    """Return the share of several runs together, with an interval for new runs and new prompts.

    F = Σᵣ Nᵣ / Σᵣ Dᵣ, with the N and D of each run. Runs read the same prompts, and a prompt adds much the same to the shift of every run;
    so runs and prompts are crossed. Leaving out each prompt in turn gives pseudo-values of Nᵣ and Dᵣ, run by prompt, and the ratio of their
    means has the interval of `intervals.ratio_interval`.

    Args:
        differences_RnD: [runs, prompts, d_model], paired differences of each run on the same prompts; at least two runs.
        basis_DK: [d_model, k], orthonormal.
        level: coverage.

    Returns:
        The share, with the smallest signal of the runs; its gate is that of a run's share. Width is not a gate here: it would select groups
        of runs that happen to be alike, and their intervals would miss.

    Raises:
        ValueError: fewer than two runs or three prompts.
    """
    runs, n, _ = differences_RnD.shape
    if runs < 2 or n < FEWEST_PROMPTS:
        raise ValueError(f"a share over runs needs two runs and {FEWEST_PROMPTS} prompts at least, got {runs} and {n}")
    _check_basis(basis_DK)
    d_RnD = np.asarray(differences_RnD, dtype=np.float64)
    inside, total = (_pseudo_values(part) for part in (d_RnD @ basis_DK, d_RnD))
    norms = [debiased_norms(each) for each in d_RnD]
    signal = min((squared + noise) / noise if noise > 0 else float("inf") for squared, noise in norms)
    if total.mean() <= 0:
        return Share(Estimate(float("nan"), -np.inf, np.inf), signal, _gate(signal, -np.inf, np.inf))
    found = ratio_interval(inside, total, level)
    return Share(found, signal, _gate(signal, found.low, found.high, widest=np.inf))


def _pseudo_values(parts_RnK: FloatArray) -> FloatArray:
    """Return the jackknife's pseudo-values of Σ_{i≠j} rᵢ·rⱼ / n(n−1), [runs, n]; it is their mean over prompts."""
    n = parts_RnK.shape[1]
    others_Rn = np.einsum("rnk,rk->rn", parts_RnK, parts_RnK.sum(1)) - (parts_RnK**2).sum(2)
    whole_R1 = others_Rn.sum(1, keepdims=True) / (n * (n - 1))
    return np.asarray(n * whole_R1 - (n * (n - 1) * whole_R1 - 2 * others_Rn) / (n - 2))


def _check_basis(basis_DK: FloatArray) -> None:
    off = float(np.abs(basis_DK.T @ basis_DK - np.eye(basis_DK.shape[1])).max(initial=0))
    if not off <= BASIS_TOLERANCE:
        raise ValueError(f"a basis has orthonormal columns; these are off by {off:.2g}, {BASIS_TOLERANCE:g} at most")


def spread(gram_Pnn: FloatArray) -> FloatArray:
    """Return estimates of tr(AΣBΣ) for projections A and B, unbiased for normal data (Bai & Saranadasa 1996).

    Args:
        gram_Pnn: [..., projections, n, n], products of the centred rows of each projection.

    Returns:
        [..., projections, projections].
    """
    n = gram_Pnn.shape[-1]
    traces = np.trace(gram_Pnn, axis1=-2, axis2=-1)
    flat = gram_Pnn.reshape(*gram_Pnn.shape[:-2], n * n)
    pairs = flat @ flat.swapaxes(-1, -2) - traces[..., :, None] * traces[..., None, :] / (n - 1)
    return np.asarray(pairs / ((n + 1) * (n - 2)))


def cross_run_share(means_SD: FloatArray, basis_DK: FloatArray) -> float | None:
    """Return Σ_{s≠s'} mₛᵀP mₛ' / Σ_{s≠s'} mₛᵀmₛ', the share that runs have in common, free of run noise.

    None where runs have too little in common for a ratio: the mean product of two runs is below a tenth
    of their mean square.

    Args:
        means_SD: [runs, d_model], each run's mean shift; at least two.
        basis_DK: [d_model, k], orthonormal.
    """
    inside, total = (float(_off_diagonal((x**2).sum(1), x @ x.sum(0))) for x in (means_SD @ basis_DK, means_SD))
    if total <= COMMON_GATE * float((means_SD**2).sum(1).mean()):
        return None
    return inside / total


def disattenuated_cosine(differences_nD: FloatArray, half_a_D: FloatArray, half_b_D: FloatArray) -> Cosine:
    """Return the cosine between the mean shift and a direction that was estimated from two independent halves.

    cos² = [(m·v_A)(m·v_B) − v_AᵀΣ̂v_B/n] / [(v_A·v_B)(‖m‖² − trΣ̂/n)]: the halves' errors are independent, so products of one with the
    other are free of them (Spearman 1904); the terms in Σ̂ remove the noise that both factors m share. For single directions only: for a
    subspace no such product exists.

    Args:
        differences_nD: [prompts, d_model], one paired difference a prompt.
        half_a_D: [d_model], the direction from one half of the contrast pairs and questions.
        half_b_D: [d_model], from the other half.

    Returns:
        Refused, with the reason, where a factor of the denominator is not clearly positive: ‖m‖² below 5·trΣ̂/n (the gate
        of a share), or halves whose cosine is below .5 (the threshold of a found direction).

    Raises:
        ValueError: fewer than three prompts.
    """
    n = len(differences_nD)
    if n < FEWEST_PROMPTS:
        raise ValueError(f"a cosine needs at least three prompts, got {n}")
    debiased, noise = debiased_norms(differences_nD)
    if debiased + noise < SIGNAL_GATE * noise or debiased <= 0:
        signal = (debiased + noise) / noise if noise > 0 else 0.0
        return Cosine(None, None, f"too noisy: ‖m‖² is {signal:.1f} times its sampling noise, {SIGNAL_GATE:g} are needed")
    agreement = float(half_a_D @ half_b_D)
    lengths = float(np.linalg.norm(half_a_D) * np.linalg.norm(half_b_D))
    if agreement < FOUND_RELIABILITY * lengths or lengths == 0:
        cosine = f"the cosine of its halves is {agreement / lengths:.2f}" if lengths else "a half of it is zero"
        return Cosine(None, None, f"the direction is too noisy: {cosine}, {FOUND_RELIABILITY:g} is needed")
    along_a, along_b = differences_nD @ half_a_D, differences_nD @ half_b_D
    squared = float(_off_diagonal(along_a * along_b, along_a * along_b.sum())) / agreement / debiased
    return Cosine(squared, float(np.copysign(max(squared, 0.0) ** 0.5, along_a.sum() + along_b.sum())), None)


def _off_diagonal(squares: FloatArray, along: FloatArray) -> FloatArray:
    """Return Σ_{i≠j} rᵢ·rⱼ / n(n−1) from ‖rᵢ‖² and rᵢ·Σⱼrⱼ, over the last axis."""
    n = squares.shape[-1]
    return np.asarray((along - squares).sum(-1) / (n * (n - 1)))


def _score_set(inside: float, total: float, linear_22: FloatArray, quadratic_22: FloatArray, t2: float) -> tuple[float, float]:
    """Return the ends of {f : (N − fD)² ≤ t²(f(1−f)·uᵀLu + wᵀQw)}, u = ((1−f)^½, −f^½), w = (1−f, −f).

    Beyond [0, 1] the first term is zero, since no shift has such a share. Where the set has gaps, its ends are the outermost.
    """
    (q_pp, q_pq), (_, q_qq) = quadratic_22.tolist()
    low, high = fieller(inside, total, q_pp, q_pp + q_pq, q_pp + 2 * q_pq + q_qq, t2)
    (l_pp, l_pq), (_, l_qq) = linear_22.tolist()

    def excess(f: FloatArray) -> FloatArray:
        product = f * (1 - f)
        linear = product * ((1 - f) * l_pp - 2 * product**0.5 * l_pq + f * l_qq)
        quadratic = (1 - f) ** 2 * q_pp - 2 * product * q_pq + f**2 * q_qq
        return np.asarray((inside - f * total) ** 2 - t2 * (linear + quadratic))

    grid = np.sort(np.append(SHARES, np.clip(inside / total, 0, 1)))
    held = np.flatnonzero(excess(grid) <= 0)
    if held.size:
        first, last = held[0], held[-1]
        low = min(low, grid[0] if first == 0 else optimize.brentq(excess, grid[first - 1], grid[first]))
        high = max(high, grid[-1] if last == len(grid) - 1 else optimize.brentq(excess, grid[last], grid[last + 1]))
    return float(low), float(high)


def _gate(signal: float, low: float, high: float, widest: float = WIDTH_GATE) -> str | None:
    if signal < SIGNAL_GATE:
        return f"too noisy: ‖m‖² is {signal:.1f} times its sampling noise, {SIGNAL_GATE:g} are needed"
    if not np.isfinite(low) or not np.isfinite(high):
        return "too noisy: the interval of the share is unbounded"
    if high - low > widest:
        return f"too noisy: the interval of the share is {high - low:.2f} wide, {widest:g} at most"
    return None
