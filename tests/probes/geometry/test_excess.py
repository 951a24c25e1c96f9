"""A share's excess over chance is compared with that of other fine-tunes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wellworn.probes.geometry.excess import excess_among_others, prediction_p, z_scores


def test_excess_and_rank_by_hand() -> None:
    chance = np.array([0.1, 0.2, 0.3])
    found = excess_among_others(0.6, chance, [0.2, 0.3, 0.25, 0.15, 0.1], np.tile(chance, (5, 1)))
    assert found.z == pytest.approx(4)
    assert found.others == pytest.approx((0, 1, 0.5, -0.5, -1))
    assert (found.rank.rank, found.rank.p) == (1, 1 / 6)
    t = 4 / (np.std(found.others, ddof=1) * np.sqrt(6 / 5))
    assert found.p == pytest.approx(stats.t.sf(t, 4))


def test_each_share_has_its_own_null() -> None:
    """A flatter fine-tune has a lower share and a lower chance, and the same excess."""
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.2, 0.4, (6, 50))
    shares = chances.mean(1) + [3, 1, 0, -1, 0.5, -0.5] * chances.std(1, ddof=1)
    found = excess_among_others(shares[0], chances[0], shares[1:], chances[1:])
    shrunk = excess_among_others(shares[0], chances[0], shares[1:] / 7, chances[1:] / 7)
    assert (shrunk.z, shrunk.p) == pytest.approx((found.z, found.p))
    assert shrunk.others == pytest.approx(found.others)
    assert found.others == pytest.approx((1, 0, -1, 0.5, -0.5))


@pytest.mark.parametrize("others", [5, 20])
def test_a_prediction_has_its_size_where_all_are_alike(others: int) -> None:
    draws = 3 + 2 * np.random.default_rng(others).standard_normal((20_000, others + 1))
    p = prediction_p(draws[:, 0], draws[:, 1:])
    for alpha in (0.01, 0.05, 0.5):
        assert (p <= alpha).mean() == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 20_000))


@given(seed=st.integers(0, 2**31), step=st.floats(0, 5), scale=st.floats(0.01, 100))
def test_p_falls_with_the_share_and_knows_no_units(seed: int, step: float, scale: float) -> None:
    x = np.random.default_rng(seed).standard_normal(9)
    p = float(prediction_p(x[0], x[1:]))
    assert 0 <= float(prediction_p(x[0] + step, x[1:])) <= p <= 1
    assert float(prediction_p(scale * x[0] + step, scale * x[1:] + step)) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(
    ("share", "chance", "others", "message"),
    [
        (0.5, [0.1, 0.2], [0.1, 0.2, 0.3, 0.4], "5 other fine-tunes at least, got 4"),
        (0.5, [0.2, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5], "2 null shares do not differ"),
        (0.5, [0.2], [0.1, 0.2, 0.3, 0.4, 0.5], "1 null shares do not differ"),
        (float("nan"), [0.1, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5], "finite"),
        (0.5, [0.1, 0.2], [0.1, 0.2, 0.3, 0.4, float("inf")], "finite"),
        (0.5, [0.1, 0.2], [0.3] * 5, "5 other fine-tunes are all the same"),
    ],
)
def test_refuses_in_words(share: float, chance: list[float], others: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        excess_among_others(share, np.array(chance), others, np.tile([0.1, 0.2], (len(others), 1)))


def test_an_excess_is_a_number_a_share() -> None:
    np.testing.assert_allclose(z_scores(np.array([0.0, 1.0]), np.array([[0.0, 2.0], [0.0, 2.0]])), [-1 / np.sqrt(2), 0])
