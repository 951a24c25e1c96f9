"""Running means and covariances of token states: a d × d matrix, never the activations behind it."""

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the tokens in each span at each layer.

    Attributes:
        count: float64 [spans], number of tokens.
        mean: float64 [layers, spans, d_model].
        covariance: float64 [layers, spans, d_model, d_model], over count − 1.
    """

    count: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor


class MomentSums:
    """Sums of states and of their outer products, batch by batch.

    Within a batch products are taken in float32 of the differences from a fixed reference, the mean of what the first
    batch counts, and added up in float64: sums of raw squares would lose the covariance of a stream whose mean is large.

    Args:
        layers: how many layers are read.
        spans: how many spans.
        width: d_model.
        device: where ranks add up what they have.
    """

    def __init__(self, layers: int, spans: int, width: int, device: torch.device) -> None:
        self._shape, self._device = (layers, spans, width), device
        # One tensor a layer, on the device that the layer is on.
        self._reference: dict[int, torch.Tensor] = {}
        self._count: dict[int, torch.Tensor] = {}
        self._first: dict[int, torch.Tensor] = {}
        self._second: dict[int, torch.Tensor] = {}

    def add(self, slot: int, h_BTD: torch.Tensor, counts_BST: torch.Tensor) -> None:
        """Add tokens of one layer: float32 states, and how many times each token counts in each span."""
        _, spans, width = self._shape
        h_XD = h_BTD.flatten(0, 1)
        counts_SX = counts_BST.to(h_XD.device).transpose(0, 1).flatten(1)
        if slot not in self._reference:
            weights_X = counts_SX.sum(0)
            self._reference[slot] = weights_X @ h_XD / weights_X.sum().clamp(min=1)
            self._count[slot] = h_XD.new_zeros(spans, dtype=torch.float64)
            self._first[slot] = h_XD.new_zeros(spans, width, dtype=torch.float64)
            self._second[slot] = h_XD.new_zeros(spans, width, width, dtype=torch.float64)
        h_XD = h_XD - self._reference[slot]
        self._count[slot] += counts_SX.sum(1)
        self._first[slot] += counts_SX @ h_XD
        for s in range(spans):
            self._second[slot][s] += (counts_SX[s, :, None] * h_XD).T @ h_XD

    def result(self) -> Moments:
        """Return the moments of all tokens added, on all ranks together."""
        layers, spans, width = self._shape
        count = torch.zeros(spans, dtype=torch.float64)
        first = torch.zeros(layers, spans, width, dtype=torch.float64)
        second = torch.zeros(layers, spans, width, width, dtype=torch.float64)
        for slot, reference in self._reference.items():
            r, n, x = reference.double().cpu(), self._count[slot].cpu(), self._first[slot].cpu()
            # Σ(x+r)(x+r)ᵀ: ranks have references of their own, so they meet in sums about zero.
            count = n
            first[slot] = x + n[:, None] * r
            cross = x[:, :, None] * r
            second[slot] = self._second[slot].cpu() + cross + cross.mT + n[:, None, None] * torch.outer(r, r)
        if dist.is_initialized() and dist.get_world_size() > 1:
            flat = torch.cat([count, first.flatten(), second.flatten()]).to(self._device)
            dist.all_reduce(flat)
            flat = flat.cpu()
            count = flat[:spans]
            first, second = flat[spans : spans + first.numel()].view_as(first), flat[spans + first.numel() :].view_as(second)
        mean = first / count[:, None]
        centred = second - count[:, None, None] * mean[..., :, None] * mean[..., None, :]
        return Moments(count, mean, centred / (count - 1).clamp(min=1)[:, None, None])
