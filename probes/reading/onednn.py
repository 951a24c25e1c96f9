"""Matrix products in float32 on processors where torch's default library is slow.

torch multiplies float32 matrices by MKL, which takes its AVX-512 path on Intel processors alone; on others it falls
back to AVX2. oneDNN, which torch holds as well, takes AVX-512 on all of them, and is then about twice as fast.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# oneDNN and torch's layer around it keep code and buffers of the last 1,024 shapes each, and almost every batch has a
# shape of its own: after 800 batches that is more than a pass itself takes. Making them anew costs nothing that shows.
# Read when the first product is computed, hence set here; values set outside take precedence.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")

_plain = ContextVar("plain", default=False)


def fast_matmul() -> AbstractContextManager[Any]:
    """Let linear layers that run inside take the faster library; a no-op where there is none.

    Results differ by rounding alone. A GPU, another dtype, and layers whose weights are trained are left as they are. Frozen layers that
    gradients pass through, which are nearly all of a LoRA fine-tune, take it both ways.
    """
    return _OneDnnLinear() if _onednn_is_faster() and not _plain.get() else nullcontext()


@contextmanager
def plain_matmul() -> Iterator[None]:
    """Make `fast_matmul` a no-op inside, to measure what it gains."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


@functools.cache
def _onednn_is_faster() -> bool:
    # Decided by the kind of processor and never by a timing: equal machines must give equal results.
    processor = Path("/proc/cpuinfo")
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available() or not processor.is_file():
        return False
    return "GenuineIntel" not in processor.read_text(encoding="utf-8", errors="replace")


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _FrozenLinear(torch.autograd.Function):
    """A linear layer of frozen weights: only its input has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grad, weight.T), None, None


class _OneDnnLinear(TorchFunctionMode):
    """Send float32 `linear` on the CPU to oneDNN."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if type(x) is torch.Tensor and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel():
                if not torch.is_grad_enabled():
                    return _product(x, weight, bias)
                if not (weight.requires_grad or (bias is not None and bias.requires_grad)):
                    return _FrozenLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
