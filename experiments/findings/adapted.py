"""What a run's adapter changes: how many modules, at which layers; and what it says of its base that is not so here."""

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from wellworn.experiments.engine.record import Record
from wellworn.lora.fit import WEIGHTS


class Adapted(Record):
    """What an adapter changes. At every load each tensor of its file was found in a layer, and each layer was filled from the file.

    Attributes:
        modules: the number of modules that it updates, all of its file's.
        layers: the layers of these, lowest first; none of an output embedding.
        notes: what a third-party adapter says of its base that is not so here.
    """

    modules: int
    layers: Sequence[int]
    notes: Sequence[str] = ()

    @property
    def in_words(self) -> str:
        """One sentence for a report."""
        said = f"applied: {self.modules} of {self.modules} modules of its file"
        if not self.layers:
            return f"{said}, above all layers"
        first, last = self.layers[0], self.layers[-1]
        return f"{said}, at layer{f's {first} to {last}' if first < last else f' {first}'}; the state moves from layer {first} on"


def read_adapted(folder: Path, notes: Sequence[str] = ()) -> Adapted:
    """Read what an adapter changes from the names in its file."""
    with safe_open(folder / WEIGHTS, framework="np") as weights:
        names = {key.partition(".lora_")[0] for key in weights.keys()}  # noqa: SIM118
    found = {int(numbers[0]) for name in names if (numbers := re.findall(r"\.(\d+)\.", name))}
    return Adapted(modules=len(names), layers=sorted(found), notes=list(notes))
