"""Answers of a model while part of its state is another's: two models decode in lock-step.

`patching.py` scores a fixed text in an arm. Here the arm writes the text. M0 and M1 read the same tokens, the prompt and what the arm
itself has said so far. At each step the other model computes its state of the new token, unpatched. Then the reader does, with a part of
its state set to that,

    h_ℓ ← h_ℓ + s·P_ℓ(h'_ℓ − h_ℓ)          h_ℓ the running state of the reader, h'_ℓ the other's

and both read the reader's top token next. The reader keeps keys and values of an unpatched run up to the lowest swapped layer, and of
patched states above it. So every token is the arg max of a full patched forward pass over the tokens before it.

Rows of both models in one batch would save the switch between the two, but not the wait: the reader cannot start before the other's state
is known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.decoding.generate import Decoding, end_tokens
from wellworn.probes.decoding.kept import kept_by, together
from wellworn.probes.decoding.prefill import Prompts
from wellworn.probes.decoding.rows import Rows, next_tokens
from wellworn.probes.mediation.interventions import Intervention, Push, Swap, patch_state, swapped_layers
from wellworn.probes.mediation.paired_states import SIDES
from wellworn.probes.reading.capture import check_tokens
from wellworn.probes.reading.hooks import OnBlock
from wellworn.probes.reading.layers import inner_model
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant, switching

# All prompts of a batch are read in one pass, with both models' states at the swapped layers.
MOST_ROWS = 64


@torch.no_grad()
def patched_answers(
    model: nn.Module,
    prompts: tuple[Prompts, Prompts],
    between: tuple[Variant, Variant],
    arms: Sequence[Intervention],
    how: Decoding,
    *,
    response_only: bool = False,
) -> list[list[list[int]]]:
    """Answer tokenised prompts greedily in each arm; return new token ids [arms][prompts], without the end-of-turn token.

    An arm without swaps answers as `generate` does under its reader's variant.

    Args:
        model: a causal LM in eval mode that holds the adapters.
        prompts: for M0 and for M1, each up to and including the generation prompt. Equal prompts are swapped at every token.
        between: M0 and M1.
        arms: the interventions.
        how: to decode; greedily. Rows of a batch are of several arms and prompts; prompts of like length are together. The repetition
            penalty counts the reader's prompt and the answer.
        response_only: swap the answer's tokens alone. Prompts may then differ. The first token is the reader's own: it depends on the end
            of its prompt, which is not swapped.

    Raises:
        InputError: a prompt that does not fit the model with its answer, prompts that differ though all tokens are swapped, a layer out
            of range, an unknown adapter, or logits that are not finite (names prompt and arm).
        ValueError: a variant that edits states by itself, or a temperature.
    """
    if how.temperature:
        raise ValueError(f"patched arms answer greedily, and got a temperature of {how.temperature}")
    if kept_by(model).argument is None:
        raise InputError(
            f"{type(inner_model(model)).__name__}: keeps its state where it cannot be taken, so patched answers are not possible"
        )
    swapped_layers(model, between, arms)
    if any(arm.first_token for arm in arms):
        raise ValueError("an arm that patches the first token alone scores a fixed text; it writes none")
    for each in prompts:
        # The last token of an answer is not read.
        check_tokens(model, each, room=how.max_new_tokens - 1)
    for i, (before, after) in enumerate(zip(*prompts, strict=True)):
        if not response_only and list(before) != list(after):
            raise InputError(f"row {i}: prompts differ, so that only the response's tokens can be swapped (response_only)")
    arms = [arm.to(next(model.parameters()).device) for arm in arms]
    out: list[list[list[int]]] = [[[] for _ in prompts[0]] for _ in arms]
    with switching(model) as switch, fast_matmul():
        for batch in _batches(model, prompts, arms, min(how.rows, MOST_ROWS)):
            reader, patches = arms[batch[0].arm].reader, bool(arms[batch[0].arm].swaps)
            sides = [_Side(Rows.start(model, [prompts[side][row.prompt] for row in batch]), switch, between[side]) for side in SIDES]
            other = sides[1 - reader] if patches else None
            found = _decode(sides[reader], other, batch, arms, how, end_tokens(model), response_only)
            for row, answer in zip(batch, found, strict=True):
                out[row.arm][row.prompt] = answer
            if how.progress:
                how.progress(len(batch))
    return out


@dataclass(frozen=True)
class _Row:
    """One answer of a batch, by the indices of its arm and its prompt."""

    arm: int
    prompt: int


def _batches(model: nn.Module, prompts: tuple[Prompts, ...], arms: Sequence[Intervention], batch_size: int) -> Iterator[list[_Row]]:
    """Yield answers of one reader that are decoded together, prompts of like length; arms without swaps need no other model."""
    lengths = [(len(before), len(after)) for before, after in zip(*prompts, strict=True)]
    for reader in SIDES:
        longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i][reader])
        for patches in (False, True):
            mine = [a for a, arm in enumerate(arms) if arm.reader == reader and bool(arm.swaps) == patches]
            for group in together(model, [lengths[i] for i in longest_first]):
                rows = [_Row(a, longest_first[k]) for k in group for a in mine]
                for start in range(0, len(rows), batch_size):
                    # Rows of one arm are together, so that each swap is made once.
                    yield sorted(rows[start : start + batch_size], key=lambda row: row.arm)


@dataclass(frozen=True)
class _Side:
    """One model's side of a batch of answers."""

    rows: Rows
    switch: Callable[[Variant], None]
    variant: Variant

    def read(self, on_block: Mapping[int, OnBlock], stop: bool = False) -> torch.Tensor | None:
        """Read the unread tokens; return the logits after them, or None where the pass was stopped after the deepest hooked block."""
        self.switch(self.variant)
        return self.rows.read(on_block, stop)


def _decode(
    mine: _Side,
    theirs: _Side | None,
    rows: Sequence[_Row],
    arms: Sequence[Intervention],
    how: Decoding,
    ends: set[int],
    response_only: bool,
) -> list[list[int]]:
    """Write the answers of a batch; those that have ended are dropped from it."""
    new: dict[_Row, list[int]] = {row: [] for row in rows}
    sides = [side for side in (mine, theirs) if side is not None]
    for step in range(how.max_new_tokens):
        on_block: dict[int, OnBlock] = {}
        if theirs is not None:
            layers = {layer for row in rows for layer in arms[row.arm].swaps}
            states: dict[int, torch.Tensor] = {}
            theirs.read({layer: partial(states.__setitem__, layer) for layer in layers}, stop=True)
            if step > 0 or not response_only:
                on_block = {layer: partial(_patch, [arms[row.arm].swaps.get(layer) for row in rows], states[layer]) for layer in layers}
        logits_BV = mine.read(on_block)
        assert logits_BV is not None  # it was not stopped
        token_B, bad = next_tokens(logits_BV, mine.rows.tokens_BT, repetition_penalty=how.repetition_penalty)
        if bad:
            raise InputError(f"row {rows[bad[0]].prompt}: the logits in arm {rows[bad[0]].arm} are not finite; try a wider dtype (float32)")
        tokens = token_B.tolist()
        going = [b for b, token in enumerate(tokens) if token not in ends]
        for b in going:
            new[rows[b]].append(tokens[b])
        if not going:
            break
        for side in sides:
            side.rows.go_on(token_B)
            if len(going) < len(rows):
                side.rows.keep(going)
        rows = [rows[b] for b in going]
    return list(new.values())


def _patch(swaps: Sequence[Swap | Push | None], other_BTD: torch.Tensor, h_BTD: torch.Tensor) -> torch.Tensor:
    """Return a batch's states with each row's own swap applied."""
    runs = [(swap, len(list(rows))) for swap, rows in groupby(swaps)]
    parts = zip(runs, *(state.split([count for _, count in runs]) for state in (h_BTD, other_BTD)), strict=True)
    return torch.cat([h if swap is None else patch_state(swap, h, other) for (swap, _), h, other in parts])
