"""The share F on synthetic shifts with a known true share: bias, coverage, and how often it passes the gates.

Prompts shift by dᵢ = m + eᵢ. The noise has a power-law spectrum, i^-1 or i^-1.6. The space is spanned by draws from the
noise's own covariance, as persona spaces lie in directions of high variance. m has its share along a random unit vector of
the space, and the rest along (I − P)Σ^½g.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from wellworn.experiments.simulate.rows import Row
from wellworn.probes.geometry.shift import Products, share_of, spread
from wellworn.probes.statistics.intervals import FloatArray

SHARES = (0.0, 0.3, 0.6, 0.9)
SIGNALS = (4.0, 5.0, 7.0, 10.0, 20.0, 100.0)
PROMPTS = (20, 80, 320)
WIDTHS = (128, 576)
SLOPES = (1.0, 1.6)
RANK = 6

LARGEST_BIAS = 0.03
COVERAGE = (0.93, 0.98)
COVERAGE_AT_ZERO = (0.90, 0.99)
CLAIMED_FROM = 0.5


@dataclass(frozen=True)
class Noise:
    """One draw of noise and space as products; a shift of any size and share is added without new draws.

    Attributes:
        products: of the noise alone.
        toward: [2, prompts], the noise along the shift's unit vector inside the space, and along that outside.
    """

    products: Products
    toward: FloatArray

    def add_shift(self, share: float, squared: float) -> Products:
        """Return the products of d = m + e, where ‖m‖² is `squared`, and a given share of it is inside the space.

        With a length ℓ along a unit vector t, ‖dᵢ‖² = ‖eᵢ‖² + 2ℓ·eᵢᵀt + ℓ². A shift does not change the spread.
        """
        e, n = self.products, self.toward.shape[1]
        length = np.sqrt(squared * np.array([[share], [1 - share]]))
        squares = e.squares + 2 * length * self.toward + length**2
        along = e.along + length * (n * self.toward + self.toward.sum(1, keepdims=True)) + n * length**2
        return Products(squares, along, e.spread)


def draw(rng: np.random.Generator, prompts: int, scale_D: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw noise [prompts, d_model], a space [d_model, RANK], and unit vectors [2, d_model] inside and outside it."""
    width = len(scale_D)
    basis = np.linalg.qr(scale_D[:, None] * rng.standard_normal((width, RANK)))[0]
    outside = scale_D * rng.standard_normal(width)
    units = np.stack([basis @ rng.standard_normal(RANK), outside - basis @ (basis.T @ outside)])
    noise = rng.standard_normal((prompts, width)) * scale_D
    return noise, basis, units / np.linalg.norm(units, axis=1, keepdims=True)


def noise_of(noise_nD: FloatArray, basis_DK: FloatArray, units_2D: FloatArray) -> Noise:
    """Convert a draw to products."""
    inside = noise_nD @ basis_DK
    gram = np.stack([part @ part.T for part in (inside, noise_nD - inside @ basis_DK.T)])
    centring = np.eye(len(noise_nD)) - 1 / len(noise_nD)
    squares, along = np.diagonal(gram, axis1=1, axis2=2), gram.sum(2)
    return Noise(Products(squares, along, spread(centring @ gram @ centring)), units_2D @ noise_nD.T)


def simulate_shares(
    repeats: int,
    seed: int,
    prompts: Sequence[int] = PROMPTS,
    widths: Sequence[int] = WIDTHS,
    slopes: Sequence[float] = SLOPES,
    shares: Sequence[float] = SHARES,
    signals: Sequence[float] = SIGNALS,
) -> list[Row]:
    """Return one row per cell of the grid. Cells that differ only in share or signal have the same noise.

    Args:
        repeats: draws of noise, space and shift for each cell.
        seed: random seed of all draws.
        prompts: numbers of prompts n.
        widths: values of d_model.
        slopes: exponents a of the noise spectrum i^-a.
        shares: true shares.
        signals: true ‖m‖² over trΣ/n. The gate's value is larger by 1 on average, since m̂ contains the noise.

    Returns:
        Rows with the cell's settings and: `passed`, the fraction that pass all gates; `without`, the fraction with no
        share at all, as D ≤ 0; `bias` and `coverage` over all repeats, and `bias_passed`, `coverage_passed` and the mean
        width `width_passed` over those that pass, or None where none does.
    """
    rows = []
    streams = np.random.SeedSequence(seed).spawn(len(prompts) * len(widths) * len(slopes))
    for (n, width, slope), stream in zip(product(prompts, widths, slopes), streams, strict=True):
        rng = np.random.default_rng(stream)
        cells = list(product(shares, signals))
        outcomes = np.empty((len(cells), repeats, 4))
        scale = np.arange(1, width + 1.0) ** (-slope / 2)
        for repeat in range(repeats):
            noise = noise_of(*draw(rng, n, scale))
            for cell, (share, signal) in enumerate(cells):
                found = share_of(noise.add_shift(share, signal * (scale**2).sum() / n))
                e = found.estimate
                outcomes[cell, repeat] = e.value, e.low, e.high, found.why is None
        for (share, signal), outcome in zip(cells, outcomes, strict=True):
            settings = {"prompts": n, "d_model": width, "slope": slope, "share": share, "signal": signal, "repeats": repeats}
            rows.append(settings | _summary(share, outcome))
    return rows


def missed_targets(row: Row) -> list[str]:
    """Return in words the targets that a row misses; none are set where fewer than half of the repeats pass."""
    if row["passed"] < CLAIMED_FROM:
        return []
    low, high = COVERAGE_AT_ZERO if row["share"] == 0 else COVERAGE
    out = []
    if abs(row["bias_passed"]) > LARGEST_BIAS:
        out.append(f"bias {row['bias_passed']:+.3f}, {LARGEST_BIAS} at most")
    if not low <= row["coverage_passed"] <= high:
        out.append(f"coverage {row['coverage_passed']:.3f}, {low} to {high}")
    return out


def _summary(share: float, outcomes: FloatArray) -> Row:
    """Return the numbers of one cell from its outcomes [repeats, (value, low, high, passed)]."""
    value, low, high, passed = outcomes.T
    known, gate = np.isfinite(value), passed.astype(bool)
    covered = (low <= share) & (share <= high)
    return {
        "passed": float(gate.mean()),
        "without": float(1 - known.mean()),
        "bias": float(value[known].mean()) - share if known.any() else None,
        "coverage": float(covered.mean()),
        "bias_passed": float(value[gate].mean()) - share if gate.any() else None,
        "coverage_passed": float(covered[gate].mean()) if gate.any() else None,
        "width_passed": float((high - low)[gate].mean()) if gate.any() else None,
    }
