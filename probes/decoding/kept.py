"""What a model keeps of the tokens that it has read, and so which prompts it can read together.

Attention masks padding. A recurrent state does not: it has read whatever stood there. So rows of models with such a state have one length.
"""

import inspect
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from wellworn.probes.decoding.kv_cache import GrowingCache
from wellworn.probes.reading.layers import inner_model, text_config
from wellworn.probes.reading.prefix_cache import PrefixCache
from wellworn.probes.reading.variants import Variant, applied

_ATTENTION = {DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer}
_RECURRENT = {LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer}


@dataclass(frozen=True)
class Kept:
    """What a model keeps of the tokens that it has read.

    Attributes:
        argument: the argument of its forward pass that takes it; None where nothing can be kept, and all tokens are read again for each
            new one.
        pads: whether padding is masked, so that prompts of different lengths can be read together.
        joins: whether it is plain keys and values, so that rows can join others that are under way.
    """

    argument: str | None
    pads: bool
    joins: bool


# Tokens that are read in two ways to find out whether a model's steps are right.
_CHECKED = 12
# How far the two may lie apart, relative to the largest logit, in float32.
_CLOSE = 1e-4
_right_steps: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
NOTHING = Kept(argument=None, pads=False, joins=False)


def kept_by(model: nn.Module) -> Kept:
    """Return what a causal LM keeps, wrapped or not."""
    config, inner = text_config(model), inner_model(model)
    if PrefixCache.supports(config):
        # RWKV's configuration names no kinds of layers, and is taken for one of attention.
        return NOTHING if "past_key_values" not in _arguments(inner) else Kept("past_key_values", pads=True, joins=True)
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    argument = next((name for name in ("past_key_values", "cache_params") if name in _arguments(inner)), None)
    if argument is None or not kinds <= _ATTENTION | _RECURRENT or _has_own_cache(inner):
        return NOTHING
    if not kinds & _RECURRENT:
        return Kept(argument, pads=True, joins=False)
    if inner not in _right_steps:
        _right_steps[inner] = _steps_are_right(inner, argument)
    return Kept(argument, pads=False, joins=False) if _right_steps[inner] else NOTHING


def new_cache(model: nn.Module, kept: Kept) -> Any:
    """Return an empty cache for a model; None where it keeps nothing."""
    if kept.argument is None:
        return None
    return GrowingCache() if kept.joins else DynamicCache(config=text_config(model))


def _steps_are_right(model: Any, argument: str) -> bool:
    """Whether a model that reads token by token says what it says of the whole.

    Some do not: without their own kernels, a step of several recurrent models of transformers 5 is not that of their full pass. In 16 bits
    rounding would hide it, so it is tried in float32. Where there is no room for that, or where steps fail, nothing is kept: that is right,
    and slow.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(applied(model, Variant()))
        if not stack.enter_context(_in_float32(model)):
            return False
        try:
            return _steps_agree(model, argument)
        except Exception:  # a step that a class does not know, of any kind
            return False


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[bool]:
    """Let a model compute in float32 for a while; yield whether it does. Afterwards its tensors are those that it had."""
    tensors = [*model.parameters(), *model.buffers()]
    short = [each for each in tensors if each.is_floating_point() and each.dtype.itemsize < 4]
    packed = any(not each.is_floating_point() and not each.is_complex() for each in model.parameters())
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if packed or 4 * sum(each.numel() for each in short) > free // 2:
        yield False
        return
    before = [each.data for each in short]
    try:
        for each in short:
            each.data = each.data.float()
        yield True
    finally:
        for each, data in zip(short, before, strict=True):
            each.data = data


def _steps_agree(model: Any, argument: str) -> bool:
    weight = next(model.parameters())
    vocabulary = text_config(model).vocab_size
    ids_1T = torch.tensor([[(7 * t + 3) % vocabulary for t in range(_CHECKED)]], device=weight.device)
    whole_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    for prompt in (2, _CHECKED - 3):
        cache = DynamicCache(config=text_config(model))
        found = [model(input_ids=ids_1T[:, :prompt], use_cache=True, **{argument: cache}).logits[0, -1:]]
        if not _is_used(cache):
            return False
        found += [
            model(input_ids=ids_1T[:, t : t + 1], use_cache=True, **{argument: cache}).logits[0, -1:] for t in range(prompt, _CHECKED)
        ]
        unlike = (torch.cat(found).float() - whole_TV[prompt - 1 :]).abs().max()
        if not unlike <= _CLOSE * whole_TV.abs().max():
            return False
    return True


def _is_used(cache: DynamicCache) -> bool:
    """Whether a model has put all its states into a cache that it was given; some keep a state in their modules instead."""
    recurrent = [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]
    return all(any(layer.has_previous_state.values()) for layer in recurrent)


def together(model: nn.Module, keys: Iterable[Hashable]) -> list[list[int]]:
    """Return which prompts can be read together, given their lengths: indices, in the order in which each length comes first."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    pads = kept_by(model).pads
    for i, key in enumerate(keys):
        groups[None if pads else key].append(i)
    return list(groups.values())


def _arguments(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _has_own_cache(model: nn.Module) -> bool:
    """Whether a model's file defines a kind of cache, which the model then wants in place of the usual one."""
    name = type(model).__module__
    own = (each for each in vars(sys.modules[name]).values() if isinstance(each, type) and each.__module__ == name)
    return any(issubclass(each, Cache) for each in own)
