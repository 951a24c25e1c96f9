import numpy as np
import pytest

from wellworn.experiments.simulate.shares import CLAIMED_FROM, draw, missed_targets, noise_of, simulate_shares
from wellworn.probes.geometry.shift import share_inside, share_of


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_products_give_the_share_of_the_differences_themselves(share: float) -> None:
    scale = np.arange(1, 41.0) ** -0.5
    noise, basis, units = draw(np.random.default_rng(0), 12, scale)
    shift = np.sqrt(3) * (np.sqrt(share) * units[0] + np.sqrt(1 - share) * units[1])
    assert np.sum((basis.T @ shift) ** 2) == pytest.approx(3 * share)
    one, other = share_of(noise_of(noise, basis, units).add_shift(share, 3.0)), share_inside(shift + noise, basis)
    for field in ("value", "low", "high"):
        assert getattr(one.estimate, field) == pytest.approx(getattr(other.estimate, field), rel=1e-9, abs=1e-9)
    assert one.signal == pytest.approx(other.signal)
    assert one.why == other.why


def test_a_few_cells() -> None:
    rows = simulate_shares(300, 0, prompts=(20,), widths=(128,), slopes=(1.6,), shares=(0.0, 0.3, 0.9), signals=(1.0, 10.0, 100.0))
    assert [(row["share"], row["signal"]) for row in rows] == [(s, g) for s in (0.0, 0.3, 0.9) for g in (1.0, 10.0, 100.0)]
    for row in rows:
        if row["signal"] == 1:
            assert row["passed"] < 0.1
            # The ratio to a D near zero, or below, is what the gate is for.
            assert row["without"] > 0.01
        else:
            assert row["passed"] > 0.7
            assert row["without"] == 0
            assert abs(row["bias_passed"]) < 0.05
            assert 0.88 <= row["coverage_passed"] <= 0.995
            assert 0 < row["width_passed"] < 0.5
    again = simulate_shares(300, 0, prompts=(20,), widths=(128,), slopes=(1.6,), shares=(0.3,), signals=(10.0,))
    assert again == [row for row in rows if (row["share"], row["signal"]) == (0.3, 10.0)]


def test_a_cell_that_nothing_passes_has_no_numbers() -> None:
    (row,) = simulate_shares(20, 0, prompts=(20,), widths=(128,), slopes=(1.0,), shares=(0.3,), signals=(0.01,))
    assert (row["passed"], row["bias_passed"], row["coverage_passed"], row["width_passed"]) == (0, None, None, None)
    assert missed_targets(row) == []


def test_a_missed_target_is_said_in_words() -> None:
    row = {"passed": 0.6, "share": 0.3, "bias_passed": -0.04, "coverage_passed": 0.9}
    assert missed_targets(row) == ["bias -0.040, 0.03 at most", "coverage 0.900, 0.93 to 0.98"]
    assert missed_targets(row | {"share": 0.0}) == ["bias -0.040, 0.03 at most"]
    assert missed_targets(row | {"passed": 0.4}) == []


@pytest.mark.slow
def test_the_whole_grid_meets_its_targets() -> None:
    """About seven minutes. With 4,000 repeats the standard error of a coverage is .004, or a few cells of 200 would miss by chance."""
    rows = simulate_shares(4000, 0)
    assert sum(row["passed"] >= CLAIMED_FROM for row in rows) > 200
    assert [(row, missed_targets(row)) for row in rows if missed_targets(row)] == []
