"""The share of several runs that read the same prompts."""

import numpy as np
import pytest

from tests.probes.geometry.test_shift import basis_of, pairs_sum, plant
from wellworn.probes.geometry.shift import share_inside, share_over_runs
from wellworn.probes.statistics.intervals import mean_interval


def test_the_share_of_runs_is_that_of_their_sums() -> None:
    drawn = list(plant(3, share=0.4, prompts=9, signal=40, width=20, seed=1))
    basis = drawn[0][1]
    runs = np.stack([differences for differences, _ in drawn])
    inside, total = (sum(pairs_sum(run @ part) for run in runs) for part in (basis, np.eye(20)))
    got = share_over_runs(runs, basis)
    assert got.estimate.value == pytest.approx(inside / total)
    assert got.signal == pytest.approx(min(share_inside(run, basis).signal for run in runs))
    for few in (runs[:1], runs[:, :2]):
        with pytest.raises(ValueError, match="two runs and 3 prompts at least"):
            share_over_runs(few, basis)
    assert share_over_runs(np.zeros((3, 9, 20)), basis).why is not None


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_runs_that_share_their_prompts_noise_have_intervals_that_cover(share: float) -> None:
    """Nine tenths of what a prompt adds is the same for all three runs: intervals over runs alone would cover in half the cases."""
    rng = np.random.default_rng(7)
    held, alone = [], []
    for differences, basis in plant(300, share=share, prompts=24, signal=20, seed=8):
        mean = differences.mean(0)
        own = np.stack([rng.permutation(differences - mean) for _ in range(3)])
        runs = mean + (differences - mean) * np.sqrt(0.9) + own * np.sqrt(0.1)
        got = share_over_runs(runs, basis)
        if got.why is None:
            held.append(got.estimate.low <= share <= got.estimate.high)
            of_each = [share_inside(run, basis).estimate.value for run in runs]
            by_runs = mean_interval(of_each)
            alone.append(by_runs.low <= share <= by_runs.high)
    assert len(held) >= 250
    assert 0.92 <= np.mean(held) <= 1
    assert np.mean(alone) < 0.8


@pytest.mark.parametrize("between", [0.05, 0.13])
def test_groups_whose_runs_differ_are_not_chosen_by_the_width_of_their_intervals(between: float) -> None:
    """Shares of the runs themselves vary; a gate on width would let those groups pass whose runs happen to be alike."""
    rng = np.random.default_rng(9)
    held = []
    for _ in range(300):
        basis = basis_of(rng, 32, 4)
        common = 0.1 * rng.standard_normal((24, 32))
        runs = []
        for share in np.clip(0.3 + between * rng.standard_normal(3), 0.01, 0.99):
            w = rng.standard_normal(32)
            w -= basis @ (basis.T @ w)
            runs.append(
                np.sqrt(share) * basis[:, 0] + np.sqrt(1 - share) * w / np.linalg.norm(w) + common + 0.03 * rng.standard_normal((24, 32))
            )
        got = share_over_runs(np.stack(runs), basis)
        assert got.why is None
        held.append(got.estimate.low <= 0.3 <= got.estimate.high)
    assert 0.9 <= np.mean(held) <= 1
