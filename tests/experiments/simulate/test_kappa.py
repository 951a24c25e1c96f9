import numpy as np
import pytest

from wellworn.experiments.simulate.kappa import DRAWS, QUESTIONS, SAMPLED, draw, missed_targets, simulate_kappa

READINGS = ("bias", "rmse", "coverage", "coverage_low", "coverage_high")


def test_planted_outcomes_have_the_planted_shares() -> None:
    rng = np.random.default_rng(0)
    cases = [draw(rng, 3, 0.2, 0.5) for _ in range(400)]
    assert [part.shape for part in cases[0]] == [(3, QUESTIONS)] * 3 + [(DRAWS, 3, SAMPLED)]
    effect, own, best, chance = (np.mean([part.mean() for part in parts]) for parts in zip(*cases, strict=True))
    assert [effect, own, best, chance] == pytest.approx([1, 0.2, 0.3, 0.1], abs=0.02)


def test_a_few_cells() -> None:
    rows = simulate_kappa(200, 0, rooms=(0.1, 0.4), kappas=(0.5, 1.0), spreads=(0.35,))
    cells = [(runs, room, kappa) for runs in (1, 3) for room in (0.1, 0.4) for kappa in (0.5, 1.0)]
    assert [(row["runs"], row["room"], row["kappa"]) for row in rows] == cells
    for row in rows:
        if row["room"] == 0.1:
            assert row["defined"] < 0.5
        else:
            assert row["defined"] > 0.95
            assert abs(row["bias"]) < 0.03
            assert row["rmse"] < 0.1
            assert 0.89 <= row["coverage"] <= 0.99
            assert row["coverage_low"] < row["coverage"] < row["coverage_high"]
    assert simulate_kappa(200, 0, rooms=(0.1, 0.4), kappas=(0.5, 1.0), spreads=(0.35,)) == rows


def test_a_cell_where_kappa_is_never_defined_has_no_numbers() -> None:
    (row,) = simulate_kappa(20, 0, rooms=(0.01,), kappas=(0.5,), runs=(1,), spreads=(0.35,))
    assert row["defined"] == 0
    assert [row[name] for name in READINGS] == [None] * len(READINGS)
    assert missed_targets(row) == []


def test_a_missed_target_is_said_in_words() -> None:
    row = {"defined": 0.5, "bias": -0.04, "coverage": 0.98}
    assert missed_targets(row) == ["bias -0.040, 0.03 at most", "coverage 0.980, 0.92 to 0.97"]
    assert missed_targets(row | {"defined": 0.4}) == []


@pytest.mark.slow
def test_the_whole_grid_meets_its_targets_but_where_the_gate_on_the_width_selects() -> None:
    """2,000 cases a cell: half a minute."""
    for row in simulate_kappa(2000, 0):
        missed = missed_targets(row)
        if row["room"] == 0.2 and row["kappa"] <= 0.2:
            # A set is narrower where κ is estimated to be high, so those narrow enough for a κ have one that is too high.
            assert all(words.startswith("bias +0.0") for words in missed), row
        else:
            assert missed == [], row
