"""Activation patching: swap part of one model's residual stream for another's, and let either of them read on.

One rule gives every number of a mediation analysis. M0 and M1 are the same weights with two adapters (or with none), read
on the same answers. An *arm* lets one of them, the reader, run from layer ℓ on, after part of its state there has been
set to the other's:

    h_ℓ ← h_ℓ + s·P_ℓ(h'_ℓ − h_ℓ)          h_ℓ the running state of the reader, h'_ℓ the other's, P_ℓ = UUᵀ, I − UUᵀ or I

M0 with P swapped in is sufficiency, M1 with P swapped out is necessity. With several layers the running state is *set*, not added
to, so that nothing counts twice, and all layers with P = I turn the reader into the other. In place of a swap a fixed vector may be
added (`Push`).

Both states at ℓ are computed once; an arm costs the blocks above ℓ and the head at the response alone. The blocks below stay in
their places and pass through: a model may decide by a block's position what it does (Gemma 3's windows), so the list is never cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Intervention, Push, Swap, patch_state, swapped_layers
from wellworn.probes.reading.batch_inputs import BatchInputs, batch_inputs
from wellworn.probes.reading.batching import Chunk, plan
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET, Progress, check_rows, is_sharded, without_ddp
from wellworn.probes.reading.hooks import OnBlock, forward, recorded, resumed
from wellworn.probes.reading.layers import depth, text_config
from wellworn.probes.reading.logprob import head_at, mean_logprob
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
    """

    rows: tuple[Sequence[Encoded], Sequence[Encoded]]
    response_only: bool = False

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


def patched_logprobs(
    model: nn.Module, texts: Texts, between: tuple[Variant, Variant], arms: Sequence[Intervention], batching: Batching = Batching()
) -> torch.Tensor:
    """Return how likely each arm finds each text: mean log-probability per response token, float32 [arms, rows].

    Arms that enter at one layer are rows of one batch, as far as the token budget goes. Under `torch.distributed` each rank runs its
    share of the texts, and every rank returns all.

    Args:
        model: a causal LM in eval mode, wrapped or not, that holds the adapters.
        texts: what is read.
        between: M0 and M1.
        arms: the interventions; each reader should be among them unchanged.
        batching: batches and progress.

    Raises:
        InputError: a text that does not fit the model, a pair whose answers differ, a layer out of range, an unknown adapter, or an
            outcome that is not finite (names row and arm).
    """
    layers = swapped_layers(model, between, arms) or [depth(model) - 1]
    device = next(model.parameters()).device
    arms = [arm.to(device) for arm in arms]
    scores = torch.zeros(len(arms), len(texts.rows[0]))
    for members, pair in pair_batches(model, texts, between, layers, batching):
        # One copy back a batch: nothing waits for the device in between.
        found = torch.zeros(len(arms), len(pair.members), device=device)
        for side in SIDES:
            mine = [a for a, arm in enumerate(arms) if arm.reader == side]
            with applied(model, between[side]):
                room = 1 if is_sharded(model) else batching.token_budget // pair.tokens(side)
                for group in _group_by_entry(mine, arms, layers[-1], room):
                    entry = min(arms[group[0]].swaps, default=layers[-1])
                    found[group] = pair.read_on(side, [arms[a] for a in group], entry).to(device)
                    if batching.progress:
                        batching.progress(len(group) * pair.tokens(side))
        if members is not None:
            scores[:, torch.tensor(members)] = found.cpu()
    scores = _sum_over_ranks(scores, model)
    if not torch.isfinite(scores).all():
        arm, row = (int(i) for i in (~torch.isfinite(scores)).nonzero()[0])
        raise InputError(f"row {row}: the log-probability in arm {arm} is not finite; try a wider dtype (float32)")
    return scores


def moved_norms(
    model: nn.Module,
    texts: Texts,
    between: tuple[Variant, Variant],
    layer: int,
    swaps: Sequence[Swap | Push],
    batching: Batching = Batching(),
) -> torch.Tensor:
    """Return Σ‖s·P(h1 − h0)‖² over all swapped tokens, for each of several swaps at one layer (of a push Σ‖v‖²): float64 [swaps].

    Args and errors as `patched_logprobs`.
    """
    device = next(model.parameters()).device
    swaps = [swap.to(device) for swap in swaps]
    sums = torch.zeros(len(swaps), dtype=torch.float64)
    for members, pair in pair_batches(model, texts, between, [layer], batching):
        if members is not None:
            change = (pair.other(0, layer).float() - pair.states[0][layer].float())[pair.swap_mask(0)]
            sums += torch.stack([(swap.part(change).double() ** 2).sum() for swap in swaps]).cpu()
    return _sum_over_ranks(sums, model)


def pair_batches(
    model: nn.Module, texts: Texts, between: tuple[Variant, Variant], layers: Sequence[int], batching: Batching
) -> Iterator[tuple[Sequence[int] | None, "Pair"]]:
    """Yield this rank's batches with both models' states; rows are None where a pass only serves other ranks."""
    for rows in texts.rows:
        check_rows(model, rows, ("response",))
    _refuse_unlike(texts)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
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


def _group_by_entry(mine: Sequence[int], arms: Sequence[Intervention], deepest: int, room: int) -> Iterator[list[int]]:
    """Yield groups of arms that are read together: they enter at one layer and fit into the room."""
    entries: dict[int, list[int]] = {}
    for a in mine:
        entries.setdefault(min(arms[a].swaps, default=deepest), []).append(a)
    size = max(1, room)
    for group in entries.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))


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
        self.states: list[dict[int, torch.Tensor]] = []
        self.outputs: list[dict[int, Any]] = []
        for side in SIDES:
            with applied(model, between[side]), recorded(model, layers) as outputs:
                self._pass({layers[-1]: lambda _h: None}, self.inputs[side], stop=not is_sharded(model), logits_to_keep=1)
            self.outputs.append(outputs)
            self.states.append({layer: _bare(output) for layer, output in outputs.items()})
        self.align = [self._alignment(side) for side in SIDES] if texts.response_only else None

    def tokens(self, side: int) -> int:
        """Return the tokens of a pass, padding included."""
        return self.inputs[side].inputs["input_ids"].numel()

    def read_on(self, side: int, arms: Sequence[Intervention], entry: int) -> torch.Tensor:
        """Run arms of one reader that enter at one layer; return log-probabilities [arms, B] on the device."""
        own = self.states[side][entry]
        start = torch.cat([self._swap(side, entry, arm, own) for arm in arms])

        def on_block_at(layer: int) -> OnBlock:
            def on_block(h: torch.Tensor) -> torch.Tensor:
                return torch.cat([self._swap(side, layer, arm, part) for arm, part in zip(arms, h.chunk(len(arms)), strict=True)])

            return on_block

        above = {layer: on_block_at(layer) for arm in arms for layer in arm.swaps if layer > entry}
        batch = self._inputs(side, len(arms))
        output = self.outputs[side][entry]
        state = start if isinstance(output, torch.Tensor) else (start, *output[1:])
        with head_at(self.model, batch.scored), resumed(self.model, entry, state):
            logits = self._pass(above, batch, stop=False).logits[0]
        return mean_logprob(logits, batch).view(len(arms), -1)

    def other(self, side: int, layer: int) -> torch.Tensor:
        """Return the other's states [B, T, D], aligned to the reader's tokens."""
        other = self.states[1 - side][layer]
        if self.align is not None:
            where = self.align[side][..., None].clamp(min=0)
            other = other.gather(1, where.expand(-1, -1, other.shape[-1]))
        return other

    def swap_mask(self, side: int) -> torch.Tensor:
        """Return which tokens of a reader's rows are swapped: bool [B, T], padding never."""
        if self.align is not None:
            return self.align[side] >= 0
        lengths = torch.tensor([len(self.texts.rows[side][i]) for i in self.members], device=self.device)
        return torch.arange(self.inputs[side].inputs["input_ids"].shape[1], device=self.device) < lengths[:, None]

    def _swap(self, side: int, layer: int, arm: Intervention, h_BTD: torch.Tensor) -> torch.Tensor:
        swap = arm.swaps.get(layer)
        if swap is None:
            return h_BTD
        set_BTD = patch_state(swap, h_BTD, self.other(side, layer))
        return set_BTD if self.align is None else torch.where(self.swap_mask(side)[..., None], set_BTD, h_BTD)

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

    def _pass(self, on_block: Mapping[int, OnBlock], batch: BatchInputs, stop: bool, **options: Any) -> Any:
        inputs: dict[str, Any] = dict(batch.inputs) | options
        config = text_config(self.model)
        if PrefixCache.supports(config):
            # An empty cache: with one, the model does not search for packed sequences, which would wait for the device.
            inputs["past_key_values"] = PrefixCache(config)
        with torch.no_grad(), fast_matmul():
            return forward(self.model, on_block, stop, use_cache=False, **inputs)


def _bare(output: Any) -> torch.Tensor:
    bare: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return bare


def _sum_over_ranks(mine: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Add up over ranks, each of which holds its own texts and zeros elsewhere."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        there = mine.to(next(model.parameters()).device)
        dist.all_reduce(there)
        return there.cpu()
    return mine
