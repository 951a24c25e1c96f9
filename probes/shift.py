"""The state shift of a fine-tune and its share inside a persona space."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from probes.stats import Estimate, FloatArray

SIGNAL_GATE = 5.0
WIDTH_GATE = 0.5
FEWEST_PROMPTS = 3
COMMON_GATE = 0.1


@dataclass(frozen=True)
class Share:
    """The share F of a shift inside a space.

    Attributes:
        estimate: F with its jackknife-Fieller interval; bounds are infinite where the set is unbounded.
        signal: ‖m‖² over trΣ̂/n.
        why: the gate that failed, or None where F may be reported.
    """

    estimate: Estimate
    signal: float
    why: str | None


def debiased_norms(differences_nD: FloatArray) -> tuple[float, float]:
    """Return D = ‖m‖² − trΣ̂/n, the squared norm without its sampling noise, and trΣ̂/n itself."""
    n = len(differences_nD)
    mean = differences_nD.mean(0)
    noise = float(((differences_nD - mean) ** 2).sum() / (n - 1) / n)
    return float(mean @ mean) - noise, noise


def share_inside(differences_nD: FloatArray, basis_DK: FloatArray, level: float = 0.95) -> Share:
    """Return the share of the mean shift that lies inside a space, with sampling noise removed.

    F = N/D with N = Σ_{i≠j} dᵢᵀP dⱼ / n(n−1) and D = Σ_{i≠j} dᵢᵀdⱼ / n(n−1). The plain ratio ‖Pm‖²/‖m‖² is
    biased, because noise adds to both sums. The interval is Fieller's, with leave-one-prompt-out
    (co)variances of N and D: {f : (N − fD)² ≤ t²(v_NN − 2f·v_ND + f²·v_DD)}, unclipped.

    Args:
        differences_nD: [prompts, d_model], one paired difference a prompt.
        basis_DK: [d_model, k], orthonormal.
        level: coverage.

    Raises:
        ValueError: fewer than three prompts.
    """
    n = len(differences_nD)
    if n < FEWEST_PROMPTS:
        raise ValueError(f"a share needs at least three prompts, got {n}")
    d = np.asarray(differences_nD, dtype=np.float64)
    inside, total = d @ basis_DK, d
    num, num_out = _off_diagonal(inside)
    den, den_out = _off_diagonal(total)
    jack = (n - 1) / n
    v_nn = jack * float(((num_out - num_out.mean()) ** 2).sum())
    v_dd = jack * float(((den_out - den_out.mean()) ** 2).sum())
    v_nd = jack * float(((num_out - num_out.mean()) * (den_out - den_out.mean())).sum())
    t2 = float(stats.t.ppf(0.5 + level / 2, n - 1)) ** 2
    low, high = _fieller(num, den, v_nn, v_nd, v_dd, t2)
    value = num / den if den > 0 else float("nan")
    debiased, noise = debiased_norms(d)
    signal = (debiased + noise) / noise if noise > 0 else float("inf")
    return Share(Estimate(value, low, high), signal, _gate(signal, low, high))


def cross_run_share(means_SD: FloatArray, basis_DK: FloatArray) -> float | None:
    """Return Σ_{s≠s'} mₛᵀP mₛ' / Σ_{s≠s'} mₛᵀmₛ', the share that runs have in common, free of run noise.

    None where runs have too little in common for a ratio: the mean product of two runs is below a tenth
    of their mean square.

    Args:
        means_SD: [runs, d_model], each run's mean shift; at least two.
        basis_DK: [d_model, k], orthonormal.
    """
    common = _off_diagonal(means_SD)[0]
    if common <= COMMON_GATE * float((means_SD**2).sum(1).mean()):
        return None
    return _off_diagonal(means_SD @ basis_DK)[0] / common


def _off_diagonal(rows: FloatArray) -> tuple[float, FloatArray]:
    """Return Σ_{i≠j} rᵢ·rⱼ / n(n−1), and the same with each row left out in turn (empty below three rows)."""
    n = len(rows)
    total = rows.sum(0)
    squares = (rows**2).sum(1)
    along = rows @ total
    whole = float(total @ total - squares.sum())
    # Leaving out row i removes 2·rᵢ·(total − rᵢ) from the sum over ordered pairs.
    out = whole - 2 * (along - squares)
    return whole / (n * (n - 1)), out / ((n - 1) * (n - 2)) if n > 2 else np.empty(0)


def _fieller(num: float, den: float, v_nn: float, v_nd: float, v_dd: float, t2: float) -> tuple[float, float]:
    a = den**2 - t2 * v_dd
    b = num * den - t2 * v_nd
    c = num**2 - t2 * v_nn
    if a <= 0 or den <= 0:
        return -np.inf, np.inf
    root = float(np.sqrt(max(b**2 - a * c, 0.0)))
    return (b - root) / a, (b + root) / a


def _gate(signal: float, low: float, high: float) -> str | None:
    if signal < SIGNAL_GATE:
        return f"too noisy: ‖m‖² is {signal:.1f} times its sampling noise, {SIGNAL_GATE:g} are needed"
    if not np.isfinite(low) or not np.isfinite(high):
        return "too noisy: the interval of the share is unbounded"
    if high - low > WIDTH_GATE:
        return f"too noisy: the interval of the share is {high - low:.2f} wide, {WIDTH_GATE:g} at most"
    return None
