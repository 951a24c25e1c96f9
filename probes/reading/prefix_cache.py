"""Keys and values of prefixes that many rows share."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class PrefixCache(DynamicCache):
    """Keys and values of some prefixes, which rows that begin with them read without adding to them.

    A pass inside `filled` adds one entry a prefix. Every other pass takes the cache `for_rows`, and leaves it
    as it was: what a row adds lives as long as its block's attention does. A cache that was never filled is empty; with one, the model does
    not search for packed sequences, which would wait for the device.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._rows: torch.Tensor | None = None
        self._filling = False

    @staticmethod
    def supports(config: Any) -> bool:
        """Whether the model keeps plain keys and values, in full or in a sliding window, in every block."""
        layers = DynamicCache(config=config).layers
        return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)

    @staticmethod
    def holds_everything(config: Any) -> bool:
        """Whether the model keeps all keys and values in every block, so that entries of one block have the shape of any other's."""
        layers = DynamicCache(config=config).layers
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Let the pass inside add to the cache."""
        self._filling = True
        try:
            yield
        finally:
            self._filling = False

    def for_rows(self, prefix_B: torch.Tensor | None) -> "PrefixCache":
        """Return the same entries for a batch whose rows go on from these prefixes [batch]."""
        view = copy.copy(self)
        view._rows = prefix_B
        return view

    def below(self, other: "PrefixCache", layer: int) -> None:
        """Take over the entries of blocks 0…`layer` from a cache of the same prefixes; the tensors are shared."""
        self.layers[: layer + 1] = other.layers[: layer + 1]

    def below_from(self, layer: int) -> None:
        """Let blocks below `layer` have its entries: they are never read, but a model asks the first block how long the prefix is."""
        self.layers[:layer] = [self.layers[layer]] * layer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that a block's attention is to see."""
        if self._filling:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer: Any = self.layers[layer_idx]
        if not layer.is_initialized:
            return key_states, value_states
        seen = copy.copy(layer)
        rows = None if self._rows is None else self._rows.to(layer.keys.device)
        seen.keys, seen.values = layer.keys[rows], layer.values[rows]
        keys, values = seen.update(key_states, value_states)
        return keys, values
