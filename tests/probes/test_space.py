import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.space import span
from probes.stats import FloatArray

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
