"""What share chance would give.

N1, the default null, asks: had the same number of directions been drawn from the very covariance of the
activations that made the space, without any link to personas, and been passed through the function that
makes the space, what share of this shift would they have held? N0 draws them isotropically; it rejects
almost always and is printed for comparison only.
"""

from dataclasses import dataclass

import numpy as np

from probes.shift import debiased_norms
from probes.stats import Estimate, FloatArray

DRAWS = 999


@dataclass(frozen=True)
class NullShare:
    """How an observed share compares with a null.

    Attributes:
        mean: expected share under the null.
        high: its 95 % quantile.
        p: (1 + #{draws ≥ observed}) / (1 + draws).
        effect: F* = (F − mean)/(1 − mean), with F's interval carried along.
    """

    mean: float
    high: float
    p: float
    effect: Estimate


@dataclass(frozen=True)
class Null:
    """One set of draws, shared by all layers and runs.

    Attributes:
        draws: B.
        seed: of the draws; equal seeds give equal draws.
        isotropic: N0 instead of N1.
    """

    seed: int
    draws: int = DRAWS
    isotropic: bool = False

    def vectors(self, centred_ND: FloatArray, count: int) -> FloatArray:
        """Draw pseudo-directions Σ^½g as XᵀG, X the centred activations over √N.

        Args:
            centred_ND: [N, d_model], centred activations at a layer.
            count: R, as many as made the space.

        Returns:
            [draws, R, d_model]. The same G serves every layer that has the same N.
        """
        n, width = centred_ND.shape
        rng = np.random.default_rng(self.seed)
        if self.isotropic:
            return rng.standard_normal((self.draws, count, width), dtype=np.float32).astype(np.float64)
        g = rng.standard_normal((self.draws * count, n), dtype=np.float32)
        x = (centred_ND / np.sqrt(n)).astype(np.float32)
        return np.asarray((g @ x).reshape(self.draws, count, width), dtype=np.float64)


def null_shares(differences_nD: FloatArray, vectors_BRD: FloatArray) -> FloatArray:
    """Return the debiased share of a shift inside the span of each draw.

    For a span with basis W (not orthonormal), tr((WᵀW)⁻¹ WᵀMW) with M = mmᵀ − Σ̂/n is the numerator N, so
    that no draw needs an SVD of its own.

    Args:
        differences_nD: [prompts, d_model].
        vectors_BRD: [draws, R, d_model].

    Returns:
        [draws]; NaN where nothing is left of the shift once its noise is taken out.
    """
    n = len(differences_nD)
    total = debiased_norms(differences_nD)[0]
    if total <= 0:
        return np.full(len(vectors_BRD), np.nan)
    mean = differences_nD.mean(0)
    centred = (differences_nD - mean) / np.sqrt((n - 1) * n)
    w = vectors_BRD / np.linalg.norm(vectors_BRD, axis=2, keepdims=True)
    along = w @ mean
    spread = w @ centred.T
    m = along[:, :, None] * along[:, None, :] - spread @ spread.transpose(0, 2, 1)
    gram = w @ w.transpose(0, 2, 1)
    numerator = np.trace(np.linalg.solve(gram, m), axis1=1, axis2=2)
    return np.asarray(numerator / total)


def compare(share: Estimate, null: FloatArray) -> NullShare:
    """Hold an observed share against a null's draws; a share that is NaN gets p = 1."""
    mean = float(null.mean())
    p = (1 + int((~(null < share.value)).sum())) / (1 + len(null))
    bounds = [(x - mean) / (1 - mean) for x in (share.value, share.low, share.high)]
    return NullShare(mean, float(np.quantile(null, 0.95)), p, Estimate(*bounds))
