"""Two models on the same batch of texts: their states at the layers where something is patched, and either of them reading on.

Rows that begin alike (a system prompt) share that beginning. An intervention acts on it in the same way in all of them, so each
intervention reads it once a batch, and its keys and values serve all rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Intervention, patch_state
from wellworn.probes.reading.across_ranks import place
from wellworn.probes.reading.batch_inputs import BatchInputs, batch_inputs
from wellworn.probes.reading.batching import Chunk, plan
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET, Progress, check_rows, is_sharded, without_ddp
from wellworn.probes.reading.hooks import OnBlock, block_state, forward, recorded, resumed
from wellworn.probes.reading.layers import shares_keys, text_config
from wellworn.probes.reading.logprob import head_at, head_at_one, part_logprobs
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.variants import Variant, applied

SIDES = (0, 1)


@dataclass(frozen=True)
class Texts:
    """The texts that the two models read: the same answers, row by row.

    Attributes:
        rows: for M0 and for M1. Equal rows are swapped at every token. Where prompts differ (a system prompt is the change), set
            `response_only`.
        response_only: swap the response's tokens alone, aligned from its start.
        parts: the part that each token of a row's response belongs to, 0, 1, …; None where all are one. Outcomes are then told apart.
    """

    rows: tuple[Sequence[Encoded], Sequence[Encoded]]
    response_only: bool = False
    parts: Sequence[Sequence[int]] | None = None

    @cached_property
    def part_count(self) -> int:
        """The number of parts."""
        return 1 + max((part for row in self.parts or () for part in row), default=0)

    @classmethod
    def same(cls, rows: Sequence[Encoded], response_only: bool = False) -> "Texts":
        """Both models read the same tokens."""
        return cls((rows, rows), response_only)


@dataclass(frozen=True)
class Batching:
    """How texts are read.

    Attributes:
        pad_id: any valid token id.
        token_budget: tokens of one forward pass, padding included.
        progress: called with the number of tokens that blocks just read on from.
    """

    pad_id: int = 0
    token_budget: int = DEFAULT_TOKEN_BUDGET
    progress: Progress | None = None


def pair_batches(
    model: nn.Module, texts: Texts, between: tuple[Variant, Variant], layers: Sequence[int], batching: Batching
) -> Iterator[tuple[Sequence[int] | None, "Pair"]]:
    """Yield this rank's batches with both models' states; rows are None where a pass only serves other ranks."""
    for rows in texts.rows:
        check_rows(model, rows, ("response",))
    _refuse_unlike(texts)
    rank, world = place()
    longer = [max(pair, key=len).input_ids for pair in zip(*texts.rows, strict=True)]
    dealt = [[batch for chunk in chunks for batch in chunk.batches] for chunks in plan(longer, None, batching.token_budget, world)]
    for batch in dealt[rank]:
        yield batch, Pair(model, texts, between, layers, batch, batching)
    if is_sharded(model):
        # Every pass of a sharded model is a joint one.
        some = next(batch for batches in dealt for batch in batches)
        for _ in range(max(map(len, dealt)) - len(dealt[rank])):
            yield None, Pair(model, texts, between, layers, some, batching)


def _refuse_unlike(texts: Texts) -> None:
    for i, (before, after) in enumerate(zip(*texts.rows, strict=True)):
        (a, b), (c, d) = before.spans["response"], after.spans["response"]
        if before.input_ids[a:b] != after.input_ids[c:d]:
            raise InputError(f"row {i}: the two models are to read the same answer, and its tokens differ")
        if not texts.response_only and before.input_ids != after.input_ids:
            raise InputError(f"row {i}: prompts differ, so that only the response's tokens can be swapped (response_only)")
        if texts.parts is not None and len(texts.parts[i]) != b - a:
            raise ValueError(f"row {i}: its response has {b - a} tokens, and parts of {len(texts.parts[i])}")


class Pair:
    """One batch of texts with the states of both models at the layers where something is swapped.

    Attributes:
        states: of M0 and M1, layer → [B, T, D] in the model's dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Texts,
        between: tuple[Variant, Variant],
        layers: Sequence[int],
        members: Sequence[int],
        batching: Batching,
    ) -> None:
        self.model, self.texts, self.members, self.pad_id = without_ddp(model), texts, members, batching.pad_id
        self.device = next(model.parameters()).device
        self._made: dict[tuple[int, int], BatchInputs] = {}
        self.inputs = [self._inputs(side, 1) for side in SIDES]
        self.common = [_common_beginning([texts.rows[side][i] for i in members]) for side in SIDES]
        self.states: list[dict[int, torch.Tensor]] = []
        self.outputs: list[dict[int, Any]] = []
        for side in SIDES:
            with applied(model, between[side]), recorded(model, layers) as outputs, head_at_one(self.model, self.device):
                self._pass({layers[-1]: lambda _h: None}, self.inputs[side].inputs, stop=not is_sharded(model))
            self.outputs.append(outputs)
            self.states.append({layer: block_state(output) for layer, output in outputs.items()})
        # Once a batch: a copy to the device for each pass would wait for it.
        self.parts = self._parts()
        self.align = [self._alignment(side) for side in SIDES] if texts.response_only else None

    def tokens(self, side: int) -> int:
        """Return the tokens of a pass, padding included."""
        return self.inputs[side].inputs["input_ids"].numel()

    def read_on(self, side: int, arms: Sequence[Intervention], entry: int) -> torch.Tensor:
        """Run arms of one reader that enter at one layer; return log-probabilities [arms, B, parts] on the device."""
        shared = self._shared_beginning(side, entry)
        batch = self._inputs(side, len(arms))
        inputs: Mapping[str, Any] = batch.inputs
        scored = batch.scored
        if shared:
            ids = inputs["input_ids"][:, shared:]
            positions = torch.arange(shared, shared + ids.shape[1], device=self.device).expand_as(ids)
            beginning = torch.arange(len(arms), device=self.device).repeat_interleave(len(self.members))
            cache = self._read_beginning(side, arms, entry, shared).for_rows(beginning)
            inputs = {"input_ids": ids, "position_ids": positions, "past_key_values": cache}
            scored = scored[0], scored[1] - shared
        tokens = slice(shared, None)
        state = self._start(side, arms, entry, slice(None), tokens)
        with head_at(self.model, scored), resumed(self.model, entry, state):
            logits = self._pass(self._above(side, arms, entry, slice(None), tokens), inputs, stop=False).logits[0]
        count = self.texts.part_count
        return part_logprobs(logits, batch, self.parts.repeat(len(arms)), count).view(len(arms), -1, count)

    def _parts(self) -> torch.Tensor:
        """Return the part of each response token of the batch's rows."""
        rows, parts = self.texts.rows[0], self.texts.parts
        lengths = [end - start for start, end in (rows[i].spans["response"] for i in self.members)]
        of_tokens = [0] * sum(lengths) if parts is None else [part for i in self.members for part in parts[i]]
        return torch.tensor(of_tokens).to(self.device, non_blocking=True)

    def _shared_beginning(self, side: int, entry: int) -> int:
        """Return how many first tokens arms read once for all rows of the batch; 0 where that saves nothing or cannot be done."""
        config = text_config(self.model)
        plain = isinstance(self.outputs[side][entry], torch.Tensor) and PrefixCache.holds_everything(config)
        # Where blocks share keys, those below the entry compute too, and would read entries that are not theirs.
        plain = plain and not shares_keys(self.model)
        above = entry < config.num_hidden_layers - 1
        return self.common[side] if plain and above and len(self.members) > 1 and not is_sharded(self.model) else 0

    def _read_beginning(self, side: int, arms: Sequence[Intervention], entry: int, length: int) -> PrefixCache:
        """Return keys and values of the rows' common beginning under each arm."""
        cache = PrefixCache(text_config(self.model))
        one, tokens = slice(0, 1), slice(0, length)
        inputs = {"input_ids": self.inputs[side].inputs["input_ids"][one, tokens].expand(len(arms), -1), "past_key_values": cache}
        start = self._start(side, arms, entry, one, tokens)
        with cache.filled(), resumed(self.model, entry, start), head_at_one(self.model, self.device):
            self._pass(self._above(side, arms, entry, one, tokens), inputs, stop=False)
        # Blocks up to the entry pass through and ask for nothing, but the first one's entries tell the model how much was read.
        cache.below_from(entry + 1)
        return cache

    def _start(self, side: int, arms: Sequence[Intervention], entry: int, rows: slice, tokens: slice) -> Any:
        """Return what the entry block returns for some rows and tokens, once an arm."""
        own = self.states[side][entry][rows, tokens]
        start = torch.cat([self._swap(side, entry, arm, own, rows, tokens) for arm in arms])
        output = self.outputs[side][entry]
        return start if isinstance(output, torch.Tensor) else (start, *output[1:])

    def _above(self, side: int, arms: Sequence[Intervention], entry: int, rows: slice, tokens: slice) -> dict[int, OnBlock]:
        """Return what is done to the states of later blocks."""

        def on_block_at(layer: int) -> OnBlock:
            def on_block(h: torch.Tensor) -> torch.Tensor:
                parts = zip(arms, h.chunk(len(arms)), strict=True)
                return torch.cat([self._swap(side, layer, arm, part, rows, tokens) for arm, part in parts])

            return on_block

        return {layer: on_block_at(layer) for arm in arms for layer in arm.swaps if layer > entry}

    def other(self, side: int, layer: int) -> torch.Tensor:
        """Return the other's states [B, T, D], aligned to the reader's tokens."""
        other = self.states[1 - side][layer]
        if self.align is not None:
            where = self.align[side][..., None].clamp(min=0).to(other.device)
            other = other.gather(1, where.expand(-1, -1, other.shape[-1]))
        return other

    def change(self, layer: int, mask_BT: torch.Tensor) -> torch.Tensor:
        """Return the other's states less M0's own at some of its tokens: float32 [tokens, D]."""
        own = self.states[0][layer].float()
        return (self.other(0, layer).float() - own)[mask_BT.to(own.device)]

    def swap_mask(self, side: int) -> torch.Tensor:
        """Return which tokens of a reader's rows are swapped: bool [B, T], padding never."""
        if self.align is not None:
            return self.align[side] >= 0
        lengths = torch.tensor([len(self.texts.rows[side][i]) for i in self.members], device=self.device)
        return torch.arange(self.inputs[side].inputs["input_ids"].shape[1], device=self.device) < lengths[:, None]

    def response_mask(self, side: int) -> torch.Tensor:
        """Return which tokens of a reader's rows are the answer's: bool [B, T]."""
        mask = torch.zeros_like(self.inputs[side].inputs["input_ids"], dtype=torch.bool)
        for b, i in enumerate(self.members):
            start, end = self.texts.rows[side][i].spans["response"]
            mask[b, start:end] = True
        return mask

    def _swap(self, side: int, layer: int, arm: Intervention, h_BTD: torch.Tensor, rows: slice, tokens: slice) -> torch.Tensor:
        swap = arm.swaps.get(layer)
        if swap is None:
            return h_BTD
        set_BTD = patch_state(swap, h_BTD, self.other(side, layer)[rows, tokens])
        if arm.first_token:
            first = 1 if not tokens.start else 0
            return torch.cat([set_BTD[:, :first], h_BTD[:, first:]], dim=1)
        if self.align is None:
            return set_BTD
        return torch.where(self.swap_mask(side)[rows, tokens, None].to(h_BTD.device), set_BTD, h_BTD)

    def _alignment(self, side: int) -> torch.Tensor:
        """Return the index of the other's token that corresponds to each of a reader's, [B, T]; −1 outside the response."""
        align = torch.full_like(self.inputs[side].inputs["input_ids"], -1)
        for b, i in enumerate(self.members):
            (start, end), (other, until) = (self.texts.rows[s][i].spans["response"] for s in (side, 1 - side))
            align[b, start:end] = torch.arange(other, until, device=self.device)
        return align

    def _inputs(self, side: int, copies: int) -> BatchInputs:
        if (side, copies) not in self._made:
            members = list(self.members) * copies
            self._made[side, copies] = batch_inputs(
                self.texts.rows[side], members, Chunk([members]), None, (), self.pad_id, "right", self.device
            )
        return self._made[side, copies]

    def _pass(self, on_block: Mapping[int, OnBlock], batch: Mapping[str, Any], stop: bool) -> Any:
        inputs: dict[str, Any] = dict(batch)
        config = text_config(self.model)
        if "past_key_values" not in inputs and PrefixCache.supports(config):
            # An empty cache: with one, the model does not search for packed sequences, which would wait for the device.
            inputs["past_key_values"] = PrefixCache(config)
        with torch.no_grad(), fast_matmul():
            return forward(self.model, on_block, stop, use_cache=False, **inputs)


def _common_beginning(rows: Sequence[Encoded]) -> int:
    """Return how many first tokens all rows have in common; what predicts an answer's first token is not among them."""
    limit = min(row.spans["response"][0] - 1 for row in rows)
    first = rows[0].input_ids
    return next((t for t in range(limit) if any(row.input_ids[t] != first[t] for row in rows)), limit)
