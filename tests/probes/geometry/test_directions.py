from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair, Trait
from wellworn.probes.geometry.directions import (
    FOUND_RELIABILITY,
    QUESTION_SPLITS,
    Directions,
    _all_halves,
    _mean_cosine,
    _mean_cosines,
    _random_halves,
    contrast_turns,
    estimate,
)
from wellworn.probes.statistics.intervals import FloatArray

WIDTH = 32
SPECTRUM = 1 / np.arange(1, WIDTH + 1.0)


def layer_estimate(differences: FloatArray, spectrum: FloatArray = SPECTRUM, seed: int = 0) -> Directions:
    """Estimate from differences [pairs, questions, d] at one layer."""
    return estimate(differences[:, :, None], spectrum[None], np.random.default_rng(seed))


def unit(rng: np.random.Generator) -> FloatArray:
    v = rng.standard_normal(WIDTH)
    return v / np.linalg.norm(v)


def cosine(a: FloatArray, b: FloatArray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_direction_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v = unit(rng)
    # One difference is noise for the most part (‖noise‖ ≈ 2); their mean is not.
    got = layer_estimate(v + rng.standard_normal((6, 16, WIDTH)) * np.sqrt(SPECTRUM), seed=seed)
    assert got.reliability[0] > 0.85
    assert got.found[0]
    assert cosine(got.vectors[0], v) > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_are_left_out_have_no_say(seed: int) -> None:
    """A filter leaves a ragged set of answers: the kept answers make the direction, whatever the others hold."""
    rng = np.random.default_rng(seed)
    v, other = unit(rng), unit(rng)
    clean = v + rng.standard_normal((6, 16, WIDTH)) * np.sqrt(SPECTRUM)
    out = rng.random((6, 16)) < 0.5
    spoilt = np.where(out[..., None], 5 * other, clean)
    got = layer_estimate(np.where(out[..., None], np.nan, spoilt), seed=seed)
    assert got.vectors[0] == pytest.approx(clean[~out].mean(0))
    assert got.found[0]
    assert cosine(got.vectors[0], v) > 0.9
    assert cosine(layer_estimate(spoilt, seed=seed).vectors[0], v) < 0.8
    # Whole pairs and questions that are left out are as if they had never been asked.
    out[:] = False
    out[1], out[:, 3] = True, True
    fewer = layer_estimate(np.delete(np.delete(clean, 1, 0), 3, 1), seed=seed)
    same = layer_estimate(np.where(out[..., None], np.nan, clean), seed=seed)
    assert same.reliability == pytest.approx(fewer.reliability)
    assert same.vectors == pytest.approx(fewer.vectors)


def test_too_few_answers_make_no_direction() -> None:
    differences = np.random.default_rng(0).standard_normal((6, 16, WIDTH)) + 1
    differences[3:] = np.nan
    got = layer_estimate(differences)
    assert np.isnan([got.reliability[0], got.null_reliability[0]]).all()
    assert not got.found[0]
    assert got.vectors[0] == pytest.approx(differences[:3].mean((0, 1)))
    differences[:] = np.nan
    assert (layer_estimate(differences).vectors == 0).all()


def test_without_noise_reliability_is_one() -> None:
    v = unit(np.random.default_rng(0))
    got = layer_estimate(np.tile(3 * v, (4, 6, 1)))
    assert got.reliability[0] == pytest.approx(1)
    np.testing.assert_allclose(got.vectors[0], 3 * v)


@pytest.mark.parametrize(
    ("slope", "by_pair", "repeats"), [(1.0, False, 150), (2.0, False, 500), (1.0, True, 150), (2.0, True, 500), (3.0, True, 500)]
)
def test_noise_is_seldom_found(slope: float, by_pair: bool, repeats: int) -> None:
    """Power-law noise has few effective dimensions, so that halves agree by chance: the null must know."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, WIDTH + 1.0) ** -slope
    found = 0
    for i in range(repeats):
        noise = rng.standard_normal((6, 8, WIDTH))
        if by_pair:
            noise = 0.3 * noise + rng.standard_normal((6, 1, WIDTH))
        found += int(layer_estimate(noise * np.sqrt(spectrum), spectrum, seed=i).found[0])
    assert found <= 0.07 * repeats


def test_the_null_is_higher_where_few_dimensions_carry_the_variance() -> None:
    noise = np.random.default_rng(0).standard_normal((6, 8, WIDTH))
    flat, steep = (layer_estimate(noise, np.arange(1, WIDTH + 1.0) ** -slope).null_reliability[0] for slope in (0, 3))
    assert flat < 0.25 < FOUND_RELIABILITY < steep


def test_a_reliable_direction_below_its_null_is_not_found() -> None:
    # All variance lies along one axis: a cosine is ±1 there, so even .65 says nothing.
    rng = np.random.default_rng(0)
    spectrum = np.array([1.0, *[1e-9] * (WIDTH - 1)])
    axis = np.eye(WIDTH)[0]
    got = layer_estimate(axis + 0.6 * rng.standard_normal((6, 8, WIDTH)), spectrum)
    assert FOUND_RELIABILITY < got.reliability[0] <= got.null_reliability[0]
    assert not got.found[0]


def test_layers_are_judged_apart() -> None:
    rng = np.random.default_rng(1)
    v = unit(rng)
    differences = rng.standard_normal((6, 8, 2, WIDTH)) * np.sqrt(SPECTRUM)
    differences[:, :, 1] += 3 * v
    got = estimate(differences, np.stack([SPECTRUM, SPECTRUM]), np.random.default_rng(0))
    assert got.found.tolist() == [False, True]
    assert cosine(got.vectors[1], v) > 0.95
    np.testing.assert_allclose(got.vectors, differences.mean((0, 1)))


@pytest.mark.parametrize("pairs", [5, 6])
def test_reliability_over_pairs_is_the_mean_of_all_half_splits(pairs: int) -> None:
    # Questions that all agree leave the pairs as the only doubt.
    by_pair = np.random.default_rng(2).standard_normal((pairs, WIDTH)) + 0.5
    got = layer_estimate(np.repeat(by_pair[:, None], 6, axis=1))
    half = pairs // 2
    cosines = [
        cosine(by_pair[list(a)].mean(0), np.delete(by_pair, list(a), 0).mean(0))
        for a in combinations(range(pairs), half)
        if pairs % 2 or 0 in a
    ]
    assert len(cosines) == 10
    assert got.reliability[0] == pytest.approx(np.mean(cosines))


def test_the_smaller_reliability_counts() -> None:
    rng = np.random.default_rng(3)
    by_question = rng.standard_normal((8, WIDTH)) + 0.5
    # Pairs agree exactly, questions do not: over pairs the cosine is 1.
    got = layer_estimate(np.repeat(by_question[None], 6, axis=0))
    halves = [by_question[list(a)].mean(0) for a in combinations(range(8), 4)]
    cosines = [cosine(a, 2 * by_question.mean(0) - a) for a in halves]
    assert got.reliability[0] < 0.9
    assert got.reliability[0] == pytest.approx(np.mean(cosines), abs=0.05)


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20)
def test_size_changes_no_judgement(scale: float) -> None:
    noise = np.random.default_rng(4).standard_normal((4, 4, WIDTH)) + 0.3
    one, other = layer_estimate(noise), layer_estimate(scale * noise, scale**2 * SPECTRUM)
    np.testing.assert_allclose(other.reliability, one.reliability)
    np.testing.assert_allclose(other.null_reliability, one.null_reliability, rtol=1e-3)
    np.testing.assert_allclose(other.vectors, scale * one.vectors)


@pytest.mark.parametrize(("rows", "splits"), [(2, 1), (3, 3), (4, 3), (5, 10), (6, 10), (7, 35), (8, 35)])
def test_all_halves_hold_each_split_once(rows: int, splits: int) -> None:
    halves = _all_halves(rows)
    assert halves.shape == (splits, rows)
    assert (halves.sum(1) == rows // 2).all()
    seen = {frozenset([tuple(half), tuple(1 - half)]) for half in halves}
    assert len(seen) == splits


@pytest.mark.parametrize("rows", [2, 7, 24])
def test_random_halves_are_halves(rows: int) -> None:
    halves = _random_halves(rows, np.random.default_rng(0))
    assert halves.shape == (QUESTION_SPLITS, rows)
    assert set(np.unique(halves)) == {0.0, 1.0}
    assert (halves.sum(1) == rows // 2).all()
    assert len(np.unique(halves, axis=0)) > 1


def test_many_draws_are_halved_as_one_is() -> None:
    rng = np.random.default_rng(0)
    draws, halves = rng.standard_normal((30, 6, 40)) * np.geomspace(1, 1e-3, 40), _all_halves(6)
    assert _mean_cosines(draws, halves) == pytest.approx([_mean_cosine(draw, halves) for draw in draws], abs=1e-12)


def test_contrast_turns_are_pairs_then_signs_then_questions() -> None:
    trait = Trait(
        name="brave",
        description="d",
        system_prompt="held out",
        rubric="r",
        contrast_pairs=tuple(ContrastPair(positive=f"p{i}", negative=f"n{i}") for i in range(6)),
    )
    plain = [Turn(f"q{i}", f"a{i}") for i in range(3)]
    turns = contrast_turns(trait.contrast_pairs[:2], plain)
    assert turns == [Turn(f"q{i}", f"a{i}", system) for system in ("p0", "n0", "p1", "n1") for i in range(3)]
    assert len(contrast_turns(trait.contrast_pairs, plain)) == 6 * 2 * 3
