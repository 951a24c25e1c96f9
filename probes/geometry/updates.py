"""Updates of the linear layers that write into the residual stream: those of a LoRA adapter, or of a whole model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.reading.checkpoints import held_weights
from wellworn.probes.reading.layers import decoder_blocks, inner_model, text_config, unwrap
from wellworn.probes.statistics.intervals import FloatArray

# Of a whole model's update, the directions that its null draws one by one.
MOST_DRAWN = 256


@dataclass(frozen=True)
class Writer:
    """A linear layer that writes into the residual stream.

    Attributes:
        layer: index of its decoder block.
        name: inside the block, such as `mlp.down_proj`.
        module: the layer; PEFT's layer around it where it is adapted.
    """

    layer: int
    name: str
    module: Any

    @property
    def key(self) -> tuple[int, str]:
        """Its place in the model."""
        return self.layer, self.name

    @property
    def words(self) -> str:
        """Its place in words."""
        return f"layer {self.layer}, {self.name}"


@dataclass(frozen=True)
class Update:
    """The update of a writer, ΔW = outer · inner.

    Attributes:
        module: the writer's module, whose inputs it has.
        inner_RI: A of a LoRA adapter, [r, in]; the new weight of a whole model, [d_model, in], whose difference is taken when it is used.
        outer_DR: s·B of a LoRA adapter, [d_model, r]; None of a whole model.
        bias_R: what a whole model changes of the bias, [d_model]; None where that is nothing.
    """

    module: Any
    inner_RI: torch.Tensor
    outer_DR: FloatArray | None = None
    bias_R: torch.Tensor | None = None

    @property
    def drawn(self) -> int:
        """The number of directions that its null draws."""
        return len(self.inner_RI) if self.outer_DR is not None else min(len(self.inner_RI), MOST_DRAWN)

    def inner(self, x_NI: torch.Tensor) -> torch.Tensor:
        """Return what the inner part makes of inputs, [N, r], in float32."""
        if self.outer_DR is not None:
            return nn.functional.linear(x_NI.float(), self.inner_RI.float())
        # All differences at once would take as much memory as another model.
        return nn.functional.linear(x_NI.float(), self.inner_RI.float() - self.module.weight.float(), self.bias_R)

    def spectrum(self, moment_RR: FloatArray, basis_DK: FloatArray) -> tuple[FloatArray, float]:
        """Return the squared singular values of ΔW·Σ_x^½, largest first, and their sum inside a basis.

        Args:
            moment_RR: E[zzᵀ] of what the inner part makes of the inputs.
            basis_DK: orthonormal.
        """
        values, axes = np.linalg.eigh(moment_RR)
        if self.outer_DR is None:
            return values[::-1].clip(0), float(np.einsum("dk,de,ek->", basis_DK, moment_RR, basis_DK))
        # Its left singular directions and values are those of ΔW·Σ_x^½.
        update_DR = self.outer_DR @ (axes * np.sqrt(values.clip(0)) @ axes.T)
        return np.linalg.svd(update_DR, compute_uv=False) ** 2, float(((basis_DK.T @ update_DR) ** 2).sum())


def writers(model: nn.Module) -> list[Writer]:
    """Find the layers that write into the residual stream: in each part of a block (attention, MLP) the last linear layer d_model wide.

    Layers are in the order in which the model's code makes them. `writes` checks that nothing else writes: it refuses a model where a block
    adds something other than their output.
    """
    width = int(text_config(model).hidden_size)
    found = []
    for layer, block in enumerate(decoder_blocks(model)):
        for name, part in block.named_children():
            wide = [Writer(layer, *each) for each in _linears(name, part) if each[1].out_features == width]
            found += wide[-1:]
    return found


def updates_of(model: nn.Module, adapter: str, at: Sequence[Writer]) -> dict[tuple[int, str], Update]:
    """Return the updates of writers by an adapter or a checkpoint, by place; the base's own weights have to be in place.

    Raises:
        InputError: the model does not hold it, it changes none of them, or by more than a product of two matrices.
    """
    found = _of_checkpoint(model, adapter, at) if adapter in held_weights(model) else _of_adapter(model, adapter, at)
    if not found:
        names = ", ".join(dict.fromkeys(writer.name for writer in at)) or "nothing that was found"
        layers = sorted({writer.layer for writer in at})
        raise InputError(f"adapter {adapter!r}: changes nothing of what writes into the residual stream at layers {layers} ({names})")
    return found


def _of_checkpoint(model: nn.Module, name: str, at: Sequence[Writer]) -> dict[tuple[int, str], Update]:
    weights = held_weights(model)[name]
    names = {id(module): each for each, module in inner_model(model).named_modules()}
    found = {}
    for writer in at:
        place = names[id(writer.module)]
        own, new, bias = writer.module.weight, weights.get(f"{place}.weight"), weights.get(f"{place}.bias")
        if new is not None or bias is not None:
            change = None if bias is None else bias.float() - writer.module.bias.float()
            found[writer.key] = Update(writer.module, own if new is None else new, bias_R=change)
    return found


def _of_adapter(model: nn.Module, adapter: str, at: Sequence[Writer]) -> dict[tuple[int, str], Update]:
    from peft import PeftModel, PeftType
    from peft.tuners.lora import LoraLayer

    inner = unwrap(model)
    held = inner.peft_config if isinstance(inner, PeftModel) else {}
    if adapter not in held:
        raise InputError(f"adapter {adapter!r}: the model holds {', '.join([*held_weights(model), *held]) or 'no adapters'}")
    kind = held[adapter].peft_type
    if kind != PeftType.LORA:
        raise InputError(f"adapter {adapter!r}: where an update writes is known of LoRA alone, got {PeftType(kind).value}")
    found = {}
    for writer in at:
        if not isinstance(writer.module, LoraLayer) or adapter not in writer.module.lora_A:
            continue
        module: Any = writer.module
        variant = module.lora_variant.get(adapter)
        more = type(variant).__name__ if variant else "lora_bias" if module.lora_bias[adapter] else None
        if more:
            raise InputError(f"adapter {adapter!r}: {writer.name} is more than s·B·A ({more}); only plain LoRA is known to write this way")
        b_DR = module.lora_B[adapter].weight.detach().double().cpu().numpy() * module.scaling[adapter]
        found[writer.key] = Update(module, module.lora_A[adapter].weight, b_DR)
    return found


def _linears(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    # PEFT's own A and B are linear too, and are not layers of the model.
    layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if isinstance(layer, nn.Linear):
        yield name, module
    elif layer is module:
        for child_name, child in module.named_children():
            yield from _linears(f"{name}.{child_name}", child)
