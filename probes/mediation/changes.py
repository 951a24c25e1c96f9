"""The directions in which a model's states change most, token by token: the best that a space of so many directions may carry.

They are taken from the change itself, h1 − h0 on the answers of some texts, and tried on other texts: a ceiling for directions that come
from the base alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from wellworn.probes.mediation.paired_states import Batching, Texts, pair_batches
from wellworn.probes.reading.across_ranks import place, sum_over_ranks
from wellworn.probes.reading.layers import text_config
from wellworn.probes.reading.variants import Variant


@dataclass(frozen=True, eq=False)
class Changes:
    """The moments of token-wise changes at some layers.

    Attributes:
        tokens: number of answer tokens that they are over.
        means: layer → mean change [d_model].
        moments: layer → uncentred second moment [d_model, d_model], E[(h1 − h0)(h1 − h0)ᵀ].
    """

    tokens: int
    means: Mapping[int, torch.Tensor]
    moments: Mapping[int, torch.Tensor]

    def mean_direction(self, layer: int) -> torch.Tensor | None:
        """Return the unit vector along the mean change as a basis [d_model, 1]; None where nothing changes on average."""
        return unit_basis(self.means[layer])

    def leading(self, layer: int, k: int) -> torch.Tensor | None:
        """Return the k leading principal directions of the uncentred change, or all if it has fewer, [d_model, ≤ k]; None without any."""
        values, vectors = torch.linalg.eigh(self.moments[layer])
        if not values[-1] > 0:
            return None
        there = int((values > values[-1] * 1e-10).sum())
        leading: torch.Tensor = vectors[:, -min(k, there) :].flip(1)
        return leading


def unit_basis(vector_D: torch.Tensor) -> torch.Tensor | None:
    """Return a vector's direction as a basis [d_model, 1]; None for a zero vector."""
    norm = vector_D.norm()
    return (vector_D / norm)[:, None] if norm > 0 else None


def state_changes(model: nn.Module, texts: Texts, between: tuple[Variant, Variant], layers: Sequence[int], batching: Batching) -> Changes:
    """Return the moments of h1 − h0 over the answers' tokens, in float64 on the CPU; memory is flat in the number of texts.

    The tokens of prompts do not count, nor does the first token, whose states are large and alike in all texts.

    Args:
        model: a causal LM in eval mode, wrapped or not, that holds the adapters.
        texts: what both models read.
        between: M0 and M1.
        layers: where.
        batching: batches.

    Raises:
        InputError: a text that does not fit the model, or a pair whose answers differ.
    """
    device = next(model.parameters()).device
    width = int(text_config(model).hidden_size)
    # One row for the sum and the rest for the second moment, so that ranks add one tensor.
    sums = torch.zeros(len(layers), width + 1, width, dtype=torch.float64)
    count = torch.zeros(1, dtype=torch.float64)
    for members, pair in pair_batches(model, texts, between, sorted(layers), batching):
        if members is None:
            continue
        mask = pair.response_mask(0)
        count += mask.sum().cpu()
        for at, layer in enumerate(layers):
            change = pair.change(layer, mask)
            sums[at, 0] += change.sum(0).double().cpu()
            sums[at, 1:] += (change.T @ change).double().cpu()
    if place()[1] > 1:
        both = sum_over_ranks(torch.cat([sums.flatten(), count]), device)
        sums, count = both[:-1].view_as(sums), both[-1:]
    tokens = int(count.item())
    # In place, since the moments of a wide and deep model take gigabytes.
    sums /= tokens
    return Changes(
        tokens,
        {layer: sums[at, 0] for at, layer in enumerate(layers)},
        {layer: sums[at, 1:] for at, layer in enumerate(layers)},
    )
