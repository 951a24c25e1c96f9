"""Shares that sum to one, floors with their error, and κ on outcomes whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.probes.mediation.pathways import ABOVE, OTHERS, OWN, REST, Floor, floor, scaled_share, stack, width_to_one
from wellworn.probes.statistics.intervals import Estimate, ratio_interval


@given(seed=st.integers(0, 2**31), runs=st.sampled_from([None, 3]))
def test_shares_sum_to_one_whatever_was_measured(seed: int, runs: int | None) -> None:
    rng = np.random.default_rng(seed)
    shape = (12,) if runs is None else (runs, 12)
    effect = 1 + rng.normal(size=shape)
    moved = {name: effect * rng.normal(size=shape) for name in (OWN, OTHERS, REST)}
    shares = stack(effect, moved)
    assert list(shares) == [OWN, OTHERS, REST, ABOVE]
    assert sum(each.value for each in shares.values()) == pytest.approx(1, abs=1e-9)
    assert shares[OWN].value == pytest.approx(moved[OWN].mean() / effect.mean())


def test_nothing_is_above_where_the_whole_state_is_the_whole_change() -> None:
    effect = np.array([1.0, 2.0, 3.0])
    shares = stack(effect, {OWN: 0.25 * effect, REST: effect})
    assert [each.value for each in shares.values()] == pytest.approx([0.25, 0.75, 0])
    assert shares[ABOVE].low == shares[ABOVE].high == 0


def test_the_whole_state_comes_last() -> None:
    with pytest.raises(ValueError, match="whole state"):
        stack(np.ones(3), {REST: np.ones(3), OWN: np.ones(3)})


def test_p_counts_draws_as_large_and_the_band_holds_them() -> None:
    effect = np.full(8, 2.0)
    draws = np.linspace(0, 0.38, 39)[:, None] * effect
    found = floor(effect, draws, 0.345 * effect)
    # .35, .36, .37, .38 are as large.
    assert found.p == pytest.approx(5 / 40)
    assert found.mean == pytest.approx(0.19)
    assert (found.low, found.high) == pytest.approx((0.019, 0.361))
    assert found.variance == pytest.approx(np.linspace(0, 0.38, 39).var(ddof=1) / 39)
    assert found.df == pytest.approx(38)


def test_a_floor_that_differs_between_questions_is_less_certain() -> None:
    effect, rng = np.ones(8), np.random.default_rng(0)
    steady = np.full((39, 8), 0.1) + rng.normal(0, 0.05, (39, 1))
    uneven = steady + rng.normal(0, 0.1, 8)
    assert floor(effect, uneven, effect).variance > 3 * floor(effect, steady, effect).variance


def test_kappa_is_the_place_between_floor_and_ceiling() -> None:
    effect = np.array([0.9, 1.0, 1.1, 1.0])
    found = scaled_share(effect, 0.34 * effect, 0.50 * effect, Floor(0.10, 0, 0.2, 39, 0.025, 1e-6, np.zeros(4)))
    assert found.value is not None
    assert found.value.value == pytest.approx(0.24 / 0.40)
    assert found.room == pytest.approx(0.40)
    assert found.why is None


@pytest.mark.parametrize("shape", [(12,), (3, 12)])
def test_a_floor_on_all_questions_is_taken_off_each(shape: tuple[int, ...]) -> None:
    """Its share in the variance over questions is then exactly that of a paired difference."""
    rng = np.random.default_rng(5)
    effect = rng.normal(1, 0.3, shape)
    common = rng.normal(0, 0.05, shape)
    own, best = ((share + common + rng.normal(0, 0.01, shape)) * effect for share in (0.3, 0.5))
    draws = (0.1 + common + rng.normal(0, 0.03, (39, *(1 for _ in shape)))) * effect
    chance = floor(effect, draws, own)
    found, apart = scaled_share(effect, own, best, chance, range(12)).value, scaled_share(effect, own, best, chance).value
    paired = ratio_interval(
        own - draws.mean(0), best - draws.mean(0), offset_variance=chance.through_draws * effect.mean() ** 2, offset_df=38
    )
    assert found is not None
    assert apart is not None
    assert (found.value, found.low, found.high) == pytest.approx((paired.value, paired.low, paired.high))
    # All three parts carry more on the same questions: as if of other questions, the floor's error would count twice.
    assert apart.value == pytest.approx(found.value)
    assert apart.high - apart.low > 1.5 * (found.high - found.low)


@pytest.mark.parametrize(("ceiling", "variance"), [(0.15, 1e-6), (0.35, 0.01), (0.05, 1e-6)])
def test_kappa_is_not_defined_where_there_is_no_room(ceiling: float, variance: float) -> None:
    effect = np.ones(6)
    found = scaled_share(effect, 0.12 * effect, ceiling * effect, Floor(0.10, 0, 0.2, 39, 0.5, variance, np.zeros(6)))
    assert found.value is None
    assert "above the floor" in str(found.why)


def test_a_direction_that_does_more_than_the_best_one_known_has_a_kappa_however_much_more_it_does() -> None:
    rng = np.random.default_rng(0)
    effect = 1 + 0.3 * rng.normal(size=24)
    chance = Floor(mean=0.0, low=-0.1, high=0.1, draws=39, p=0.025, through_draws=0.0, deviations=np.zeros(24))
    own, best = (share * effect + 0.25 * rng.normal(size=24) for share in (0.9, 0.45))
    found = scaled_share(effect, own, best, chance)
    assert found.value is not None
    assert found.value.low > 1
    assert found.value.high - found.value.low > 0.6
    assert width_to_one(found.value) == 0
    assert width_to_one(Estimate(0.9, 0.7, 1.8)) == pytest.approx(0.3)
    assert width_to_one(Estimate(0.2, 0.1, 0.4)) == pytest.approx(0.3)


def test_kappa_too_uncertain_says_so() -> None:
    rng = np.random.default_rng(3)
    effect = np.ones(8)
    found = scaled_share(effect, rng.normal(0.3, 0.4, 8), np.full(8, 0.5), Floor(0.10, 0, 0.2, 39, 0.5, 1e-6, np.zeros(8)))
    assert found.value is None
    assert "too uncertain" in str(found.why)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("room", [0.2, 0.4])
def test_kappa_covers_its_truth(runs: int, room: float) -> None:
    """A true κ of .5; effects differ between questions, and the floor is an estimate from 39 draws on 8 of the 24 questions."""
    rng = np.random.default_rng(runs)
    held, values, low = 0, [], 0.10
    cases = 300
    for _ in range(cases):
        question = rng.normal(1, 0.35, 24)
        effect = question + rng.normal(0, 0.1, (runs, 24))
        share = np.array([low + room / 2, low + room])[:, None, None] + rng.normal(0, 0.06, (2, 1, 24)) + rng.normal(0, 0.03, (2, runs, 24))
        own, best = share * effect
        draws = (low + rng.normal(0, 0.05, (39, 1, 1)) + rng.normal(0, 0.04, (39, 1, 8))) * effect[:, ::3]
        own, best, effect = (each[0] if runs == 1 else each for each in (own, best, effect))
        chance = floor(effect[..., ::3], draws[:, 0] if runs == 1 else draws, own[..., ::3])
        found = scaled_share(effect, own, best, chance, range(0, 24, 3))
        if found.value:
            held += found.value.low <= 0.5 <= found.value.high
            values.append(found.value.value)
    assert len(values) > 0.9 * cases
    assert abs(np.mean(values) - 0.5) < 0.03
    # 300 cases tell .95 to ± .025; bounds are those of the method page, widened by that.
    assert 0.895 <= held / len(values) <= 0.995
