from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wellworn.probes.geometry.shift import (
    SIGNAL_GATE,
    WIDTH_GATE,
    Share,
    _off_diagonal,
    cross_run_share,
    debiased_norms,
    disattenuated_cosine,
    share_inside,
    spread,
)
from wellworn.probes.statistics.intervals import FloatArray

SEEDS = st.integers(0, 2**32 - 1)


def pairs_sum(rows: FloatArray) -> float:
    """Σ_{i≠j} rᵢ·rⱼ / n(n−1), by the definition."""
    n = len(rows)
    return sum(float(rows[i] @ rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def basis_of(rng: np.random.Generator, width: int, rank: int) -> FloatArray:
    return np.linalg.qr(rng.standard_normal((width, rank)))[0]


def plant(
    repeats: int,
    *,
    share: float,
    prompts: int,
    signal: float,
    width: int = 64,
    rank: int = 4,
    slope: float = 1.0,
    gain: float = 0.0,
    seed: int,
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Draw (differences, basis) whose mean shift has unit norm and a known share inside the basis.

    The noise has the spectrum i^-slope, and `signal` is ‖m‖² over its trΣ/n. With `gain`, prompts take
    the shift up by log-normal amounts.
    """
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1.0) ** -slope
    scale = np.sqrt(prompts * spectrum / spectrum.sum() / signal)
    for _ in range(repeats):
        basis = basis_of(rng, width, rank)
        u = basis @ rng.standard_normal(rank)
        w = rng.standard_normal(width)
        w -= basis @ (basis.T @ w)
        shift = np.sqrt(share) * u / np.linalg.norm(u) + np.sqrt(1 - share) * w / np.linalg.norm(w)
        gains = np.exp(gain * rng.standard_normal((prompts, 1)) - gain**2 / 2)
        yield gains * shift + rng.standard_normal((prompts, width)) * scale, basis


@given(SEEDS, st.integers(3, 9), st.integers(1, 5))
def test_closed_forms_equal_the_definition(seed: int, prompts: int, width: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((prompts, width))
    whole = _off_diagonal((rows**2).sum(1), rows @ rows.sum(0))
    np.testing.assert_allclose(whole, pairs_sum(rows), atol=1e-10)
    debiased, noise = debiased_norms(rows)
    np.testing.assert_allclose(debiased, pairs_sum(rows), atol=1e-10)
    np.testing.assert_allclose(noise, np.trace(np.atleast_2d(np.cov(rows.T))) / prompts)


def grams(rows: FloatArray, basis: FloatArray) -> FloatArray:
    """Products of the centred rows inside and outside a space."""
    centred = rows - rows.mean(0)
    inside = centred @ basis @ basis.T
    return np.stack([part @ part.T for part in (inside, centred - inside)])


def test_the_spread_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    scale, basis = np.arange(1, 13.0) ** -0.5, basis_of(rng, 12, 3)
    sigma = np.diag(scale**2)
    inside = basis @ basis.T
    pair = (inside, np.eye(12) - inside)
    truth = [[np.trace(a @ sigma @ b @ sigma) for b in pair] for a in pair]
    batch = np.stack([grams(rng.standard_normal((6, 12)) * scale, basis) for _ in range(20_000)])
    np.testing.assert_allclose(spread(batch).mean(0), truth, rtol=0.03, atol=0.005)
    # The plug-in tr(Σ̂AΣ̂B) is not: with few prompts it counts each trace's square as well.
    plug_in = np.einsum("rpij,rqij->pq", batch, batch) / 25 / len(batch)
    assert plug_in[1, 1] > 1.5 * truth[1][1]


@given(SEEDS, st.integers(3, 9), st.floats(-1, 2))
def test_no_variance_is_negative(seed: int, prompts: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    weights = np.array([1 - share, -share])
    found = spread(grams(rng.standard_normal((prompts, 6)), basis_of(rng, 6, 2)))
    assert weights @ found @ weights >= -1e-10


def test_the_interval_is_the_score_set() -> None:
    """Both ends solve (N − fD)² = t²·V(f), with V(f) written out by matrices as the docstring defines it."""
    (d, basis), *_ = plant(1, share=0.6, prompts=12, signal=15, seed=3)
    got = share_inside(d, basis, level=0.9)
    n, inside = len(d), basis @ basis.T
    num, den = pairs_sum(d @ basis), pairs_sum(d)
    mean, sigma, quadratic = d.mean(0), np.cov(d.T), spread(grams(d, basis))
    p, q = inside @ mean, mean - inside @ mean
    p, q = p / np.linalg.norm(p), q / np.linalg.norm(q)
    t2 = stats.t.ppf(0.95, n - 1) ** 2

    def beyond(f: float) -> float:
        kernel = inside - f * np.eye(64)
        hypothesis = np.sqrt(f * den) * p + np.sqrt((1 - f) * den) * q
        weights = np.array([1 - f, -f])
        assert hypothesis @ kernel @ hypothesis == pytest.approx(0, abs=1e-12)
        variance = 4 / n * hypothesis @ kernel @ sigma @ kernel @ hypothesis + 2 / (n * (n - 1)) * weights @ quadratic @ weights
        return float((num - f * den) ** 2 - t2 * variance)

    assert got.why is None
    assert got.estimate.value == pytest.approx(num / den)
    assert got.signal == pytest.approx(mean @ mean / (np.trace(sigma) / n))
    for bound in (got.estimate.low, got.estimate.high):
        assert beyond(bound) == pytest.approx(0, abs=1e-9)
    inside_set, outside_set = beyond(got.estimate.value), [beyond(got.estimate.low - 0.01), beyond(got.estimate.high + 0.01)]
    assert inside_set < 0 < min(outside_set)


@given(SEEDS, st.floats(0, 1), st.integers(3, 20), st.floats(0.5, 50))
def test_the_interval_holds_the_share(seed: int, share: float, prompts: int, signal: float) -> None:
    (d, basis), *_ = plant(1, share=share, prompts=prompts, signal=signal, seed=seed)
    e = share_inside(d, basis).estimate
    assert np.isnan(e.value) or e.low <= e.value <= e.high


@given(SEEDS, st.floats(0, 1), st.floats(2, 50))
def test_inside_and_outside_have_mirrored_intervals(seed: int, share: float, signal: float) -> None:
    (d, basis), *_ = plant(1, share=share, prompts=12, signal=signal, width=10, seed=seed)
    rest = np.linalg.svd(basis)[0][:, basis.shape[1] :]
    one, other = share_inside(d, basis).estimate, share_inside(d, rest).estimate
    np.testing.assert_allclose([1 - other.value, 1 - other.high, 1 - other.low], [one.value, one.low, one.high], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("width", "slope", "signal", "plain_at_most"), [(64, 1.0, 6.0, 0.54), (400, 0.5, 2.0, 0.42)])
def test_the_share_is_unbiased_where_the_plain_ratio_is_not(width: int, slope: float, signal: float, plain_at_most: float) -> None:
    shares, plain = [], []
    for d, basis in plant(500, share=0.6, prompts=20, signal=signal, width=width, slope=slope, seed=0):
        shares.append(share_inside(d, basis).estimate.value)
        mean = d.mean(0)
        plain.append(np.sum((mean @ basis) ** 2) / (mean @ mean))
    assert abs(np.mean(shares) - 0.6) <= 0.02
    assert np.mean(plain) < plain_at_most


@pytest.mark.parametrize("gain", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.8])
def test_the_interval_covers_where_the_gate_passes(share: float, gain: float) -> None:
    results = [share_inside(d, basis) for d, basis in plant(700, share=share, prompts=20, signal=12, gain=gain, seed=1)]
    passed = [r.estimate for r in results if r.why is None]
    assert len(passed) >= 500
    assert 0.92 <= np.mean([e.low <= share <= e.high for e in passed]) <= 0.98


def test_pure_noise_is_too_noisy() -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, 65.0) ** -0.5
    results = [share_inside(rng.standard_normal((20, 64)) * scale, basis_of(rng, 64, 4)) for _ in range(300)]
    assert sum(r.why is not None for r in results) >= 299
    assert all(r.why is None or r.why.startswith("too noisy: ") for r in results)


def test_each_gate_refuses_what_it_is_for() -> None:
    kinds = {"signal": 0, "unbounded": 0, "wide": 0, "reported": 0}
    for d, basis in plant(400, share=0.6, prompts=3, signal=5, slope=3, seed=2):
        got = share_inside(d, basis)
        width = got.estimate.high - got.estimate.low
        if got.signal < SIGNAL_GATE:
            kinds["signal"] += 1
            assert got.why == f"too noisy: ‖m‖² is {got.signal:.1f} times its sampling noise, 5 are needed"
        elif np.isinf(width):
            kinds["unbounded"] += 1
            assert got.why == "too noisy: the interval of the share is unbounded"
        elif width > WIDTH_GATE:
            kinds["wide"] += 1
            assert got.why == f"too noisy: the interval of the share is {width:.2f} wide, 0.5 at most"
        else:
            kinds["reported"] += 1
            assert got.why is None
    assert min(kinds.values()) >= 10, kinds


def test_no_shift_at_all_has_no_share() -> None:
    got = share_inside(np.zeros((5, 4)), np.eye(4)[:, :2])
    assert np.isnan(got.estimate.value)
    assert got.why is not None


@given(SEEDS, st.floats(0, 1), st.integers(3, 30))
def test_without_noise_the_share_is_exact(seed: int, share: float, prompts: int) -> None:
    rng = np.random.default_rng(seed)
    axes = basis_of(rng, 20, 4)
    shift = 3 * (np.sqrt(share) * axes[:, 0] + np.sqrt(1 - share) * axes[:, 3])
    got = share_inside(np.tile(shift, (prompts, 1)), axes[:, :3])
    assert got.why is None
    np.testing.assert_allclose([got.estimate.value, got.estimate.low, got.estimate.high], share, atol=1e-6)


@given(SEEDS)
def test_gain_alone_does_not_blur_the_share(seed: int) -> None:
    """Prompts that take the same shift by different amounts leave the share exact, if the set is bounded."""
    rng = np.random.default_rng(seed)
    d = rng.uniform(0.8, 1.2, (15, 1)) * np.array([3.0, 4.0, 0.0])
    got = share_inside(d, np.eye(3)[:, :1])
    np.testing.assert_allclose([got.estimate.value, got.estimate.low, got.estimate.high], 9 / 25, atol=1e-6)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_the_share_depends_on_no_unit_and_no_basis(seed: int, unit: float) -> None:
    (d, basis), *_ = plant(1, share=0.5, prompts=10, signal=20, seed=seed)
    rotation = basis_of(np.random.default_rng(seed), basis.shape[1], basis.shape[1])
    one, other = share_inside(d, basis), share_inside(unit * d, basis @ rotation)
    for field in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(other.estimate, field), getattr(one.estimate, field), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(other.signal, one.signal)


def test_inside_and_outside_add_to_one() -> None:
    rng = np.random.default_rng(4)
    axes = basis_of(rng, 12, 12)
    d = rng.standard_normal((9, 12)) + 3
    inside, outside = (share_inside(d, part).estimate.value for part in (axes[:, :5], axes[:, 5:]))
    assert inside + outside == pytest.approx(1)


def test_an_empty_space_holds_nothing() -> None:
    (d, _), *_ = plant(1, share=0.5, prompts=20, signal=40, seed=0)
    got: Share = share_inside(d, np.zeros((64, 0)))
    assert (got.estimate.value, got.estimate.low, got.estimate.high) == (0, 0, 0)


@pytest.mark.parametrize("prompts", [0, 1, 2])
def test_three_prompts_are_needed(prompts: int) -> None:
    with pytest.raises(ValueError, match=f"at least three prompts, got {prompts}"):
        share_inside(np.ones((prompts, 4)), np.eye(4)[:, :1])


def test_the_cross_run_share_is_free_of_run_noise() -> None:
    rng = np.random.default_rng(0)
    basis = np.eye(50)[:, :3]
    common = np.zeros(50)
    common[[0, 10]] = np.sqrt(0.7), np.sqrt(0.3)
    cross, single = [], []
    for _ in range(1000):
        # Every run adds a shift of its own, as long as the common one and almost wholly outside.
        means = common + rng.standard_normal((5, 50)) / np.sqrt(50)
        cross.append(cross_run_share(means, basis))
        single.append(np.mean(np.sum((means @ basis) ** 2, 1) / np.sum(means**2, 1)))
    assert np.mean(cross) == pytest.approx(0.7, abs=0.02)
    assert np.mean(single) < 0.45


def test_two_equal_runs_share_what_each_has() -> None:
    run = np.array([3.0, 4.0])
    assert cross_run_share(np.stack([run, run]), np.eye(2)[:, :1]) == pytest.approx(9 / 25)


def halves_of(rng: np.random.Generator, direction: FloatArray, reliability: float) -> tuple[FloatArray, FloatArray]:
    """Two estimates of a unit direction with independent errors and an expected cosine of `reliability`."""
    scale = np.sqrt((1 / reliability - 1) / len(direction))
    a, b = (direction + scale * rng.standard_normal(len(direction)) for _ in range(2))
    return a, b


@pytest.mark.parametrize(("squared", "plain_off_by"), [(0.64, 0.12), (0.36, 0.08), (0.09, 0.01)])
def test_the_disattenuated_cosine_is_free_of_noise_in_both(squared: float, plain_off_by: float) -> None:
    rng = np.random.default_rng(0)
    found, plain = [], []
    for d, basis in plant(1500, share=squared, prompts=20, signal=8, width=100, rank=1, seed=1):
        a, b = halves_of(rng, basis[:, 0], 0.75)
        got, mean = disattenuated_cosine(d, a, b), d.mean(0)
        if got.squared is None:
            continue
        found.append(got.squared)
        plain.append(float(mean @ (a + b)) ** 2 / (mean @ mean) / ((a + b) @ (a + b)))
    assert len(found) > 1300
    assert np.mean(found) == pytest.approx(squared, abs=0.015)
    assert squared - np.mean(plain) > plain_off_by


def test_noise_along_the_direction_is_no_cosine() -> None:
    """The reason for the term in v_AᵀΣ̂v_B: both products have the noise of m in them, and it need not be small there."""
    rng = np.random.default_rng(0)
    noise = np.sqrt(np.r_[30.0, np.ones(99)] * 20 / 7 / 129)
    found, with_noise = [], []
    for _ in range(1500):
        d = np.eye(100)[1] + rng.standard_normal((20, 100)) * noise
        a, b = halves_of(rng, np.eye(100)[0], 0.75)
        got, mean = disattenuated_cosine(d, a, b), d.mean(0)
        if got.squared is not None:
            found.append(got.squared)
            with_noise.append((mean @ a) * (mean @ b) / (a @ b) / debiased_norms(d)[0])
    assert len(found) > 1300
    assert abs(np.mean(found)) < 0.006
    assert np.mean(with_noise) > 0.025


def test_without_noise_the_cosine_is_exact_and_signed() -> None:
    d = np.tile([3.0, -4.0], (5, 1))
    for axis, cosine in ((0, 0.6), (1, -0.8)):
        got = disattenuated_cosine(d, 2 * np.eye(2)[axis], 5 * np.eye(2)[axis])
        assert (got.value, got.squared, got.why) == (pytest.approx(cosine), pytest.approx(cosine**2), None)


def test_a_cosine_is_refused_in_words() -> None:
    rng = np.random.default_rng(0)
    clear, noisy = np.tile([3.0, 4.0], (5, 1)), rng.standard_normal((5, 2))
    x, y = np.eye(2)
    for d, a, b, why in (
        (noisy, x, x, "too noisy: ‖m‖² is "),
        (np.zeros((5, 2)), x, x, "too noisy: ‖m‖² is 0.0 times"),
        (clear, x, y, "the direction is too noisy: the cosine of its halves is 0.00, 0.5 is needed"),
        (clear, x, -x, "the direction is too noisy: the cosine of its halves is -1.00"),
        (clear, x, 0 * x, "the direction is too noisy: a half of it is zero"),
    ):
        got = disattenuated_cosine(d, a, b)
        assert (got.value, got.squared) == (None, None)
        assert got.why is not None
        assert got.why.startswith(why)


def test_a_squared_cosine_below_zero_gives_a_cosine_of_zero() -> None:
    rng = np.random.default_rng(1)
    below = 0
    for _ in range(50):
        got = disattenuated_cosine(np.array([0.0, 9.0]) + rng.standard_normal((8, 2)), *np.eye(2)[[0, 0]])
        assert got.value is not None
        assert got.squared is not None
        if got.squared < 0:
            below += 1
            assert got.value == 0
    assert below >= 10


@pytest.mark.parametrize("prompts", [0, 2])
def test_a_cosine_needs_three_prompts(prompts: int) -> None:
    with pytest.raises(ValueError, match=f"at least three prompts, got {prompts}"):
        disattenuated_cosine(np.ones((prompts, 4)), np.ones(4), np.ones(4))


@given(SEEDS, st.floats(0.1, 0.9), st.permutations(range(12)))
def test_rows_and_axes_have_no_order(seed: int, share: float, order: list[int]) -> None:
    [(differences, basis)] = plant(1, share=share, prompts=12, signal=30, width=20, seed=seed)
    turned = basis_of(np.random.default_rng(seed), 20, 20)
    expected = share_inside(differences, basis).estimate
    for d, u in ((differences[order], basis), (differences @ turned, turned.T @ basis)):
        got = share_inside(d, u).estimate
        np.testing.assert_allclose([got.value, got.low, got.high], [expected.value, expected.low, expected.high], atol=1e-8)


def test_a_basis_that_is_none_and_states_that_are_no_numbers_are_refused() -> None:
    [(differences, basis)] = plant(1, share=0.5, prompts=12, signal=30, seed=0)
    for wrong in (2 * basis, np.hstack([basis, basis[:, :1]])):
        with pytest.raises(ValueError, match="orthonormal columns"):
            share_inside(differences, wrong)
    differences[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite differences"):
        share_inside(differences, basis)
