"""The last batch of an epoch on several ranks. Accelerate fills it up with rows that were read before, and these must not count twice."""

from typing import Any, NamedTuple


class Share(NamedTuple):
    """What a rank's part of a batch counts for.

    Attributes:
        rows: how many rows are its own; those behind them are repeats.
        weight: the mean over these counts so much in the mean over ranks, so that the latter is one over all rows.
    """

    rows: int
    weight: float


def share_of_batch(trainer: Any, held: int) -> Share:
    """Return what a rank's part of the batch of this step counts for.

    Args:
        trainer: a trainer of transformers that has just taken the batch.
        held: how many rows this rank holds.
    """
    settings = trainer.args
    whole = settings.per_device_train_batch_size * settings.world_size
    left = len(trainer.train_dataset) % whole
    last = left and trainer.accelerator.gradient_state.end_of_dataloader and not settings.dataloader_drop_last
    # Where rows are joined into one, there is nothing to count.
    if settings.world_size == 1 or not last or held != settings.per_device_train_batch_size:
        return Share(held, 1.0)
    own = min(max(left - settings.process_index * held, 0), held)
    return Share(own, own * settings.world_size / left)
