"""p-values of many tests at once: Benjamini–Hochberg over traits × data sets, max-T over layers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for the false discovery rate (Benjamini & Hochberg 1995).

    Args:
        p: one a test; None for a test that could not be made, which stays None and does not count.

    Raises:
        ValueError: a p-value that is not in [0, 1].

    Example:
        >>> [round(q, 3) if q is not None else None for q in benjamini_hochberg([0.01, None, 0.04, 0.02])]
        [0.03, None, 0.04, 0.03]
    """
    made = [x for x in p if x is not None]
    adjusted = iter(stats.false_discovery_control(made).tolist() if made else [])
    return [None if x is None else next(adjusted) for x in p]


def max_t(observed_L: ArrayLike, draws_BL: ArrayLike) -> list[float | None]:
    """Return p-values over layers adjusted by the joint distribution of the largest statistic (Westfall & Young 1993).

    With z = (F − mean)/sd, mean and sd of each layer's draws, p_ℓ = (1 + #{draws whose largest z over layers ≥ z_ℓ})/(1 + B).
    The draws must be joint over layers, as those of one `Null` are; layers that correlate then cost little.

    Args:
        observed_L: [layers].
        draws_BL: [draws, layers] under the null.

    Returns:
        [layers]; None for a layer whose statistic or draws are not finite, or whose draws do not vary.

    Raises:
        ValueError: shapes that do not match, or fewer than two draws.
    """
    observed, draws = np.asarray(observed_L, dtype=np.float64), np.asarray(draws_BL, dtype=np.float64)
    if observed.ndim != 1 or draws.ndim != 2 or draws.shape[1] != len(observed) or len(draws) < 2:
        raise ValueError(f"needs [layers] and [draws ≥ 2, layers], got shapes {observed.shape} and {draws.shape}")
    usable = np.isfinite(observed) & np.isfinite(draws).all(0)
    usable[usable] = np.ptp(draws[:, usable], axis=0) > 0
    if not usable.any():
        return [None] * len(observed)
    mean, sd = draws[:, usable].mean(0), draws[:, usable].std(0, ddof=1)
    largest = ((draws[:, usable] - mean) / sd).max(1)
    exceeding = (largest[:, None] >= (observed[usable] - mean) / sd).sum(0)
    adjusted = iter(((1 + exceeding) / (1 + len(draws))).tolist())
    return [next(adjusted) if use else None for use in usable]
