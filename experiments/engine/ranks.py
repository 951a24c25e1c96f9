"""All ranks run the same stages; only rank 0 decides and writes."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from wellworn.data.errors import InputError
from wellworn.lora.sharded import check_launcher
from wellworn.probes.reading.across_ranks import place

T = TypeVar("T")
R = TypeVar("R")


class Ranks:
    """This process among its peers; a group of one where there is no launcher."""

    def __init__(self) -> None:
        check_launcher()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # This module stores the group of all ranks as a default at its first import. Imported later, it would keep that group alive
            # past its end, and the group's threads would abort the interpreter at exit.
            import torch.distributed.nn.functional  # noqa: F401
            from accelerate import PartialState
            from accelerate.utils import InitProcessGroupKwargs

            # Rank 0 may wait for another process's training, so the group must not time out meanwhile.
            timeout = InitProcessGroupKwargs(timeout=timedelta(hours=24)).to_kwargs()
            PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true"), **timeout)
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def from_main(self, decide: Callable[[], T]) -> T:
        """Let rank 0 decide something, and return its result on all ranks; an exception there is raised on all ranks."""
        if self.world == 1:
            return decide()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = decide()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def together(self, error: Exception | None) -> None:
        """Raise an error of any rank on all ranks."""
        if self.world == 1:
            if error is not None:
                raise error
            return
        errors: list[Any] = [None] * self.world
        dist.all_gather_object(errors, None if error is None else (isinstance(error, InputError), f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, other in enumerate(errors):
            if other is not None:
                raise (InputError if other[0] else RuntimeError)(f"rank {rank}: {other[1]}")

    def share(self, items: Sequence[T], work: Callable[[list[T]], Sequence[R]]) -> list[R]:
        """Let each rank work on its part of some items; return all results, in the order of the items, on every rank.

        Args:
            items: the same on all ranks.
            work: some of the items → one result for each of them.
        """
        rank, world = place()
        mine = range(len(items))[rank::world]
        found = list(zip(mine, work([items[i] for i in mine]), strict=True))
        parts: list[Any] = [found]
        if world > 1:
            parts = [None] * world
            dist.all_gather_object(parts, found)
        results = dict(result for part in parts for result in part)
        return [results[i] for i in range(len(items))]

    def close(self) -> None:
        """Leave the process group, if this object's launcher made one."""
        if dist.is_initialized():
            dist.destroy_process_group()
