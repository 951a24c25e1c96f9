"""Checkpoints of a training under way: which of them are whole, also after a power failure, and where training goes on."""

import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers import TrainerCallback

from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.data.saving import sync, write_json

# Written last: the name of each file of a checkpoint, and its size in bytes.
SIZES = "sizes.json"


class MarkWhole(TrainerCallback):
    """Writes down what a checkpoint holds, when all processes have written their part of it.

    The one of the last step is left out: a trainer that goes on from there takes another step, past the end.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it; all processes save at the same step."""
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if PartialState().is_main_process and folder.is_dir() and state.global_step < state.max_steps:
            sizes = _sizes(folder)
            for name in sizes:
                sync(folder / name)
            write_json(folder / SIZES, sizes)


def newest_checkpoint(work: Path, sharded: bool) -> str | None:
    """Return the newest checkpoint that is whole, in the form that this training reads; remove all others.

    Args:
        work: the folder of the checkpoints.
        sharded: whether weights are spread over ranks, and so in checkpoints.
    """
    whole = [path for path in work.glob("checkpoint-*") if _is_whole(path) and bool([*path.glob(f"{FSDP_MODEL_NAME}*")]) == sharded]
    PartialState().wait_for_everyone()
    for path in work.glob("checkpoint-*"):
        if path not in whole and PartialState().is_main_process:
            shutil.rmtree(path, ignore_errors=True)
    newest = max(whole, key=lambda path: int(path.name.split("-")[-1]), default=None)
    PartialState().wait_for_everyone()
    return str(newest) if newest else None


def _is_whole(folder: Path) -> bool:
    try:
        return bool(read_json(folder / SIZES) == _sizes(folder))
    except InputError:
        return False


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file, itself left out."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SIZES
    }
