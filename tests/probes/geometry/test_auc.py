"""AUCs over crossed pairs and questions: against a plain count, and against simulations whose AUC is known."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from wellworn.probes.geometry.auc import auc, auc_interval, highest_bound
from wellworn.probes.statistics.intervals import Estimate, FloatArray

# Standard deviations of prompt and of pair (of 1 in all, the rest is each row's own), and of the effect between questions.
PROPORTIONS = ((0.2, 0.0, 0.2), (0.7, 0.0, 0.2), (0.9, 0.0, 0.3), (0.5, 0.6, 0.3))
AUCS = (0.5, 0.8, 0.95)


def binormal(
    rng: np.random.Generator, truth: float, pairs: int = 8, questions: int = 24, sds: tuple[float, float, float] = PROPORTIONS[1]
) -> FloatArray:
    """Return scores [pairs, 2, questions] whose AUC between prompts of different pairs is `truth`."""
    prompt, pair, question = sds
    own = np.sqrt(1 - prompt**2 - pair**2)
    scores = prompt * rng.standard_normal((pairs, 2, 1)) + pair * rng.standard_normal((pairs, 1, 1))
    scores = scores + own * rng.standard_normal((pairs, 2, questions)) + 3 * rng.standard_normal(questions)
    scores[:, 0] += special.ndtri(truth) * np.sqrt(2 + question**2) + question * rng.standard_normal(questions)
    return scores


def simulate(repeats: int, pairs: int, truth: float, sds: tuple[float, float, float], seed: int = 0) -> dict[str, float]:
    """Return how often each bound, and both, hold the truth; and the mean of the AUC and of its lower bound."""
    rng = np.random.default_rng(seed)
    found = [auc_interval(binormal(rng, truth, pairs, sds=sds)) for _ in range(repeats)]
    low, high = np.array([e.low <= truth for e in found]), np.array([e.high >= truth for e in found])
    means = {"auc": float(np.mean([e.value for e in found])), "bound": float(np.mean([e.low for e in found]))}
    return {"low": float(low.mean()), "high": float(high.mean()), "both": float((low & high).mean()), **means}


@given(seed=st.integers(0, 10_000), pairs=st.integers(3, 6), questions=st.integers(2, 4), levels=st.integers(2, 50))
def test_the_auc_is_a_count_of_ordered_prompts(seed: int, pairs: int, questions: int, levels: int) -> None:
    # Few levels make ties.
    scores = np.random.default_rng(seed).integers(0, levels, (pairs, 2, questions)).astype(float)
    wins = [
        float(scores[p, 0, q] > scores[o, 1, q]) + 0.5 * float(scores[p, 0, q] == scores[o, 1, q])
        for p, o, q in product(range(pairs), range(pairs), range(questions))
        if p != o
    ]
    assert auc(scores) == pytest.approx(np.mean(wins))
    assert auc_interval(scores).value == pytest.approx(np.mean(wins))
    # Turned round it is the complement; the bounds change places.
    one, other = auc_interval(scores), auc_interval(-scores)
    np.testing.assert_allclose([other.value, other.low, other.high], [1 - one.value, 1 - one.high, 1 - one.low], atol=1e-12)


def test_of_one_question_it_is_mann_and_whitneys() -> None:
    # With pairs of which one side has left, no prompt is left out.
    scores = np.random.default_rng(0).standard_normal((6, 2, 2))
    u = [stats.mannwhitneyu(scores[:, 0, q], scores[:, 1, q]).statistic - (scores[:, 0, q] > scores[:, 1, q]).sum() for q in (0, 1)]
    assert auc(scores) == pytest.approx(np.mean(u) / 30)


@given(seed=st.integers(0, 10_000))
def test_units_and_the_questions_level_play_no_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((5, 2, 4))
    other = np.exp(0.3 * scores) * np.exp(rng.standard_normal(4))
    assert auc_interval(other) == auc_interval(scores)
    many = np.stack([scores, -scores])
    np.testing.assert_allclose(auc(many), [auc(scores), auc(-scores)])


@pytest.mark.parametrize(("pairs", "low"), [(6, 0.754), (8, 0.816), (12, 0.878)])
def test_complete_separation_is_not_certainty(pairs: int, low: float) -> None:
    scores = np.zeros((pairs, 2, 24))
    scores[:, 0] = 1
    found = auc_interval(scores)
    # The mean and standard error of `pairs` ones and a half, with Student's t at as many degrees of freedom.
    sample = np.append(np.ones(pairs), 0.5)
    assert found == Estimate(1.0, pytest.approx(sample.mean() - stats.t.ppf(0.975, pairs) * stats.sem(sample)), 1.0)
    assert found.low == highest_bound(pairs, 24) == pytest.approx(low, abs=1e-3)


def test_the_table_is_that_of_leaving_pairs_out() -> None:
    # Without variation between questions the standard error is the jackknife's, the added pair aside.
    scores = np.repeat(np.random.default_rng(2).standard_normal((7, 2, 1)), 3, axis=2)
    without = np.array([auc(np.delete(scores, p, axis=0)) for p in range(7)])
    values = np.append(7 * auc(scores) - 6 * without, 0.5)
    found = auc_interval(scores, level=0.5)
    half = stats.t.ppf(0.75, 7) * stats.sem(values)
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half])


@pytest.mark.parametrize("truth", AUCS)
def test_bounds_hold(truth: float) -> None:
    got = simulate(2000, 12, truth, PROPORTIONS[1])
    assert got["auc"] == pytest.approx(truth, abs=0.01)
    assert got["both"] >= 0.92


def test_rows_taken_as_independent_would_not_hold() -> None:
    """The reason for the crossed table."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        scores = binormal(rng, 0.8, 12)
        scores = scores - scores.mean((0, 1))
        n = scores[:, 0].size
        value = stats.mannwhitneyu(scores[:, 0].ravel(), scores[:, 1].ravel()).statistic / n**2
        # Hanley and McNeil (1982).
        error = np.sqrt(value * (1 - value) * (1 + (n - 1) * ((1 - value) / (2 - value) + value / (1 + value))) / n**2)
        held += abs(value - 0.8) <= 1.96 * error
    assert held / 300 < 0.8


@pytest.mark.parametrize(("pairs", "power"), [(6, 0.85), (8, 0.95), (12, 0.99)])
def test_a_bound_is_above_chance_for_clear_separation_alone(pairs: int, power: float) -> None:
    # Chance directions reach .6 to .7 in a model. One that has that AUC itself is above in half of what intervals of .92 coverage miss.
    rng = np.random.default_rng(3)
    clear, none = ([auc_interval(binormal(rng, truth, pairs)).low > 0.65 for _ in range(1000)] for truth in (0.95, 0.65))
    assert np.mean(clear) >= power
    assert np.mean(none) <= 0.04


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [6, 8, 12])
@pytest.mark.parametrize("sds", PROPORTIONS)
@pytest.mark.parametrize("truth", AUCS)
def test_bounds_hold_in_every_cell(pairs: int, sds: tuple[float, float, float], truth: float) -> None:
    got = simulate(2000, pairs, truth, sds)
    assert got["auc"] == pytest.approx(truth, abs=0.01)
    assert got["both"] >= 0.92


@pytest.mark.parametrize("shape", [(2, 2, 5), (5, 2, 1)])
def test_too_few_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"3 contrast pairs and two questions, got {shape[0]} and {shape[2]}"):
        auc_interval(np.zeros(shape))
    with pytest.raises(ValueError, match="finite scores"):
        auc_interval(np.full((4, 2, 4), np.nan))
