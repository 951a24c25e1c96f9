"""How much of an effect is written along some directions: what each block's adapters write is confined to them.

Patching says where a change *arrives*: a block may carry into a direction what an adapter wrote elsewhere. Here the states are never set.
With f⁰ and f¹ a block's update under M0 and under M1, each block computes

    h ← h + f⁰(h) + P[f¹(h) − f⁰(h)]          both from the running state h, P = UUᵀ, I − UUᵀ or I

so that the model changes by the adapters' writes inside P alone, and reads them as it reads any state. The *written* share is

    W(P) = (Y_P − Y0)/(Y1 − Y0)

W(I) = 1 where all adapters are at the confined layers, and W(UUᵀ) = 1 for adapters that write nothing outside U. W(UUᵀ) and W(I − UUᵀ) need
not sum to one: blocks read both together.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Intervention, Swap, swapped_layers
from wellworn.probes.mediation.paired_states import Batching
from wellworn.probes.reading.batch_inputs import batch_inputs
from wellworn.probes.reading.batching import Chunk, by_length
from wellworn.probes.reading.capture import check_rows, is_sharded
from wellworn.probes.reading.hooks import block_state, recorded, resumed
from wellworn.probes.reading.layers import decoder_blocks, text_config
from wellworn.probes.reading.logprob import head_at, head_at_one, mean_logprob
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.variants import Variant, switching


@torch.no_grad()
def confined_logprobs(
    model: nn.Module,
    rows: Sequence[Encoded],
    between: tuple[Variant, Variant],
    parts: Sequence[Mapping[int, Swap]],
    batching: Batching = Batching(),
) -> torch.Tensor:
    """Return how likely M0 with confined writes of M1 finds each text: mean log-probability per response token, float32 [parts, rows].

    Args:
        model: a causal LM in eval mode, wrapped or not, that holds the adapters.
        rows: what is read.
        between: M0 and M1. Layers that no part names are M0's.
        parts: each layer → the part of its writes that is kept.
        batching: batches and progress.

    Raises:
        InputError: a text that does not fit the model, a layer out of range, an unknown adapter, a sharded model, or an outcome that is not
            finite (names the row).
    """
    check_rows(model, rows, ("response",))
    if is_sharded(model):
        raise InputError("writes cannot be confined in a sharded model: a block would run on one rank alone; use one process a model")
    layers = swapped_layers(model, between, [Intervention(0, part) for part in parts])
    device = next(model.parameters()).device
    parts = [{layer: swap.to(device) for layer, swap in part.items()} for part in parts]
    scores = torch.zeros(len(parts), len(rows))
    with switching(model) as switch:
        for members in by_length([len(row) for row in rows], batching.token_budget):
            size = max(1, batching.token_budget // (len(members) * max(len(rows[i]) for i in members)))
            for start in range(0, len(parts), size):
                some = parts[start : start + size]
                found = _read(model, rows, members, some, layers, lambda side: switch(between[side]), batching.pad_id)
                scores[start : start + size, torch.tensor(members)] = found.cpu()
                if batching.progress:
                    batching.progress(len(some) * sum(len(rows[i]) for i in members))
    if not torch.isfinite(scores).all():
        row = int((~torch.isfinite(scores)).nonzero()[0, 1])
        raise InputError(f"row {row}: the log-probability under confined writes is not finite; try a wider dtype (float32)")
    return scores


def _read(
    model: nn.Module,
    rows: Sequence[Encoded],
    members: Sequence[int],
    parts: Sequence[Mapping[int, Swap]],
    layers: Sequence[int],
    switch: Callable[[int], None],
    pad_id: int,
) -> torch.Tensor:
    """Return log-probabilities [parts, members] of one batch; each part has a copy of the rows."""
    device = next(model.parameters()).device
    switch(0)
    copies = list(members) * len(parts)
    batch = batch_inputs(rows, copies, Chunk([copies]), None, (), pad_id, "right", device)
    below = _below(model, rows, members, len(parts), layers, pad_id)
    with _confined(model, parts, layers, switch), head_at(model, batch.scored), fast_matmul():
        logits = _pass(model, batch.inputs, below).logits[0]
    return mean_logprob(logits, batch).view(len(parts), -1)


def _below(
    model: nn.Module, rows: Sequence[Encoded], members: Sequence[int], copies: int, layers: Sequence[int], pad_id: int
) -> tuple[int, Any] | None:
    """Return the last layer below all confined ones with its output, once a copy; None where there is none."""
    last = min(layers, default=0) - 1
    if last < 0 or copies == 1:
        return None
    members = list(members)
    batch = batch_inputs(rows, members, Chunk([members]), None, (), pad_id, "right", next(model.parameters()).device)
    with recorded(model, [last]) as kept, head_at_one(model, batch.scored[0].device), fast_matmul():
        _pass(model, batch.inputs, None)
    output = kept[last]
    if isinstance(output, torch.Tensor):
        return last, output.repeat(copies, 1, 1)
    return last, (output[0].repeat(copies, 1, 1), *output[1:])


def _pass(model: nn.Module, inputs: Mapping[str, Any], below: tuple[int, Any] | None) -> Any:
    config = text_config(model)
    # An empty cache: with one, the model does not search for packed sequences.
    cache = {"past_key_values": PrefixCache(config)} if PrefixCache.supports(config) else {}
    if below is None:
        return model(use_cache=False, **inputs, **cache)
    with resumed(model, *below):
        return model(use_cache=False, **inputs, **cache)


@contextmanager
def _confined(
    model: nn.Module, parts: Sequence[Mapping[int, Swap]], layers: Sequence[int], switch: Callable[[int], None]
) -> Iterator[None]:
    """Confine what M1 writes at some layers during every pass inside; the model runs as M0."""
    blocks = decoder_blocks(model)
    # What M1's run of a block notes for blocks above, such as keys that they share: argument → entry → value.
    noted: dict[str, dict[Any, Any]] = {}

    def hook_for(layer: int) -> Callable[..., Any]:
        def hook(block: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            before = block_state(output)
            switch(1)
            # Past the hooks of this block, from the same state. Each of the two models finds what its own blocks have noted.
            if layer == min(layers):
                noted.clear()
            theirs = {key: copy.copy(each) for key, each in kwargs.items() if isinstance(each, MutableMapping)}
            for key, each in theirs.items():
                each.update(noted.get(key, {}))
            again = block.forward(*args, **(kwargs | theirs))
            for key, each in theirs.items():
                noted[key] = {entry: value for entry, value in each.items() if value is not kwargs[key].get(entry)}
            switch(0)
            change = block_state(again).float() - before.float()
            kept = [
                part[layer].part(each) if layer in part else torch.zeros_like(each)
                for part, each in zip(parts, change.chunk(len(parts)), strict=True)
            ]
            after = (before.float() + torch.cat(kept)).to(before.dtype)
            return after if isinstance(output, torch.Tensor) else (after, *output[1:])

        return hook

    handles = [blocks[layer].register_forward_hook(hook_for(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
