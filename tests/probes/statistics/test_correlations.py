import numpy as np
import pytest
from scipy import stats

from wellworn.probes.statistics.correlations import (
    centre_within,
    compare_dependent,
    compare_over_families,
    rank_correlation,
    rank_correlation_within,
)

REPEATS = 100


def families_of(rng: np.random.Generator, families: int, size: int, rho: float) -> tuple[np.ndarray, list[int]]:
    """Normal pairs whose correlation is `rho` both between families and within, most of the variance lying between."""
    axes = np.linalg.cholesky([[1, rho], [rho, 1]])
    between, within = axes @ rng.standard_normal((2, families)), axes @ rng.standard_normal((2, families * size))
    return np.sqrt(0.8) * np.repeat(between, size, axis=1) + np.sqrt(0.2) * within, np.repeat(np.arange(families), size).tolist()


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_interval_covers_where_families_are_the_unit(rho: float) -> None:
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(rho / 2)
    by_family = by_pair = 0
    for _ in range(REPEATS):
        (x, y), families = families_of(rng, 16, 4, rho)
        got = rank_correlation(x, y, families, rng, draws=200)
        by_family += got.low <= truth <= got.high
        wrong = rank_correlation(x, y, range(len(x)), rng, draws=200)
        by_pair += wrong.low <= truth <= wrong.high
    assert 0.85 <= by_family / REPEATS <= 0.99
    # Taking data sets of one family as independent makes the interval far too short.
    assert by_pair / REPEATS < 0.8


@pytest.mark.parametrize(("runs", "rho"), [(1, 0.0), (1, 0.7), (3, 0.0), (3, 0.7)])
def test_within_runs_the_interval_covers_where_all_runs_answer_the_same_questions(runs: int, rho: float) -> None:
    rng = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(rho / 2)
    axes = np.linalg.cholesky([[1, rho], [rho, 1]])
    crossed = nested = 0
    for _ in range(REPEATS):
        by_question = np.einsum("ij,jq->iq", axes, rng.standard_normal((2, 40)))
        by_answer = np.einsum("ij,jrq->irq", axes, rng.standard_normal((2, runs, 40)))
        x, y = np.sqrt(0.9) * by_question[:, None] + np.sqrt(0.1) * by_answer
        got = rank_correlation_within(x, y, rng, draws=400)
        crossed += got.low <= truth <= got.high
        flat = rank_correlation_within(x.ravel(), y.ravel(), rng, draws=400)
        nested += flat.low <= truth <= flat.high
    assert 0.87 <= crossed / REPEATS <= 0.995
    if runs > 1:
        # Taking the answers of several runs to one question as independent makes the interval far too short.
        assert nested / REPEATS < 0.85


def test_within_runs_the_value_is_the_mean_of_spearmans() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 6, (2, 4, 12))
    one, other = (rank_correlation_within(x, y, np.random.default_rng(0)) for _ in range(2))
    assert one == other
    assert one.value == pytest.approx(np.mean([stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]))
    # How high a run scores as a whole is not asked.
    shifted = rank_correlation_within(x + 10 * np.arange(4)[:, None], y - 7 * np.arange(4)[:, None], np.random.default_rng(0))
    assert shifted == one
    assert rank_correlation_within(x[0], y[0], rng).value == pytest.approx(stats.spearmanr(x[0], y[0]).statistic)


def test_within_runs_draws_in_which_a_run_ties_leave_it_out() -> None:
    got = rank_correlation_within([[1, 1, 1, 2], [1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2, 4, 3]], np.random.default_rng(0))
    assert np.isfinite([got.low, got.high]).all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2], [2, 1], "three questions and more"),
        ([[1, 2, 3]], [[2, 2, 2]], "do not all tie"),
        ([[1, 2, 3], [1, 1, 1]], [[1, 2, 3], [1, 2, 3]], "do not all tie"),
        ([1, 2, np.inf], [1, 2, 3], "finite values"),
    ],
)
def test_within_runs_a_rank_correlation_says_what_it_needs(x: list[float], y: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation_within(x, y, np.random.default_rng(0))


def test_the_value_is_spearmans_and_the_draws_are_reproducible() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 5, (2, 20))
    families = [f"family {i // 4}" for i in range(20)]
    one, other = (rank_correlation(x, y, families, np.random.default_rng(0)) for _ in range(2))
    assert one == other
    assert one.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert one.low < one.value < one.high


def test_draws_that_tie_are_drawn_again() -> None:
    # Within a family all values tie, so that a draw of one family alone has no correlation.
    got = rank_correlation([1, 1, 2, 2, 3, 3], [1, 1, 3, 3, 2, 2], list("aabbcc"), np.random.default_rng(0))
    assert np.isfinite([got.low, got.high]).all()


@pytest.mark.parametrize(
    ("x", "y", "families", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "aab", "at least three of them, got 2"),
        ([1, 2, 3], [1, 2, 3], "abcd", "and 4 families"),
        ([1, 1, 1], [1, 2, 3], "abc", "do not all tie"),
        ([1, np.nan, 1], [1, 2, 3], "abc", "finite values"),
    ],
)
def test_a_rank_correlation_says_what_it_needs(x: list[float], y: list[float], families: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, y, list(families), np.random.default_rng(0))


@pytest.mark.parametrize(("r_jk", "r_jh", "r_kh", "z"), [(0.0228, 0.3522, 0.3718, -7.1345), (0.2493, 0.3395, 0.4082, -2.066)])
def test_steigers_z_is_that_of_the_r_package_cocor(r_jk: float, r_jh: float, r_kh: float, z: float) -> None:
    """Its printed results for n = 553, from correlations that it prints to four digits."""
    got = compare_dependent(r_jk, r_jh, r_kh, 553)
    assert got.z == pytest.approx(z, abs=5e-4)
    assert got.p == pytest.approx(2 * stats.norm.sf(abs(got.z)))


@pytest.mark.parametrize(("rho", "between"), [(0.0, 0.8), (0.5, 0.8), (0.5, 0.0), (0.8, 0.7)])
def test_the_comparison_has_its_size(rho: float, between: float) -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.cholesky([[1, rho, rho], [rho, 1, between], [rho, between, 1]])
    rejected, independent = [], []
    for _ in range(4000):
        r = np.corrcoef(axes @ rng.standard_normal((3, 30)))
        rejected.append(compare_dependent(r[0, 1], r[0, 2], r[1, 2], 30).p <= 0.05)
        independent.append(abs(np.arctanh(r[0, 1]) - np.arctanh(r[0, 2])) > 1.96 * np.sqrt(2 / 27))
    assert 0.035 <= np.mean(rejected) <= 0.065
    # The test for correlations of independent samples would hardly ever reject where k and h correlate.
    assert between == 0 or np.mean(independent) < 0.02


def test_the_comparison_is_antisymmetric() -> None:
    one, other = compare_dependent(0.5, 0.2, 0.3, 40), compare_dependent(0.2, 0.5, 0.3, 40)
    assert one.z == -other.z
    assert one.p == other.p
    assert compare_dependent(0.4, 0.4, 0.3, 40).p == 1


@pytest.mark.parametrize(
    ("r", "n", "message"), [((0.5, 0.5, 0.5), 3, "got 3"), ((0.9, -0.9, 0.9), 9, "by 0.9, -0.9 and 0.9"), ((1, 0, 0), 9, "by 1, 0")]
)
def test_a_comparison_says_what_it_needs(r: tuple[float, float, float], n: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_dependent(*r, n)


def related(rng: np.random.Generator, families: int, each: int, r: tuple[float, float]) -> tuple[np.ndarray, list[int]]:
    """Two variables that correlate with a third by r over families and within them alike: [3, n], and the family of each unit."""
    parts = [np.repeat(rng.standard_normal((3, families)), each, axis=1), rng.standard_normal((3, families * each))]
    first, second, y = np.sqrt(0.5) * (parts[0] + parts[1])
    rows = [rho * y + np.sqrt(1 - rho**2) * own for rho, own in zip(r, (first, second), strict=True)]
    return np.array([*rows, y]), [i for i in range(families) for _ in range(each)]


def test_two_correlations_over_families_and_their_difference_are_pearsons() -> None:
    values, families = related(np.random.default_rng(0), 8, 9, (0.8, 0.2))
    found = compare_over_families(*values, families, np.random.default_rng(0))
    r = np.corrcoef(values)
    assert (found.first.value, found.second.value) == (pytest.approx(r[0, 2]), pytest.approx(r[1, 2]))
    assert found.difference.value == pytest.approx(r[0, 2] - r[1, 2])
    assert found.first.low < found.first.value < found.first.high
    again = compare_over_families(*values, families, np.random.default_rng(0))
    assert again == found


def test_intervals_over_families_hold_the_true_correlation_and_widen_with_fewer_of_them() -> None:
    held, widths = [], []
    for seed in range(60):
        values, families = related(np.random.default_rng(seed), 12, 6, (0.7, 0.2))
        found = compare_over_families(*values, families, np.random.default_rng(seed), draws=300)
        held.append([found.first.low <= 0.7 <= found.first.high, found.difference.low <= 0.5 <= found.difference.high])
        few = compare_over_families(*values[:, :36], families[:36], np.random.default_rng(seed), draws=300)
        widths.append((few.first.high - few.first.low) / (found.first.high - found.first.low))
    # Percentile intervals over a dozen families are a little short.
    assert (np.mean(held, axis=0) > 0.8).all()
    assert np.median(widths) > 1.1


def test_centred_within_families_a_difference_between_them_is_gone() -> None:
    families = ["b", "a", "b", "a", "c"]
    centred = centre_within([3.0, 10.0, 5.0, 14.0, 7.0], families)
    np.testing.assert_allclose(centred, [-1, -2, 1, 2, 0])
    rng = np.random.default_rng(0)
    values, families_of = related(rng, 10, 4, (0.9, 0.0))
    shifted = values + 50 * np.repeat(rng.standard_normal((3, 10)), 4, axis=1)
    found = [np.array([centre_within(each, families_of) for each in which]) for which in (values, shifted)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


@pytest.mark.parametrize(
    ("values", "families", "why"),
    [
        (np.ones((3, 4)), [0, 1, 2, 3], "do not all tie"),
        (np.arange(12.0).reshape(3, 4), [0, 1, 1, 0], "at least three"),
        (np.arange(12.0).reshape(3, 4), [0, 1, 2], "are paired"),
        (np.array([[1.0, 2, np.nan], [1, 2, 3], [3, 2, 1]]), [0, 1, 2], "finite"),
    ],
)
def test_values_that_cannot_correlate_are_refused(values: np.ndarray, families: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compare_over_families(*values, families, np.random.default_rng(0))
