"""Rows that are being written: the tokens that each has read, and those that it reads next.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wellworn.probes.decoding.kept import Kept, kept_by, new_cache
from wellworn.probes.decoding.kv_cache import CacheSlice, GrowingCache, put_together
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.hooks import OnBlock, forward
from wellworn.probes.reading.layers import text_config


@dataclass
class Rows:
    """Rows that are being written.

    Attributes:
        model: a causal LM in eval mode.
        kept: what the model keeps of what it has read.
        cache: that; None where it keeps nothing.
        tokens_BT: all tokens so far; padded at the left with a token that the row holds elsewhere.
        mask_BT: 0 on padding.
        unread: how many of the last columns were not read yet.
    """

    model: nn.Module
    kept: Kept
    cache: Any
    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor
    unread: int

    @classmethod
    def start(cls, model: nn.Module, prompts: Sequence[Sequence[int]]) -> "Rows":
        """Return rows that have read nothing, and are to read their prompts together.

        Raises:
            ValueError: the model cannot read prompts of different lengths together (`together`).
        """
        kept = kept_by(model)
        if not kept.pads and len({len(prompt) for prompt in prompts}) > 1:
            raise ValueError(f"{type(model).__name__} reads padding too, so prompts of different lengths cannot be read together")
        tokens_BT, mask_BT = _align(prompts, next(model.parameters()).device)
        return cls(model, kept, new_cache(model, kept), tokens_BT, mask_BT, tokens_BT.shape[1])

    def read(self, on_block: Mapping[int, OnBlock] | None = None, stop: bool = False) -> torch.Tensor | None:
        """Read the unread tokens; return the logits after them [B, V], or None where the pass ends at the deepest hooked block."""
        output = forward(self.model, on_block or {}, stop, **self._inputs(), use_cache=self.cache is not None, logits_to_keep=1)
        self.unread = 0
        return None if output is None else output.logits[:, -1]

    def _inputs(self) -> dict[str, Any]:
        if self.kept.argument is None:
            return {"input_ids": self.tokens_BT}
        inputs = {"input_ids": self.tokens_BT[:, -self.unread :], self.kept.argument: self.cache}
        if self.kept.pads:
            # A row that is done may be read on for a while, past the model's last position.
            last = getattr(text_config(self.model), "max_position_embeddings", None) or self.mask_BT.shape[1]
            positions_BT = (self.mask_BT.cumsum(1) - 1).clamp(0, last - 1)[:, -self.unread :]
            inputs |= {"attention_mask": self.mask_BT, "position_ids": positions_BT}
        return inputs

    def go_on(self, token_B: torch.Tensor) -> None:
        """Give every row one more token to read."""
        self.tokens_BT = torch.cat([self.tokens_BT, token_B[:, None]], dim=1)
        self.mask_BT = torch.cat([self.mask_BT, torch.ones_like(self.mask_BT[:, :1])], dim=1)
        self.unread += 1

    def go_back(self, count: int) -> None:
        """Forget the last tokens of every row, which were read."""
        if count:
            self.tokens_BT, self.mask_BT = self.tokens_BT[:, :-count], self.mask_BT[:, :-count]
            self.cache.crop(-count)

    def keep(self, which: Sequence[int]) -> None:
        """Keep some rows, in the order given."""
        rows = torch.tensor(which, device=self.tokens_BT.device)
        mask_BT = self.mask_BT[rows]
        start = 0
        if isinstance(self.cache, GrowingCache):
            start = int(mask_BT.any(0).int().argmax())
            self.cache.keep(rows, start)
        elif self.cache is not None:
            # Made for beam search; the rows may be fewer.
            self.cache.reorder_cache(rows)
        self.tokens_BT, self.mask_BT = self.tokens_BT[rows, start:], mask_BT[:, start:]

    def join(self, others: "Rows", order: Sequence[int]) -> "Rows":
        """Return these rows together with others that have as many unread tokens; both are used up.

        Args:
            others: that join.
            order: of the rows returned: indices into these and, after them, the others.
        """
        assert isinstance(self.cache, GrowingCache)
        assert isinstance(others.cache, GrowingCache)
        longest = max(self.tokens_BT.shape[1], others.tokens_BT.shape[1])
        both, places = (self, others), torch.tensor(order).argsort()
        parts = [CacheSlice(self.cache, places[: len(self.tokens_BT)]), CacheSlice(others.cache, places[len(self.tokens_BT) :])]
        tokens_BT = torch.cat([_widen(rows.tokens_BT, longest, rows.tokens_BT[:, -1:]) for rows in both])[order]
        mask_BT = torch.cat([_widen(rows.mask_BT, longest, torch.zeros_like(rows.mask_BT[:, :1])) for rows in both])[order]
        return Rows(self.model, self.kept, put_together(parts, len(order), longest - self.unread), tokens_BT, mask_BT, self.unread)


def _widen(values_BT: torch.Tensor, longest: int, fill_B1: torch.Tensor) -> torch.Tensor:
    return torch.cat([fill_B1.expand(-1, longest - values_BT.shape[1]), values_BT], dim=1)


def _align(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and mask [B, T], aligned at the right."""
    tokens, mask = pad_rows(prompts, 0, "left")
    return torch.where(mask > 0, tokens, tokens[:, -1:]).to(device), mask.to(device)


def next_tokens(
    logits_BV: torch.Tensor,
    tokens_BT: torch.Tensor,
    *,
    repetition_penalty: float = 1.0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    drawn: Sequence[float] | None = None,
) -> tuple[torch.Tensor, list[int]]:
    """Choose each row's next token; return them [B], and the rows whose logits are not finite.

    Args:
        logits_BV: of the model.
        tokens_BT: what each row has so far.
        repetition_penalty: on the logits of these tokens, as in arXiv:1909.05858; 1 is none.
        temperature: divisor of the logits; 0 takes the top token.
        top_p: choose among the most likely tokens that together have this probability.
        drawn: a number in [0, 1) for each row: the place of the token in its cumulative distribution.
    """
    logits_BV = logits_BV.float()
    if repetition_penalty != 1:
        seen = logits_BV.gather(1, tokens_BT)
        logits_BV = logits_BV.scatter(1, tokens_BT, torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty))
    best_B, token_B = logits_BV.max(1)
    good_B = torch.isfinite(best_B)
    bad = (~good_B).nonzero()[:, 0].tolist()
    if not temperature:
        return token_B, bad
    logits_BV = torch.where(good_B[:, None], logits_BV, 0)
    chance_BV = (logits_BV / temperature).softmax(1, dtype=torch.float64)
    order_BV = None
    if top_p < 1:
        chance_BV, order_BV = chance_BV.sort(1, descending=True)
        # The token that reaches the sum is still among them.
        chance_BV[chance_BV.cumsum(1) - chance_BV >= top_p] = 0
    sum_BV = chance_BV.cumsum(1)
    at_B1 = torch.tensor(drawn, dtype=torch.float64, device=sum_BV.device)[:, None] * sum_BV[:, -1:]
    place_B1 = torch.searchsorted(sum_BV, at_B1, right=True).clamp(max=sum_BV.shape[1] - 1)
    return (place_B1 if order_BV is None else order_BV.gather(1, place_B1))[:, 0], bad
