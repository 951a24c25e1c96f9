import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from probes.stats import Estimate, crossed_interval, mean_interval

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
