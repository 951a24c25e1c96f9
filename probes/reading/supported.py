"""Whether a model is one whose residual stream can be read and set: tried, so that a new architecture gives no wrong numbers."""

from typing import Any

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.reading.hooks import block_state, forward, recorded, resumed
from wellworn.probes.reading.layers import decoder_blocks, inner_model, text_config

_TOKENS = 4


@torch.no_grad()
def check_blocks(model: nn.Module) -> None:
    """Make sure that every block runs once a pass, in order, and returns the residual stream, and that a pass can go on from the middle.

    Args:
        model: a causal LM in eval mode.

    Raises:
        InputError: names the class, and what is otherwise.
    """
    name = f"model class {type(inner_model(model)).__name__}"
    blocks, width = decoder_blocks(model), text_config(model).hidden_size
    ids_1T = torch.arange(_TOKENS, device=next(model.parameters()).device)[None] % text_config(model).vocab_size
    found: list[tuple[int, Any]] = []
    handles = [
        block.register_forward_hook(lambda _module, _args, output, layer=layer: found.append((layer, output)))
        for layer, block in enumerate(blocks)
    ]
    try:
        model(input_ids=ids_1T, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if [layer for layer, _ in found] != list(range(len(blocks))):
        raise InputError(f"{name}: its {len(blocks)} decoder blocks do not run once each and in order, so their states cannot be read")
    shapes = [tuple(block_state(output).shape) for _, output in found]
    if other := next((shape for shape in shapes if shape != (1, _TOKENS, width)), None):
        raise InputError(
            f"{name}: its decoder blocks return {list(other)} for {_TOKENS} tokens of {width} dimensions, and not one residual stream, so "
            "their states cannot be read"
        )
    changed_1T = ids_1T.clone()
    changed_1T[0, -1] = (changed_1T[0, -1] + 1) % text_config(model).vocab_size
    with recorded(model, [len(blocks) - 1]) as otherwise:
        model(input_ids=changed_1T, use_cache=False)
    before, after = (block_state(each)[:, :-1] for each in (found[-1][1], otherwise[len(blocks) - 1]))
    if torch.isfinite(before).all() and not _close(after, before):
        raise InputError(f"{name}: what it reads of a token depends on later ones, so it is not a causal language model")
    middle = (len(blocks) - 1) // 2
    with recorded(model, [len(blocks) - 1]) as again, resumed(model, middle, found[middle][1]):
        forward(model, {}, stop=False, input_ids=ids_1T, use_cache=False)
    last, resumed_last = block_state(found[-1][1]), block_state(again[len(blocks) - 1])
    if not torch.isfinite(last).all():
        raise InputError(f"{name}: the state after its last block is not finite; its weights are damaged, or need a wider dtype (float32)")
    if not _close(resumed_last, last):
        raise InputError(f"{name}: its blocks pass on more than the residual stream, so that states cannot be set at one of them")


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Kernels of a GPU may add up in another order; in 16 bits that shows.
    near = 1e-4 if other.dtype.itemsize >= 4 else 2e-2
    return bool((one.float() - other.float()).abs().max() <= near * other.float().abs().max())
