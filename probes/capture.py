"""Read a model on fixed text: pooled activations and, if wanted, the text's log-probability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from data.chat import SPANS, Encoded
from data.errors import InputError
from probes.batching import by_length, collate
from probes.hooks import forward
from probes.layers import depth

DEFAULT_TOKEN_BUDGET = 2048
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Reading:
    """What a model makes of fixed text.

    Attributes:
        states: float32 [rows, layers, spans, d_model], the mean of the residual stream over each span.
        logprob: float32 [rows], mean log-probability per response token; None unless asked for.
    """

    states: torch.Tensor
    logprob: torch.Tensor | None


@torch.no_grad()
def read(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    layers: Sequence[int] | None = None,
    spans: Sequence[str] = SPANS,
    logprob: bool = False,
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    side: str = "right",
    progress: Progress | None = None,
) -> Reading:
    """Run rows through a model once and pool each span at each layer.

    Pooling happens inside the block hooks, in float32, into one buffer per batch that is copied back
    once. Without `logprob` nothing above the deepest layer is computed. Under `torch.distributed`
    each rank reads its share of the rows and every rank returns all of them.

    Args:
        model: a causal LM in eval mode.
        rows: encoded conversations.
        layers: block indices; all where None.
        spans: names in `Encoded.spans`.
        logprob: also score the response tokens.
        pad_id: any valid token id.
        token_budget: tokens per batch, padding included.
        side: padding side; changes no result.
        progress: called with the number of tokens just read.

    Raises:
        InputError: a layer out of range, no rows, or a state that is not finite (names row and layer).
    """
    if not rows:
        raise InputError("there are no rows to read")
    model_depth = depth(model)
    layers = list(range(model_depth)) if layers is None else list(layers)
    for layer in layers:
        if not 0 <= layer < model_depth:
            raise InputError(f"layer: this model has layers 0 to {model_depth - 1}, got {layer}")
    device = next(model.parameters()).device
    width = model.get_input_embeddings().embedding_dim  # type: ignore[operator]
    states = torch.zeros(len(rows), len(layers), len(spans), width)
    scores = torch.zeros(len(rows))
    batches = by_length([len(row) for row in rows], token_budget)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for batch in batches[rank::world]:
        members = [rows[i] for i in batch]
        inputs = collate(members, pad_id, device, side)
        pooled, score = _read_batch(model, members, inputs, layers, spans, logprob, side)
        states[batch] = pooled.cpu()
        if score is not None:
            scores[batch] = score.cpu()
        if progress:
            progress(sum(len(row) for row in members))
    if world > 1:
        # Ranks hold disjoint rows and zeros elsewhere, so one sum puts all rows on all ranks.
        states, scores = (_summed(tensor, device) for tensor in (states, scores))
    _refuse_nonfinite(states, layers)
    return Reading(states, scores if logprob else None)


def _read_batch(
    model: nn.Module,
    rows: Sequence[Encoded],
    inputs: dict[str, torch.Tensor],
    layers: Sequence[int],
    spans: Sequence[str],
    logprob: bool,
    side: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokens = inputs["input_ids"].shape[1]
    device = inputs["input_ids"].device
    shift = [tokens - len(row) if side == "left" else 0 for row in rows]
    weights_BST = torch.zeros(len(rows), len(spans), tokens)
    for i, row in enumerate(rows):
        for j, span in enumerate(spans):
            start, end = row.spans[span]
            weights_BST[i, j, start + shift[i] : end + shift[i]] = 1 / (end - start)
    weights_BST = weights_BST.to(device)
    pooled: list[torch.Tensor] = [torch.empty(0)] * len(layers)

    def pool(slot: int) -> Callable[[torch.Tensor], None]:
        def on_block(h_BTD: torch.Tensor) -> None:
            pooled[slot] = torch.bmm(weights_BST, h_BTD.float())

        return on_block

    on_block = {layer: pool(slot) for slot, layer in enumerate(layers)}
    if not logprob:
        forward(model, on_block, stop=True, use_cache=False, **inputs)
        return torch.stack(pooled, dim=1), None
    # The head is computed only at the positions that predict a response token of some row.
    answers = [(start + s, end + s) for (start, end), s in zip((r.spans["response"] for r in rows), shift, strict=True)]
    first, last = min(a for a, _ in answers), max(b for _, b in answers)
    keep = torch.arange(first - 1, last - 1, device=device)
    logits_BKV = forward(model, on_block, stop=False, use_cache=False, logits_to_keep=keep, **inputs).logits
    targets_BK = inputs["input_ids"][:, first:last]
    logp_BK = -nn.functional.cross_entropy(logits_BKV.float().transpose(1, 2), targets_BK, reduction="none")
    inside_BK = torch.zeros(len(rows), last - first)
    for i, (start, end) in enumerate(answers):
        inside_BK[i, start - first : end - first] = 1 / (end - start)
    return torch.stack(pooled, dim=1), (logp_BK * inside_BK.to(device)).sum(1)


def _summed(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = tensor.to(device)
    dist.all_reduce(moved)
    return moved.cpu()


def _refuse_nonfinite(states: torch.Tensor, layers: Sequence[int]) -> None:
    bad = (~torch.isfinite(states)).any(-1).any(-1).nonzero()
    if len(bad):
        row, slot = bad[0].tolist()
        raise InputError(f"row {row}: the hidden state at layer {layers[slot]} is not finite; try a wider dtype (float32)")
