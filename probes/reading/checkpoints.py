"""Other weights of the same architecture in place of a model's own: a full fine-tune, or a merged checkpoint.

The tensors of both are in memory, and a switch exchanges which of them the modules point to. Nothing is computed or copied, so that the
base is bit for bit what it was, and the other model exactly itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.probes.reading.layers import inner_model

# Name of a parameter or a buffer that is saved → its value in the other model.
Weights = Mapping[str, torch.Tensor]


class Checkpoints:
    """The checkpoints that a model can be run as.

    Attributes:
        weights: name → the tensors that differ from the model's own.
        active: the one whose tensors are in place; None for the model's own.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Weights]) -> None:
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        for name, some in weights.items():
            for key, each in some.items():
                if key not in tensors or tensors[key].shape != each.shape:
                    there = list(tensors[key].shape) if key in tensors else "no such tensor"
                    raise InputError(f"checkpoint {name!r}: {key} is {list(each.shape)}, and the base has {there}")
        self.weights = weights
        self.active: str | None = None
        self._tensors = tensors
        self._own = {key: tensors[key].data for some in weights.values() for key in some}

    def switch(self, name: str | None) -> None:
        """Put a checkpoint's tensors in place, or the model's own for None."""
        if name == self.active:
            return
        for key in self.weights[self.active] if self.active is not None else ():
            self._tensors[key].data = self._own[key]
        self.active = name
        for key, each in self.weights[name].items() if name is not None else ():
            self._tensors[key].data = each


_held: WeakKeyDictionary[nn.Module, Checkpoints] = WeakKeyDictionary()
_NONE: Mapping[str, Weights] = {}


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Weights]) -> Iterator[None]:
    """Let a model hold checkpoints for a while, so that variants can name them; its own weights are in place afterwards.

    Args:
        model: a causal LM without adapters, wrapped or not.
        weights: name → the tensors that differ from the model's own, on its device and in its dtype.

    Raises:
        InputError: a tensor that the model does not have, or of another shape.
    """
    inner = inner_model(model)
    if inner in _held:
        raise RuntimeError("the model holds checkpoints already; let it hold all of them together")
    checkpoints = _held[inner] = Checkpoints(inner, weights)
    try:
        yield
    finally:
        checkpoints.switch(None)
        del _held[inner]


def held(model: nn.Module) -> Checkpoints | None:
    """Return the checkpoints that a model holds, if it holds any."""
    return _held.get(inner_model(model))


def held_weights(model: nn.Module) -> Mapping[str, Weights]:
    """Return name → the tensors of each checkpoint that a model holds."""
    found = held(model)
    return found.weights if found else _NONE
