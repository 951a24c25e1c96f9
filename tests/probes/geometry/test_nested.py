"""Nested spaces hold one another, and chance spaces have the covariance of averages, jointly over layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.geometry.nested import chance_vectors, nested_bases


@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_each_space_begins_with_the_one_before_and_spans_all_so_far(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(size, 16)) * rng.lognormal(size=(size, 1), sigma=3) for size in sizes]
    bases = nested_bases(parts)
    for i, basis in enumerate(bases):
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)
        everything = np.concatenate(parts[: i + 1])
        everything /= np.linalg.norm(everything, axis=1, keepdims=True)
        np.testing.assert_allclose((everything @ basis) @ basis.T, everything, atol=1e-8)
        assert basis.shape[1] == np.linalg.matrix_rank(everything)
        if i:
            np.testing.assert_array_equal(basis[:, : bases[i - 1].shape[1]], bases[i - 1])


def test_what_lies_in_the_space_already_adds_nothing() -> None:
    own = np.array([[1.0, 2.0, 3.0, 0.0]])
    first, second = nested_bases([own, np.vstack([7 * own, -own])])
    np.testing.assert_array_equal(first, second)


def test_a_zero_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        nested_bases([np.zeros((1, 4))])


def test_chance_has_the_covariance_of_its_rows_and_is_one_draw_at_all_layers() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=(40, 6)) * np.array([3, 1, 1, 1, 0.3, 0.1])
    first -= first.mean(0)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    drawn = chance_vectors({3: first, 5: first @ rotation}, count=2, draws=4000, seed=7)
    flat = drawn[3].reshape(-1, 6)
    np.testing.assert_allclose(flat.T @ flat / len(flat), first.T @ first / 40, atol=0.25)
    # Layer 5 is layer 3 rotated, and a joint draw is rotated along.
    np.testing.assert_allclose(drawn[5], drawn[3] @ rotation, atol=1e-5)
    again = chance_vectors({3: first, 5: first @ rotation}, count=2, draws=4000, seed=7)
    np.testing.assert_array_equal(again[3], drawn[3])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="too few directions"):
        chance_vectors({0: np.eye(3, 8)}, count=2, draws=5, seed=0)
    with pytest.raises(ValueError, match="at every layer"):
        chance_vectors({0: np.eye(3, 8), 1: np.eye(4, 8)}, count=1, draws=5, seed=0)
