"""Processes that read together: each reads its part, and one sum puts all parts on all of them. One may also work while others wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process read all by itself: others take no part, and a sum over all processes would wait for them without end."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def place() -> tuple[int, int]:
    """Return this process's rank, and the number of processes that read together."""
    if _ALONE.get() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_ranks(mine: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Add up over processes, each of which holds its own part and zeros elsewhere.

    Args:
        mine: on the CPU.
        device: where the model is; sums are taken there.

    Returns:
        The sum on the CPU, on every process; `mine` itself where there is one process.
    """
    if place()[1] == 1:
        return mine
    there = mine.to(device)
    dist.all_reduce(there)
    return there.cpu()
