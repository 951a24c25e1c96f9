import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wellworn.probes.statistics.intervals import (
    Estimate,
    FloatArray,
    PooledRuns,
    crossed_interval,
    fieller,
    mean_interval,
    pool_runs,
    proportion_bound,
    question_interval,
    ratio_interval,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_interval_is_scipys(values: list[float], level: float) -> None:
    got = mean_interval(values, level)
    se = stats.sem(values)
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), se) if se > 0 else (np.mean(values), np.mean(values))
    np.testing.assert_allclose([got.value, got.low, got.high], [np.mean(values), low, high], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_mean_interval_needs_two_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match=f"at least two values, got {len(values)}"):
        mean_interval(values)


def test_an_estimate_as_json() -> None:
    written = json.dumps(Estimate(np.float64(0.5), -np.inf, np.nan).to_json(), allow_nan=False)
    assert json.loads(written) == {"value": 0.5, "low": None, "high": None}


def test_crossed_variance_is_that_of_the_random_effects() -> None:
    # Strong effects of both factors: no floor applies. The mean squares are those of the two-way table.
    rng = np.random.default_rng(3)
    y = rng.standard_normal((4, 1)) + rng.standard_normal(9) + 0.5 * rng.standard_normal((4, 9))
    rows, cols = y.mean(1), y.mean(0)
    ms_run = 9 * rows.var(ddof=1)
    ms_question = 4 * cols.var(ddof=1)
    ms_residual = ((y - rows[:, None] - cols + y.mean()) ** 2).sum() / (3 * 8)
    variance = (ms_run + ms_question - ms_residual) / 36
    df = variance**2 / ((ms_run / 36) ** 2 / 3 + (ms_question / 36) ** 2 / 8 + (ms_residual / 36) ** 2 / 24)
    low, high = stats.t.interval(0.95, df, y.mean(), np.sqrt(variance))
    got = crossed_interval(y)
    np.testing.assert_allclose([got.value, got.low, got.high], [y.mean(), low, high])


def test_crossed_variance_is_never_below_one_factor_alone() -> None:
    # Residuals that average out within runs and questions leave less than one factor's share without the floor.
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(50):
        y = rng.standard_normal((3, 6))
        by_run, by_question = y.mean(1).var(ddof=1) / 3, y.mean(0).var(ddof=1) / 6
        residual = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
        unfloored = by_run + by_question - (residual**2).sum() / (2 * 5) / 18
        got = crossed_interval(y)
        # No t quantile is below the normal one.
        assert (got.high - got.low) / 2 >= 1.959 * np.sqrt(max(by_run, by_question))
        seen += unfloored < max(by_run, by_question)
    assert seen > 10


@pytest.mark.parametrize(("runs", "by_run", "by_question"), [(2, 0.5, 1.0), (4, 0.5, 1.0), (3, 0.2, 1.0), (3, 1.0, 0.2), (8, 1.0, 1.0)])
def test_crossed_interval_covers(runs: int, by_run: float, by_question: float) -> None:
    rng = np.random.default_rng(1)
    repeats, hits = 1000, 0
    for _ in range(repeats):
        y = 0.7 + by_run * rng.standard_normal((runs, 1)) + by_question * rng.standard_normal(24) + rng.standard_normal((runs, 24))
        got = crossed_interval(y)
        hits += got.low <= 0.7 <= got.high
    assert 0.92 <= hits / repeats <= 0.99


def test_an_interval_over_pooled_values_would_not_cover() -> None:
    """The reason for the crossed interval: taking runs × questions as independent is wrong by far."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        y = 0.7 + rng.standard_normal((4, 1)) + rng.standard_normal(24) + rng.standard_normal((4, 24))
        pooled = mean_interval(y.ravel())
        hits += pooled.low <= 0.7 <= pooled.high
    assert hits / 300 < 0.7


def test_an_estimate_is_written_without_a_negative_zero() -> None:
    assert str(Estimate(0.04, -0.001, 0.085)) == "0.04 [0.00, 0.09]"
    assert str(Estimate(-0.5, -np.inf, np.inf)) == "−0.50 [−inf, inf]"


def test_crossed_interval_of_equal_values_has_no_width() -> None:
    assert crossed_interval(np.full((3, 5), 2.0)) == Estimate(2.0, 2.0, 2.0)


@given(st.floats(-100, 100), st.floats(0.01, 100))
def test_crossed_interval_moves_with_the_data(shift: float, scale: float) -> None:
    y = np.random.default_rng(5).standard_normal((3, 7))
    one, other = crossed_interval(y), crossed_interval(scale * y + shift)
    expected = [scale * x + shift for x in (one.value, one.low, one.high)]
    np.testing.assert_allclose([other.value, other.low, other.high], expected, rtol=1e-7, atol=1e-7)


def test_crossed_interval_treats_runs_and_questions_alike() -> None:
    y = np.random.default_rng(6).standard_normal((4, 7))
    one, other = crossed_interval(y), crossed_interval(y.T)
    np.testing.assert_allclose([one.low, one.high], [other.low, other.high])


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (6,)])
def test_crossed_interval_needs_two_of_each(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two runs and two questions, got shape"):
        crossed_interval(np.zeros(shape))


@pytest.mark.parametrize("total", [1, 7, 59])
def test_the_proportion_bound_is_exact(total: int) -> None:
    """Clopper and Pearson's: above the truth in at least 95 % of samples, whatever the truth is."""
    bounds = np.array([proportion_bound(count, total) for count in range(total + 1)])
    for truth in np.linspace(0.001, 0.999, 200):
        assert stats.binom.pmf(np.flatnonzero(bounds >= truth), total, truth).sum() >= 0.95
    assert bounds[-1] == 1
    # At a count's own bound, so few or fewer are seen in exactly 5 % of samples.
    np.testing.assert_allclose(stats.binom.cdf(np.arange(total), total, bounds[:-1]), 0.05)


def test_five_percent_can_be_claimed_from_59_clean_runs_on() -> None:
    assert proportion_bound(0, 59) <= 0.05 < proportion_bound(0, 58)


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_a_proportion_is_of_something(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {count} of {total}"):
        proportion_bound(count, total)


MEANS = st.floats(-5, 5)


@given(MEANS, MEANS, st.floats(0.01, 2), st.floats(0.01, 2), st.floats(-0.99, 0.99))
def test_fiellers_ends_solve_its_equation(num: float, den: float, sd_n: float, sd_d: float, correlation: float) -> None:
    v_nn, v_nd, v_dd, t2 = sd_n**2, correlation * sd_n * sd_d, sd_d**2, 4.0
    low, high = fieller(num, den, v_nn, v_nd, v_dd, t2)
    assert np.isfinite(low) == np.isfinite(high) == (den**2 > t2 * v_dd)
    if np.isfinite(low):
        assert low <= num / den <= high
        for f in (low, high):
            size = (abs(num) + abs(f * den)) ** 2 + t2 * (sd_n + abs(f) * sd_d) ** 2
            assert abs((num - f * den) ** 2 - t2 * (v_nn - 2 * f * v_nd + f**2 * v_dd)) <= 1e-6 * size


def crossed_table(rng: np.random.Generator, runs: int, questions: int, mean: float) -> FloatArray:
    noise = rng.standard_normal((runs, 1)) + rng.standard_normal(questions) + rng.standard_normal((runs, questions))
    return np.asarray(mean + 0.5 * noise)


@pytest.mark.parametrize("offset_variance", [0.0, 0.05])
def test_the_ratio_of_one_run_is_fiellers(offset_variance: float) -> None:
    rng = np.random.default_rng(0)
    d = 2 + 0.5 * rng.standard_normal(24)
    n = 0.3 * d + 0.2 * rng.standard_normal(24)
    got = ratio_interval(n, d, offset_variance=offset_variance)
    assert got.value == pytest.approx(n.mean() / d.mean())
    own, offset = (n - got.value * d).var(ddof=1) / 24, offset_variance * (1 - got.value) ** 2
    t2 = stats.t.ppf(0.975, 23 * (1 + offset / own) ** 2) ** 2  # Satterthwaite's, the offset's variance being known
    for f in (got.low, got.high):
        variance = (n - f * d).var(ddof=1) / 24 + offset_variance * (1 - f) ** 2
        assert (n - f * d).mean() ** 2 == pytest.approx(t2 * variance)


@pytest.mark.parametrize("offset_variance", [0.0, 0.05])
@pytest.mark.parametrize("seed", range(8))
def test_the_crossed_ratio_is_the_set_of_ratios_that_the_crossed_variance_allows(seed: int, offset_variance: float) -> None:
    rng = np.random.default_rng(seed)
    n, d = crossed_table(rng, 3, 6, 1.0), crossed_table(rng, 3, 6, 6.0)
    got = ratio_interval(n, d, offset_variance=offset_variance)

    def terms(f: float) -> tuple[float, float, float]:
        y = n - f * d
        rows, cols = y.mean(1), y.mean(0)
        residual = y - rows[:, None] - cols + y.mean()
        return rows.var(ddof=1) / 3, cols.var(ddof=1) / 6, (residual**2).sum() / 10 / 18

    def variance(f: float) -> float:
        run, question, residual = terms(f)
        return max(run + question - residual, run, question) + offset_variance * (1 - f) ** 2

    run, question, residual = terms(got.value)
    df = variance(got.value) ** 2 / (run**2 / 2 + question**2 / 5 + residual**2 / 10)
    t2 = stats.t.ppf(0.975, df) ** 2
    held = [f for f in np.linspace(-5, 5, 20_001) if (n - f * d).mean() ** 2 <= t2 * variance(f)]
    np.testing.assert_allclose([got.low, got.high], [min(held), max(held)], atol=1e-3)


def test_a_crossed_ratio_to_a_constant_is_the_crossed_mean() -> None:
    y = crossed_table(np.random.default_rng(1), 4, 9, 1.0)
    mean, ratio = crossed_interval(y), ratio_interval(y, np.full(y.shape, 2.0))
    np.testing.assert_allclose([2 * ratio.value, 2 * ratio.low, 2 * ratio.high], [mean.value, mean.low, mean.high])


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(0.01, 100).flatmap(lambda x: st.sampled_from([x, -x])))
def test_a_ratio_scales_with_both(seed: int, numerator: float, denominator: float) -> None:
    rng = np.random.default_rng(seed)
    n, d = crossed_table(rng, 3, 8, 1.0), crossed_table(rng, 3, 8, 9.0)
    one, other = ratio_interval(n, d), ratio_interval(numerator * n, denominator * d)
    expected = [numerator / denominator * x for x in (one.value, one.low, one.high)]
    np.testing.assert_allclose([other.value, *sorted([other.low, other.high])], [expected[0], *sorted(expected[1:])], rtol=1e-6)


def test_a_ratio_to_nothing_has_no_bounds() -> None:
    rng = np.random.default_rng(0)
    got = ratio_interval(crossed_table(rng, 3, 8, 1.0), crossed_table(rng, 3, 8, 0.1))
    assert (got.low, got.high) == (-np.inf, np.inf)


def test_an_exact_ratio_has_no_width() -> None:
    d = crossed_table(np.random.default_rng(0), 3, 8, 9.0)
    got = ratio_interval(0.25 * d, d)
    np.testing.assert_allclose([got.value, got.low, got.high], 0.25)


@pytest.mark.parametrize(
    ("numerator", "denominator", "message"),
    [
        (np.ones(3), np.ones(4), r"got shapes \(3,\) and \(4,\)"),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), r"got shapes \(2, 2, 2\)"),
        (np.ones(1), np.ones(1), "at least two questions, got 1"),
        (np.ones((1, 5)), np.ones((1, 5)), r"two runs and two questions, got shape \(1, 5\)"),
        (np.ones(4), np.zeros(4), "got 1 over 0"),
        (np.array([1.0, np.nan]), np.ones(2), "got nan over 1"),
    ],
)
def test_a_ratio_says_what_it_needs(numerator: FloatArray, denominator: FloatArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_interval(numerator, denominator)


def test_an_offset_of_few_draws_makes_a_wide_interval() -> None:
    rng = np.random.default_rng(1)
    d = 2 + 0.01 * rng.standard_normal(24)
    n = 0.3 * d
    widths = []
    for draws in (5, 20, 1000):
        got = ratio_interval(n, d, offset_variance=0.01, offset_df=draws - 1)
        # Nothing but the offset varies, so that its degrees of freedom are all.
        assert got.high - got.value == pytest.approx(stats.t.ppf(0.975, draws - 1) * 0.1 * 0.7 / 2, rel=0.2)
        widths.append(got.high - got.low)
    assert widths[0] > 1.3 * widths[1] > 1.3 * widths[2]


@pytest.mark.parametrize("interval", [mean_interval, crossed_interval])
def test_what_is_no_number_is_refused(interval: Callable[[FloatArray], Estimate]) -> None:
    values = np.zeros((4, 4) if interval is crossed_interval else 4)
    values[1] = np.nan
    with pytest.raises(ValueError, match="needs finite values"):
        interval(values)


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_ratio_that_is_the_same_everywhere_has_no_width(runs: int, share: float) -> None:
    rng = np.random.default_rng(runs)
    effect = 1 + 0.3 * rng.normal(size=24) + 0.1 * rng.normal(size=(runs, 24))
    effect = effect[0] if runs == 1 else effect
    found = ratio_interval(share * effect, effect)
    assert (found.low, found.value, found.high) == pytest.approx((share, share, share), abs=1e-6)


def groups_of_runs(rng: np.random.Generator, spread: list[float]) -> list[tuple[FloatArray, FloatArray]]:
    """Of each group three runs on 24 questions, whose ratios vary around .4 by a given amount between runs."""
    found = []
    for each in spread:
        share = 0.4 + each * rng.standard_normal((3, 1)) + 0.05 * rng.standard_normal((1, 24)) + 0.02 * rng.standard_normal((3, 24))
        effect = 1 + 0.2 * rng.standard_normal((1, 24))
        found.append((share * effect, np.broadcast_to(effect, (3, 24)).copy()))
    return found


def test_a_variance_between_runs_that_is_pooled_over_groups_covers_with_shorter_intervals() -> None:
    rng = np.random.default_rng(0)
    held: dict[str, list[bool]] = {"alone": [], "pooled": []}
    widths: dict[str, list[float]] = {"alone": [], "pooled": []}
    for _ in range(300):
        groups = groups_of_runs(rng, [0.06] * 6)
        between = pool_runs(groups)
        assert between is not None
        assert (between.groups, between.df) == (6, 12)
        for kind, pooled in (("alone", None), ("pooled", between)):
            got = ratio_interval(*groups[0], between_runs=pooled)
            held[kind].append(got.low <= 0.4 <= got.high)
            widths[kind].append(got.high - got.low)
    assert 0.92 <= np.mean(held["pooled"]) <= 0.98
    assert np.mean(held["alone"]) >= 0.92
    assert np.median(widths["pooled"]) < 0.75 * np.median(widths["alone"])


def test_groups_that_vary_unalike_are_seen_and_fewer_than_two_are_not_pooled() -> None:
    rng = np.random.default_rng(1)
    alike = [pool_runs(groups_of_runs(rng, [0.06] * 6)) for _ in range(200)]
    assert np.mean([each is not None and each.p is not None and each.p < 0.05 for each in alike]) == pytest.approx(0.05, abs=0.04)
    unlike = pool_runs(groups_of_runs(rng, [0.01] * 5 + [0.5]))
    assert unlike is not None
    assert unlike.p is not None
    assert unlike.p < 0.05
    assert pool_runs(groups_of_runs(rng, [0.06])) is None
    constant: FloatArray = np.ones((3, 4))
    exact = pool_runs([(0.5 * constant, constant), (0.2 * constant, constant)])
    assert exact is not None
    assert exact.variance == pytest.approx(0, abs=1e-20)
    assert exact.p is None


def test_one_run_has_no_variance_between_runs() -> None:
    rng = np.random.default_rng(2)
    n, d = rng.normal(0.4, 0.1, 24), rng.normal(1, 0.1, 24)
    assert ratio_interval(n, d, between_runs=PooledRuns(1.0, 12.0, 6, 0.5)) == ratio_interval(n, d)


def test_over_questions_of_one_run_and_of_several() -> None:
    values_RQ = np.random.default_rng(3).normal(size=(3, 8))
    assert question_interval(values_RQ) == crossed_interval(values_RQ)
    assert question_interval(values_RQ[0]) == question_interval(values_RQ[:1]) == mean_interval(values_RQ[0])
