import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.nulls import Null, compare, null_shares
from probes.shift import share_inside
from probes.space import span
from probes.stats import Estimate, FloatArray

WIDTH, ROWS = 32, 120


@pytest.fixture(scope="module")
def activations() -> FloatArray:
    """Centred activations with a power-law spectrum [N, d_model]."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    x = rng.standard_normal((ROWS, WIDTH)) * np.arange(1, WIDTH + 1.0) ** -0.5 @ axes.T
    return x - x.mean(0)


def like(rng: np.random.Generator, activations: FloatArray, count: int) -> FloatArray:
    """Draw vectors with the activations' own covariance, without the code under test."""
    covariance = activations.T @ activations / len(activations)
    return rng.multivariate_normal(np.zeros(WIDTH), covariance, count, method="cholesky")


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_shares_equal_those_of_an_orthonormal_basis(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    d = rng.standard_normal((7, 16)) + 2 * rng.standard_normal(16)
    draws = rng.standard_normal((4, count, 16)) * rng.uniform(0.1, 50, (4, count, 1))
    mean, noise = d.mean(0), np.cov(d.T) / len(d)
    expected = []
    for draw in draws:
        q = np.linalg.qr(draw.T)[0]
        expected.append((np.sum((q.T @ mean) ** 2) - np.trace(q.T @ noise @ q)) / (mean @ mean - np.trace(noise)))
    got = null_shares(d, draws)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got, [share_inside(d, span(draw)).estimate.value for draw in draws], rtol=1e-6, atol=1e-8)


def test_equal_seeds_give_equal_draws(activations: FloatArray) -> None:
    one, again, other = (Null(seed, draws=5).vectors(activations, 3) for seed in (1, 1, 2))
    assert one.shape == (5, 3, WIDTH)
    assert np.array_equal(one, again)
    assert not np.isclose(one, other).any()


def test_one_set_of_draws_serves_all_layers(activations: FloatArray) -> None:
    """Draws at two layers are one draw of both layers' activations side by side."""
    other = np.tanh(activations[:, ::-1])
    null = Null(3, draws=4)
    both = null.vectors(np.hstack([activations, other]), 2)
    apart = np.concatenate([null.vectors(activations, 2), null.vectors(other, 2)], axis=2)
    np.testing.assert_allclose(both, apart, rtol=1e-4, atol=1e-5)


def test_draws_have_the_activations_covariance(activations: FloatArray) -> None:
    draws = Null(0, draws=4000).vectors(activations, 5).reshape(-1, WIDTH)
    truth = activations.T @ activations / ROWS
    assert np.linalg.norm(draws.T @ draws / len(draws) - truth) <= 0.03 * np.linalg.norm(truth)
    assert np.abs(draws.mean(0)).max() <= 0.03


def test_isotropic_draws_do_not(activations: FloatArray) -> None:
    draws = Null(0, draws=4000, isotropic=True).vectors(activations, 5)
    assert draws.shape == (4000, 5, WIDTH)
    flat = draws.reshape(-1, WIDTH)
    np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(WIDTH), atol=0.05)
    assert np.array_equal(draws, Null(0, draws=4000, isotropic=True).vectors(activations, 5))


def unlinked_p(activations: FloatArray, isotropic: bool, repeats: int, seed: int) -> FloatArray:
    """p of shifts and spaces drawn from one covariance with no link between them."""
    rng = np.random.default_rng(seed)
    null = Null(seed, draws=199, isotropic=isotropic).vectors(activations, 6)
    out = []
    for _ in range(repeats):
        shift, space = like(rng, activations, 1), like(rng, activations, 6)
        d = shift + 0.3 * like(rng, activations, 12)
        out.append(compare(share_inside(d, span(space)).estimate, null_shares(d, null)).p)
    return np.array(out)


def test_the_matched_null_has_its_size(activations: FloatArray) -> None:
    p = unlinked_p(activations, isotropic=False, repeats=1000, seed=5)
    assert 0.03 <= np.mean(p <= 0.05) <= 0.08
    assert 0.45 <= np.mean(p <= 0.5) <= 0.55
    assert 0.03 <= np.mean(p > 0.95) <= 0.08


def test_the_isotropic_null_rejects_what_has_no_link(activations: FloatArray) -> None:
    assert np.mean(unlinked_p(activations, isotropic=True, repeats=200, seed=5) <= 0.05) > 0.3


def test_a_planted_link_is_detected(activations: FloatArray) -> None:
    rng = np.random.default_rng(8)
    null = Null(8, draws=199).vectors(activations, 6)
    p, linked_effects = [], []
    for _ in range(100):
        space = like(rng, activations, 6)
        inside = rng.standard_normal(6) @ (space / np.linalg.norm(space, axis=1, keepdims=True))
        outside = like(rng, activations, 1)[0]
        shift = inside / np.linalg.norm(inside) + 0.5 * outside / np.linalg.norm(outside)
        d = shift + 0.3 * like(rng, activations, 12)
        result = compare(share_inside(d, span(space)).estimate, null_shares(d, null))
        p.append(result.p)
        linked_effects.append(result.effect.value)
    assert np.mean(np.array(p) <= 0.05) >= 0.9
    assert np.mean(linked_effects) > 0.5


def test_compare_arithmetic() -> None:
    got = compare(Estimate(0.6, 0.4, 0.9), np.array([0.1, 0.2, 0.3, 0.6, 0.8]))
    assert got.mean == pytest.approx(0.4)
    assert got.high == pytest.approx(0.76)  # a fifth of the way down from .8 to .6
    assert got.p == pytest.approx((1 + 2) / (1 + 5))
    np.testing.assert_allclose([got.effect.value, got.effect.low, got.effect.high], [1 / 3, 0, 5 / 6])


def test_the_smallest_p_counts_the_observed_share() -> None:
    assert compare(Estimate(0.9, 0.8, 1.0), np.linspace(0, 0.5, 199)).p == pytest.approx(1 / 200)


def test_a_share_that_does_not_exist_beats_no_draw() -> None:
    nan = float("nan")
    assert compare(Estimate(nan, -np.inf, np.inf), np.linspace(0, 0.5, 199)).p == 1
