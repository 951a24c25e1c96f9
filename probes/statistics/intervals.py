"""Intervals: of means, ratios and proportions. What scipy has is taken from scipy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

FloatArray = NDArray[np.float64]
# Relative error of a difference of variances.
ROUNDING = 1e-12
# Groups whose runs vary unalike by a smaller p share no variance.
UNLIKE = 0.05


def finite(x: float) -> float | None:
    """Return a number for JSON, which has no NaN and no infinity: they become null."""
    return float(x) if np.isfinite(x) else None


def decimal(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """Return a number as people read it: to some digits, with a true minus, and with a plus if it is to show its sign.

    Example:
        >>> decimal(-0.004), decimal(-0.5), decimal(0.5, 1, signed=True)
        ('0.00', '−0.50', '+0.5')
    """
    # Adding zero turns −0.00 into 0.00.
    return format(round(value, digits) + 0.0, f"{'+' if signed else ''}.{digits}f").replace("-", "−")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval (95 % unless said otherwise)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return `value [low, high]` to two digits."""
        value, low, high = map(decimal, (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain JSON values; an infinite bound becomes null."""
        return {key: finite(x) for key, x in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Estimate":
        """Return what `to_json` wrote; a bound that is null is infinite."""
        low, high = value["low"], value["high"]
        return cls(value["value"], -np.inf if low is None else low, np.inf if high is None else high)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean of independent values with its Student-t interval.

    Args:
        values: [n], n ≥ 2.
        level: coverage.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0]).value
        2.0
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"an interval needs at least two values, got {x.size}")
    _check_finite(x)
    mean, se = float(x.mean()), float(stats.sem(x))
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1)) * se
    return Estimate(mean, mean - half, mean + half)


def _check_finite(values: FloatArray) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values; {int((~np.isfinite(values)).sum())} of {values.size} are not")


def proportion_bound(count: int, total: int, level: float = 0.95) -> float:
    """Return the one-sided upper bound of Clopper and Pearson (1934) for a proportion seen as `count` of `total`.

    Raises:
        ValueError: no trials, or a count that is not within them.

    Example:
        >>> proportion_bound(0, 59) < 0.05 < proportion_bound(0, 58)
        True
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"a proportion needs 0 ≤ count ≤ total and total ≥ 1, got {count} of {total}")
    return float(stats.binomtest(count, total, alternative="less").proportion_ci(level, method="exact").high)


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
        ValueError: fewer than two runs or two questions, or a value that is not finite.
    """
    y = np.asarray(values, dtype=np.float64)
    _check_finite(y)
    grand = float(y.mean())
    by_run, by_question, by_residual = (float(term[0, 0]) for term in _crossed_terms(y[None]))
    error = standard_error(y)
    runs, questions = y.shape
    terms = [(by_run, runs - 1), (by_question, questions - 1), (by_residual, (runs - 1) * (questions - 1))]
    df = satterthwaite(error**2, terms)
    half = float(stats.t.ppf(0.5 + level / 2, df)) * error
    return Estimate(grand, grand - half, grand + half)


def question_interval(values: ArrayLike) -> Estimate:
    """Return the 95 % interval of a mean over questions [questions], or of several runs over runs × questions [runs, questions].

    Raises:
        ValueError: fewer than two questions, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    return crossed_interval(x) if x.ndim == 2 and len(x) > 1 else mean_interval(x.ravel())


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of a mean over questions, [questions], or over runs × questions as in `crossed_interval`.

    Raises:
        ValueError: fewer than two questions or, of several runs, two runs.
    """
    y = np.asarray(values, dtype=np.float64)
    if y.ndim == 1:
        if y.size < 2:
            raise ValueError(f"a standard error needs at least two values, got {y.size}")
        return float(stats.sem(y))
    by_run, by_question, by_residual = (float(term[0, 0]) for term in _crossed_terms(y[None]))
    return float(np.sqrt(max(by_run + by_question - by_residual, by_run, by_question)))


@dataclass(frozen=True)
class PooledRuns:
    """How much ratios vary between runs, pooled over several groups of runs.

    Three runs give a variance with two degrees of freedom, and so an interval of 4.3 standard errors. Groups whose runs vary alike give one
    variance together. Groups are taken as independent; runs of one seed share a reference and questions, and where their deviations
    correlate strongly there are fewer degrees of freedom than counted.

    Attributes:
        variance: of the ratio of one run.
        df: degrees of freedom of that variance, Σ(R − 1).
        groups: number of groups.
        p: p-value of Bartlett's test that groups vary alike; 0 where some vary and others do not at all, null where none does.
    """

    variance: float
    df: float
    groups: int
    p: float | None

    @property
    def alike(self) -> bool:
        """Whether nothing speaks against one variance for all groups; else each has its own."""
        return self.p is None or self.p >= UNLIKE


def pool_runs(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> PooledRuns | None:
    """Return the pooled variance between runs of the ratio of two means; None for fewer than two groups.

    Of each group it is that of (n_r − f·d_r)/d over its runs, with n_r and d_r the means of run r, f the group's ratio and d its mean
    denominator.

    Args:
        groups: of each the numerator and the denominator, [runs, questions], with two runs or more.
    """
    residuals = []
    for numerator, denominator in groups:
        n, d = (np.asarray(each, dtype=np.float64).mean(1) for each in (numerator, denominator))
        residuals.append((n - n.mean() / d.mean() * d) / d.mean())
    if len(residuals) < 2:
        return None
    df = float(sum(len(each) - 1 for each in residuals))
    variance = sum(float(each @ each) for each in residuals) / df
    vary = [float(each.var()) > 0 for each in residuals]
    p = float(stats.bartlett(*residuals).pvalue) if all(vary) else 0.0 if any(vary) else None
    return PooledRuns(variance, df, len(residuals), p)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    level: float = 0.95,
    offset_variance: float = 0.0,
    offset_df: float = np.inf,
    between_runs: PooledRuns | None = None,
) -> Estimate:
    """Return the ratio of two paired means with Fieller's interval {f : (N − fD)² ≤ t²·V(f)}.

    For one run, V(f) is the variance of the mean of n − f·d over questions, and t has Q − 1 degrees of freedom. Over runs × questions it is
    that of `crossed_interval`. Its three candidates, the sum and the two floors, are each a quadratic form in f, so that the set is the
    union of three Fieller sets; where that has a gap, its ends are the outermost. The degrees of freedom are Satterthwaite's at the point
    estimate.

    Args:
        numerator: [questions] or [runs, questions].
        denominator: the same shape, paired. Its mean may have either sign.
        level: coverage.
        offset_variance: variance of an estimate that was subtracted from all values of both, and so adds (1 − f)² times itself to V(f).
        offset_df: degrees of freedom of that variance; a variance from B draws has B − 1, and few draws make a wide interval.
        between_runs: how much such ratios vary between runs, in place of these runs' own variance; unused for one run.

    Returns:
        The ratio; both bounds are infinite where the denominator does not differ significantly from zero.

    Raises:
        ValueError: shapes that differ or have another number of axes, fewer than two questions (or, of several runs, two
            runs), or means that are not finite or make no ratio.
    """
    if np.shape(numerator) != np.shape(denominator) or np.ndim(numerator) not in (1, 2):
        raise ValueError(f"needs two arrays [questions] or [runs, questions], got shapes {np.shape(numerator)} and {np.shape(denominator)}")
    pair = np.array([numerator, denominator], dtype=np.float64)
    num, den = (float(x.mean()) for x in pair)
    if den == 0 or not np.isfinite(num + den):
        raise ValueError(f"a ratio needs finite means and a denominator that is not zero, got {num:g} over {den:g}")
    at = np.array([1, -num / den])
    offset = offset_variance * (1 - num / den) ** 2
    if pair.ndim == 2:
        questions = pair.shape[1]
        if questions < 2:
            raise ValueError(f"an interval needs at least two questions, got {questions}")
        forms = [np.cov(pair) / questions]
        terms = [(float(at @ forms[0] @ at), questions - 1.0)]
    else:
        runs, questions = pair.shape[1:]
        by_run, by_question, by_residual = _crossed_terms(pair)
        of_runs = runs - 1.0
        if between_runs:
            by_run, of_runs = np.array([[between_runs.variance * den**2 / runs, 0], [0, 0]]), between_runs.df
        forms = [by_run + by_question - by_residual, by_run, by_question]
        freedom = (of_runs, questions - 1.0, (runs - 1.0) * (questions - 1.0))
        terms = [(float(at @ form @ at), df) for form, df in zip((by_run, by_question, by_residual), freedom, strict=True)]
    variance = max(float(at @ form @ at) for form in forms) + offset
    # Where the ratio is the same everywhere, only rounding is left, and its terms say nothing about degrees of freedom.
    rounding = ROUNDING * max(float(np.abs(at) @ np.abs(form) @ np.abs(at)) for form in forms)
    df = satterthwaite(variance, [*terms, (offset, offset_df)]) if variance > rounding else np.inf
    t2 = float(stats.t.ppf(0.5 + level / 2, df)) ** 2
    ends = []
    for form in forms:
        (v_nn, v_nd), (_, v_dd) = (form + offset_variance).tolist()
        ends.append(fieller(num, den, v_nn, v_nd, v_dd, t2))
    return Estimate(num / den, min(low for low, _ in ends), max(high for _, high in ends))


def fieller(num: float, den: float, v_nn: float, v_nd: float, v_dd: float, t2: float) -> tuple[float, float]:
    """Return the ends of Fieller's set {f : (N − fD)² ≤ t²(v_NN − 2f·v_ND + f²·v_DD)}.

    Where D does not differ significantly from zero the set is unbounded, and both bounds are infinite.

    Args:
        num: N.
        den: D, of either sign.
        v_nn: variance of N.
        v_nd: covariance.
        v_dd: variance of D.
        t2: the squared quantile.
    """
    a, b, c = den**2 - t2 * v_dd, num * den - t2 * v_nd, num**2 - t2 * v_nn
    if a <= 0:
        return -np.inf, np.inf
    square = b**2 - a * c
    # Below zero without noise, by rounding, or where a difference of variances is negative at N/D.
    if square <= 0:
        return num / den, num / den
    root = float(np.sqrt(square))
    return (b - root) / a, (b + root) / a


def _crossed_terms(values_KRQ: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the K × K (co)variances of grand means through runs and through questions, and the residual's counted in both."""
    if values_KRQ.ndim != 3 or min(values_KRQ.shape[1:]) < 2:
        raise ValueError(f"needs at least two runs and two questions, got shape {values_KRQ.shape[1:]}")
    kinds, runs, questions = values_KRQ.shape
    rows, cols = values_KRQ.mean(2), values_KRQ.mean(1)
    residual = (values_KRQ - rows[:, :, None] - cols[:, None, :] + rows.mean(1)[:, None, None]).reshape(kinds, -1)
    by_residual = residual @ residual.T / ((runs - 1) * (questions - 1)) / (runs * questions)
    return np.atleast_2d(np.cov(rows)) / runs, np.atleast_2d(np.cov(cols)) / questions, by_residual


def satterthwaite(variance: float, terms: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a variance that is made of independent terms, each with its own."""
    parts = sum(term**2 / df for term, df in terms)
    return variance**2 / parts if parts > 0 else np.inf
