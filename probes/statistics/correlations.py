"""Correlations over data sets: with families as the unit, and two correlations that share a variable."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from wellworn.probes.statistics.intervals import Estimate, FloatArray


@dataclass(frozen=True)
class Difference:
    """A test that two correlations are equal: standard normal z, and its two-sided p."""

    z: float
    p: float


@dataclass(frozen=True)
class Compared:
    """How two variables correlate with a third: Pearson's r of each, and the first's less the second's."""

    first: Estimate
    second: Estimate
    difference: Estimate


def rank_correlation(
    x: ArrayLike, y: ArrayLike, families: Sequence[Hashable], rng: np.random.Generator, draws: int = 2000, level: float = 0.95
) -> Estimate:
    """Return Spearman's correlation with a percentile bootstrap interval that resamples families.

    Data sets of one family (the same trait at several doses, say) are not independent evidence, so a family is drawn with all of its data
    sets or not at all. A draw in which all x or all y tie has no correlation and is drawn again.

    Args:
        x: [n].
        y: [n], paired.
        families: [n], the family of each pair.
        rng: draws families.
        draws: bootstrap replicates.
        level: coverage.

    Raises:
        ValueError: lengths that differ, values that are not finite or all tie, or fewer than three families.
    """
    pair = np.array([x, y], dtype=np.float64)
    [found] = _over_families(pair, families, lambda drawn: np.array([_spearman(drawn)]), rng, draws, level)
    return found


def rank_correlation_within(x: ArrayLike, y: ArrayLike, rng: np.random.Generator, draws: int = 2000, level: float = 0.95) -> Estimate:
    """Return the mean over runs of Spearman's correlation over questions, with a percentile bootstrap interval.

    Runs and questions are crossed: a replicate draws questions once for all runs, and runs, where there are several. In a replicate, a run
    in which all x or all y tie has no correlation and is left out.

    Args:
        x: [questions] or [runs, questions].
        y: the same shape, paired.
        rng: draws questions and runs.
        draws: bootstrap replicates.
        level: coverage.

    Raises:
        ValueError: shapes that differ, fewer than three questions, values that are not finite, or a run in which all x or all y tie.
    """
    pair_2RQ = np.array([x, y], dtype=np.float64)
    pair_2RQ = pair_2RQ[:, None] if pair_2RQ.ndim == 2 else pair_2RQ
    if pair_2RQ.ndim != 3 or pair_2RQ.shape[2] < 3:
        raise ValueError(f"needs two arrays [questions] or [runs, questions] of three questions and more, got {np.shape(x)}, {np.shape(y)}")
    if not np.isfinite(pair_2RQ).all() or (np.ptp(pair_2RQ, axis=2) == 0).any():
        raise ValueError("a rank correlation needs finite values that do not all tie")
    _, runs, questions = pair_2RQ.shape
    drawn_BQ, drawn_BR = rng.integers(questions, size=(draws, questions)), rng.integers(runs, size=(draws, runs))
    of_runs_BR = _spearman_of(pair_2RQ[:, drawn_BR[:, :, None], drawn_BQ[:, None, :]])
    kept_B = np.isfinite(of_runs_BR).any(1)
    low, high = np.quantile(np.nanmean(of_runs_BR[kept_B], axis=1), [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(float(_spearman_of(pair_2RQ).mean()), float(low), float(high))


def centre_within(values: ArrayLike, families: Sequence[Hashable]) -> FloatArray:
    """Return values [n] less the mean of their family: correlations of them are within families."""
    _, places = np.unique([list(dict.fromkeys(families)).index(family) for family in families], return_inverse=True)
    found = np.asarray(values, dtype=np.float64)
    return found - (np.bincount(places, found) / np.bincount(places))[places]


def compare_over_families(
    first: ArrayLike,
    second: ArrayLike,
    y: ArrayLike,
    families: Sequence[Hashable],
    rng: np.random.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> Compared:
    """Return how two variables correlate with a third, and the difference, with percentile bootstrap intervals that resample families.

    A replicate draws families for all three variables at once, each with all of its units. Over eight families an interval of nominal 95 %
    holds the true correlation in 86 to 92 % of cases: it is somewhat too narrow.

    Args:
        first: [n].
        second: [n], paired.
        y: [n], paired, what both are to predict.
        families: [n], the family of each unit.
        rng: draws families.
        draws: bootstrap replicates.
        level: coverage.

    Raises:
        ValueError: lengths that differ, a variable that is not finite or does not vary, or fewer than three families.
    """
    values = np.array([first, second, y], dtype=np.float64)
    return Compared(*_over_families(values, families, _with_last, rng, draws, level))


def _over_families(
    values: FloatArray,
    families: Sequence[Hashable],
    statistics: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
    draws: int,
    level: float,
) -> list[Estimate]:
    """Return statistics of variables [k, n] with percentile intervals that resample families, each with all of its units.

    A replicate in which a variable does not vary has no correlation and is drawn again.

    Raises:
        ValueError: lengths that differ, values that are not finite, a variable that does not vary, or fewer than three families.
    """
    names = list(dict.fromkeys(families))
    if values.ndim != 2 or values.shape[1] != len(families):
        raise ValueError(f"variables and families are paired, got shape {values.shape} and {len(families)} families")
    if len(names) < 3:
        raise ValueError(f"a bootstrap over families needs at least three of them, got {len(names)}")
    if not np.isfinite(values).all() or _ties(values):
        raise ValueError("a correlation needs finite values that do not all tie")
    members = [np.flatnonzero([family == name for family in families]) for name in names]
    replicates: list[FloatArray] = []
    while len(replicates) < draws:
        drawn = values[:, np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])]
        if not _ties(drawn):
            replicates.append(statistics(drawn))
    bounds = np.quantile(replicates, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return [Estimate(float(value), float(low), float(high)) for value, low, high in zip(statistics(values), *bounds, strict=True)]


def _with_last(values: FloatArray) -> FloatArray:
    """Return Pearson's r of the first and the second variable of [3, n] with the third, and the difference."""
    r = np.asarray(np.corrcoef(values))
    return np.array([r[0, 2], r[1, 2], r[0, 2] - r[1, 2]])


def compare_dependent(r_jk: float, r_jh: float, r_kh: float, n: int) -> Difference:
    """Test whether a variable j correlates as much with k as with h, all three measured on the same n units.

    Fisher's z of both, with their covariance at the average of the two correlations: Z̄₁* of Steiger (1980,
    Psychological Bulletin 87, 245–251, equations 3, 10 and 14).

    Args:
        r_jk: one of the two correlations compared.
        r_jh: the other.
        r_kh: the correlation of the two variables that are not shared.
        n: units, at least four.

    Raises:
        ValueError: fewer than four units, or correlations that no three variables can have.
    """
    if n < 4:
        raise ValueError(f"Fisher's z needs at least four units, got {n}")
    determinant = 1 - r_jk**2 - r_jh**2 - r_kh**2 + 2 * r_jk * r_jh * r_kh
    if max(abs(r_jk), abs(r_jh), abs(r_kh)) >= 1 or determinant < 0:
        raise ValueError(f"no three variables correlate by {r_jk}, {r_jh} and {r_kh} (each must lie between -1 and 1)")
    pooled = ((r_jk + r_jh) / 2) ** 2
    covariance = (r_kh * (1 - 2 * pooled) - pooled * (1 - 2 * pooled - r_kh**2) / 2) / (1 - pooled) ** 2
    z = float((np.arctanh(r_jk) - np.arctanh(r_jh)) * np.sqrt((n - 3) / (2 - 2 * covariance)))
    return Difference(z, float(2 * stats.norm.sf(abs(z))))


def _spearman_of(pairs: FloatArray) -> FloatArray:
    """Return Spearman's correlation along the last axis of [2, …, n]; NaN where all of one tie."""
    ranks = stats.rankdata(pairs, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(-1)).prod(0)
    products: FloatArray = (ranks[0] * ranks[1]).sum(-1)
    return np.where(norms > 0, products / np.where(norms > 0, norms, 1), np.nan)


def _ties(values: FloatArray) -> bool:
    return bool((np.ptp(values, axis=1) == 0).any())


def _spearman(pair_2n: FloatArray) -> float:
    return float(np.corrcoef(stats.rankdata(pair_2n, axis=1))[0, 1])
