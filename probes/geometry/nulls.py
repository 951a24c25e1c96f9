"""Null distributions of a share.

N1, the default null, draws as many directions as made the space, from the covariance of the activations that made it, without any link to
personas. They pass through the function that makes the space; the share of the shift inside the result is a draw. N0 draws directions
isotropically; it rejects almost always and is printed for comparison only. N2, N3 and N5 put other vectors through the same function: the
directions of instructions that are not personas, the differences of half samples, and other personas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wellworn.probes.geometry.shift import debiased_norms
from wellworn.probes.geometry.space import Members, coefficients
from wellworn.probes.limits import NULL_DRAWS
from wellworn.probes.statistics.intervals import Estimate, FloatArray

# The part of a shift that chance must leave.
LEAST_BEYOND = 0.02
# Numbers held at a time while spaces are made, an eighth of a gigabyte in double precision.
BLOCK = 2**24

Float32Array = NDArray[np.float32]


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
    draws: int = NULL_DRAWS
    isotropic: bool = False

    def gaussians(self, count: int, n: int) -> Float32Array:
        """Return G [draws, count, n], standard normal, the same at every call; the last few are kept in memory."""
        return _gaussians(self.seed, self.draws, count, n)

    def vectors(self, centred_ND: FloatArray, count: int) -> FloatArray:
        """Draw pseudo-directions Σ^½g as XᵀG, X the centred activations over √N.

        Args:
            centred_ND: [N, d_model], centred activations at a layer.
            count: R, as many as made the space.

        Returns:
            [draws, R, d_model]. The same G serves every layer that has the same N.
        """
        rows = self._rows(centred_ND)
        return np.asarray(self.gaussians(count, len(rows)) @ rows, dtype=np.float64)

    def spaces(self, centred_ND: FloatArray, members: Members, k: int) -> "NullSpaces":
        """Draw null spaces: as many pseudo-directions as made the real one, through the construction that made it.

        Args:
            centred_ND: [N, d_model], the centred activations that made the real space.
            members: the members of the real space.
            k: its dimensions.

        Raises:
            ValueError: the activations hold too few directions; they do not vary.
        """
        n, width = centred_ND.shape
        if not self.isotropic and not centred_ND.any():
            raise ValueError(f"no null can be drawn: the {n} activations do not vary")
        if not self.isotropic and n <= k:
            raise ValueError(f"no null can be drawn: {n} centred activations hold {n - 1} directions at most, too few for k = {k}")
        rows = self._rows(centred_ND)
        gaussians = self.gaussians(members.count, len(rows))
        mixed = np.empty((self.draws, members.count, k), dtype=np.float32)
        step = max(1, BLOCK // (members.count * width))
        for start in range(0, self.draws, step):
            vectors = (gaussians[start : start + step] @ rows).astype(np.float64)
            mixed[start : start + step] = coefficients(vectors @ vectors.swapaxes(1, 2), members, k)
        return NullSpaces(self, rows, mixed)

    def half_differences(self, states: Sequence[FloatArray]) -> FloatArray:
        """Draw N3, the personas as noise alone would make them: (v^A − v^B)/2 over random halves of their prompts.

        It has the noise of the mean over all prompts, without the part that a persona's prompts have in common.

        Args:
            states: [R][prompts, questions, d_model] at a layer; halves are the same at every layer.

        Returns:
            [draws, R, d_model], for `null_shares`.

        Raises:
            ValueError: a persona has fewer than two prompts.
        """
        if (fewest := min(len(each) for each in states)) < 2:
            raise ValueError(f"half-differences need at least two prompts a persona, got {fewest}")
        rng = np.random.default_rng(self.seed)
        out = []
        for each in states:
            half = len(each) // 2
            signs = np.full(len(each), -0.5 / (len(each) - half))
            signs[:half] = 0.5 / half
            out.append(rng.permuted(np.tile(signs, (self.draws, 1)), axis=1) @ each.mean(1))
        return np.stack(out, axis=1)

    def subsets(self, personas: int, count: int) -> NDArray[np.int64]:
        """Draw N2 or N5: random subsets of instructions, or of other personas, that make a space in place of the real one, [draws, count].

        `null_shares(shift, vectors_RD[subsets], members, k)` gives their shares; subsets are the same at every layer. Where there are
        no more than `draws` subsets, each is taken once, and there are fewer draws.

        Raises:
            ValueError: fewer personas than make a space.
        """
        if count >= personas:
            raise ValueError(f"random subsets of {count} personas need a library of more than {count}, got {personas}")
        if comb(personas, count) <= self.draws:
            return np.array(list(combinations(range(personas), count)))
        rng = np.random.default_rng(self.seed)
        return rng.permuted(np.tile(np.arange(personas), (self.draws, 1)), axis=1)[:, :count]

    def _rows(self, centred_ND: FloatArray) -> Float32Array:
        """Return the matrix that G is multiplied by."""
        n, width = centred_ND.shape
        return np.eye(width, dtype=np.float32) if self.isotropic else (centred_ND / np.sqrt(n)).astype(np.float32)


# One for each of: own-removed and whole space, N1 and N0. Four bytes a number: 999 × 6 × 480 take 11 MB, 999 × 77 × 1,900 take 0.6 GB.
@lru_cache(maxsize=4)
def _gaussians(seed: int, draws: int, count: int, n: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((draws, count, n), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class NullSpaces:
    """The null spaces at one layer, drawn once and compared with any number of shifts.

    A basis is U = VᵀC with V = GX, and only X and C are kept: a share needs the inner products of the bases with the
    shift alone, G(Xm). So a thousand spaces of six directions take 0.1 MB a layer instead of 14, whatever d_model is.
    Single precision: a share is off by at most 5·10⁻⁷ times the ratio of the largest to the smallest singular value of V.

    Attributes:
        null: the draws; its G is the same for all layers.
        rows_ND: [N, d_model], X.
        mixed_BMK: [draws, M, k], C.
    """

    null: Null
    rows_ND: Float32Array
    mixed_BMK: Float32Array

    def shares(self, differences_nD: FloatArray) -> FloatArray:
        """Return the debiased share of a shift [prompts, d_model] inside each of the spaces, [draws].

        Raises:
            ValueError: nothing is left of the shift once its noise is taken out.
        """
        parts_PD, total = _parts(differences_nD)
        along_NP = self.rows_ND @ parts_PD.T.astype(np.float32)
        return _inside(self.mixed_BMK, self._gaussians() @ along_NP) / total

    def bases(self, count: int) -> FloatArray:
        """Return the bases of the first `count` spaces, [count, d_model, k]."""
        vectors = (self._gaussians()[:count] @ self.rows_ND).astype(np.float64)
        return np.asarray(vectors.swapaxes(1, 2) @ self.mixed_BMK[:count])

    def _gaussians(self) -> Float32Array:
        return self.null.gaussians(self.mixed_BMK.shape[1], len(self.rows_ND))


def joint_shares(spaces: Sequence[NullSpaces], differences_nLD: FloatArray) -> FloatArray:
    """Return the null shares at several layers, draw by draw: [draws, layers].

    A row is one draw at all layers with the same number of activations, so that the largest over layers keeps their dependence.

    Args:
        spaces: one for each layer.
        differences_nLD: [prompts, layers, d_model].
    """
    return np.stack([each.shares(differences_nLD[:, at]) for at, each in enumerate(spaces)], axis=1)


def null_shares(differences_nD: FloatArray, vectors_BRD: FloatArray, members: Members | None = None, k: int | None = None) -> FloatArray:
    """Return the debiased share of a shift inside the space that each draw's vectors make.

    Args:
        differences_nD: [prompts, d_model].
        vectors_BRD: [draws, R, d_model].
        members: the kinds of the R vectors; all traits by default.
        k: dimensions; None means all that they span.

    Returns:
        [draws].

    Raises:
        ValueError: nothing is left of the shift once its noise is taken out; or the vectors make no such space.
    """
    parts_PD, total = _parts(differences_nD)
    mixed = coefficients(vectors_BRD @ vectors_BRD.swapaxes(1, 2), members or Members(vectors_BRD.shape[1]), k)
    return _inside(mixed, vectors_BRD @ parts_PD.T) / total


def _parts(differences_nD: FloatArray) -> tuple[FloatArray, float]:
    """Return the mean shift m above the centred differences over √(n(n−1)), [1 + n, d_model], and D of `shift`."""
    n = len(differences_nD)
    total = debiased_norms(differences_nD)[0]
    if total <= 0:
        raise ValueError("no null share: nothing is left of the shift once its noise is taken out")
    mean = differences_nD.mean(0)
    return np.vstack([mean, (differences_nD - mean) / np.sqrt((n - 1) * n)]), total


def _inside(mixed_BMK: NDArray[np.floating], along_BMP: NDArray[np.floating]) -> FloatArray:
    """Return N = ‖Uᵀm‖² − tr(UᵀΣ̂U)/n for each U = VᵀC, given V times each of `_parts`."""
    squared = (mixed_BMK.swapaxes(1, 2) @ along_BMP).astype(np.float64) ** 2
    return np.asarray(squared[..., 0].sum(1) - squared[..., 1:].sum((1, 2)))


def leaves_nothing(null: FloatArray) -> str | None:
    """Return why nothing can be seen beyond a null's draws (they hold nearly all of the shift, or are not finite), else None."""
    mean = float(null.mean())
    if mean <= 1 - LEAST_BEYOND:
        return None
    return f"null spaces hold {mean:.2f} of the shift in the mean, {1 - LEAST_BEYOND:g} at most leave anything beyond chance to be seen"


def compare(share: Estimate, null: FloatArray) -> NullShare:
    """Compare an observed share with a null's draws; a share that is NaN gets p = 1.

    Raises:
        ValueError: `leaves_nothing` says why there is no share beyond such chance.
    """
    if why := leaves_nothing(null):
        raise ValueError(why)
    mean = float(null.mean())
    p = (1 + int((~(null < share.value)).sum())) / (1 + len(null))
    return NullShare(mean, float(np.quantile(null, 0.95)), p, beyond(share, mean))


def beyond(share: Estimate, chance: float) -> Estimate:
    """Return F* = (F − E F_N1)/(1 − E F_N1), the share beyond what chance gives on average: 0 at chance, 1 where all lies inside."""
    return Estimate(*((x - chance) / (1 - chance) for x in (share.value, share.low, share.high)))


@dataclass(frozen=True)
class Rank:
    """The rank of an observed number among a few others.

    Attributes:
        at_least: how many others are as large or larger.
        others: B, how many there are.
        rank: 1 for the largest; ties count against the observed.
        p: (1 + at_least)/(1 + B), which is never below 1/(1 + B).
    """

    at_least: int
    others: int
    rank: int
    p: float


def rank_among(observed: float, others: ArrayLike) -> Rank:
    """Rank an observed share among other readings of the same kind (N2: spaces of instructions; N4: other fine-tunes).

    Raises:
        ValueError: no others, or a number that is not finite.
    """
    values = np.asarray(others, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite([observed, *values]).all():
        raise ValueError(f"a rank needs finite numbers and at least one other; got {observed} among {values.tolist()}")
    at_least = int((values >= observed).sum())
    return Rank(at_least, values.size, 1 + at_least, (1 + at_least) / (1 + values.size))
