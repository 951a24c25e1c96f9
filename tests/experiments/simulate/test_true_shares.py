"""The simulation of true shares draws what it says, and names the targets that are missed."""

import numpy as np
import pytest

from wellworn.experiments.simulate.true_shares import DIRECTIONS, PROMPTS, SIGNAL, draw, missed_targets, simulate_true_shares
from wellworn.probes.geometry.directions import half_split_reliability
from wellworn.probes.geometry.shift import debiased_norms


def test_cases_have_the_stated_reliability_and_signal() -> None:
    rng = np.random.default_rng(0)
    cases = [draw(rng, 0.75, 0.4) for _ in range(20)]
    reliability = [half_split_reliability(contrasts[i], rng) for _, contrasts in cases for i in range(DIRECTIONS)]
    assert np.mean(reliability) == pytest.approx(0.75, abs=0.05)
    norms = np.array([debiased_norms(differences) for differences, _ in cases])
    assert norms[:, 0].mean() == pytest.approx(1, abs=0.05)
    assert 1 / norms[:, 1].mean() == pytest.approx(SIGNAL, rel=0.15)
    assert len(cases[0][0]) == PROMPTS


def test_rows_hold_what_was_found_and_refusals_count() -> None:
    good, noisy = simulate_true_shares(12, 0, reliabilities=[0.95, 0.5], shares=[0.4])
    assert (good["reliability"], good["share"], good["reported"]) == (0.95, 0.4, 1)
    assert abs(good["bias"]) < 0.1
    assert good["coverage"] > 0.7
    assert noisy["reported"] < 0.5
    assert missed_targets(noisy) == []
    assert simulate_true_shares(12, 0, reliabilities=[0.95, 0.5], shares=[0.4]) == [good, noisy]


def test_missed_targets_are_named() -> None:
    row = {"reported": 0.9, "bias": -0.08, "coverage": 0.85}
    assert missed_targets(row) == ["bias -0.080, 0.05 at most", "coverage 0.850, 0.90 or more"]
    assert missed_targets(row | {"bias": 0.01, "coverage": 0.99}) == []
