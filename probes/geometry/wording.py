"""A direction less what it does to some words by itself.

A persona's direction may carry a change because it makes the persona's words likelier, and not because of anything that later blocks make
of it. The logit of token t is w_t · norm(h), with h the final state and w_t its row of the head: up to a factor (γ ⊙ w_t) · h/‖h‖. So the
rows γ ⊙ w_t of a persona's words span all that a direction can do to them directly. It is tried again with this span taken out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.geometry.space import RANK_TOLERANCE
from wellworn.probes.reading.layers import decoder_blocks, unwrap
from wellworn.probes.statistics.intervals import FloatArray


@torch.no_grad()
def word_rows(model: nn.Module, ids: Sequence[int]) -> FloatArray:
    """Return the directions of the final state that change the logits of some tokens, γ ⊙ w_t: [tokens, d_model], float64.

    Args:
        model: a causal LM, wrapped or not.
        ids: of the tokens.

    Raises:
        InputError: the model has no norm between its blocks and its head.
    """
    inner = unwrap(model)
    head = inner.get_output_embeddings().weight[list(ids)].float()
    return np.asarray((head * _norm_scale(inner, head.shape[1]).to(head.device)).double().cpu().numpy())


def _norm_scale(inner: nn.Module, width: int) -> torch.Tensor:
    """Return γ of the norm before the head, whatever the model calls it and however it keeps it (Gemma's is 1 + weight)."""
    inside = {id(module) for block in decoder_blocks(inner) for module in block.modules()}
    norms = [
        module
        for module in inner.modules()
        if id(module) not in inside and "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None
    ]
    if not norms:
        raise InputError(f"{type(inner).__name__}: no norm was found between the blocks and the head")
    weight: torch.Tensor = norms[-1].get_parameter("weight")
    # Of mean 0 and variance 1, so that RMS and layer norms only scale it; a bias cancels.
    signs = torch.ones(width, dtype=weight.dtype, device=weight.device)
    signs[1::2] = -1
    scale: torch.Tensor = (norms[-1](signs) - norms[-1](-signs)) / 2 / signs
    return scale.float()


def without_rows(vectors_ND: FloatArray, rows_TD: FloatArray) -> FloatArray:
    """Return vectors less their parts in the span of some rows.

    Args:
        vectors_ND: [N, d_model].
        rows_TD: [tokens, d_model]; rows within rounding of the others' span count once. A vector within rounding of that span becomes zero.
    """
    if not len(rows_TD):
        return vectors_ND
    _, values, axes_TD = np.linalg.svd(rows_TD, full_matrices=False)
    axes_TD = axes_TD[values > RANK_TOLERANCE * values[0]]
    rest_ND = vectors_ND - (vectors_ND @ axes_TD.T) @ axes_TD
    norms, before = (np.linalg.norm(each, axis=1, keepdims=True) for each in (rest_ND, vectors_ND))
    return np.where(norms > RANK_TOLERANCE * before, rest_ND, 0.0)
