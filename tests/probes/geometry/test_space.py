import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.space import Members, coefficients, dimension, half_means, persona_space, span
from wellworn.probes.statistics.intervals import FloatArray

SEEDS = st.integers(0, 2**32 - 1)


def of_rank(seed: int, rows: int, rank: int, width: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)) @ np.linalg.qr(rng.standard_normal((width, rank)))[0].T


@given(SEEDS, st.integers(1, 8), st.integers(1, 8), st.integers(8, 20))
def test_the_basis_is_orthonormal_and_holds_every_row(seed: int, rows: int, rank: int, width: int) -> None:
    rank = min(rows, rank)
    vectors = of_rank(seed, rows, rank, width)
    basis = span(vectors)
    assert basis.shape == (width, rank)
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-10)
    np.testing.assert_allclose(vectors @ basis @ basis.T, vectors, atol=1e-8 * np.abs(vectors).max())


@given(SEEDS, st.lists(st.floats(1e-4, 1e4) | st.floats(-1e4, -1e-4), min_size=2, max_size=6))
def test_the_size_and_sign_of_a_row_do_not_matter(seed: int, scales: list[float]) -> None:
    vectors = np.random.default_rng(seed).standard_normal((len(scales), 16))
    one, other = span(vectors), span(vectors * np.array(scales)[:, None])
    assert one.shape == other.shape == (16, len(scales))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-8)


@pytest.mark.parametrize("factor", [1.0, -1.0, 1e5])
def test_a_duplicate_adds_no_dimension(factor: float) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 10))
    again = np.vstack([vectors, factor * vectors[2]])
    assert span(again).shape == (10, 4)
    np.testing.assert_allclose(span(again) @ span(again).T, span(vectors) @ span(vectors).T, atol=1e-10)


def test_more_rows_than_dimensions_span_everything() -> None:
    basis = span(np.random.default_rng(0).standard_normal((9, 5)))
    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-10)


def test_no_rows_span_nothing() -> None:
    assert span(np.zeros((0, 7))).shape == (7, 0)


def projector(basis: FloatArray) -> FloatArray:
    return basis @ basis.T


def by_hand(traits: FloatArray, roles: FloatArray, default: FloatArray | None, k: int) -> FloatArray:
    """The projector on a space of roles, written out with a singular value decomposition and QR."""
    centred = roles - roles.mean(0)
    size = np.median(np.linalg.norm(centred, axis=1))
    rows = np.vstack([centred, size * traits / np.linalg.norm(traits, axis=1, keepdims=True)])
    axes = np.linalg.svd(rows, full_matrices=False)[2]
    if default is None:
        return projector(axes[:k].T)
    return projector(np.linalg.qr(np.vstack([axes[: k - 1], default - roles.mean(0)]).T)[0])


def library(seed: int, traits: int = 3, roles: int = 14, width: int = 30) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Traits, roles and a default on top of a mean that dwarfs them, as raw states have."""
    rng = np.random.default_rng(seed)
    mean = 1e3 * rng.standard_normal(width)
    scale = np.arange(1, width + 1) ** -0.5
    return rng.standard_normal((traits, width)), mean + rng.standard_normal((roles, width)) * scale, mean + rng.standard_normal(width)


@given(SEEDS, st.integers(0, 4), st.integers(12, 20), st.integers(1, 11), st.booleans())
def test_a_space_of_roles_is_made_by_the_rules(seed: int, traits: int, roles: int, k: int, axis: bool) -> None:
    t, r, d = library(seed, traits, roles)
    default = d if axis else None
    basis = persona_space(t, r, default, k)
    np.testing.assert_allclose(basis.T @ basis, np.eye(k), atol=1e-10)
    np.testing.assert_allclose(projector(basis), by_hand(t, r, default, k), atol=1e-6)


def test_the_first_column_is_the_assistant_axis_and_the_first_columns_are_smaller_spaces() -> None:
    traits, roles, default = library(1)
    whole = persona_space(traits, roles, default, 6)
    axis = default - roles.mean(0)
    np.testing.assert_allclose(whole[:, 0], axis / np.linalg.norm(axis), atol=1e-9)
    for k in range(1, 6):
        np.testing.assert_allclose(projector(whole[:, :k]), projector(persona_space(traits, roles, default, k)), atol=1e-9)


def test_fewer_than_twelve_roles_leave_the_traits_alone() -> None:
    traits, roles, default = library(2, roles=11)
    assert np.array_equal(persona_space(traits, roles, default), span(traits))
    assert persona_space(traits, roles, default, 2).shape == (30, 2)


def test_a_thousand_spaces_at_once_equal_each_alone_and_a_full_decomposition() -> None:
    """The top 8 of 71 draws from a power-law spectrum, whose singular values lie close together."""
    rng = np.random.default_rng(4)
    draws = rng.standard_normal((5, 72, 200)) * np.arange(1, 201) ** -0.5
    members = Members(0, 71, default=True)
    mixed = coefficients(draws @ draws.swapaxes(1, 2), members, 8)
    for draw, each in zip(draws, mixed, strict=True):
        basis = draw.T @ each
        np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-10)
        np.testing.assert_allclose(projector(basis), by_hand(np.empty((0, 200)), draw[:71], draw[71], 8), atol=1e-9)
        np.testing.assert_allclose(projector(basis), projector(persona_space(np.empty((0, 200)), draw[:71], draw[71], 8)), atol=1e-9)


def test_what_cannot_be_made_is_refused_in_words() -> None:
    traits, roles, default = library(3)
    empty = np.empty((0, 30))
    with pytest.raises(ValueError, match="14 roles needs a number of dimensions k"):
        persona_space(traits, roles, default)
    with pytest.raises(ValueError, match="14 vectors hold 13 directions"):
        persona_space(empty, roles, k=14)
    with pytest.raises(ValueError, match="14 vectors hold 13 directions and the axis"):
        persona_space(empty, roles, default, k=15)
    with pytest.raises(ValueError, match="k = 0 dimensions"):
        persona_space(traits, roles, k=0)
    with pytest.raises(ValueError, match="3 vectors hold 2 directions"):
        persona_space(np.vstack([traits[:2], traits[0]]), k=3)
    with pytest.raises(ValueError, match="a vector is zero"):
        persona_space(np.vstack([traits, np.zeros(30)]))
    with pytest.raises(ValueError, match="the default vector is the mean role"):
        persona_space(traits, np.vstack([np.eye(30)[:15], -np.eye(30)[:15]]), np.zeros(30), k=3)
    with pytest.raises(ValueError, match="lies in the span of the rest"):
        persona_space(np.eye(30)[:1], np.eye(30)[:13], np.eye(30)[0], k=14)


def personas(rng: np.random.Generator, count: int, rank: int, noise: float = 1.0) -> tuple[dict[str, FloatArray], FloatArray]:
    """States [5 prompts, 6 questions, 48] of personas whose means span `rank` directions, and of the default.

    Besides noise there are the questions' own means, and what a prompt's wording adds to all questions alike.
    """
    width = 48
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0][:rank]
    shared = 50 * rng.standard_normal(width) + 3 * rng.standard_normal((6, width))
    states = {
        f"role {i}": shared
        + 2 * rng.standard_normal(rank) @ axes
        + noise * (rng.standard_normal((5, 6, width)) + 0.5 * rng.standard_normal((5, 1, width)))
        for i in range(count)
    }
    return states, shared


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_dimension_is_the_rank_that_was_planted(rank: int) -> None:
    rng = np.random.default_rng(rank)
    found, parallel = [], []
    for _ in range(5):
        roles, shared = personas(rng, 30, rank)
        result = dimension({}, roles, rng)
        assert result.why is None
        assert result.q2.argmax() + 1 == rank
        found.append(result.k)
        parallel.append(result.parallel)
        # The axis of a default that is not a persona is one more.
        assert dimension({}, roles, rng, shared + 2 * rng.standard_normal(48)).k == result.k + 1
    assert found.count(rank) >= 4  # one standard error may take off a dimension of little weight
    assert np.median(parallel) == rank


def test_noise_is_no_persona_space() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        roles, shared = personas(rng, 20, 0)
        for default in (None, shared):
            result = dimension({}, roles, rng, default)
            assert result.k is None
            assert "no persona space at this layer" in str(result.why)
            assert result.q2.max() < 0


def test_cross_validated_fit_equals_its_formula() -> None:
    """Without noise all halves are alike, so that Q² needs no splits to be written out."""
    rng = np.random.default_rng(5)
    roles, _ = personas(rng, 15, 15, noise=0)
    # No question means either: halves differ in questions.
    roles = {name: each.mean((0, 1), keepdims=True) * np.ones_like(each) for name, each in roles.items()}
    vectors = np.stack([each[0, 0] for each in roles.values()])
    traits = {"role 3": rng.standard_normal((1, 1, 48)) * np.ones((4, 6, 1))}
    size = np.median(np.linalg.norm(vectors - vectors.mean(0), axis=1))
    missed, squared = np.zeros(4), 0.0
    for r in range(16):
        own = r if r < 15 else 3
        rest = np.delete(vectors, own, axis=0)
        # The trait is the namesake of role 3: each is left out with the other.
        others = np.empty((0, 48)) if own == 3 else traits["role 3"][0, :1]
        trait = traits["role 3"][0, 0]
        left_out = vectors[r] - rest.mean(0) if r < 15 else size * trait / np.linalg.norm(trait)
        for k in range(1, 5):
            missed[k - 1] += np.sum((left_out - by_hand(others, rest, None, k) @ left_out) ** 2)
        squared += left_out @ left_out
    result = dimension(traits, roles, rng, splits=1)
    np.testing.assert_allclose(result.q2[:4], 1 - missed / squared, atol=1e-9)


def test_a_namesake_is_left_out_as_well() -> None:
    """Each persona is among the traits and among the roles, and has nothing in common with the others."""
    rng = np.random.default_rng(6)
    means = rng.standard_normal((14, 300))
    roles = {f"role {i}": mean + 0.3 * rng.standard_normal((4, 6, 300)) for i, mean in enumerate(means)}
    traits = {f"role {i}": mean + 0.3 * rng.standard_normal((4, 6, 300)) for i, mean in enumerate(means)}
    # 26 directions hold 9 % of anything in 300 dimensions; a role less the mean of the others holds a little of these.
    assert dimension(traits, roles, rng).q2.max() < 0.15
    assert dimension({f"another {name}": each for name, each in traits.items()}, roles, rng).q2.max() > 0.8


def test_traits_alone_have_a_dimension_too() -> None:
    rng = np.random.default_rng(7)
    axes = np.linalg.qr(rng.standard_normal((40, 2)))[0].T
    traits = {str(i): rng.standard_normal(2) @ axes + 0.1 * rng.standard_normal((6, 8, 40)) for i in range(7)}
    assert dimension(traits, {}, rng).k == 2


def test_a_dimension_needs_halves() -> None:
    rng = np.random.default_rng(8)
    good = {str(i): rng.standard_normal((4, 6, 9)) for i in range(3)}
    for bad in ({"0": good["0"]}, good | {"1": good["1"][:1]}, good | {"1": good["1"][:, :3]}, {n: x[:, :1] for n, x in good.items()}):
        with pytest.raises(ValueError, match="at least three personas, two prompts each and two questions"):
            dimension(bad, {}, rng)


@given(SEEDS, st.integers(2, 5), st.integers(2, 6))
def test_halves_share_no_prompt_and_no_question(seed: int, prompts: int, questions: int) -> None:
    """Each state is an axis of its own, so that a half's mean says which of them it holds."""
    cells = np.eye(prompts * questions).reshape(prompts, questions, -1)
    for halves in half_means([cells, cells], None, 3, np.random.default_rng(seed)):
        for a, b in halves.swapaxes(0, 1).reshape(2, 2, prompts, questions) > 0:
            assert not (a.any(1) & b.any(1)).any()
            assert not (a.any(0) & b.any(0)).any()
            assert (a.any(1) | b.any(1)).all()
            assert (a.any(0) | b.any(0)).all()
            for half in (a, b):
                np.testing.assert_array_equal(half, np.outer(half.any(1), half.any(0)))
