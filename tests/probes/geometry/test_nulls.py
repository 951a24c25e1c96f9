from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.nulls import Null, compare, joint_shares, leaves_nothing, null_shares, rank_among
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import Members, persona_space, span
from wellworn.probes.statistics.intervals import Estimate, FloatArray

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


def a_shift(rng: np.random.Generator, activations: FloatArray) -> FloatArray:
    return like(rng, activations, 1) + 0.3 * like(rng, activations, 12)


def test_null_spaces_are_made_as_the_real_space_is(activations: FloatArray) -> None:
    """Pseudo-traits, pseudo-roles and a pseudo-default, each put through the function for real spaces."""
    shift = a_shift(np.random.default_rng(0), activations)
    null, members = Null(4, draws=6), Members(2, 15, default=True)
    spaces = null.spaces(activations, members, 5)
    bases = [persona_space(draw[:2], draw[2:17], draw[17], 5) for draw in null.vectors(activations, 18)]
    np.testing.assert_allclose(spaces.bases(4) @ spaces.bases(4).swapaxes(1, 2), [b @ b.T for b in bases[:4]], atol=1e-5)
    np.testing.assert_allclose(spaces.shares(shift), [share_inside(shift, basis).estimate.value for basis in bases], atol=1e-5)
    np.testing.assert_allclose(null_shares(shift, null.vectors(activations, 18), members, 5), spaces.shares(shift), atol=1e-5)


@pytest.mark.parametrize("isotropic", [False, True])
def test_spaces_of_all_traits_give_the_shares_of_the_vectors(activations: FloatArray, isotropic: bool) -> None:
    shift = a_shift(np.random.default_rng(1), activations)
    null = Null(2, draws=50, isotropic=isotropic)
    got = null.spaces(activations, Members(6), 6).shares(shift)
    np.testing.assert_allclose(got, null_shares(shift, null.vectors(activations, 6)), atol=1e-5)


def test_shares_stay_exact_where_few_directions_hold_almost_all_variance() -> None:
    """Eight of the ten directions are a thousandth of the first two, and still count in full.

    How exact single precision is depends on how a machine orders its sums, so each draw is held to the bound that `NullSpaces` states.
    """
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 10)) * np.array([1e3, 1e3] + 8 * [1.0])
    shift = rng.standard_normal(10) + 0.1 * rng.standard_normal((12, 10))
    null = Null(0, draws=40)
    vectors = null.vectors(x, 8)
    truth = [share_inside(shift, span(draw)).estimate.value for draw in vectors]
    error = np.abs(null.spaces(x, Members(8), 8).shares(shift) - truth)
    assert (error < 5e-7 * np.linalg.cond(vectors)).all()
    assert np.median(error) < 5e-4


def test_layers_share_their_draws(activations: FloatArray) -> None:
    """At two layers that are alike but for a rotation, a shift rotated likewise has the same null shares, draw by draw."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    shift = a_shift(rng, activations)
    null = Null(5, draws=30)
    spaces = [null.spaces(x, Members(4), 4) for x in (activations, activations @ turn)]
    joint = joint_shares(spaces, np.stack([shift, shift @ turn], axis=1))
    assert joint.shape == (30, 2)
    np.testing.assert_allclose(joint[:, 0], joint[:, 1], atol=1e-5)
    assert joint[:, 0].std() > 0.01


def test_a_null_that_cannot_be_drawn_says_why(activations: FloatArray) -> None:
    null = Null(0, draws=5)
    with pytest.raises(ValueError, match="6 centred activations hold 5 directions at most, too few for k = 6"):
        null.spaces(activations[:6] - activations[:6].mean(0), Members(8), 6)
    with pytest.raises(ValueError, match="do not vary"):
        null.spaces(np.zeros((20, WIDTH)), Members(2), 2)
    flat = np.random.default_rng(0).standard_normal((50, 3)) @ activations[:3]
    with pytest.raises(ValueError, match="5 vectors hold 3 directions"):
        null.spaces(flat, Members(5), 5)


def test_no_null_share_where_nothing_moves(activations: FloatArray) -> None:
    spaces = Null(0, draws=5).spaces(activations, Members(2), 2)
    for still in (np.zeros((8, WIDTH)), np.vstack([activations[:4], -activations[:4]])):
        with pytest.raises(ValueError, match="nothing is left of the shift"):
            spaces.shares(still)
        with pytest.raises(ValueError, match="nothing is left of the shift"):
            null_shares(still, np.ones((3, 1, WIDTH)))


def test_half_differences_have_the_noise_of_the_mean_and_no_signal() -> None:
    rng = np.random.default_rng(9)
    states = [100.0 * (i + 1) + rng.standard_normal((prompts, 4, 50)) for i, prompts in enumerate((4, 6, 7))]
    draws = Null(1, draws=500).half_differences(states)
    assert draws.shape == (500, 3, 50)
    # The variance of a mean over prompts × questions; halves of 7 are 3 and 4, which adds 2 %.
    expected = np.array([1 / 16, 1 / 24, 1 / 28])
    np.testing.assert_allclose((draws**2).mean((0, 2)), expected, rtol=0.3)
    assert np.array_equal(draws, Null(1, draws=500).half_differences(states))
    with pytest.raises(ValueError, match="at least two prompts a persona, got 1"):
        Null(1).half_differences([states[0], states[1][:1]])


def test_every_split_of_the_prompts_can_come_up() -> None:
    draws = Null(1, draws=200).half_differences([np.eye(4)[:, None]])
    assert len(np.unique(draws[:, 0].round(6), axis=0)) == 6
    np.testing.assert_allclose(np.abs(draws), 0.25)


def test_other_personas_make_spaces_of_the_same_size(activations: FloatArray) -> None:
    subsets = Null(1, draws=300).subsets(12, 4)
    assert subsets.shape == (300, 4)
    assert all(len(set(subset)) == 4 for subset in subsets)
    counts = np.bincount(subsets.ravel(), minlength=12)
    assert counts.min() > 0.75 * counts.mean()
    library = np.random.default_rng(0).standard_normal((12, WIDTH))
    shift = a_shift(np.random.default_rng(1), activations)
    got = null_shares(shift, library[subsets[:5]], k=3)
    assert got[2] == pytest.approx(share_inside(shift, persona_space(library[subsets[2]], k=3)).estimate.value)
    with pytest.raises(ValueError, match="library of more than 9, got 9"):
        Null(1).subsets(9, 9)


@given(st.integers(2, 7), st.integers(1, 6))
def test_where_there_are_few_subsets_each_stands_there_once(personas: int, count: int) -> None:
    count = min(count, personas - 1)
    subsets = Null(1, draws=35).subsets(personas, count)
    assert subsets.shape == (comb(personas, count), count)
    assert len({frozenset(subset) for subset in subsets.tolist()}) == len(subsets)
    assert set(subsets.ravel()) == set(range(personas))


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 7))
def test_subsets_of_orthogonal_instructions_hold_their_part_of_what_all_hold(seed: int, found: int, count: int) -> None:
    """The mean over all subsets of R of n is R/n of the part that all n hold together, wherever in their span that part lies."""
    count = min(count, found - 1)
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((16, found + 1)))[0].T
    inside, outside = rng.standard_normal(found) @ axes[:-1], axes[-1]
    shift = inside / np.linalg.norm(inside) * np.sqrt(0.7) + outside * np.sqrt(0.3)
    instructions = axes[:-1] * rng.uniform(0.1, 10, (found, 1))
    subsets = Null(seed, draws=comb(8, 4)).subsets(found, count)
    shares = null_shares(np.tile(shift, (3, 1)), instructions[subsets])
    assert shares.mean() == pytest.approx(0.7 * count / found)


def test_spaces_of_instructions_hold_a_shift_of_theirs_and_chance_of_a_persona_s() -> None:
    """Personas and instructions of a hundred dimensions that have nothing to do with each other, and noisy shifts along each."""
    rng = np.random.default_rng(4)
    personas, instructions = rng.standard_normal((5, 100)), rng.standard_normal((24, 100))
    subsets = Null(2, draws=199).subsets(24, 5)
    noise = 0.3 * rng.standard_normal((24, 100))

    def read(direction: FloatArray) -> tuple[float, FloatArray]:
        shift = 10 * direction / np.linalg.norm(direction) + noise
        return share_inside(shift, span(personas)).estimate.value, null_shares(shift, instructions[subsets])

    share, drawn = read(personas.T @ np.ones(5))
    assert share > 0.95
    assert drawn.mean() == pytest.approx(5 / 100, abs=0.02)
    assert rank_among(share, drawn).at_least == 0
    # A single instruction lies in 5 of 24 subsets, and chance puts what it holds of the others there.
    share, drawn = read(instructions[7])
    assert share < 0.15
    with_it = (subsets == 7).any(1)
    assert drawn[with_it].min() > 0.95
    assert drawn[~with_it].max() < 0.3
    assert with_it.mean() == pytest.approx(5 / 24, abs=0.09)
    assert rank_among(0.95, drawn).at_least == with_it.sum()


def test_a_rank_counts_ties_against_the_observed_and_has_no_smaller_p_than_it_may() -> None:
    first = rank_among(0.7, [0.1, 0.2, 0.3])
    assert (first.at_least, first.others, first.rank, first.p) == (0, 3, 1, 0.25)
    tied = rank_among(0.2, [0.1, 0.2, 0.3])
    assert (tied.at_least, tied.rank, tied.p) == (2, 3, 0.75)
    for observed, others in ((0.5, []), (float("nan"), [0.1]), (0.5, [0.1, float("nan")])):
        with pytest.raises(ValueError, match="finite numbers and at least one other"):
            rank_among(observed, others)


@pytest.mark.parametrize("null", [np.ones(19), np.full(19, 1.02), np.full(19, np.nan)])
def test_chance_that_leaves_nothing_is_refused_in_words(null: FloatArray) -> None:
    assert leaves_nothing(np.full(19, 0.9)) is None
    assert leaves_nothing(null) is not None
    with pytest.raises(ValueError, match="null spaces hold"):
        compare(Estimate(1.0, 1.0, 1.0), null)
