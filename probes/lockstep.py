"""What a model says while part of its state is another's: two models decode in lock-step.

`patching.py` scores a fixed text in an arm. Here the arm writes the text. M0 and M1 read the same tokens, the prompt and what the arm
itself has said so far. At each step the other model computes its state of the new token, unpatched; then the reader does, into
which a part of that state is set,

    h_ℓ ← h_ℓ + s·P_ℓ(h'_ℓ − h_ℓ)          h_ℓ the running state of the reader, h'_ℓ the other's

and the reader's top token is what both read next. The reader keeps keys and values of an unpatched run up to the lowest swapped layer, and
of patched states above it. So every token is the arg max of a full patched forward pass over the tokens before it.

`model.generate` decodes one model; rows of different adapters in one batch would spare the switch between the two, but not with DoRA
or merged weights, and not the order: the reader cannot start before the other's state is known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from data.errors import InputError
from probes.capture import check_tokens
from probes.generate import end_tokens
from probes.hooks import OnBlock, forward
from probes.inputs import padded
from probes.layers import text_config
from probes.patching import SIDES, Arm, Push, Swap, patched, swapped_layers
from probes.variants import Variant, switching


@torch.no_grad()
def patched_answers(
    model: nn.Module,
    prompts: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    between: tuple[Variant, Variant],
    arms: Sequence[Arm],
    *,
    pad_id: int,
    max_new_tokens: int,
    response_only: bool = False,
    batch_size: int = 32,
    repetition_penalty: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[int]]]:
    """Answer tokenised prompts greedily in each arm; return new token ids [arms][prompts], without the end-of-turn token.

    An arm without swaps answers as `answers` does under its reader's variant.

    Args:
        model: a causal LM in eval mode that holds the adapters.
        prompts: for M0 and for M1, each up to and including the generation prompt. Equal prompts are swapped at every token.
        between: M0 and M1.
        arms: what is swapped.
        pad_id: any valid token id.
        max_new_tokens: longest answer.
        response_only: swap the answer's tokens alone. Prompts may then differ; the first token is the reader's own, since the
            end of its prompt, which is not swapped, decides it.
        batch_size: answers at a time, of several arms and prompts; prompts of like length together.
        repetition_penalty: as in `answers`; what was seen before is the reader's prompt and the answer.
        progress: called with the number of answers just finished.

    Raises:
        InputError: a prompt that does not fit the model with its answer, prompts that differ though all tokens are swapped, a layer out
            of range, an unknown adapter, or logits that are not finite (names prompt and arm).
        ValueError: a variant that edits states by itself.
    """
    swapped_layers(model, between, arms)
    for each in prompts:
        # The last token of an answer is not read.
        check_tokens(model, each, room=max(0, max_new_tokens - 1))
    for i, (before, after) in enumerate(zip(*prompts, strict=True)):
        if not response_only and list(before) != list(after):
            raise InputError(f"row {i}: prompts differ, so that only the response's tokens can be swapped (response_only)")
    arms = [arm.to(next(model.parameters()).device) for arm in arms]
    out: list[list[list[int]]] = [[[] for _ in prompts[0]] for _ in arms]
    with switching(model) as switch:
        for batch in _batches(prompts, arms, batch_size):
            reader, patches = arms[batch[0].arm].reader, bool(arms[batch[0].arm].swaps)
            texts = [_Text(model, switch, between[side], [prompts[side][row.prompt] for row in batch], pad_id) for side in SIDES]
            other = texts[1 - reader] if patches else None
            found = _decoded(texts[reader], other, batch, arms, max_new_tokens, repetition_penalty, end_tokens(model), response_only)
            for row, answer in zip(batch, found, strict=True):
                out[row.arm][row.prompt] = answer
            if progress:
                progress(len(batch))
    return out


@dataclass(frozen=True)
class _Row:
    """One answer of a batch, by the indices of its arm and its prompt."""

    arm: int
    prompt: int


def _batches(prompts: tuple[Sequence[Sequence[int]], ...], arms: Sequence[Arm], batch_size: int) -> Iterator[list[_Row]]:
    """Yield answers of one reader that are decoded together, prompts of like length; arms without swaps need no other model."""
    for reader in SIDES:
        longest_first = sorted(range(len(prompts[reader])), key=lambda i: -len(prompts[reader][i]))
        for patches in (False, True):
            mine = [a for a, arm in enumerate(arms) if arm.reader == reader and bool(arm.swaps) == patches]
            rows = [_Row(a, i) for i in longest_first for a in mine]
            for start in range(0, len(rows), batch_size):
                # Rows of one arm stand together, so that each swap is made once.
                yield sorted(rows[start : start + batch_size], key=lambda row: row.arm)


class _Text:
    """What one model reads of a batch's answers: its keys and values so far, and the tokens that it has yet to read.

    Attributes:
        ids_BT: the tokens that come next: the prompts, padded on the left, and then one a step.
        mask_BT: 0 on padding, over all tokens up to these.
        seen_BV: which tokens each row holds; padding does not count.
    """

    def __init__(
        self, model: nn.Module, switch: Callable[[Variant], None], variant: Variant, prompts: Sequence[Sequence[int]], pad_id: int
    ) -> None:
        self.model, self.switch, self.variant = model, switch, variant
        self.cache = DynamicCache(config=text_config(model))
        device = next(model.parameters()).device
        ids_BT, mask_BT = padded(prompts, pad_id, "left")
        self.ids_BT, self.mask_BT = ids_BT.to(device), mask_BT.to(device)
        self.seen_BV = torch.zeros(len(prompts), text_config(model).vocab_size, dtype=torch.bool, device=device)
        for b, prompt in enumerate(prompts):
            self.seen_BV[b, list(prompt)] = True

    def read(self, on_block: Mapping[int, OnBlock], stop: bool = False) -> Any:
        """Read what comes next; return the model's output, or None where it was stopped after the deepest hooked block."""
        self.switch(self.variant)
        return forward(
            self.model,
            on_block,
            stop,
            input_ids=self.ids_BT,
            attention_mask=self.mask_BT,
            position_ids=(self.mask_BT.cumsum(1) - 1).clamp(min=0)[:, -self.ids_BT.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def go_on(self, rows: torch.Tensor, token_B: torch.Tensor) -> None:
        """Keep some rows, each of which is to read one more token."""
        if len(rows) < len(self.ids_BT):
            self.cache.batch_select_indices(rows)
        self.ids_BT = token_B[rows, None]
        self.mask_BT = torch.cat([self.mask_BT[rows], torch.ones_like(self.ids_BT)], dim=1)
        self.seen_BV = self.seen_BV[rows].scatter(1, self.ids_BT, True)


def _decoded(
    mine: _Text,
    theirs: _Text | None,
    rows: Sequence[_Row],
    arms: Sequence[Arm],
    max_new_tokens: int,
    repetition_penalty: float,
    ends: set[int],
    response_only: bool,
) -> list[list[int]]:
    """Write the answers of a batch; those that have ended are dropped from it."""
    new: dict[_Row, list[int]] = {row: [] for row in rows}
    for step in range(max_new_tokens):
        on_block: dict[int, OnBlock] = {}
        if theirs is not None:
            layers = {layer for row in rows for layer in arms[row.arm].swaps}
            states: dict[int, torch.Tensor] = {}
            theirs.read({layer: partial(states.__setitem__, layer) for layer in layers}, stop=True)
            if step > 0 or not response_only:
                on_block = {layer: partial(_patch, [arms[row.arm].swaps.get(layer) for row in rows], states[layer]) for layer in layers}
        logits_BV = mine.read(on_block).logits[:, -1].float()
        scaled_BV = torch.where(logits_BV < 0, logits_BV * repetition_penalty, logits_BV / repetition_penalty)
        best_B, token_B = torch.where(mine.seen_BV, scaled_BV, logits_BV).max(-1)
        if not torch.isfinite(best_B).all():
            bad = rows[int((~torch.isfinite(best_B)).nonzero()[0])]
            raise InputError(f"row {bad.prompt}: the logits in arm {bad.arm} are not finite; try a wider dtype (float32)")
        tokens = token_B.tolist()
        going = [b for b, token in enumerate(tokens) if token not in ends]
        rows = [rows[b] for b in going]
        for b, row in zip(going, rows, strict=True):
            new[row].append(tokens[b])
        if not rows:
            break
        for text in (mine, theirs):
            if text is not None:
                text.go_on(torch.tensor(going, device=token_B.device), token_B)
    return list(new.values())


def _patch(swaps: Sequence[Swap | Push | None], other_BTD: torch.Tensor, h_BTD: torch.Tensor) -> torch.Tensor:
    """Return a batch's states with each row's own swap made."""
    runs = [(swap, len(list(rows))) for swap, rows in groupby(swaps)]
    parts = zip(runs, *(state.split([count for _, count in runs]) for state in (h_BTD, other_BTD)), strict=True)
    return torch.cat([h if swap is None else patched(swap, h, other) for (swap, _), h, other in parts])
