"""Planted changes: what is put there, and what is found of it."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.lora.models import Loaded
from wellworn.probes.geometry.planted import (
    Accuracy,
    Ground,
    Trial,
    accuracy,
    calibrate,
    later_curve,
    mix_directions,
    planted_shifts,
    shifts_later,
)
from wellworn.probes.geometry.shift import Share, share_inside
from wellworn.probes.statistics.intervals import Estimate, FloatArray

WIDTH = 32
ALPHAS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0)


def ground(width: int = 64, directions: int = 4, prompts: int = 24, size: float = 1.0, noise: float = 0.5, seed: int = 0) -> Ground:
    """Make a ground whose space is the span of its directions; `noise` is the root of trΣ of its prompts, power-law spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1.0) ** -0.5
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    activations = rng.standard_normal((200, width)) * spectrum @ axes.T
    found = rng.standard_normal((directions, width)) * spectrum @ axes.T
    shifts = rng.standard_normal((prompts, width)) * spectrum / np.linalg.norm(spectrum) * noise @ axes.T
    basis = np.linalg.qr(found.T)[0]
    return Ground(found, basis, activations - activations.mean(0), shifts + 3, size)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_without_gain_and_noise_the_share_is_alpha(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    here = ground(width=16, directions=3, seed=seed)
    u, w = here.axes(rng)
    shifts = planted_shifts(u, w, alpha, 7.0, np.ones((5, 16)), rng, gain=0)
    assert np.linalg.norm(shifts, axis=1) == pytest.approx(7)
    assert share_inside(shifts, here.basis_DK).estimate.value == pytest.approx(alpha, abs=1e-4)


def test_gains_are_log_normal_with_mean_one() -> None:
    u, w = np.eye(4)[:2]
    shifts = planted_shifts(u, w, 0.36, 2.0, np.zeros((40_000, 4)), np.random.default_rng(0))
    gains = shifts[:, 0] / (2 * 0.6)
    assert shifts == pytest.approx(2 * gains[:, None] * [0.6, 0.8, 0, 0])
    # Standard errors: .5/√40000 = .0025 of the logarithm's mean, .0018 of its σ.
    assert np.log(gains).std() == pytest.approx(0.5, abs=0.008)
    assert np.log(gains).mean() == pytest.approx(-0.125, abs=0.01)
    assert gains.mean() == pytest.approx(1, abs=0.012)


def test_noise_is_resampled_and_centred() -> None:
    noise = np.random.default_rng(1).standard_normal((6, 4)) + 100
    u, w = np.eye(4)[:2]
    rest = planted_shifts(u, w, 0.36, 2.0, noise, np.random.default_rng(0), gain=0) - 2 * mix_directions(u, w, 0.36)
    centred = noise - noise.mean(0)
    which = [int(np.argmin(np.linalg.norm(centred - row, axis=1))) for row in rest]
    np.testing.assert_allclose(rest, centred[which], atol=1e-9)
    assert len(set(which)) < 6


def test_axes() -> None:
    here = ground(width=12, directions=3)
    rng = np.random.default_rng(0)
    u, w = (np.stack(each) for each in zip(*(here.axes(rng) for _ in range(6000)), strict=True))
    units = here.directions_RD / np.linalg.norm(here.directions_RD, axis=1, keepdims=True)
    assert np.linalg.norm(w, axis=1) == pytest.approx(1)
    assert np.abs(w @ here.basis_DK).max() < 1e-9
    matches = np.abs(u @ units.T - 1) < 1e-9
    assert (matches.sum(1) == 1).all()
    assert matches.mean(0) == pytest.approx([1 / 3] * 3, abs=0.03)
    # Against draws from the covariance itself, projected.
    covariance = here.centred_ND.T @ here.centred_ND
    drawn = rng.multivariate_normal(np.zeros(12), covariance, 6000, method="cholesky")
    drawn -= drawn @ here.basis_DK @ here.basis_DK.T
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    np.testing.assert_allclose(w.T @ w / 6000, drawn.T @ drawn / 6000, atol=0.02)


@pytest.mark.parametrize(
    ("alpha", "u", "message"), [(1.1, [1, 0], "alpha lies between 0 and 1, got 1.1"), (0.5, [2, 0], "u has unit norm, got 2")]
)
def test_refuses_what_is_no_mixture(alpha: float, u: Sequence[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_directions(np.array(u, dtype=np.float64), np.array([0.0, 1.0]), alpha)


def test_calibration_where_the_halves_agree() -> None:
    """The space of both halves is the same, so that the target is α and only noise can make a difference."""
    here = ground()
    trials = calibrate(here, here.basis_DK, ALPHAS, 300, np.random.default_rng(0))
    assert [trial.alpha for trial in trials] == [alpha for alpha in ALPHAS for _ in range(300)]
    assert [trial.target for trial in trials] == pytest.approx([trial.alpha for trial in trials])
    for row in accuracy(trials):
        assert row.draws >= 295
        assert row.error is not None
        assert row.bias is not None
        assert row.coverage is not None
        assert row.error <= 0.04
        assert abs(row.bias) <= 0.01
        assert 0.9 <= row.coverage <= 0.99
        assert row.bias_of_space == pytest.approx(0, abs=1e-9)
        assert row.coverage_held == row.coverage
        assert row.error_held == pytest.approx(row.error)


def test_the_target_is_what_the_other_half_holds() -> None:
    """Half B is a known turn away from half A: of a plant wholly along B's direction A holds cos² and B all, and F̂ says what A holds."""
    here = ground(directions=1, noise=0.1)
    v, away = here.basis_DK[:, 0], here.axes(np.random.default_rng(5))[1]
    turned = 0.8 * v + 0.6 * away
    here = Ground(3 * turned[None], here.basis_DK, here.centred_ND, here.noise_nD, here.size)
    zero, one = (calibrate(here, turned[:, None], [alpha], 40, np.random.default_rng(0)) for alpha in (0.0, 1.0))
    assert [trial.target for trial in one] == pytest.approx([1] * 40)
    assert [trial.held for trial in one] == pytest.approx([0.64] * 40)
    assert accuracy(one)[0].bias_of_space == pytest.approx(-0.36)
    assert accuracy(one)[0].coverage == 0
    assert accuracy(one)[0].coverage_held == pytest.approx(0.95, abs=0.1)
    assert [trial.found.estimate.value for trial in one] == pytest.approx([0.64] * 40, abs=0.05)
    # w lies outside A; what B holds of it is its part along `away`.
    assert 0 < np.mean([trial.target for trial in zero]) < 0.36
    assert [trial.found.estimate.value for trial in zero] == pytest.approx([0] * 40, abs=0.05)


def test_a_plant_lost_in_noise_fails_the_gate() -> None:
    here = ground(size=0.1, noise=3)
    rows = accuracy(calibrate(here, here.basis_DK, [0.5], 100, np.random.default_rng(0)))
    assert [row.gated for row in rows] == [False, True]
    assert rows[1].draws <= 3


def test_accuracy() -> None:
    def trial(alpha: float, value: float, low: float, high: float, why: str | None = None) -> Trial:
        return Trial(alpha, 0.5, 0.42, Share(Estimate(value, low, high), 9, why))

    near = pytest.approx
    trials = [
        trial(0.4, 0.4, 0.3, 0.45),
        trial(0.4, 0.7, 0.4, 0.9),
        trial(0.4, 0.9, -np.inf, np.inf, "too noisy"),
        trial(0.4, np.nan, -np.inf, np.inf, "too noisy"),
        trial(0.2, 0.9, -np.inf, np.inf, "too noisy"),
    ]
    assert accuracy(trials) == [
        Accuracy(0.4, False, 3, near(0.7 / 3), near(0.78 / 3), near(0.5 / 3), near(-0.08), near(2 / 3), 1.0),
        Accuracy(0.4, True, 2, near(0.15), near(0.15), near(0.05), near(-0.08), 0.5, 1.0),
        Accuracy(0.2, False, 1, near(0.4), near(0.48), near(0.4), near(-0.08), 1.0, 1.0),
        Accuracy(0.2, True, 0, None, None, None, None, None, None),
    ]


def block(base: Loaded, layer: int) -> nn.Module:
    """Return a block, found without the code under test."""
    return base.model.model.layers[layer]  # type: ignore[no-any-return]


@torch.no_grad()
def state(base: Loaded, row: Encoded, later: int, layer: int = 0, plant: FloatArray | None = None) -> FloatArray:
    """Return a row's mean response state, with a plant added after block `layer`."""
    seen: list[torch.Tensor] = []
    added = torch.zeros(WIDTH) if plant is None else torch.from_numpy(plant).float()
    handles = [
        block(base, layer).register_forward_hook(lambda _module, _args, h: h + added),
        block(base, later).register_forward_hook(lambda _module, _args, h: seen.append(h)),
    ]
    base.model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen[0][0, slice(*row.spans["response"])].mean(0).double().numpy()


def test_each_row_has_a_plant_of_its_own(base: Loaded, rows: list[Encoded]) -> None:
    plants = np.random.default_rng(0).standard_normal((3, len(rows), WIDTH))
    got = shifts_later(base.model, rows, 1, 3, plants)
    truth = [[state(base, row, 3, 1, plants[v, i]) - state(base, row, 3) for i, row in enumerate(rows)] for v in range(3)]
    np.testing.assert_allclose(got, truth, atol=1e-4)
    np.testing.assert_allclose(shifts_later(base.model, rows, 2, 2, plants), plants, atol=1e-4)


def test_refuses_plants_that_do_not_fit(base: Loaded, rows: list[Encoded]) -> None:
    with pytest.raises(ValueError, match="a plant at layer 2 does not show at layer 1"):
        shifts_later(base.model, rows, 2, 1, np.zeros((1, len(rows), WIDTH)))
    with pytest.raises(ValueError, match="6 rows need as many plants each time, got 2"):
        shifts_later(base.model, rows, 0, 1, np.zeros((1, 2, WIDTH)))


def test_the_later_curve_is_monotone(base: Loaded, rows: list[Encoded]) -> None:
    here = ground(width=WIDTH, directions=3, prompts=4, size=2, noise=0.3)
    curve = later_curve(base.model, rows[:4], 1, 3, here, here.basis_DK, [0.0, 0.3, 0.6, 1.0], 16, np.random.default_rng(0))
    assert curve.rank_correlation == 1
    assert list(curve.raw) == sorted(curve.raw)
    zero, one = curve.anchors
    # A plant wholly inside the space is not read as wholly inside two blocks on.
    assert zero < 0.15
    assert 0.3 < one < 0.7
    assert curve.scaled == pytest.approx([(f - zero) / (one - zero) for f in curve.raw])
    # Anchors are draws of their own, so that the ends come close to 0 and 1 and do not meet them.
    assert 0 < abs(curve.scaled[0]) < 0.15
    assert 0 < abs(curve.scaled[-1] - 1) < 0.15


def test_a_later_curve_needs_a_shift(base: Loaded, rows: list[Encoded]) -> None:
    here = ground(width=WIDTH, prompts=len(rows), size=1e-3, noise=3)
    with pytest.raises(InputError, match="layer 3: the plants at layer 0 are lost in their noise there"):
        later_curve(base.model, rows, 0, 3, here, here.basis_DK, [0.2, 0.8], 5, np.random.default_rng(0))
