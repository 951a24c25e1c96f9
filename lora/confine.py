"""What a confined fine-tune may write, and what it may rely on: rules that hold while it is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from wellworn.lora.sharded import overwrite, whole
from wellworn.probes.reading.hooks import OnBlock, forward, hooked
from wellworn.probes.reading.layers import decoder_blocks, unwrap


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
                    overwrite(weight, self.confined[layer].part(whole(weight)))


@contextmanager
def states_reset(model: nn.Module, confined: Mapping[int, Confinement]) -> Iterator[None]:
    """Set the state along some directions to the base's after each of some layers, in every pass inside:  h ← h − UUᵀ(h − h_base).

    The base reads the same tokens first, up to the last of these layers, with the adapters off, without dropout and without a gradient.

    Args:
        model: a PEFT model, wrapped or not, that one process runs.
        confined: layer → its directions; only layers with `reset` are set.
    """
    inner, blocks = unwrap(model), decoder_blocks(model)
    devices = {layer: next(blocks[layer].parameters()).device for layer, each in confined.items() if each.reset}
    bases = {layer: confined[layer].basis_DK.to(device, torch.float32) for layer, device in devices.items()}
    if not bases:
        yield
        return
    kept: dict[int, torch.Tensor] = {}
    reading_base = False

    def read_base(peft_model: Any, _args: Any, inputs: Any) -> None:
        nonlocal reading_base
        if reading_base:
            return
        reading_base, training = True, peft_model.training
        try:
            with torch.no_grad(), peft_model.disable_adapter():
                peft_model.eval()
                forward(peft_model, {layer: keep(layer) for layer in bases}, stop=True, **inputs)
        finally:
            reading_base = False
            peft_model.train(training)

    def inside(layer: int, state: torch.Tensor) -> torch.Tensor:
        return state.float() @ bases[layer]

    def keep(layer: int) -> OnBlock:
        def on_block(state: torch.Tensor) -> None:
            # A trainer of half precision would round the product.
            with torch.autocast(state.device.type, enabled=False):
                kept[layer] = inside(layer, state)

        return on_block

    def reset(layer: int) -> OnBlock:
        def on_block(state: torch.Tensor) -> torch.Tensor | None:
            if reading_base:
                return None
            with torch.autocast(state.device.type, enabled=False):
                return (state.float() - (inside(layer, state) - kept[layer]) @ bases[layer].T).to(state.dtype)

        return on_block

    handle = inner.register_forward_pre_hook(read_base, with_kwargs=True)
    try:
        with hooked(model, {layer: reset(layer) for layer in bases}):
            yield
    finally:
        handle.remove()
