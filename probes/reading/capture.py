"""Read a model on fixed text: pooled activations and, if wanted, the text's log-probability.

One pass serves all layers and spans. Rows that begin alike share the pass over their beginning, variants
share the blocks below the first that any of them changes, and nothing above the deepest layer is computed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wellworn.data.chat import SPANS, Encoded
from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.probes.reading.across_ranks import place, sum_over_ranks
from wellworn.probes.reading.batching import Chunk, plan
from wellworn.probes.reading.forward_passes import BatchReading, HowToRead, Passes
from wellworn.probes.reading.layers import depth, text_config
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.shards import Shards
from wellworn.probes.reading.variants import Variant

DEFAULT_TOKEN_BUDGET = 2048
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Reading:
    """A model's activations and log-probabilities on fixed text.

    Attributes:
        states: float32 [rows, layers, spans, d_model], the mean of the residual stream over each span.
        logprob: float32 [rows], mean log-probability per response token; None unless asked for.
    """

    states: torch.Tensor
    logprob: torch.Tensor | None


@dataclass(frozen=True)
class Spec:
    """What to read, and how.

    Attributes:
        layers: block indices; all where None.
        spans: names in `Encoded.spans`.
        logprob: also score the response tokens.
        pad_id: any valid token id.
        token_budget: tokens of one forward pass, padding included.
        side: padding side; changes no result.
        share_prefixes: read beginnings that rows share only once.
        progress: called with the number of tokens just read.
    """

    layers: Sequence[int] | None = None
    spans: Sequence[str] = SPANS
    logprob: bool = False
    pad_id: int = 0
    token_budget: int = DEFAULT_TOKEN_BUDGET
    side: str = "right"
    share_prefixes: bool = True
    progress: Progress | None = None


def read(model: nn.Module, rows: Sequence[Encoded], spec: Spec = Spec(), *, work: Path | None = None) -> Reading:
    """Read rows with the model as it is.

    Under `torch.distributed` each rank reads its share of the rows and every rank returns all of them.

    Args:
        model: a causal LM in eval mode, wrapped or not.
        rows: encoded conversations.
        spec: what to read.
        work: a folder where finished rows are kept, so that an interrupted reading goes on where it stopped;
            a folder of another reading is refused, but weights are not compared: give each model its own.

    Raises:
        InputError: as `stream`.

    Example:
        >>> read(model, rows, Spec(layers=[22], spans=["response"])).states  # doctest: +SKIP
    """
    return _collect(model, rows, None, spec, work)[0]


def read_variants(
    model: nn.Module,
    rows: Sequence[Encoded],
    variants: Sequence[Variant],
    spec: Spec = Spec(),
    *,
    work: Path | None = None,
) -> list[Reading]:
    """Read rows with each of several variants; what they share is computed once.

    Args and errors as `read`; `variants` may name any adapter that the model holds.
    """
    return _collect(model, rows, variants, spec, work)


def _collect(model: nn.Module, rows: Sequence[Encoded], variants: Sequence[Variant] | None, spec: Spec, work: Path | None) -> list[Reading]:
    layers = _layers(model, spec)
    count = 1 if variants is None else len(variants)
    shards = Shards(work, _identity(rows, layers, spec, variants)) if work else None
    states = torch.zeros(count, len(rows), len(layers), len(spec.spans), _width(model))
    scores = torch.zeros(count, len(rows))
    for part in stream(model, rows, variants, spec, shards=shards):
        states[part.variant, part.rows] = part.states
        if part.logprob is not None:
            scores[part.variant, part.rows] = part.logprob
        del part
    if place()[1] > 1:
        # Ranks hold disjoint rows, so one sum puts all rows on all ranks.
        both = sum_over_ranks(torch.cat([states.flatten(), scores.flatten()]), _device(model))
        states, scores = both[: states.numel()].view_as(states), both[states.numel() :].view_as(scores)
    return [Reading(states[v], scores[v] if spec.logprob else None) for v in range(count)]


def stream(
    model: nn.Module,
    rows: Sequence[Encoded],
    variants: Sequence[Variant] | None = None,
    spec: Spec = Spec(),
    *,
    shards: Shards | None = None,
) -> Iterator[BatchReading]:
    """Read rows batch by batch, so that memory does not grow with their number.

    Pooling happens inside the block hooks, in float32, into one buffer a batch, which is copied back once while
    the next batch is under way. Under `torch.distributed` each rank yields its own share of the rows. While
    parts are being yielded the model may be switched to one of the variants.

    Args:
        model: a causal LM in eval mode, wrapped or not (PEFT, accelerate, FSDP).
        rows: encoded conversations.
        variants: ways to run it; the model as it is where None.
        spec: what to read.
        shards: where finished parts are kept, and taken from.

    Raises:
        InputError: no rows or variants, a row that does not fit the model, a layer out of range, or a state
            that is not finite (names row and layer). Parts yielded before remain valid.
    """
    layers = _layers(model, spec)
    check_rows(model, rows, (*spec.spans, "response"))
    if variants is not None and not variants:
        raise InputError("variants: there is none to read with")
    rank, world = place()
    sharded = is_sharded(model)
    chunks = chunks_by_rank(model, rows, spec, world)
    how = HowToRead(
        layers=layers,
        spans=spec.spans,
        logprob=spec.logprob,
        pad_id=spec.pad_id,
        side=spec.side,
        cached=_can_cache(model),
        stop=not sharded,
    )
    passes = Passes(without_ddp(model), rows, how, variants)
    try:
        for chunk in chunks[rank]:
            done = shards.parts(chunk.rows, len(passes.shared)) if shards and not sharded else None
            for part in done if done is not None else passes.parts(chunk):
                _refuse_nonfinite(part, layers)
                if shards and done is None:
                    shards.keep(part)
                yield part
                if spec.progress:
                    spec.progress(sum(len(rows[i]) for i in part.rows))
                # Only the caller may hold a part while the next one is computed.
                del part
            if shards:
                shards.save()
    except BaseException:
        if shards:
            shards.save(now=True)
        raise
    if sharded:
        counts = [sum(len(chunk.batches) for chunk in part) for part in chunks]
        any_batch = next(batch for part in chunks for chunk in part for batch in chunk.batches)
        for _ in range(max(counts) - counts[rank]):
            deque(passes.parts(Chunk([any_batch])), maxlen=0)


def chunks_by_rank(model: nn.Module, rows: Sequence[Encoded], spec: Spec, world: int = 1) -> list[list[Chunk]]:
    """Return which rows are read together, in which order and by which rank: chunks of each rank."""
    sharing = spec.share_prefixes and spec.side == "right" and _can_cache(model)
    limits = [row.spans["response"][0] - 1 for row in rows] if sharing else None
    # Pooled states are float32, [layers, spans, d_model] a row; a pass takes some twelve numbers of d_model a token.
    per_row = 4 * len(_layers(model, spec)) * len(spec.spans) // (12 * next(model.parameters()).element_size())
    return plan([row.input_ids for row in rows], limits, spec.token_budget, world, per_row)


def without_ddp(model: nn.Module) -> nn.Module:
    """Return the module inside DDP, whose own forward synchronises buffers between ranks, while these make different numbers of passes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are spread over ranks, so that every pass is joint and ranks must make the same passes."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


def _can_cache(model: nn.Module) -> bool:
    return PrefixCache.supports(text_config(model)) and not is_sharded(model)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _width(model: nn.Module) -> int:
    return int(text_config(model).hidden_size)


def _layers(model: nn.Module, spec: Spec) -> list[int]:
    total = depth(model)
    layers = list(range(total)) if spec.layers is None else list(spec.layers)
    if not layers:
        raise InputError("layers: there is none to read")
    for layer in layers:
        if not 0 <= layer < total:
            raise InputError(f"layer: this model has layers 0 to {total - 1}, got {layer}")
        if layers.count(layer) > 1:
            raise InputError(f"layers: {layer} is given more than once")
    return layers


def check_tokens(model: nn.Module, rows: Sequence[Sequence[int]], room: int = 0) -> None:
    """Refuse rows that are empty, hold unknown tokens, or leave no room for `room` further ones in the model's context.

    Raises:
        InputError: there are no rows, or one that the model cannot read (names it).
    """
    if not rows:
        raise InputError("there are no rows to read")
    context = getattr(text_config(model), "max_position_embeddings", None)
    vocabulary = text_config(model).vocab_size
    for i, row in enumerate(rows):
        if context is not None and len(row) + room > context:
            more = f" and {room} more" if room else ""
            raise InputError(f"row {i}: {len(row)} tokens{more} do not fit the model's context of {context}")
        if not 0 <= min(row, default=-1) <= max(row, default=-1) < vocabulary:
            bad = next((token for token in row if not 0 <= token < vocabulary), None)
            what = "is empty" if bad is None else f"holds token {bad}, and the model's vocabulary is 0 to {vocabulary - 1}"
            raise InputError(f"row {i}: {what}")


def check_rows(model: nn.Module, rows: Sequence[Encoded], spans: Sequence[str]) -> None:
    """Refuse rows that the model cannot read, before anything is computed: too long or empty, unknown tokens, missing spans."""
    check_tokens(model, [row.input_ids for row in rows])
    for i, row in enumerate(rows):
        for span in spans:
            if span not in row.spans:
                raise InputError(f"row {i}: has no span {span!r}; it has {', '.join(row.spans)}")
            start, end = row.spans[span]
            if not 0 <= start < end <= len(row):
                raise InputError(f"row {i}: the span {span!r} is empty or out of range: {start} to {end} of {len(row)} tokens")
        if row.spans["response"][0] == 0:
            raise InputError(f"row {i}: the response has no prompt before it")


def _refuse_nonfinite(part: BatchReading, layers: Sequence[int]) -> None:
    bad = (~torch.isfinite(part.states)).any(-1).any(-1)
    if part.logprob is not None:
        bad = torch.cat([bad, ~torch.isfinite(part.logprob)[:, None]], dim=1)
    if bad.any():
        # Several rows of a batch may be bad; name the first, in the order of the caller.
        slot = min((row, int(bad[b].nonzero()[0])) for b, row in enumerate(part.rows) if bad[b].any())
        where = f"the hidden state at layer {layers[slot[1]]}" if slot[1] < len(layers) else "the log-probability"
        raise InputError(f"row {slot[0]}: {where} is not finite; try a wider dtype (float32)")


def _identity(rows: Sequence[Encoded], layers: Sequence[int], spec: Spec, variants: Sequence[Variant] | None) -> str:
    what = [[list(row.input_ids), row.spans] for row in rows]
    how = None if variants is None else [[variant.adapter, sorted(variant.edits)] for variant in variants]
    return digest([what, list(layers), list(spec.spans), spec.logprob, spec.token_budget, spec.side, spec.share_prefixes, how])
