"""The share inside the span of the true directions, on directions and shifts of known truth.

A case has five true directions in 128 dimensions, and of each 12 contrast pairs × 8 questions: noise of the pair, of the question, which
all traits have in common, and of both. The shift is read on 24 prompts, with ‖m‖² about twenty times its noise. Everything that is drawn
has the covariance of activations (eigenvalues i^-1.3).
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats

from wellworn.experiments.simulate.rows import Row
from wellworn.probes.geometry.shift import share_inside
from wellworn.probes.geometry.space import span
from wellworn.probes.geometry.true_share import true_share
from wellworn.probes.statistics.intervals import FloatArray

RELIABILITIES = (0.6, 0.75, 0.85, 0.95)
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
DIRECTIONS, PAIRS, QUESTIONS, PROMPTS, WIDTH = 5, 12, 8, 24, 128
SLOPE, SIGNAL = 1.3, 20.0
# Parts of the noise of a direction's mean.
OF_PAIR, OF_QUESTION, OF_BOTH = 0.6, 0.15, 0.25

LARGEST_BIAS = 0.05
LEAST_COVERAGE = 0.90
CLAIMED_FROM = 0.5


def simulate_true_shares(
    repeats: int, seed: int, reliabilities: Sequence[float] = RELIABILITIES, shares: Sequence[float] = SHARES
) -> list[Row]:
    """Return one row per cell of the grid.

    Args:
        repeats: cases for each cell.
        seed: random seed of all draws.
        reliabilities: expected cosine of halves of the contrast pairs.
        shares: true shares of the shift inside the span of the true directions.

    Returns:
        Rows with the cell's settings and: `reported`, the fraction of cases that are not refused; `bias`, its standard error, `coverage`
        of the true share and the median `width` over these, None where there are none; `measured_bias`, that of the share inside the
        measured space, over all.
    """
    rows = []
    cells = list(product(reliabilities, shares))
    for (reliability, share), stream in zip(cells, np.random.SeedSequence(seed).spawn(len(cells)), strict=True):
        rng = np.random.default_rng(stream)
        found, measured = [], []
        for _ in range(repeats):
            differences, contrasts = draw(rng, reliability, share)
            measured.append(share_inside(differences, span(contrasts.mean((1, 2)))).estimate.value)
            estimate = true_share(differences, list(contrasts), ["all"] * DIRECTIONS).estimate
            if estimate:
                found.append((estimate.value, estimate.low, estimate.high))
        settings = {"reliability": reliability, "share": share, "repeats": repeats}
        rows.append(settings | _summary(share, np.reshape(found, (-1, 3)), repeats) | {"measured_bias": float(np.mean(measured)) - share})
    return rows


def missed_targets(row: Row) -> list[str]:
    """Return in words the targets that a row misses; none are set where fewer than half of the cases are reported."""
    if row["reported"] < CLAIMED_FROM:
        return []
    out = []
    if abs(row["bias"]) > LARGEST_BIAS:
        out.append(f"bias {row['bias']:+.3f}, {LARGEST_BIAS} at most")
    if row["coverage"] < LEAST_COVERAGE:
        out.append(f"coverage {row['coverage']:.3f}, {LEAST_COVERAGE:.2f} or more")
    return out


def draw(rng: np.random.Generator, reliability: float, share: float) -> tuple[FloatArray, FloatArray]:
    """Draw one case: differences [prompts, d_model] and contrasts [traits, pairs, questions, d_model]."""
    scale = np.arange(1, WIDTH + 1.0) ** (-SLOPE / 2)
    scale /= np.linalg.norm(scale)
    vectors = scale * rng.standard_normal((DIRECTIONS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # A half has twice the noise of the whole, so that its cosine with the other is 1/(1 + 2·noise).
    noise = (1 / reliability - 1) / 2
    contrasts = vectors[:, None, None] + sum(
        scale * rng.standard_normal((*shape, WIDTH)) * (noise * part * count) ** 0.5
        for part, count, shape in (
            (OF_PAIR, PAIRS, (DIRECTIONS, PAIRS, 1)),
            (OF_QUESTION, QUESTIONS, (1, 1, QUESTIONS)),
            (OF_BOTH, PAIRS * QUESTIONS, (DIRECTIONS, PAIRS, QUESTIONS)),
        )
    )
    basis = span(vectors)
    inside, outside = basis @ rng.standard_normal(DIRECTIONS), scale * rng.standard_normal(WIDTH)
    outside -= basis @ (basis.T @ outside)
    mean = share**0.5 * inside / np.linalg.norm(inside) + (1 - share) ** 0.5 * outside / np.linalg.norm(outside)
    return mean + scale * rng.standard_normal((PROMPTS, WIDTH)) * (PROMPTS / SIGNAL) ** 0.5, np.asarray(contrasts)


def _summary(share: float, found: FloatArray, repeats: int) -> Row:
    """Return the numbers of one cell from (value, low, high) of the cases that are reported."""
    row: Row = {"reported": len(found) / repeats}
    if len(found) < 2:
        return row | dict.fromkeys(("bias", "bias_error", "coverage", "width"))
    value, low, high = found.T
    return row | {
        "bias": float(value.mean()) - share,
        "bias_error": float(stats.sem(value)),
        "coverage": float(((low <= share) & (share <= high)).mean()),
        "width": float(np.median(high - low)),
    }
