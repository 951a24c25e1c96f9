"""Keys and values of rows that are being written: they have room to grow, rows leave, and others join.

Rows of different lengths are aligned at the right. Padding is at the left, and masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# Entries that are made room for at once: copying a whole cache for every token takes longer than attention does.
ROOM = 32


class _Layer(DynamicLayer):
    """One block's keys and values [rows, heads, tokens, d_head], which are views of longer tensors."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None, room: int = 0) -> None:
        """Take over keys and values whose last `room` entries are free."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._longer: tuple[torch.Tensor, torch.Tensor] | None = None
        if keys is not None and values is not None:
            super().lazy_initialization(keys, values)
            self._show((keys, values), keys.shape[2] - room)

    def _show(self, longer: tuple[torch.Tensor, torch.Tensor], length: int) -> None:
        self._longer = longer
        self.keys, self.values = (each[:, :, :length] for each in longer)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Add entries to all rows."""
        if not self.is_initialized:
            super().lazy_initialization(key_states, value_states)
            self._show((key_states[:, :, :0], value_states[:, :, :0]), 0)
        before, more = self.keys.shape[2], key_states.shape[2]
        if self._longer is None or self._longer[0].shape[2] < before + more:
            # A pass over several tokens reads a prompt, whose entries are moved before they grow.
            room = more if more > 1 else ROOM
            self._longer = (_with_room(self.keys, room), _with_room(self.values, room))
        for buffer, new in zip(self._longer, (key_states, value_states), strict=True):
            buffer[:, :, before : before + more] = new
        self._show(self._longer, before + more)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor, start: int = 0) -> None:
        """Keep some rows, from an entry on, with room to grow: copied once, and not again for the next token."""
        length = self.keys.shape[2] - start
        kept = []
        indices = indices.to(self.keys.device)
        for old in (self.keys, self.values):
            new = old.new_empty(len(indices), old.shape[1], length + ROOM, old.shape[3])
            torch.index_select(old[:, :, start:], 0, indices, out=new[:, :, :length])
            kept.append(new)
        self._show((kept[0], kept[1]), length)


def _with_room(old: torch.Tensor, room: int) -> torch.Tensor:
    new = old.new_empty(old.shape[0], old.shape[1], old.shape[2] + room, old.shape[3])
    new[:, :, : old.shape[2]] = old
    return new


class GrowingCache(DynamicCache):
    """Keys and values of some rows in all blocks.

    All entries are kept, also where a block attends to a window alone: the mask limits it, and a window of entries would not show where a
    row begins. Only for models with plain keys and values in every block (`PrefixCache.supports`).
    """

    def __init__(self, layers: Sequence[_Layer] = ()) -> None:
        super().__init__()
        self.layers, self.layer_class_to_replicate = list(layers), _Layer

    @property
    def blocks(self) -> list[_Layer]:
        """The layers, known to be of this cache's kind."""
        return self.layers  # type: ignore[return-value]

    def for_rows(self, rows: int) -> "GrowingCache":
        """Return a cache of so many rows, each of which continues the one row of this."""
        return GrowingCache([_Layer(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)) for layer in self.blocks])

    def keep(self, indices: torch.Tensor, start: int = 0) -> None:
        """Keep some rows, in the order given, from an entry on."""
        for layer in self.blocks:
            if layer.is_initialized:
                layer.batch_select_indices(indices, start)


@dataclass(frozen=True)
class CacheSlice:
    """Some of the rows that are put together.

    Attributes:
        cache: their keys and values.
        rows: the place of each among all.
        ends: how many entries of each to take over; the rest is padding. None where there is no padding.
    """

    cache: GrowingCache
    rows: torch.Tensor
    ends: torch.Tensor | None = None


def put_together(parts: Sequence[CacheSlice], count: int, longest: int) -> GrowingCache:
    """Return one cache of so many rows, with `longest` entries each; rows in no part are empty.

    The parts are used up, block by block, so that little is held twice.
    """
    # Prompts of one token have nothing to keep until that is read.
    parts = [part for part in parts if part.cache.blocks]
    if not parts:
        return GrowingCache()
    made = []
    for at in range(len(parts[0].cache.blocks)):
        whole = []
        for name in ("keys", "values"):
            each: list[torch.Tensor] = [getattr(part.cache.blocks[at], name) for part in parts]
            new = each[0].new_empty(count, each[0].shape[1], longest + ROOM, each[0].shape[3])
            # Masked entries are multiplied by zero, and must be finite.
            new[:, :, :longest] = 0
            for part, old in zip(parts, each, strict=True):
                wide = min(old.shape[2], longest)
                new[part.rows.to(new.device), :, longest - wide : longest] = _right(old, part.ends)[:, :, old.shape[2] - wide :]
            whole.append(new)
        for part in parts:
            part.cache.blocks[at] = _Layer()
        made.append(_Layer(whole[0], whole[1], room=ROOM))
    return GrowingCache(made)


def _right(entries_BHTD: torch.Tensor, ends_B: torch.Tensor | None) -> torch.Tensor:
    """Move each row's entries to the right end; the content to their left does not matter."""
    if ends_B is None:
        return entries_BHTD
    total = entries_BHTD.shape[2]
    from_BT = (torch.arange(total) - (total - ends_B)[:, None]).clamp(min=0).to(entries_BHTD.device)
    return entries_BHTD.gather(2, from_BT[:, None, :, None].expand_as(entries_BHTD))
