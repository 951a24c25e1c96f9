"""Planted changes: shifts of activations whose share inside the persona space is known.

A measurement is trusted once it recovers a known change. A plant is a shift: the share α lies along a persona direction u, and the rest
along a direction w outside the persona space. Its size and noise are those of a real run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from scipy import stats
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.geometry.shift import Share, share_inside
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.hooks import OnBlock
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray

# σ of the log-normal gain with which prompts take up a plant.
GAIN = 0.5


@dataclass(frozen=True)
class Ground:
    """The ingredients of planted changes at a layer.

    Attributes:
        directions_RD: [R, d_model], persona directions; u is one of them.
        basis_DK: [d_model, k], orthonormal; w lies outside of its span P.
        centred_ND: [N, d_model], centred activations, whose covariance Σ gives w ∝ (I−P)Σ^½g.
        noise_nD: [n, d_model], a neutral run's shifts, one row a prompt; only what differs between prompts is used.
        size: c, the norm of a real run's mean shift.
    """

    directions_RD: FloatArray
    basis_DK: FloatArray
    centred_ND: FloatArray
    noise_nD: FloatArray
    size: float

    def axes(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw the unit vectors u and w."""
        u_D = self.directions_RD[rng.integers(len(self.directions_RD))]
        w_D = rng.standard_normal(len(self.centred_ND)) @ self.centred_ND
        w_D = w_D - self.basis_DK @ (self.basis_DK.T @ w_D)
        return u_D / np.linalg.norm(u_D), w_D / np.linalg.norm(w_D)

    def plant(self, alpha: float, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw u, w and the prompts' gains and noise; return the plant's noiseless direction [d_model] and its shifts [n, d_model]."""
        u_D, w_D = self.axes(rng)
        return mix_directions(u_D, w_D, alpha), planted_shifts(u_D, w_D, alpha, self.size, self.noise_nD, rng)


def mix_directions(u_D: FloatArray, w_D: FloatArray, alpha: float) -> FloatArray:
    """Return √α·u + √(1−α)·w; α of its squared norm lies along u (for α·u + (1−α)·w it would be α²/(α² + (1−α)²)).

    Args:
        u_D: [d_model], of unit norm.
        w_D: [d_model], of unit norm.
        alpha: between 0 and 1.

    Raises:
        ValueError: `alpha` is out of range, or a vector is not of unit norm.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha lies between 0 and 1, got {alpha}")
    for name, x in (("u", u_D), ("w", w_D)):
        if not np.isclose(np.linalg.norm(x), 1):
            raise ValueError(f"{name} has unit norm, got {np.linalg.norm(x):.3g}")
    return np.asarray(np.sqrt(alpha) * u_D + np.sqrt(1 - alpha) * w_D)


def planted_shifts(
    u_D: FloatArray, w_D: FloatArray, alpha: float, size: float, noise_nD: FloatArray, rng: np.random.Generator, gain: float = GAIN
) -> FloatArray:
    """Return one planted shift a prompt, bᵢ = gᵢ·c·(√α·u + √(1−α)·w) + εᵢ.

    Args:
        u_D: [d_model], of unit norm.
        w_D: [d_model], of unit norm.
        alpha: the true share, where u lies inside the space and w outside.
        size: c.
        noise_nD: [n, d_model], shifts of a neutral run; εᵢ is drawn from them with replacement, less their mean.
        rng: draws gains and noise.
        gain: σ of the log-normal gᵢ, whose mean is 1.

    Returns:
        [n, d_model].

    Raises:
        ValueError: as `mix_directions`.
    """
    n = len(noise_nD)
    gains_n = np.exp(gain * rng.standard_normal(n) - gain**2 / 2)
    noise = noise_nD - noise_nD.mean(0)
    return np.asarray(size * gains_n[:, None] * mix_directions(u_D, w_D, alpha) + noise[rng.integers(n, size=n)])


@dataclass(frozen=True)
class Trial:
    """One plant, and the estimate of its share.

    Attributes:
        alpha: α.
        target: the share of the noiseless plant in a space that was made of other questions and contrast pairs.
        held: its share in the space that is searched.
        found: F̂, its interval and its gate.
    """

    alpha: float
    target: float
    held: float
    found: Share


@dataclass(frozen=True)
class Accuracy:
    """How well the share of plants was found; None where no draw counts.

    Attributes:
        alpha: α.
        gated: only plants that passed the gate count.
        draws: how many count. Without the gate, those whose share cannot be computed (nothing is left of them once
            their noise is taken out) are not among them.
        error: mean |F̂ − target|.
        error_held: mean |F̂ − held|, the error relative to the plant's share in the space that is searched.
        bias: mean of F̂ − target.
        bias_of_space: the part of it that comes from the space: mean of held − target.
        coverage: how many of the intervals hold the target.
        coverage_held: how many of the intervals hold `held`.
    """

    alpha: float
    gated: bool
    draws: int
    error: float | None
    error_held: float | None
    bias: float | None
    bias_of_space: float | None
    coverage: float | None
    coverage_held: float | None


def calibrate(ground: Ground, other_DK: FloatArray, alphas: Sequence[float], draws: int, rng: np.random.Generator) -> list[Trial]:
    """Plant changes and measure their share, as `shift.share_inside` measures a real run's.

    The plant's persona direction comes from one half of the questions and contrast pairs (half B), and the space that is searched comes
    from the other (half A). So the target is not α, but the share of the noiseless plant b in the space of half B, ‖P₂b‖²/‖b‖². An estimate
    that is right only for directions that made the space misses it.

    Args:
        ground: with `directions_RD` from half B, and in `basis_DK` the space P of half A.
        other_DK: [d_model, k], orthonormal: the space P₂ of half B.
        alphas: shares to plant.
        draws: of u, w and prompts for each α.
        rng: draws them.

    Returns:
        `draws` trials for each α in turn.
    """
    trials = []
    for alpha in alphas:
        for _ in range(draws):
            b_D, shifts_nD = ground.plant(alpha, rng)
            target, held = (float(np.sum((b_D @ basis_DK) ** 2) / (b_D @ b_D)) for basis_DK in (other_DK, ground.basis_DK))
            trials.append(Trial(alpha, target, held, share_inside(shifts_nD, ground.basis_DK)))
    return trials


def accuracy(trials: Sequence[Trial]) -> list[Accuracy]:
    """Return the accuracy of estimates at each α, for all plants and for those that passed the gate."""
    out = []
    for alpha in dict.fromkeys(trial.alpha for trial in trials):
        for gated in (False, True):
            some = [t for t in trials if t.alpha == alpha and (t.found.why is None or not gated) and np.isfinite(t.found.estimate.value)]
            means: list[float | None] = [fmean(column) for column in zip(*map(_misses, some), strict=True)] or [None] * 6
            out.append(Accuracy(alpha, gated, len(some), *means))
    return out


def _misses(trial: Trial) -> tuple[float, ...]:
    e = trial.found.estimate
    miss = e.value - trial.target
    return (
        abs(miss),
        abs(e.value - trial.held),
        miss,
        trial.held - trial.target,
        e.low <= trial.target <= e.high,
        e.low <= trial.held <= e.high,
    )


@dataclass(frozen=True)
class LaterCurve:
    """Shares at a later layer of changes planted at an earlier one; no true share is known there.

    Attributes:
        alphas: the planted shares.
        raw: F̄(α), the mean over draws of the share at the later layer.
        anchors: F̄(0) and F̄(1), from draws of their own.
        scaled: α̂ = (F̄(α) − F̄(0)) / (F̄(1) − F̄(0)) by those anchors.
        rank_correlation: Spearman's, between α and F̄(α); 1 where the curve is monotone.
    """

    alphas: Sequence[float]
    raw: Sequence[float]
    anchors: tuple[float, float]
    scaled: Sequence[float]
    rank_correlation: float


def shifts_later(
    model: nn.Module, rows: Sequence[Encoded], layer: int, later: int, plants_VnD: FloatArray, span: str = "response"
) -> FloatArray:
    """Return the shifts at a later layer that plants at one layer cause.

    A plant is added to the residual stream at all tokens of its row. An edit sees a batch and not its rows, so each row
    is read by itself, with all plants: blocks up to the first layer are computed once.

    Args:
        model: a causal LM in eval mode; adapters are off.
        rows: [n], one a prompt.
        layer: where plants are added.
        later: where states are read; no lower.
        plants_VnD: [V, n, d_model], V plants for each row.
        span: name in `Encoded.spans`, over which states are averaged.

    Returns:
        [V, n, d_model], changed minus base.

    Raises:
        InputError: as `probes.reading.capture.stream`.
        ValueError: `later` is below `layer`, or there is not one plant a row.
    """
    if later < layer:
        raise ValueError(f"a plant at layer {layer} does not show at layer {later}")
    if plants_VnD.shape[1] != len(rows):
        raise ValueError(f"{len(rows)} rows need as many plants each time, got {plants_VnD.shape[1]}")
    spec = Spec(layers=[later], spans=[span])
    shifts_VnD = np.empty(plants_VnD.shape)
    for i, row in enumerate(rows):
        variants = [Variant(), *(Variant(edits={layer: _add_plant(plant_D)}) for plant_D in plants_VnD[:, i])]
        before, *after = (reading.states[0, 0, 0].double().numpy() for reading in read_variants(model, [row], variants, spec))
        shifts_VnD[:, i] = np.stack(after) - before
    return shifts_VnD


def later_curve(
    model: nn.Module,
    rows: Sequence[Encoded],
    layer: int,
    later: int,
    ground: Ground,
    later_DK: FloatArray,
    alphas: Sequence[float],
    draws: int,
    rng: np.random.Generator,
    span: str = "response",
) -> LaterCurve:
    """Plant changes at one layer and take their share in the persona space of a later layer.

    Blocks transform a plant, so it has no true share above them: one that lies wholly inside the space comes out partly outside. So the
    curve is only compared with its own ends, and no accuracy is claimed for it.

    Args:
        model: as in `shifts_later`, whose errors may also be raised.
        rows: one a prompt, as many as `ground.noise_nD` has.
        layer: where plants are added.
        later: where their share is taken.
        ground: at `layer`.
        later_DK: [d_model, k], orthonormal: the persona space at `later`.
        alphas: shares to plant, at least two.
        draws: of u, w, gains and noise; as many others for the anchors.
        rng: draws them.
        span: over which states are averaged.

    Raises:
        InputError: a share cannot be computed, or the anchors are equal.
    """
    own, anchors = rng.integers(2**63, size=(2, draws))
    # One set of draws for all α, so that only α differs along the curve.
    plan = [(0.0, anchors), (1.0, anchors), *((alpha, own) for alpha in alphas)]
    planted_VnD = np.stack([ground.plant(alpha, np.random.default_rng(seed))[1] for alpha, seeds in plan for seed in seeds])
    shares = [share_inside(shift_nD, later_DK).estimate.value for shift_nD in shifts_later(model, rows, layer, later, planted_VnD, span)]
    zero, one, *raw = np.reshape(shares, (-1, draws)).mean(1).tolist()
    if not np.isfinite([zero, one, *raw]).all() or zero == one:
        raise InputError(
            f"layer {later}: the plants at layer {layer} are lost in their noise there; plant larger ones, or read more prompts"
        )
    scaled = [(f - zero) / (one - zero) for f in raw]
    return LaterCurve(alphas, raw, (zero, one), scaled, float(stats.spearmanr(alphas, raw).statistic))


def _add_plant(plant_D: FloatArray) -> OnBlock:
    plant = torch.from_numpy(plant_D)
    return lambda h_BTD: h_BTD + plant.to(h_BTD)
