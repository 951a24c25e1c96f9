"""What a confined fine-tune may write, and what it may rely on: rules that hold while it is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from wellworn.probes.reading.hooks import OnBlock, hooked
from wellworn.probes.reading.layers import decoder_blocks


@dataclass(frozen=True, eq=False)
class Confinement:
    """What a fine-tune may do at one layer.

    Attributes:
        basis_DK: U [d_model, k], orthonormal.
        outside: adapters write I − UUᵀ of what they would write, in place of UUᵀ.
        reset: in training, the state inside U is set to the base's after the layer, so that nothing learnt can rely on it.
    """

    basis_DK: torch.Tensor
    outside: bool = False
    reset: bool = False

    def part(self, weight_DR: torch.Tensor) -> torch.Tensor:
        """Return P·B for a LoRA matrix B [d_model, r]."""
        basis = self.basis_DK.to(weight_DR.device, torch.float32)
        inside = basis @ (basis.T @ weight_DR.float())
        return (weight_DR.float() - inside if self.outside else inside).to(weight_DR.dtype)


class ConfineWrites(TrainerCallback):
    """Keep what adapters write along some directions, or outside them, after every step."""

    def __init__(self, confined: Mapping[int, Confinement]) -> None:
        self.confined = confined

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Project every matrix B."""
        for layer, block in enumerate(decoder_blocks(model)):
            for name, weight in block.named_parameters():
                if "lora_B" in name:
                    weight.copy_(self.confined[layer].part(weight))


@contextmanager
def states_reset(model: Any, confined: Mapping[int, Confinement]) -> Iterator[None]:
    """Set the state along some directions to the base's after each of some layers, in every pass inside:  h ← h − UUᵀ(h − h_base).

    The base reads the same tokens first, with the adapters off and without a gradient.

    Args:
        model: a PEFT model, wrapped or not.
        confined: layer → its directions; only layers with `reset` are set.
    """
    bases = {layer: each.basis_DK for layer, each in confined.items() if each.reset}
    if not bases:
        yield
        return
    kept: dict[int, torch.Tensor] = {}
    reading_base = False

    def read_base(peft_model: Any, args: Any, kwargs: Any) -> None:
        nonlocal reading_base
        if reading_base:
            return
        reading_base = True
        try:
            with torch.no_grad(), peft_model.disable_adapter():
                peft_model(*args, **kwargs)
        finally:
            reading_base = False

    def reset(layer: int) -> OnBlock:
        def on_block(state: torch.Tensor) -> torch.Tensor | None:
            basis = bases[layer].to(state.device, torch.float32)
            inside = state.float() @ basis
            if reading_base:
                kept[layer] = inside
                return None
            return (state.float() - (inside - kept[layer]) @ basis.T).to(state.dtype)

        return on_block

    handle = model.register_forward_pre_hook(read_base, with_kwargs=True)
    try:
        with hooked(model, {layer: reset(layer) for layer in bases}):
            yield
    finally:
        handle.remove()
