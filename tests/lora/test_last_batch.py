"""Rows with which accelerate fills the last batch count for nothing: each row of an epoch counts once, whatever the number of ranks."""

from collections import Counter
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from wellworn.lora.last_batch import share_of_batch


def trainer(rows: int, size: int, world: int, rank: int, last: bool, drop_last: bool = False) -> Any:
    settings = SimpleNamespace(per_device_train_batch_size=size, world_size=world, process_index=rank, dataloader_drop_last=drop_last)
    state = SimpleNamespace(end_of_dataloader=last)
    return SimpleNamespace(args=settings, train_dataset=range(rows), accelerator=SimpleNamespace(gradient_state=state))


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 8, 12, 13, 16, 23])
def test_every_row_counts_once(rows: int, size: int, world: int) -> None:
    parts = [
        list(BatchSamplerShard(BatchSampler(SequentialSampler(range(rows)), size, False), num_processes=world, process_index=rank))
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    counted: Counter[int] = Counter()
    for step, batches in enumerate(zip_longest(*parts)):
        shares = [
            share_of_batch(trainer(rows, size, world, rank, last=step == len(parts[0]) - 1), len(batch))
            for rank, batch in enumerate(batches)
        ]
        own = [row for batch, share in zip(batches, shares, strict=True) for row in batch[: share.rows]]
        counted.update(own)
        # The mean over ranks of each one's weighted mean is the mean over rows.
        means = [sum(batch[: share.rows]) / max(share.rows, 1) * share.weight for batch, share in zip(batches, shares, strict=True)]
        assert sum(means) / world == pytest.approx(sum(own) / len(own))
    assert counted == Counter(range(rows))


def test_a_batch_that_is_not_the_last_or_is_left_out_counts_whole() -> None:
    assert share_of_batch(trainer(10, 4, 2, 1, last=False), 4) == (4, 1.0)
    assert share_of_batch(trainer(10, 4, 2, 1, last=True, drop_last=True), 4) == (4, 1.0)
    # Rows that were joined into one.
    assert share_of_batch(trainer(10, 4, 2, 1, last=True), 1) == (1, 1.0)


def test_one_process_holds_no_repeats() -> None:
    assert share_of_batch(trainer(10, 4, 1, 0, last=True), 2) == (2, 1.0)
