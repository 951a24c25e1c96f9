"""Nested spaces: the own persona direction, then what other personas add to it, then what roles add to both.

A part of a change is said to go through a space beyond another one, so each space holds those before it:

    U_1 = span(own),   U_2 = span(own, others),   U_3 = span(own, others, roles)

Chance has the same nesting. A draw is a set of pseudo-directions with the covariance of *averages*: a persona direction is a mean over
questions, so the rows that a draw mixes are states averaged over questions, one a persona and prompt, without those of the run's own
trait. One Gaussian g serves all layers, v_ℓ = X_ℓᵀg/√N, so that a draw is one pseudo-persona at every layer, as a persona is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.probes.geometry.nulls import Null
from wellworn.probes.geometry.space import RANK_TOLERANCE
from wellworn.probes.statistics.intervals import FloatArray


def nested_bases(parts: Sequence[FloatArray]) -> list[FloatArray]:
    """Return one orthonormal basis a part, [d_model, k]: it spans this part and all before it.

    Columns keep their place, so that each basis begins with the one before.

    Args:
        parts: of each space, the vectors [R, d_model] that it adds; their norms do not matter. Vectors within rounding of the space so
            far add nothing.

    Raises:
        ValueError: a vector of zeros.

    Example:
        >>> own, both = nested_bases([np.array([[2.0, 0, 0]]), np.array([[1.0, 1, 0], [3.0, 0, 0]])])
        >>> own.shape, both.shape, float(abs(both[:, 1]).max())
        ((3, 1), (3, 2), 1.0)
    """
    width = parts[0].shape[-1]
    basis, found = np.zeros((width, 0)), []
    for vectors in parts:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not norms.all():
            raise ValueError("no nested spaces: a vector is zero")
        rest = vectors / norms
        # Twice: once leaves a remainder of the order of rounding over the norm of what is left.
        for _ in range(2):
            rest = rest - (rest @ basis) @ basis.T
        _, values, directions = np.linalg.svd(rest, full_matrices=False)
        basis = np.hstack([basis, directions[values > RANK_TOLERANCE].T])
        found.append(basis)
    return found


def chance_vectors(rows: Mapping[int, FloatArray], count: int, draws: int, seed: int) -> dict[int, FloatArray]:
    """Draw sets of pseudo-directions jointly over layers: layer → [draws, count, d_model].

    Args:
        rows: layer → centred states averaged over questions, [N, d_model], the same N at every layer.
        count: directions of a draw.
        draws: B.
        seed: random seed of the draws; equal seeds give equal draws.

    Raises:
        ValueError: layers with unequal numbers of rows, or rows that hold no more directions than a draw needs.
    """
    sizes = {len(each) for each in rows.values()}
    if len(sizes) != 1:
        raise ValueError(f"joint draws need as many rows at every layer, got {sorted(sizes)}")
    if min(sizes) - 1 <= count:
        raise ValueError(f"no chance space can be drawn: {min(sizes)} rows hold too few directions for {count}")
    null = Null(seed, draws=draws)
    return {layer: null.vectors(each, count) for layer, each in rows.items()}
