"""Shares that a wider dictionary explains, on remainders made of its own directions, of others, and of chance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.sparse_explanation import explained_share, explanation, sparse_fit
from wellworn.probes.statistics.intervals import FloatArray

WIDTH, SIZE, UNITS = 128, 100, 20
SCALE = np.arange(1, WIDTH + 1.0) ** -0.25
BASIS = np.eye(WIDTH)[:, :3]


def unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def library(rng: np.random.Generator, size: int = SIZE) -> FloatArray:
    return unit(rng.standard_normal((size, WIDTH)) * SCALE)


def activations(rng: np.random.Generator) -> FloatArray:
    x = rng.standard_normal((400, WIDTH)) * SCALE
    return np.asarray(x - x.mean(0))


def units(rng: np.random.Generator, mean: FloatArray, noise: float, count: int = UNITS) -> FloatArray:
    return np.asarray(mean + noise * rng.standard_normal((count, WIDTH)) * SCALE)


@given(seed=st.integers(0, 10_000), atoms=st.integers(1, 4))
def test_a_fit_of_orthonormal_directions_keeps_the_largest(seed: int, atoms: int) -> None:
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    weights = rng.permutation(np.array([3.0, -2.0, 1.5, -1.0, 0.5, 0.25]))
    kept = np.where(np.abs(weights) >= np.sort(np.abs(weights))[-atoms], weights, 0)
    np.testing.assert_allclose(sparse_fit(weights @ directions, directions, atoms), kept @ directions, atol=1e-12)


def test_a_fit_is_a_projection_on_what_it_chose_and_stops_when_done() -> None:
    rng = np.random.default_rng(0)
    directions = library(rng)
    vector = rng.standard_normal(WIDTH)
    fit = sparse_fit(vector, directions, 5)
    assert fit @ (vector - fit) == pytest.approx(0, abs=1e-12)
    errors = [np.linalg.norm(vector - sparse_fit(vector, directions, atoms)) for atoms in range(1, 9)]
    assert np.all(np.diff(errors) < 0)
    np.testing.assert_allclose(sparse_fit(2 * directions[7], directions, 8), 2 * directions[7])
    assert not sparse_fit(np.zeros(WIDTH), directions).any()


def test_the_share_is_that_of_new_units_without_their_noise() -> None:
    """Unbiased for 1 − ‖μ − p‖²/‖μ‖², p the fit to the other folds, which is known here."""
    rng = np.random.default_rng(1)
    directions = library(rng)
    mean = 0.8 * directions[3] + 0.6 * unit(rng.standard_normal(WIDTH))
    got, truth = [], []
    for _ in range(400):
        sample = units(rng, mean, 0.15, count=5)
        share = explained_share(sample, directions, atoms=2)
        assert share is not None
        got.append(share * (sample.sum(0) @ sample.sum(0) - (sample**2).sum()) / 20)
        fits = [sparse_fit(np.delete(sample, i, axis=0).mean(0), directions, 2) for i in range(5)]
        truth.append(mean @ mean - np.mean([(mean - fit) @ (mean - fit) for fit in fits]))
    assert np.mean(got) == pytest.approx(np.mean(truth), abs=4 * np.std(np.subtract(got, truth)) / 20)


def test_what_is_made_of_three_wider_directions_is_explained() -> None:
    rng = np.random.default_rng(2)
    directions = library(rng)
    made = directions[[5, 40, 77]].sum(0)
    found = explanation(units(rng, made, 0.5), directions, BASIS, activations(rng), seed=0, draws=39)
    assert found.holds
    assert found.why.startswith("8 of 100 wider directions explain")
    # Of one run a seed as well.
    assert explanation(units(rng, made, 0.1, count=3), directions, BASIS, activations(rng), seed=0, draws=39).holds


def test_what_lies_in_none_of_them_is_not() -> None:
    rng = np.random.default_rng(3)
    directions = library(rng)
    new = np.eye(WIDTH)[50]
    directions = unit(directions - np.outer(directions @ new, new))
    found = explanation(units(rng, new, 0.3), directions, BASIS, activations(rng), seed=0, draws=39)
    assert found.holds is False
    assert found.value is not None
    assert abs(found.value) < 0.05


def test_what_is_partly_made_of_them_is_left_open() -> None:
    rng = np.random.default_rng(4)
    directions = library(rng)
    new = np.eye(WIDTH)[50]
    directions = unit(directions - np.outer(directions @ new, new))
    # Three fifths of it, by square, is one direction's part outside the space.
    outer = directions[9] * (np.arange(WIDTH) >= 3)
    found = explanation(units(rng, new + 1.2 * unit(outer), 0.1), directions, BASIS, activations(rng), seed=0, draws=39)
    assert found.holds is None
    assert found.why.endswith("beyond chance is neither little nor most")


def test_chance_is_rarely_explained_by_chance() -> None:
    rng = np.random.default_rng(5)
    above = []
    for seed in range(60):
        found = explanation(units(rng, library(rng, 1)[0], 0.2), library(rng, 20), BASIS, activations(rng), seed, draws=19)
        assert found.holds is not True
        assert found.value is not None
        assert found.chance is not None
        above.append(found.value > found.chance)
    # Eight or more of 60 have a probability of .01 at .05 each.
    assert sum(above) < 8


def test_too_wide_a_dictionary_has_no_answer() -> None:
    rng = np.random.default_rng(6)
    steep = np.arange(1, WIDTH + 1.0) ** -1.5
    x = rng.standard_normal((400, WIDTH)) * steep
    directions = unit(rng.standard_normal((3000, WIDTH)) * steep)
    sample = unit(rng.standard_normal(WIDTH) * steep) + 0.01 * rng.standard_normal((UNITS, WIDTH)) * steep
    found = explanation(sample, directions, BASIS, x - x.mean(0), seed=0, draws=19)
    assert found.holds is None
    assert found.why.endswith("too wide a dictionary to say that they do not")


def test_noise_and_misuse_are_told() -> None:
    rng = np.random.default_rng(7)
    directions, x = library(rng), activations(rng)
    noise = rng.standard_normal((UNITS, WIDTH))
    found = explanation(noise - noise.mean(0), directions, BASIS, x, seed=0)
    assert (found.holds, found.value) == (None, None)
    assert found.why.endswith("nothing is left of the remainder once its noise is taken out")
    with pytest.raises(ValueError, match="at least 3 units, got 2"):
        explanation(noise[:2], directions, BASIS, x, seed=0)
    with pytest.raises(ValueError, match="at least 19 draws, got 18"):
        explanation(noise, directions, BASIS, x, seed=0, draws=18)
    with pytest.raises(ValueError, match="none of the 3 directions of the dictionary lies outside the persona space"):
        explanation(noise, BASIS.T, BASIS, x, seed=0)
