"""The persona space at a layer: an orthonormal basis of directions that the base model has."""

import numpy as np

from probes.stats import FloatArray

RANK_TOLERANCE = 1e-6


def span(vectors_RD: FloatArray) -> FloatArray:
    """Return the orthonormal basis U of the span of unit-scaled directions.

    With fewer than 12 roles the space is the span of all traits that were found. Rows are scaled to
    unit norm first, so that a direction's size does not decide whether it counts.

    Args:
        vectors_RD: [R, d_model], one row a persona.

    Returns:
        [d_model, k] with k the rank; k = 0 where there are no rows.
    """
    if len(vectors_RD) == 0:
        return np.zeros((vectors_RD.shape[-1], 0))
    rows = vectors_RD / np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    _, sizes, axes = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(axes[sizes > RANK_TOLERANCE * sizes[0]].T)
