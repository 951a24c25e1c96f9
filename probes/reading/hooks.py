"""Run a forward pass with hooks on decoder blocks: one engine, one ordering rule.

Only the outputs of whole blocks are hooked: a hook inside a block would fire again when gradient
checkpointing recomputes it. At each block its one callback sees the output, and may replace it.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wellworn.probes.reading.layers import decoder_blocks, shares_keys

OnBlock = Callable[[torch.Tensor], torch.Tensor | None]


def add_vector(vector: torch.Tensor) -> OnBlock:
    """Return the edit that adds a vector [d_model] to a block's output at every token, in float32, whatever the model's own precision."""
    return lambda h: (h.float() + vector.to(h.device)).to(h.dtype)


def block_state(output: Any) -> torch.Tensor:
    """Return the residual stream of what a block returned: some return more with it."""
    state: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return state


class _StopForwardError(Exception):
    """Ends a forward pass after the deepest block that is hooked."""


@contextmanager
def hooked(model: nn.Module, on_block: Mapping[int, OnBlock], stop: bool = False) -> Iterator[None]:
    """Call back with the output of chosen decoder blocks during every forward pass inside.

    Args:
        model: a causal LM, wrapped or not.
        on_block: layer → callback. It gets the residual stream [batch, tokens, d_model] and may
            return a replacement of the same shape; later blocks then read the replacement.
        stop: end the pass after the deepest layer in `on_block`; use `forward` to run such a pass.

    Example:
        >>> with hooked(model, {3: lambda h: h + 0.1 * direction}):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    blocks = decoder_blocks(model)
    deepest = max(on_block, default=-1)

    def hook_for(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            bare = isinstance(output, torch.Tensor)
            replaced = on_block[layer](output if bare else output[0])
            if stop and layer == deepest:
                raise _StopForwardError
            if replaced is None:
                return None
            return replaced if bare else (replaced, *output[1:])

        return hook

    handles = []
    try:
        for layer in on_block:
            handles.append(blocks[layer].register_forward_hook(hook_for(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(model: nn.Module, on_block: Mapping[int, OnBlock], stop: bool, **inputs: Any) -> Any:
    """Run one hooked forward pass; return the model's output, or None where it was stopped early."""
    with hooked(model, on_block, stop):
        try:
            return model(**inputs)
        except _StopForwardError as stopped:
            # The frames that the pass was in would keep its tensors until the garbage collector runs.
            traceback.clear_frames(stopped.__traceback__)
            return None


@contextmanager
def recorded(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Keep what chosen blocks return in the last pass inside: layer → output, as `resumed` takes it."""
    kept: dict[int, Any] = {}
    blocks = decoder_blocks(model)

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            kept[layer] = output

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def resumed(model: nn.Module, layer: int, output: Any) -> Iterator[None]:
    """Let every pass inside go on from a recorded one: block `layer` returns `output`, and no block up to it computes.

    The blocks stay in their list, so whatever a model decides by a block's position holds as before. Where blocks read the keys of lower
    ones, these compute too, and what the known one returns is put in place of its own.

    Args:
        model: a causal LM, wrapped or not.
        layer: the block whose output is known.
        output: what it returned for the same inputs, from `recorded`.
    """
    if shares_keys(model):
        handle = decoder_blocks(model)[layer].register_forward_hook(lambda _module, _args, _output: output)
        try:
            yield
        finally:
            handle.remove()
        return
    blocks = [decoder_blocks(model)[i] for i in range(layer + 1)]
    forwards = [block.__dict__.get("forward") for block in blocks]

    def return_output(*_args: Any, **_kwargs: Any) -> Any:
        return output

    try:
        for block in blocks:
            # Every lower block may return the same: the next one does not look at it.
            block.forward = return_output
        yield
    finally:
        for block, before in zip(blocks, forwards, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
