"""What a run's adapter changes: how many modules, at which layers; and what it says of its base that is not so here."""

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from wellworn.experiments.engine.record import Record
from wellworn.lora.addresses import WEIGHTS

# Names of output embeddings.
_HEADS = ("embed_out", "lm_head", "output", "output_projection")


class Adapted(Record):
    """What an adapter changes. At every load each tensor of its file was found in a layer, and each layer was filled from the file.

    Attributes:
        modules: the number of modules that it updates, all of its file's.
        layers: the layers of these, lowest first.
        first: the lowest layer whose state moves; null if only the output embedding is updated.
        notes: what a third-party adapter says of its base that is not so here.
    """

    modules: int
    layers: Sequence[int]
    first: int | None
    notes: Sequence[str] = ()

    @property
    def in_words(self) -> str:
        """One sentence for a report."""
        said = f"applied: all {self.modules} modules of its file"
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            said += f", at layer{f's {first} to {last}' if first < last else f' {first}'}"
        if self.first is None:
            return f"{said}; no state moves, only what is read from the last"
        return f"{said}; the state moves from layer {self.first} on"


def read_adapted(folder: Path, notes: Sequence[str] = ()) -> Adapted:
    """Read what an adapter changes from the names in its file."""
    with safe_open(folder / WEIGHTS, framework="np") as weights:
        names = {key.partition(".lora_")[0].replace(".base_layer", "") for key in weights.keys() if ".lora_" in key}  # noqa: SIM118
    numbered = {name: re.findall(r"\.(\d+)\.", name) for name in names if "vision" not in name}
    layers = sorted({int(numbers[0]) for numbers in numbered.values() if numbers})
    # Whatever else is outside the blocks stands before them.
    elsewhere = any(not numbered.get(name) and name.rpartition(".")[2] not in _HEADS for name in names)
    first = 0 if elsewhere else layers[0] if layers else None
    return Adapted(modules=len(names), layers=layers, first=first, notes=list(notes))
