"""Means and ratios over runs × questions on synthetic data: how often their intervals cover the truth.

The mediated effect (numerator) and the total effect (denominator) are each a mean plus terms of the run, of the question,
and a residual. Their terms correlate, as both are measured on the same runs and questions.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from wellworn.experiments.simulate.rows import Row
from wellworn.probes.statistics.intervals import FloatArray, crossed_interval, ratio_interval

# Standard deviations of run, question and residual, in units of the denominator's mean.
PROPORTIONS = ((0.3, 0.3, 0.3), (0.3, 0.6, 0.3), (0.15, 0.6, 0.6), (0.3, 0.1, 0.3), (0.1, 0.6, 0.3), (0.0, 0.6, 0.3), (0.0, 0.0, 0.6))
RUNS = (3, 5, 10)
QUESTIONS = 24
RATIO = 0.5
CORRELATION = 0.7
OFFSET_SD = 0.1
# Draws of a null: its mean is subtracted, and the variance of that mean is estimated from the draws.
OFFSET_DRAWS = {"ratio_offset": 20, "ratio_offset_few": 5}

COVERAGE = (0.92, 0.97)


def simulate_crossed(
    repeats: int,
    seed: int,
    runs: Sequence[int] = RUNS,
    proportions: Sequence[tuple[float, float, float]] = PROPORTIONS,
) -> list[Row]:
    """Return one row per cell: coverage of the mean's interval and of the ratio's.

    Args:
        repeats: draws for each cell.
        seed: random seed of all draws.
        runs: numbers of runs R.
        proportions: standard deviations of run, question and residual; the denominator's mean is 1.

    Returns:
        Rows with the cell's settings and the fraction of repeats that cover the truth: `mean` (crossed_interval of the
        numerator), `ratio` and, after subtracting the estimate of a common offset from both, `ratio_offset` (from 20 draws) and
        `ratio_offset_few` (from 5); and `unbounded`, the fraction of ratios without bounds, which cover.
    """
    rows = []
    streams = np.random.SeedSequence(seed).spawn(len(runs) * len(proportions))
    for (count, sds), stream in zip(product(runs, proportions), streams, strict=True):
        rng = np.random.default_rng(stream)
        outcomes = np.array([_outcome(rng, count, sds) for _ in range(repeats)])
        settings = {"runs": count, "questions": QUESTIONS, "sd_run": sds[0], "sd_question": sds[1], "sd_residual": sds[2]}
        names = ("mean", "ratio", *OFFSET_DRAWS, "unbounded")
        rows.append(settings | {"repeats": repeats} | dict(zip(names, outcomes.mean(0).tolist(), strict=True)))
    return rows


def missed_targets(row: Row) -> list[str]:
    """Return in words the targets that a row misses."""
    low, high = COVERAGE
    return [
        f"{name}: coverage {row[name]:.3f}, {low} to {high}" for name in ("mean", "ratio", *OFFSET_DRAWS) if not low <= row[name] <= high
    ]


def _outcome(rng: np.random.Generator, runs: int, sds: tuple[float, float, float]) -> list[bool]:
    numerator, denominator = _draw(rng, runs, sds)
    mean, ratio = crossed_interval(numerator), ratio_interval(numerator, denominator)
    # Effects relative to a null's mean; the mean and its variance are estimated from draws.
    estimates = [mean, ratio]
    for draws in OFFSET_DRAWS.values():
        drawn = OFFSET_SD * draws**0.5 * rng.standard_normal(draws)
        error, variance = drawn.mean(), drawn.var(ddof=1) / draws
        estimates.append(ratio_interval(numerator - error, denominator - error, offset_variance=variance, offset_df=draws - 1))
    return [*(each.low <= RATIO <= each.high for each in estimates), not np.isfinite(ratio.low)]


def _draw(rng: np.random.Generator, runs: int, sds: tuple[float, float, float]) -> FloatArray:
    """Return numerator and denominator, [2, runs, questions], of means RATIO and 1."""
    axes = np.linalg.cholesky([[1, CORRELATION], [CORRELATION, 1]])
    shapes = ((runs, 1), (1, QUESTIONS), (runs, QUESTIONS))
    terms = [sd * np.tensordot(axes, rng.standard_normal((2, *shape)), 1) for sd, shape in zip(sds, shapes, strict=True)]
    return np.asarray(np.array([RATIO, 1.0])[:, None, None] + sum(terms))
