"""The forward passes of a reading: one chunk of rows, with each variant, pooled inside the hooks.

Shapes as in `batch_inputs.py`, and D d_model, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.probes.reading.batch_inputs import BatchInputs, PrefixInputs, batch_inputs, prefix_inputs
from wellworn.probes.reading.batching import Chunk
from wellworn.probes.reading.hooks import OnBlock, forward, recorded, resumed
from wellworn.probes.reading.layers import depth, text_config
from wellworn.probes.reading.logprob import head_at, head_at_one, mean_logprob
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.variants import Variant, applied, first_changed_layer


@dataclass(frozen=True)
class BatchReading:
    """The results of one variant on one batch.

    Attributes:
        variant: index into the variants.
        rows: indices of the rows [B].
        states: float32 [B, layers, S, D], on the CPU.
        logprob: float32 [B], mean log-probability per response token; None unless asked for.
    """

    variant: int
    rows: Sequence[int]
    states: torch.Tensor
    logprob: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class HowToRead:
    """The parts of rows to read, and how.

    Attributes:
        layers: block indices.
        spans: names of spans.
        logprob: whether response tokens are scored.
        pad_id: any valid token id.
        side: padding side of rows without a prefix.
        cached: whether the model's keys and values may be cached; chunks have no prefixes otherwise.
        stop: whether a pass may end at the deepest layer.
    """

    layers: Sequence[int]
    spans: Sequence[str]
    logprob: bool
    pad_id: int
    side: str
    cached: bool
    stop: bool


class Passes:
    """Runs chunks of rows through a model.

    Args:
        model: a causal LM, wrapped or not.
        rows: encoded conversations.
        how: what to read of them, and how.
        variants: ways to run the model; as it is where None.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Encoded], how: HowToRead, variants: Sequence[Variant] | None) -> None:
        self.model, self.rows, self.variants = model, rows, variants
        self.layers, self.spans, self.logprob = how.layers, how.spans, how.logprob
        self.pad_id, self.side, self.cached = how.pad_id, how.side, how.cached
        # Response tokens are scored by the blocks above the deepest layer.
        self.stop = how.stop and not how.logprob
        self.device = next(model.parameters()).device
        self.width = int(text_config(model).hidden_size)
        changed = [first_changed_layer(model, v) for v in variants] if variants is not None else [depth(model)]
        # The variant that equals the base up to the highest layer goes first; variant v equals it up to layer shared[v].
        self.order = sorted(range(len(changed)), key=lambda v: -changed[v])
        self.first = self.order[0]
        self.shared = [-1 if v == self.first else min(each, changed[self.first]) - 1 for v, each in enumerate(changed)]
        self.resume_at = sorted({layer for layer in self.shared if layer >= 0})

    def parts(self, chunk: Chunk) -> Iterator[BatchReading]:
        """Read a chunk with every variant, one after another, the one that shares most first.

        Keys and values of the prefixes, and the states that variants go on from, last as long as the chunk.
        """
        prefixes = prefix_inputs(self.rows, chunk, self.spans, self.pad_id, self.device)
        batches = [
            batch_inputs(self.rows, members, chunk, prefixes, self.spans, self.pad_id, self.side, self.device) for members in chunk.batches
        ]
        base = _Kept(None, {}, [{} for _ in batches])
        first: list[BatchReading] = []
        for v in self.order:
            mail = _Mail()
            with ExitStack() as stack:
                if self.variants is not None:
                    stack.enter_context(applied(self.model, self.variants[v]))
                cache, sums = self._read_prefixes(v, prefixes, base)
                # On a device the next batch is under way while the last result is copied back.
                late = 1 if self.device.type == "cuda" else 0
                for k, batch in enumerate(batches):
                    mail.send(self._read(v, batch, cache, sums, base.batches[k]))
                    yield from (self._part(v, batches[j], host, first) for j, host in mail.receive(but=late))
                yield from (self._part(v, batches[j], host, first) for j, host in mail.receive(but=0))

    def _part(self, v: int, batch: BatchInputs, host: torch.Tensor, first: list[BatchReading]) -> BatchReading:
        size = len(self.layers) * len(batch.rows) * len(self.spans) * self.width
        states = host[:size].view(len(self.layers), len(batch.rows), len(self.spans), self.width).transpose(0, 1)
        part = BatchReading(v, batch.rows, states, host[size:] if self.logprob else None)
        if v == self.first and len(self.order) > 1:
            first.append(part)
        elif v != self.first:
            same = [slot for slot, layer in enumerate(self.layers) if layer <= self.shared[v]]
            before = next(each for each in first if each.rows is batch.rows)
            states[:, same] = before.states[:, same]
        return part

    def _read_prefixes(self, v: int, prefixes: PrefixInputs | None, base: "_Kept") -> tuple[PrefixCache | None, dict[int, torch.Tensor]]:
        """Fill a cache with the prefixes; also return their contributions to the spans, slot → [G·R + 1, D]."""
        cache = PrefixCache(text_config(self.model)) if self.cached else None
        sums: dict[int, torch.Tensor] = {}
        if prefixes is None or cache is None:
            return cache, sums

        def pool(slot: int, h_GTD: torch.Tensor) -> None:
            h_GTD = h_GTD.float()
            sums_GRD = torch.bmm(prefixes.ranges_GRT.to(h_GTD.device), h_GTD)
            sums[slot] = nn.functional.pad(sums_GRD.flatten(0, 1), (0, 0, 0, 1))

        with cache.filled():
            self._pass(v, pool, prefixes.inputs | {"past_key_values": cache}, base.prefixes)
        if v == self.first:
            base.cache = cache
        elif base.cache is not None:
            cache.below(base.cache, self.shared[v])
        return cache, sums

    def _read(
        self, v: int, batch: BatchInputs, cache: PrefixCache | None, sums: Mapping[int, torch.Tensor], kept: dict[int, Any]
    ) -> torch.Tensor:
        """Read one batch; return states [layers, B, S, D] and then log-probabilities [B], flat on the device."""
        size = (len(self.layers), len(batch.rows), len(self.spans), self.width)
        flat = torch.empty(torch.Size(size).numel() + len(batch.rows) * self.logprob, device=self.device)
        states = flat[: torch.Size(size).numel()].view(size)

        def pool(slot: int, h_BTD: torch.Tensor) -> None:
            h_BTD = h_BTD.float()
            pooled_BSD = torch.bmm(batch.weights_BST.to(h_BTD.device), h_BTD)
            if sums:
                pooled_BSD += sums[slot][batch.ranges_BS.to(h_BTD.device)] * batch.scales_BS.to(h_BTD.device)[..., None]
            states[slot].copy_(pooled_BSD, non_blocking=True)

        inputs: dict[str, Any] = dict(batch.inputs)
        if cache is not None:
            inputs["past_key_values"] = cache.for_rows(batch.prefix_B)
        with head_at(self.model, batch.scored) if self.logprob else nullcontext():
            output = self._pass(v, pool, inputs, kept)
        if self.logprob:
            flat[states.numel() :] = mean_logprob(output.logits[0], batch)
        return flat

    def _pass(self, v: int, pool: Callable[[int, torch.Tensor], None], inputs: dict[str, Any], kept: dict[int, Any]) -> Any:
        """Run one pass from where this variant begins to differ to the deepest layer that is wanted."""
        edits = self.variants[v].edits if self.variants is not None else {}
        slots = {layer: slot for slot, layer in enumerate(self.layers) if layer > self.shared[v]}
        if not slots and not self.logprob:
            return None

        def callback(layer: int) -> OnBlock:
            def on_block(h: torch.Tensor) -> torch.Tensor | None:
                edited = edits[layer](h) if layer in edits else None
                if layer in slots:
                    pool(slots[layer], h if edited is None else edited)
                return edited

            return on_block

        wanted = slots.keys() | ({layer for layer in edits if self.logprob or layer <= max(slots)})
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(fast_matmul())
            if v == self.first:
                found = stack.enter_context(recorded(self.model, self.resume_at))
            elif self.shared[v] >= 0:
                stack.enter_context(resumed(self.model, self.shared[v], kept[self.shared[v]]))
            on_block = {layer: callback(layer) for layer in wanted}
            if not self.logprob and not self.stop:
                stack.enter_context(head_at_one(self.model, self.device))
            output = forward(self.model, on_block, self.stop, use_cache=False, **inputs)
        if v == self.first:
            kept.update(found)
        return output


@dataclass
class _Kept:
    """Results of the first variant that the others go on from: keys and values of the prefixes, and outputs of blocks."""

    cache: PrefixCache | None
    prefixes: dict[int, Any]
    batches: list[dict[int, Any]]


class _Mail:
    """Results on their way from the device: one copy a batch, which is waited for when the next batch is under way."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, torch.Tensor, Any]] = deque()
        self._sent = 0

    def send(self, result: torch.Tensor) -> None:
        """Start to copy a result to the CPU."""
        event = None
        if result.is_cuda:
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True).copy_(result, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(result.device))
        else:
            host = result.cpu()
        self._under_way.append((self._sent, host, event))
        self._sent += 1

    def receive(self, but: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Wait for all results but the last few; yield each with its number."""
        while len(self._under_way) > but:
            number, host, event = self._under_way.popleft()
            if event is not None:
                event.synchronize()
            yield number, host
