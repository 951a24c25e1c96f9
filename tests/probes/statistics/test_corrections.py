import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.statistics.corrections import benjamini_hochberg, max_t

P_VALUES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=20)


@given(P_VALUES)
def test_the_adjusted_values_are_those_of_the_step_up_procedure(p: list[float | None]) -> None:
    made = sorted(x for x in p if x is not None)
    expected = [None if x is None else min(1, *(len(made) * y / (i + 1) for i, y in enumerate(made) if y >= x)) for x in p]
    assert benjamini_hochberg(p) == [None if x is None else pytest.approx(x) for x in expected]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_a_p_value_lies_between_zero_and_one(wrong: float) -> None:
    with pytest.raises(ValueError, match="p"):
        benjamini_hochberg([0.5, wrong])


def layers(rng: np.random.Generator, rows: int, correlation: float) -> np.ndarray:
    """Draws over 12 layers of unequal location and scale; neighbours correlate, as layers do."""
    z = rng.standard_normal((rows, 12))
    for at in range(1, 12):
        z[:, at] = correlation * z[:, at - 1] + np.sqrt(1 - correlation**2) * z[:, at]
    return np.arange(12) / 10 + z * np.linspace(0.1, 3, 12)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_max_t_has_its_size_over_correlated_layers(correlation: float) -> None:
    rng = np.random.default_rng(0)
    smallest, single = [], []
    for _ in range(1000):
        draws, (observed,) = layers(rng, 199, correlation), layers(rng, 1, correlation)
        smallest.append(min(p for p in max_t(observed, draws) if p is not None))
        single.append(((1 + (draws >= observed).sum(0)) / 200).min())
    assert 0.03 <= np.mean(np.array(smallest) <= 0.05) <= 0.07
    # Without a correction some layer is below .05 far too often.
    assert np.mean(np.array(single) <= 0.05) > 0.14


def test_max_t_is_its_formula() -> None:
    draws = np.array([[0.0, 10.0], [1.0, 10.0], [2.0, 40.0]])
    z = (draws - draws.mean(0)) / draws.std(0, ddof=1)
    observed = np.array([1.5, 21.0])
    expected = [(1 + np.sum(z.max(1) >= x)) / 4 for x in (observed - draws.mean(0)) / draws.std(0, ddof=1)]
    assert max_t(observed, draws) == expected


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-10, 10))
def test_max_t_knows_no_unit(seed: int, unit: float, origin: float) -> None:
    rng = np.random.default_rng(seed)
    draws, observed = rng.standard_normal((19, 3)), rng.standard_normal(3)
    assert max_t(unit * observed + origin, unit * draws + origin) == max_t(observed, draws)


def test_a_layer_without_a_statistic_has_no_p_and_takes_no_part() -> None:
    rng = np.random.default_rng(0)
    draws, observed = rng.standard_normal((99, 5)), rng.standard_normal(5)
    whole = max_t(observed[[0, 4]], draws[:, [0, 4]])
    draws[:, 1], draws[3, 2], observed[3] = 7.0, np.nan, np.nan
    assert max_t(observed, draws) == [whole[0], None, None, None, whole[1]]
    assert max_t(observed[1:4], draws[:, 1:4]) == [None, None, None]


@pytest.mark.parametrize(("observed", "draws"), [((3,), (9, 2)), ((3,), (1, 3)), ((1, 3), (9, 3))])
def test_max_t_needs_draws_of_the_same_layers(observed: tuple[int, ...], draws: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got shapes"):
        max_t(np.zeros(observed), np.zeros(draws))
