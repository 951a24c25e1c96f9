"""Whether a loaded model holds the weights of its files, all of them and nothing else: what a file lacks would be drawn at random."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wellworn.data.errors import InputError
from wellworn.data.wording import some
from wellworn.probes.reading.layers import decoder_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_complete(name: str, model: "PreTrainedModel", found: Mapping[str, Any]) -> None:
    """Compare a model with the weights that it was loaded from.

    Args:
        name: the model, as messages call it.
        model: a causal LM.
        found: what `from_pretrained(..., output_loading_info=True)` says of it. Tied weights are not among those that it lacks.

    Raises:
        InputError: weights are missing or of other sizes, or the files hold more of the decoder blocks than the model has.
    """
    remedy = "its config.json is of another model, or its files are not complete"
    if missing := set(found["missing_keys"]):
        raise InputError(f"model {name}: its files lack {some(missing)}, which would be drawn at random; {remedy}")
    if sizes := {f"{key} ({list(here)}, and its configuration says {list(said)})" for key, here, said in found["mismatched_keys"]}:
        raise InputError(f"model {name}: its files hold weights of other sizes: {some(sizes)}; {remedy}")
    if found["error_msgs"]:
        raise InputError(f"model {name}: {found['error_msgs'][0]}")
    if unused := _unused(model, found["unexpected_keys"]):
        raise InputError(f"model {name}: its files hold {some(unused)}, which its configuration does not use; {remedy}")


def check_stored(name: str, model: "PreTrainedModel", folder: Path) -> None:
    """Make sure that a folder's files hold numbers where a model has them: whole numbers are those of a quantised model.

    Args:
        name: the model, as messages call it.
        model: what was loaded from them.
        folder: the folder.

    Raises:
        InputError: a file holds whole numbers, and the model is not a quantised one.
    """
    from safetensors import safe_open

    if getattr(model.config, "quantization_config", None) is not None:
        return
    own = {key for key, each in model.named_parameters() if each.is_floating_point()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in own.intersection(file.keys())}
        if whole := {f"{key} as {kind}" for key, kind in kinds.items() if not kind.startswith(("F", "BF"))}:
            raise InputError(
                f"model {name}: {path.name} holds {some(whole)}, and its config.json no quantization_config; "
                "weights may be F32, F16 or BF16"
            )


def _unused(model: "PreTrainedModel", keys: Collection[str]) -> list[str]:
    """Return tensors of decoder blocks that the model has not, and of its blocks' own layers.

    Other tensors may be left out: parts for images, or masks that some models save.
    """
    blocks = decoder_blocks(model)
    modules = dict(model.named_modules())
    [prefix] = [name for name, module in modules.items() if module is blocks]
    within = re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.+)\.[^.]+")
    unused = []
    for key in keys:
        if place := within.fullmatch(key):
            layer = modules.get(f"{prefix}.{place[1]}.{place[2]}")
            if int(place[1]) >= len(blocks) or (layer is not None and not [*layer.children()] and [*layer.parameters(recurse=False)]):
                unused.append(key)
    return unused
