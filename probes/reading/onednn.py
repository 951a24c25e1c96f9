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
from torch.overrides import TorchFunctionMode

# oneDNN and torch's layer around it keep code and buffers of the last 1,024 shapes each, and almost every batch has a
# shape of its own: after 800 batches that is more than a pass itself takes. Making them anew costs nothing that shows.
# Read when the first product is computed, hence set here; values set outside take precedence.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")

_plain = ContextVar("plain", default=False)


def fast_matmul() -> AbstractContextManager[Any]:
    """Let linear layers that run inside, without gradients, take the faster library; a no-op where there is none.

    Results differ by rounding alone. A GPU, another dtype, and whatever needs gradients are left as they are.
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


class _OneDnnLinear(TorchFunctionMode):
    """Send float32 `linear` on the CPU to oneDNN."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not torch.is_grad_enabled() and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if type(x) is torch.Tensor and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel():
                return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))
