"""What a run changes of the base's weights: how many modules, at which layers; and what comes with it that is not so here."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from wellworn.experiments.engine.record import Record
from wellworn.lora.addresses import WEIGHTS
from wellworn.lora.checkpoints import CHANGES, FACTS, is_checkpoint

# Names of output embeddings, and of the norm before them: what is above all blocks moves no state that is read.
_ABOVE = ("embed_out", "lm_head", "output", "output_projection", "norm", "norm_f", "ln_f", "final_layernorm", "final_layer_norm")


class Adapted(Record):
    """What an adapter changes, or a whole model.

    At every load each tensor of an adapter's file was found in a layer, and each layer was filled from the file.

    Attributes:
        modules: the number of modules that an adapter updates, all of its file's; or of tensors in which a whole model differs.
        layers: the layers of these, lowest first.
        first: the lowest layer whose state moves; null if only the output embedding is changed, or nothing.
        notes: what a third-party adapter or model says of its base that is not so here.
        tensors: the number of a whole model's tensors; null for an adapter.
    """

    modules: int
    layers: Sequence[int]
    first: int | None
    notes: Sequence[str] = ()
    tensors: int | None = None

    @property
    def in_words(self) -> str:
        """One sentence for a report."""
        said = f"applied: all {self.modules} modules of its file"
        if self.tensors is not None:
            said = f"{self.modules} of {self.tensors} tensors differ from the base's"
        if not self.modules:
            return said
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            said += f", at layer{f's {first} to {last}' if first < last else f' {first}'}"
        if self.first is None:
            return f"{said}; no state moves, only what is read from the last"
        return f"{said}; the state moves from layer {self.first} on"


def read_adapted(folder: Path, notes: Sequence[str] = ()) -> Adapted:
    """Read what an adapter or a whole model changes from the names in its file."""
    tensors = None
    if is_checkpoint(folder):
        tensors = json.loads((folder / FACTS).read_text(encoding="utf-8"))["tensors"]
        with safe_open(folder / CHANGES, framework="np") as weights:
            names = set(weights.keys())
    else:
        with safe_open(folder / WEIGHTS, framework="np") as weights:
            names = {key.partition(".lora_")[0].replace(".base_layer", "") for key in weights.keys() if ".lora_" in key}  # noqa: SIM118
    numbered = {name: re.findall(r"\.(\d+)\.", name) for name in names if "vision" not in name}
    layers = sorted({int(numbers[0]) for numbers in numbered.values() if numbers})
    # Whatever else is outside the blocks stands before them.
    elsewhere = any(not numbered.get(name) and re.sub(r"\.(weight|bias)$", "", name).rpartition(".")[2] not in _ABOVE for name in names)
    first = 0 if elsewhere else layers[0] if layers else None
    return Adapted(modules=len(names), layers=layers, first=first, notes=list(notes), tensors=tensors)
