"""Intervals. What scipy has is taken from scipy."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]


def finite(x: float) -> float | None:
    """Return a number for JSON, which knows no NaN and no infinity: they become null."""
    return float(x) if np.isfinite(x) else None


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (95 % unless said otherwise)."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain JSON values; an infinite bound becomes null."""
        return {key: finite(x) for key, x in asdict(self).items()}


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean of independent values with its Student-t interval.

    Args:
        values: [n], n ≥ 2.
        level: coverage.

    Raises:
        ValueError: fewer than two values.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0]).value
        2.0
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"an interval needs at least two values, got {x.size}")
    mean, se = float(x.mean()), float(stats.sem(x))
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1)) * se
    return Estimate(mean, mean - half, mean + half)


def crossed_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean over runs × questions, both of them samples, with an interval for new runs and questions.

    Runs and questions are crossed (all runs answer the same questions), so that the variance of the
    grand mean is s²_run/R + s²_q/Q − s²_res/(RQ), where s² are mean squares of row means, column means and
    residuals scaled to single-term variances. It is floored at each single term, and the degrees of
    freedom are Satterthwaite's.

    Args:
        values: [runs, questions], R ≥ 2 and Q ≥ 2.
        level: coverage.

    Raises:
        ValueError: fewer than two runs or two questions.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim != 2 or min(y.shape) < 2:
        raise ValueError(f"needs at least two runs and two questions, got shape {y.shape}")
    runs, questions = y.shape
    grand, rows, cols = y.mean(), y.mean(1), y.mean(0)
    residual = y - rows[:, None] - cols[None, :] + grand
    # Variances of the grand mean through each factor; the residual is counted in both and taken off once.
    by_run, by_question = rows.var(ddof=1) / runs, cols.var(ddof=1) / questions
    by_residual = (residual**2).sum() / ((runs - 1) * (questions - 1)) / (runs * questions)
    variance = max(by_run + by_question - by_residual, by_run, by_question)
    parts = by_run**2 / (runs - 1) + by_question**2 / (questions - 1) + by_residual**2 / ((runs - 1) * (questions - 1))
    df = variance**2 / parts if parts > 0 else np.inf
    half = float(stats.t.ppf(0.5 + level / 2, df)) * float(np.sqrt(variance))
    return Estimate(float(grand), float(grand) - half, float(grand) + half)
