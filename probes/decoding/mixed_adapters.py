"""Rows of different variants in one forward pass: the base's weights, the main cost, are read once for all of them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from wellworn.probes.decoding.prefill import Runs, SetRuns
from wellworn.probes.reading.checkpoints import held_weights
from wellworn.probes.reading.hooks import OnBlock, hooked
from wellworn.probes.reading.layers import text_config
from wellworn.probes.reading.variants import Variant, applied, has_adapter, refuse_unknown


def can_mix(model: nn.Module, variants: Sequence[Variant]) -> bool:
    """Whether variants can be rows of one pass: all that their adapters do is to add to the outputs of linear layers."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from transformers.pytorch_utils import Conv1D

    names = {variant.adapter for variant in variants if variant.adapter is not None}
    if names & set(held_weights(model)):
        return False
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) and any(has_adapter(module, name) for name in names):
            if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper) or module.merged or names & set(module.lora_variant):
                return False
            if not isinstance(module.get_base_layer(), nn.Linear | Conv1D):
                return False
    # Each expert gets some tokens, without the rows that they are from.
    config = text_config(model).to_dict()
    return not any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))


@contextmanager
def mixed_rows(model: nn.Module, variants: Sequence[Variant]) -> Iterator[SetRuns]:
    """Yield a function that sets which rows of the next passes belong to which variant.

    Args:
        model: a causal LM in eval mode that holds the adapters.
        variants: those that rows may belong to; `can_mix` must be true of them.

    Raises:
        InputError: the model holds no adapter of a variant's name.
    """
    from peft.tuners.lora import LoraLayer

    here: list[tuple[Variant, slice]] = []
    size = [0, 0]

    def set_runs(runs: Runs) -> None:
        here.clear()
        start = 0
        for which, count in runs:
            here.append((variants[which], slice(start, start + count)))
            start += count

    def measure(_module: nn.Module, _args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        size[:] = kwargs["input_ids"].shape

    def add(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Rows come first, whatever follows; some blocks lay rows and tokens out in one.
        count, tokens = size
        per_row = args[0].numel() // (count * args[0].shape[-1])
        if args[0].shape[0] not in (count, count * tokens):
            raise RuntimeError(f"{type(module).__name__} sees {tuple(args[0].shape)} in a pass of {count} rows of {tokens} tokens")
        x_ND, y_ND = args[0].reshape(count * per_row, -1), output.view(count * per_row, -1)
        for variant, rows in here:
            if variant.adapter is not None and variant.adapter in module.lora_A:
                tokens_of = slice(rows.start * per_row, rows.stop * per_row)
                _update(module, variant.adapter, x_ND[tokens_of], y_ND[tokens_of])

    def edit(layer: int) -> OnBlock:
        def on_block(h_BTD: torch.Tensor) -> torch.Tensor | None:
            edited = [(rows, variant.edits[layer](h_BTD[rows])) for variant, rows in here if layer in variant.edits]
            changed = [(rows, h) for rows, h in edited if h is not None]
            if not changed:
                return None
            h_BTD = h_BTD.clone()
            for rows, h in changed:
                h_BTD[rows] = h
            return h_BTD

        return on_block

    with ExitStack() as stack:
        for variant in variants:
            refuse_unknown(model, variant)
        stack.enter_context(applied(model, Variant()))
        stack.callback(model.register_forward_pre_hook(measure, with_kwargs=True).remove)
        names = {variant.adapter for variant in variants}
        for module in model.modules():
            if isinstance(module, LoraLayer) and names & set(module.lora_A):
                stack.callback(module.register_forward_hook(add).remove)
        stack.enter_context(hooked(model, {layer: edit(layer) for variant in variants for layer in variant.edits}))
        yield set_runs


def _update(module: Any, adapter: str, x_ND: torch.Tensor, y_ND: torch.Tensor) -> None:
    """Add an adapter's low-rank update to a linear layer's output for some tokens."""
    down, up, scale = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
    if up.bias is None and down.weight.dtype == x_ND.dtype == y_ND.dtype:
        # The product is added in place: for few tokens and a low rank, further passes through memory take longer than the product.
        y_ND.addmm_(down(x_ND), up.weight.t(), alpha=scale)
    else:
        # Added in the wider dtype of the two and rounded once, as PEFT does.
        y_ND += up(down(x_ND.to(down.weight.dtype))) * scale
