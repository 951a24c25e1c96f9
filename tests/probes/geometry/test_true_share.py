"""The share inside the span of the true directions, on data whose truth is known; and the cases that are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wellworn.experiments.simulate.true_shares import DIRECTIONS, draw
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import span
from wellworn.probes.geometry.true_share import TrueShare, _products, true_share
from wellworn.probes.statistics.intervals import FloatArray

SAME = ["all"] * DIRECTIONS


def drawn(seed: int, reliability: float, share: float) -> tuple[FloatArray, list[FloatArray]]:
    differences, contrasts = draw(np.random.default_rng(seed), reliability, share)
    return differences, list(contrasts)


def test_without_noise_the_share_is_that_of_the_measured_space() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 20))
    contrasts = [np.broadcast_to(each, (4, 5, 20)).copy() for each in vectors]
    shift = vectors[0] - vectors[1] + rng.standard_normal(20)
    differences = np.broadcast_to(shift, (6, 20)).copy()
    found = true_share(differences, contrasts, ["a", "a", "b"])
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(share_inside(differences, span(vectors)).estimate.value)
    assert found.estimate.high - found.estimate.low < 1e-6


@pytest.mark.parametrize("shared", [True, False])
def test_products_are_means_over_different_pairs_and_questions(shared: bool) -> None:
    """Against the definition, written as loops over all products that are allowed."""
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal((3, 4, 2)), rng.standard_normal((5, 4, 2))]
    asked = ["a", "a" if shared else "b"]
    expected = np.empty((2, 2))
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            expected[i, j] = np.mean(
                [
                    x[p, q] @ y[r, s]
                    for p in range(len(x))
                    for q in range(4)
                    for r in range(len(y))
                    for s in range(4)
                    if (i != j or p != r) and (asked[i] != asked[j] or q != s)
                ]
            )
    np.testing.assert_allclose(_products(rows, asked), expected, atol=1e-12)


def test_true_shares_are_found_where_the_measured_space_understates_them() -> None:
    cases = [drawn(seed, 0.8, 1.0) for seed in range(60)]
    measured = [share_inside(d, span(np.stack([each.mean((0, 1)) for each in c]))).estimate.value for d, c in cases]
    found = [estimate for d, c in cases if (estimate := true_share(d, c, SAME).estimate)]
    assert len(found) >= 50
    assert np.mean(measured) < 0.92
    assert np.mean([each.value for each in found]) == pytest.approx(1, abs=0.05)
    assert np.mean([each.low <= 1 <= each.high for each in found]) >= 0.88


def test_a_shift_outside_has_a_share_of_zero() -> None:
    found = [estimate for seed in range(60) if (estimate := true_share(*drawn(seed, 0.85, 0.0), SAME).estimate)]
    values = np.array([each.value for each in found])
    assert abs(values.mean()) <= 3 * values.std() / len(values) ** 0.5
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.88


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), order=st.permutations(range(DIRECTIONS)), scales=st.lists(st.floats(0.1, 10), min_size=5, max_size=5))
def test_order_sign_and_size_of_directions_do_not_count(seed: int, order: list[int], scales: list[float]) -> None:
    differences, contrasts = drawn(seed, 0.9, 0.5)
    first, other = (true_share(differences, each, SAME) for each in (contrasts, [(-1) ** i * scales[i] * contrasts[i] for i in order]))
    assert first.estimate is not None
    assert other.estimate is not None
    assert other.estimate.to_json() == pytest.approx(first.estimate.to_json(), rel=1e-6)


def test_what_cannot_be_known_is_refused_with_the_reason() -> None:
    differences, contrasts = drawn(0, 0.9, 0.5)
    rng = np.random.default_rng(0)

    def why(found: TrueShare) -> str:
        assert found.estimate is None
        assert found.why is not None
        return found.why

    assert "9 directions" in why(true_share(differences, [contrasts[0]] * 9, ["a"] * 9))
    assert "shift is too noisy" in why(true_share(rng.standard_normal((24, 128)), contrasts, SAME))
    assert "have a mean reliability of 0." in why(true_share(*drawn(0, 0.5, 0.5), SAME))
    assert "discriminated from noise" in why(true_share(differences, [rng.standard_normal((12, 8, 128)) for _ in range(3)], ["a"] * 3))
    twin = contrasts[0] + 1e-3 * rng.standard_normal(contrasts[0].shape)
    assert "too much alike" in why(true_share(differences, [contrasts[0], twin], ["a", "a"]))


def test_too_few_readings_are_an_error() -> None:
    differences, contrasts = drawn(0, 0.9, 0.5)
    with pytest.raises(ValueError, match="got 0 and 24"):
        true_share(differences, [], [])
    with pytest.raises(ValueError, match="3 prompts"):
        true_share(differences[:2], contrasts, SAME)
    with pytest.raises(ValueError, match="3 contrast pairs and 3 questions"):
        true_share(differences, [contrasts[0][:2]], ["a"])
