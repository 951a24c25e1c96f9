"""Which modules of a model an adapter is trained on."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from wellworn.data.errors import InputError
from wellworn.probes.reading.layers import decoder_blocks, inner_model, unwrap
from wellworn.probes.reading.variants import Variant, applied

ALL_LINEAR = "all-linear"
# Fast kernels of these models read the weight of a module in place of calling it, so that PEFT refuses to adapt it.
_READ_BY_KERNELS = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")


def resolve_targets(model: nn.Module, given: Any) -> Any:
    """Return what PEFT is to be told of `target_modules`: `all-linear` means the linear layers of the decoder blocks.

    PEFT would also take vision towers, and routers that return more than a linear layer does. Where it takes the same modules, the word is
    left to it: it knows how some models hold their experts.

    Args:
        model: a causal LM without adapters.
        given: a value of `target_modules`.
    """
    if not isinstance(given, str) or given.lower() != ALL_LINEAR:
        return given
    head = unwrap(model).get_output_embeddings()
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head}
    inside = {id(module) for block in decoder_blocks(model) for module in block.modules()}
    more = _return_more(model)
    mine = {
        name
        for name, module in model.named_modules()
        if name in every and id(module) in inside and module not in more and not _read_by_kernels(model, name)
    }
    return given if mine == every else sorted(mine)


def check_targets(model: nn.Module) -> None:
    """Refuse adapters on modules with which a fine-tune could not be trained, or not be read afterwards.

    Args:
        model: a causal LM that holds the adapters.

    Raises:
        InputError: names the module, and what may be adapted.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    more = _return_more(model)
    for wrapped, module in unwrap(model).named_modules():
        name = wrapped.removeprefix("base_model.model.")
        if isinstance(module, BaseTunerLayer):
            own = module.get_base_layer()
            if own in more:
                raise InputError(f"train.lora: {name} is a {type(own).__name__}, which returns more than a linear layer; leave it out")
            if isinstance(own, nn.Embedding):
                raise InputError(
                    f"train.lora: {name} embeds tokens, and an adapter on it cannot be read; use the linear layers of decoder blocks"
                )


@torch.no_grad()
def _return_more(model: nn.Module) -> set[nn.Module]:
    """Return the modules that are linear layers by their type, and routers or the like by what they return."""
    inner, found = inner_model(model), set[nn.Module]()
    doubtful = [module for module in inner.modules() if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward]
    if not doubtful:
        return found

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            found.add(module)

    with ExitStack() as stack:
        for module in doubtful:
            stack.callback(module.register_forward_hook(look).remove)
        stack.enter_context(applied(model, Variant()))
        inner(input_ids=torch.zeros(1, 2, dtype=torch.long, device=next(inner.parameters()).device), use_cache=False)
    return found


def _read_by_kernels(model: nn.Module, name: str) -> bool:
    return name.rpartition(".")[2] == _READ_BY_KERNELS.get(getattr(unwrap(model).config, "model_type", ""))
