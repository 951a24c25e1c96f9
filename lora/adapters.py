"""LoRA adapters: whether they can be used, whether they fit a base, and how they are put on it for a while."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from wellworn.data.errors import InputError
from wellworn.lora.keys import beyond_lora
from wellworn.lora.models import Loaded


@contextmanager
def adapted(base: Loaded, adapters: Mapping[str, Path]) -> Iterator[torch.nn.Module]:
    """Put LoRA adapters on the base for a while, the first one active; the base is restored afterwards.

    Args:
        base: the model; it is changed in place and restored.
        adapters: name → folder of a PEFT adapter; with none the base is yielded as it is.

    Raises:
        InputError: a folder is not a safetensors adapter, or was made for another base model.
    """
    if not adapters:
        yield base.model
        return
    from peft import PeftModel

    for folder in adapters.values():
        check_fit(base, folder)
    (first, folder), *others = adapters.items()
    model = PeftModel.from_pretrained(base.model, str(folder), adapter_name=first)
    try:
        for name, folder in others:
            model.load_adapter(str(folder), adapter_name=name)
        yield model.eval()
    finally:
        model.unload()


def merge_adapter(base: Loaded, adapter: Path) -> Loaded:
    """Add a LoRA adapter's update to a model's weights, in place.

    Raises:
        InputError: the adapter is not a safetensors adapter, or was made for another base model.
    """
    from peft import PeftModel

    check_fit(base, adapter)
    return replace(base, model=PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload().eval())


def weaken_adapter(source: Path, target: Path, factor: float) -> None:
    """Write a LoRA adapter whose update is a given factor of another's, into an existing folder.

    Raises:
        InputError: the other is not a safetensors adapter, or its update is not a product of two matrices (DoRA).
    """
    from safetensors.torch import load_file, save_file

    if check_adapter(source).get("use_dora"):
        raise InputError(f"{source}: the update of a DoRA adapter cannot be given in part; train without use_dora")
    weights = load_file(source / "adapter_model.safetensors")
    # The update is BA, so one of the two is scaled.
    scaled = {key: factor * each if ".lora_B." in key or ".lora_embedding_B" in key else each for key, each in weights.items()}
    save_file(scaled, target / "adapter_model.safetensors")
    copy_adapter_config(source, target)


def groups_that_fit(folders: Sequence[Path | None], device: torch.device) -> list[list[Path | None]]:
    """Part adapters into groups whose weights take at most half of the memory that is free; None is the bare base.

    Args:
        folders: in the order to keep. A group holds at least one, whether it fits or not.
        device: where the base is.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    groups: list[list[Path | None]] = []
    used = 0
    for folder in folders:
        # PEFT holds in float32 what a file may hold in 16 bits.
        size = 2 * (folder / "adapter_model.safetensors").stat().st_size if folder else 0
        if not groups or used + size > free // 2:
            groups.append([])
            used = 0
        groups[-1].append(folder)
        used += size
    return groups


def check_adapter(adapter: Path) -> dict[str, Any]:
    """Return an adapter's configuration, having made sure that it is safe and complete.

    Raises:
        InputError: no adapter_config.json, not a LoRA, or weights missing or stored as a pickle.
    """
    config = _adapter_config(adapter)
    if (adapter / "adapter_model.bin").is_file() and not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{adapter}/adapter_model.bin is a pickle, which can run code when loaded, and is refused; "
            "save the adapter again as adapter_model.safetensors"
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter}: holds no adapter_model.safetensors")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{adapter}: peft_type may be LORA, got {config.get('peft_type')!r}")
    if reason := beyond_lora(config):
        raise InputError(f"{adapter}: {reason}")
    return config


def copy_adapter_config(source: Path, target: Path, base: str | None = None) -> None:
    """Copy an adapter's configuration with its base named symbolically.

    Args:
        source: folder of the adapter.
        target: folder to write to; may be the same.
        base: the base's name; where None, the name in the file, without the path of the machine it was made on.
    """
    config = _adapter_config(source)
    name = base or str(config.get("base_model_name_or_path"))
    config["base_model_name_or_path"] = Path(name).name if Path(name).is_absolute() else name
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapter_config(adapter: Path) -> dict[str, Any]:
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{adapter}: is not a PEFT adapter (no adapter_config.json)")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"{path}: not valid JSON") from None


def check_fit(base: Loaded, adapter: Path) -> None:
    """Compare an adapter's shapes with the base, before PEFT changes the base in place.

    Raises:
        InputError: as `check_adapter`, or a module or a size that the base does not have.
    """
    from safetensors import SafetensorError, safe_open

    config = check_adapter(adapter)
    wrong = f"{adapter}: this adapter does not fit {base.ref.id}; it was made for {config.get('base_model_name_or_path')!r}"
    modules = dict(base.model.named_modules())
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{adapter}/adapter_model.safetensors: corrupt ({error})") from None
    for key, shape in shapes.items():
        name, part, _ = key.removeprefix("base_model.model.").partition(".lora_")
        if not part:
            raise InputError(f"{adapter}: holds {key!r}, which is no LoRA matrix")
        if name not in modules:
            raise InputError(f"{wrong} (the base has no module {name!r})")
        module = modules[name]
        # Weights of 4 bits are packed, and their shape says nothing.
        sizes = (module.out_features, module.in_features) if isinstance(module, torch.nn.Linear) else tuple(module.weight.shape)
        size = shape[1] if key.endswith("lora_A.weight") else shape[0]
        if ("lora_A.weight" in key or "lora_B.weight" in key) and size not in sizes:
            raise InputError(f"{wrong} ({name}: {size} features, the base has {sizes})")
