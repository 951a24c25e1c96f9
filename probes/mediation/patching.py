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

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Intervention, Push, Swap, swapped_layers
from wellworn.probes.mediation.paired_states import SIDES, Batching, Texts, pair_batches
from wellworn.probes.reading.across_ranks import sum_over_ranks
from wellworn.probes.reading.capture import is_sharded
from wellworn.probes.reading.layers import depth
from wellworn.probes.reading.variants import Variant, applied


def patched_logprobs(
    model: nn.Module, texts: Texts, between: tuple[Variant, Variant], arms: Sequence[Intervention], batching: Batching = Batching()
) -> torch.Tensor:
    """Return how likely each arm finds each text: mean log-probability per response token, float32 [arms, rows].

    Args and errors as `patched_part_logprobs`.
    """
    return patched_part_logprobs(model, texts, between, arms, batching).sum(-1)


def patched_part_logprobs(
    model: nn.Module, texts: Texts, between: tuple[Variant, Variant], arms: Sequence[Intervention], batching: Batching = Batching()
) -> torch.Tensor:
    """Return what each part of a text adds to its mean log-probability per response token in each arm, float32 [arms, rows, parts].

    The sum over parts is that mean. Arms that enter at one layer are rows of one batch, as far as the token budget goes. Under
    `torch.distributed` each rank runs its share of the texts, and every rank returns all.

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
    if not arms:
        return torch.zeros(0, len(texts.rows[0]), texts.part_count)
    layers = swapped_layers(model, between, arms) or [depth(model) - 1]
    if texts.response_only and any(arm.first_token for arm in arms):
        raise ValueError("the first token is not of the response, where alone a state is patched")
    device = next(model.parameters()).device
    arms = [arm.to(device) for arm in arms]
    scores = torch.zeros(len(arms), len(texts.rows[0]), texts.part_count)
    for members, pair in pair_batches(model, texts, between, layers, batching):
        # One copy back a batch: nothing waits for the device in between.
        found = torch.zeros(len(arms), len(pair.members), texts.part_count, device=device)
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
    scores = sum_over_ranks(scores, next(model.parameters()).device)
    if not torch.isfinite(scores).all():
        arm, row, _ = (int(i) for i in (~torch.isfinite(scores)).nonzero()[0])
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
            change = pair.change(layer, pair.swap_mask(0))
            sums += torch.stack([(swap.part(change).double() ** 2).sum() for swap in swaps]).cpu()
    return sum_over_ranks(sums, next(model.parameters()).device)


def _group_by_entry(mine: Sequence[int], arms: Sequence[Intervention], deepest: int, room: int) -> Iterator[list[int]]:
    """Yield groups of arms that are read together: they enter at one layer and fit into the room."""
    entries: dict[int, list[int]] = {}
    for a in mine:
        entries.setdefault(min(arms[a].swaps, default=deepest), []).append(a)
    size = max(1, room)
    for group in entries.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))
