"""Devices that are not there: tensors that say they are on one, computed on the CPU, and refused together with tensors of another.

A model spread over several GPUs works where each operation finds its tensors on one device. This tells on any machine whether it does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from wellworn.probes.reading.layers import decoder_blocks

NAME = "pretend"
_CPU = torch.device("cpu")
_COPY, _COPY_INTO = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
_INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)


class _OnDevice(torch.Tensor):
    """A tensor that says it is on a device that is not there, and the one on the CPU that it stands for."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "_OnDevice":
        made: _OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=device
        )
        made.held = held
        return made

    @property
    def data(self) -> "_OnDevice":
        return _OnDevice(self.held, self.device)

    @data.setter
    def data(self, value: "_OnDevice") -> None:
        if value.device != self.device:
            raise RuntimeError(f"a tensor on {self.device} is given the data of one on {value.device}")
        self.held = value.held

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"{self.device}: {self.held}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _bare(value: Any) -> Any:
    return value.held if isinstance(value, _OnDevice) else value


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    # As on real devices, numbers and indices may be on the CPU.
    indices = {id(each) for each in args[1]} if func in _INDEX else set()
    places = {each.device for each in tensors if each.device != _CPU or (each.dim() and id(each) not in indices)}
    place = torch.device(kwargs["device"]) if kwargs.get("device") is not None else next(iter(places), _CPU)
    if func is _COPY_INTO:
        place = args[0].device
    elif len(places) > 1 and func is not _COPY:
        raise RuntimeError(f"{func}: tensors on several devices, {', '.join(sorted(map(str, places)))}")
    on_cpu = {key: _CPU if key == "device" and value is not None else value for key, value in kwargs.items() if key != "pin_memory"}
    result = func(*tree_map(_bare, args), **tree_map(_bare, on_cpu))
    # Operations in place return what they were given.
    given = {id(_bare(each)): each for each in tensors}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in given:
            return given.get(id(value), value)
        return value if place.type == "cpu" else _OnDevice(value, place)

    return tree_map(placed, result)


class _Factories(TorchDispatchMode):
    """Makes new tensors on the devices that they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """What does not go through an operation that could be replaced: `torch.tensor`, and lists as indices."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and (device := kwargs.pop("device", None)) is not None:
            return func(*args, **kwargs).to(device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], _OnDevice):
            args = tree_map(lambda each: torch.tensor(each) if _is_list(each) else each, args, is_leaf=_is_list)
        return func(*args, **kwargs)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


@cache
def _register() -> None:
    class Hook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return False

        def has_primary_context(self, dev_id: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _setup_privateuseone_for_python_backend(NAME, hook=Hook())


@contextmanager
def pretended() -> Iterator[list[torch.device]]:
    """Let two devices exist for a while."""
    _register()
    with ExitStack() as stack:
        stack.enter_context(_Factories())
        stack.enter_context(_Literals())
        yield [torch.device(NAME, 0), torch.device(NAME, 1)]


def spread(model: nn.Module, devices: Sequence[torch.device]) -> nn.Module:
    """Place a causal LM as `device_map` does: embeddings and the lower half of the blocks on the first device, the rest on the second."""
    blocks = decoder_blocks(model)
    names = {module: name for name, module in model.named_modules()}
    lower = set(list(blocks)[: len(blocks) // 2])
    parts = {names[block]: devices[block not in lower] for block in blocks}
    first = {names[model.get_input_embeddings()]}
    for name, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if own and not any(name.startswith(f"{part}.") for part in parts):
            parts[name] = devices[name not in first and "rotary" not in name]
    return dispatch_model(model, parts, skip_keys="past_key_values", force_hooks=True)
