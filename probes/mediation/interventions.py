"""Interventions on the state of a model that reads a text: a part of it is set to another model's, or a vector is added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.reading.layers import depth
from wellworn.probes.reading.variants import Variant


@dataclass(frozen=True, eq=False)
class Swap:
    """The part of a state that is set to the other model's.

    Attributes:
        basis_DK: U [d_model, k], orthonormal; None swaps the whole state.
        outside: swap I − UUᵀ in place of UUᵀ.
        scale: s; 1 sets the part, other values give a dose curve.
    """

    basis_DK: torch.Tensor | None = None
    outside: bool = False
    scale: float = 1.0

    def part(self, change: torch.Tensor) -> torch.Tensor:
        """Return s·P·change, in float32, for changes [..., d_model]."""
        if self.basis_DK is None:
            return self.scale * change
        basis = self.basis_DK.to(change.device, torch.float32)
        inside = (change @ basis) @ basis.T
        return self.scale * (change - inside if self.outside else inside)

    def to(self, device: torch.device) -> "Swap":
        """Return the swap with its basis on a device, in float32."""
        return self if self.basis_DK is None else replace(self, basis_DK=self.basis_DK.to(device, torch.float32))


@dataclass(frozen=True, eq=False)
class Push:
    """A fixed vector that is added to the reader's state, wherever a swap would set it; the other model's state plays no part.

    Attributes:
        vector_D: [d_model].
    """

    vector_D: torch.Tensor

    def to(self, device: torch.device) -> "Push":
        """Return the push with its vector on a device, in float32."""
        return Push(self.vector_D.to(device, torch.float32))

    def part(self, change: torch.Tensor) -> torch.Tensor:
        """Return the vector once for each token, in float32, in the shape of changes [..., d_model]."""
        return self.vector_D.to(change.device, torch.float32).expand_as(change)


@dataclass(frozen=True, eq=False)
class Intervention:
    """A reader with swaps or pushes at some layers; with neither it is the unchanged reader.

    Attributes:
        reader: 0 for M0, 1 for M1.
        swaps: layer → the swap or push there.
        first_token: patch the first token alone, where models keep large states that say little about the text.
    """

    reader: int
    swaps: Mapping[int, Swap | Push] = field(default_factory=dict)
    first_token: bool = False

    def to(self, device: torch.device) -> "Intervention":
        """Return the intervention with its bases and vectors on a device, in float32."""
        return replace(self, swaps={layer: swap.to(device) for layer, swap in self.swaps.items()})


def swapped_layers(model: nn.Module, between: tuple[Variant, Variant], arms: Sequence[Intervention]) -> list[int]:
    """Return the layers where any arm swaps or pushes, lowest first.

    Raises:
        InputError: a layer out of range.
        ValueError: a variant that edits states by itself.
    """
    layers = sorted({layer for arm in arms for layer in arm.swaps})
    total = depth(model)
    for layer in layers:
        if not 0 <= layer < total:
            raise InputError(f"layer: this model has layers 0 to {total - 1}, got {layer}")
    if any(variant.edits for variant in between):
        raise ValueError("a variant with edits of its own cannot be patched; use adapters")
    return layers


def patch_state(swap: Swap | Push, h_BTD: torch.Tensor, other_BTD: torch.Tensor) -> torch.Tensor:
    """Return a reader's running state with a part of it set to the other's: computed in float32, returned in its own dtype."""
    return (h_BTD.float() + swap.part(other_BTD.float() - h_BTD.float())).to(h_BTD.dtype)
