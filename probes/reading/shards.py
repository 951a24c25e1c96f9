"""Finished parts of a reading on disk, so that an interrupted one goes on where it stopped."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from wellworn.data.errors import InputError
from wellworn.data.saving import sync
from wellworn.probes.reading.forward_passes import BatchReading

# How much work a kill may cost at most, apart from the chunk under way.
SAVE_SECONDS = 30.0
_IDENTITY = "reading.txt"


class Shards:
    """A folder of finished parts. Several ranks may share it.

    Args:
        folder: is made if need be; parts found there are taken over.
        identity: of the reading that the parts belong to.

    Raises:
        InputError: the folder holds parts of something else.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._unsaved: list[BatchReading] = []
        self._last = time.monotonic()
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]] = {}
        label = folder / _IDENTITY
        written = label.read_text(encoding="utf-8", errors="replace") if label.is_file() else None
        # A power failure may have cut it short, and the parts may then be of anything.
        if written is not None and not identity.startswith(written):
            raise InputError(f"{folder} holds a part of another reading; give an empty folder")
        if written is not None and written != identity:
            for path in folder.glob("*.safetensors"):
                path.unlink(missing_ok=True)
        if written != identity:
            self._write(label, lambda path: path.write_text(identity, encoding="utf-8"))
        for path in sorted(folder.glob("[!.]*.safetensors")):
            try:
                found = load_file(path)
            except SafetensorError:
                # A power failure cut it short: its rows are read again.
                path.unlink(missing_ok=True)
                continue
            for k, (variant, row) in enumerate(found["which"].tolist()):
                self._kept[variant, row] = found["states"][k], found["logprob"][k] if "logprob" in found else None

    def parts(self, rows: Sequence[int], variants: int) -> list[BatchReading] | None:
        """Return what was kept of all these rows with all variants, one part a variant; None if any is missing."""
        if any((v, row) not in self._kept for v in range(variants) for row in rows):
            return None
        parts = []
        for v in range(variants):
            states, logprob = zip(*(self._kept[v, row] for row in rows), strict=True)
            parts.append(BatchReading(v, rows, torch.stack(states), None if logprob[0] is None else torch.stack(logprob)))
        return parts

    def keep(self, part: BatchReading) -> None:
        """Hold a finished part until the next time parts are saved."""
        self._unsaved.append(part)

    def save(self, now: bool = False) -> None:
        """Write the parts held, if the last time was long enough ago or it must be now."""
        if not self._unsaved or (not now and time.monotonic() - self._last < SAVE_SECONDS):
            return
        which = torch.tensor([[part.variant, row] for part in self._unsaved for row in part.rows])
        tensors = {"which": which, "states": torch.cat([part.states for part in self._unsaved])}
        scores = [part.logprob for part in self._unsaved if part.logprob is not None]
        if scores:
            tensors["logprob"] = torch.cat(scores)
        name = f"{os.getpid()}-{time.monotonic_ns()}.safetensors"
        self._write(self.folder / name, lambda path: save_file(tensors, path))
        self._unsaved.clear()
        self._last = time.monotonic()

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        # A file is there in full or not at all, whenever the process ends.
        part = path.with_name(f".{path.name}.{os.getpid()}")
        write(part)
        sync(part)
        part.replace(path)
