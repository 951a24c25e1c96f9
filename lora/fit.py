"""Whether an adapter is one that can be compared with its base: what it holds, whether it fits, and whether it is on as its file says.

The invariant: while adapters are on, every tensor of each file is found in a layer of that adapter, equal after the cast to the layer's
dtype, and every layer of it is filled from the file. When they are off again, also after an error, the base is what it was.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wellworn.data.errors import InputError, is_out_of_memory
from wellworn.data.files import check_file, read_json
from wellworn.data.wording import shortly, some
from wellworn.lora.adapter_config import check_patterns, check_types
from wellworn.lora.addresses import CONFIG, WEIGHTS
from wellworn.lora.keys import beyond_lora
from wellworn.lora.models import Loaded

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."
# Numbers of a tensor that are compared.
_SAMPLED = 256


def check_adapter(adapter: Path) -> dict[str, Any]:
    """Return an adapter's configuration, having made sure that it is safe and complete.

    Raises:
        InputError: no adapter_config.json, not a LoRA, one that changes its base or acts on some tokens only, or weights missing or stored
            as a pickle.
    """
    config = read_config(adapter)
    check_file(adapter / WEIGHTS)
    if (adapter / "adapter_model.bin").is_file() and not (adapter / WEIGHTS).is_file():
        raise InputError(
            f"{adapter}/adapter_model.bin is a pickle, which can run code when loaded, and is refused; save the adapter again as {WEIGHTS}"
        )
    if not (adapter / WEIGHTS).is_file():
        raise InputError(f"{adapter}: holds no {WEIGHTS}")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{adapter}: peft_type may be LORA, got {config.get('peft_type')!r}")
    if reason := beyond_lora(config, trained=True):
        raise InputError(f"{adapter}: {reason}")
    check_types(config, f"{adapter}/{CONFIG}")
    return config


def read_config(adapter: Path) -> dict[str, Any]:
    """Return what an adapter's configuration says.

    Raises:
        InputError: there is none, or it is no JSON object.
    """
    path = adapter / CONFIG
    check_file(path)
    if not path.is_file():
        whole = "; it looks like a whole model, which is given as --tuned" if (adapter / "config.json").is_file() else ""
        raise InputError(f"{adapter}: is not a PEFT adapter (no {CONFIG}){whole}")
    if not isinstance(found := read_json(path), dict):
        raise InputError(f"{path}: must be an object with named fields, got {shortly(found)}")
    return found


def check_fit(base: Loaded, adapter: Path) -> None:
    """Compare an adapter's file with the base and with its configuration, before PEFT changes the base in place.

    Raises:
        InputError: as `check_adapter`, or weights that are no numbers, a module or a size that the base does not have, or a rank that the
            configuration does not give.
    """
    from safetensors import SafetensorError, safe_open

    config = check_adapter(adapter)
    modules = dict(base.model.named_modules())
    check_patterns(config, modules, f"{adapter}/{CONFIG}")
    wrong = f"{adapter}: this adapter does not fit {base.ref.id}; it was made for {config.get('base_model_name_or_path')!r}"
    try:
        with safe_open(adapter / WEIGHTS, framework="pt") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            found = {key: (each.get_shape(), each.get_dtype()) for key, each in slices.items()}
    except SafetensorError as error:
        raise InputError(f"{adapter}/{WEIGHTS}: corrupt ({error})") from None
    if not found:
        raise InputError(f"{adapter}/{WEIGHTS}: holds no weights")
    for key, (_, dtype) in found.items():
        if ".lora_" not in key:
            raise InputError(f"{adapter}: holds {key!r}, which is no LoRA matrix")
        if not dtype.startswith(("F", "BF")):
            raise InputError(f"{adapter}: holds {key!r} as {dtype}; weights may be F32, F16 or BF16")
    unknown = [key for key in found if _module_name(key) not in modules]
    if unknown and any(_module_name(key) not in modules for key in _in_names_of(base.model, adapter)):
        raise InputError(f"{wrong} (the base has no module {_module_name(unknown[0])!r})")
    ranks: dict[str, set[int]] = defaultdict(set)
    for key, (shape, _) in found.items():
        module = modules.get(name := _module_name(key))
        # Of old names, and of updates of a tensor that is not a layer's weight, PEFT itself compares the sizes.
        if (
            module is None
            or not key.endswith((".lora_A.weight", ".lora_B.weight"))
            or (config.get("target_parameters") and not _is_layer(module))
        ):
            continue
        # Weights of 4 bits are packed, and their shape says nothing.
        weight = getattr(module, "weight", None)
        if weight is None:
            raise InputError(f"{wrong} (the base's {name!r} is a {type(module).__name__}, which has no weight)")
        sizes = (module.out_features, module.in_features) if isinstance(module, torch.nn.Linear) else tuple(weight.shape)
        is_a = key.endswith(".lora_A.weight")
        if len(shape) != 2 or (size := shape[1] if is_a else shape[0]) not in sizes:
            raise InputError(f"{wrong} ({name}: {list(shape) if len(shape) != 2 else size} features, the base has {sizes})")
        ranks[name].add(shape[0] if is_a else shape[1])
    _check_ranks(adapter, config, ranks)


def _module_name(key: str) -> str:
    """Return the module of the base that a tensor updates; updates of two tensors of one module are wrapped one in the other."""
    return re.sub(r"(\.base_layer)+$", "", key.removeprefix(_PREFIX).partition(".lora_")[0])


def _in_names_of(model: torch.nn.Module, adapter: Path) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by the names that a model's modules have today.

    Older adapters hold names of before transformers 5, and updates of experts one by one, which PEFT joins into those of one tensor.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    from safetensors.torch import load_file

    held = load_file(adapter / WEIGHTS)
    try:
        config = LoraConfig.from_pretrained(str(adapter))
        return dict(convert_peft_adapter_state_dict_for_transformers(model, config, held))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, re.error) as error:
        if is_out_of_memory(error):
            raise
        # Not an older adapter of this model: what does not fit is said by its own names.
        return held


def _is_layer(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D)


def _check_ranks(adapter: Path, config: Mapping[str, Any], ranks: Mapping[str, set[int]]) -> None:
    from peft.utils.other import get_pattern_key

    pattern = config.get("rank_pattern") or {}
    for name, found in ranks.items():
        given = pattern.get(get_pattern_key(list(pattern), name), config.get("r"))
        if list(found) != [given]:
            raise InputError(
                f"{adapter}: {name} has rank {' and '.join(map(str, sorted(found)))} in {WEIGHTS}, and {given} in {CONFIG}; "
                "one of the two files is of another adapter"
            )


def put_on(base: Loaded, adapters: Mapping[str, Path]) -> "PeftModel":
    """Put adapters on a base in place, the first one active, each with every tensor of its file in its layers.

    After an error none is on.

    Args:
        base: the model; take the adapters off with `take_off`.
        adapters: name → folder, one or more.

    Raises:
        InputError: an adapter does not fit, or its configuration and its file name different modules.
    """
    for folder in adapters.values():
        check_fit(base, folder)
    model: PeftModel | None = None
    try:
        for name, folder in adapters.items():
            model = _with_one_more(base, model, name, folder)
            check_applied(model, name, folder)
    except BaseException:
        take_off(base.model)
        raise
    assert model is not None
    return model


def _with_one_more(base: Loaded, model: "PeftModel | None", name: str, folder: Path) -> "PeftModel":
    from peft import LoraConfig, PeftModel

    try:
        config = LoraConfig.from_pretrained(str(folder))
        # All weights come from the file, so none is to be drawn, or made from the base's own. The base is a causal LM, whatever was meant.
        config.init_lora_weights, config.task_type = True, "CAUSAL_LM"
        if model is None:
            return PeftModel.from_pretrained(base.model, str(folder), adapter_name=name, config=config)
        model.add_adapter(name, config)
        model.load_adapter(str(folder), adapter_name=name)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, re.error) as error:
        if is_out_of_memory(error):
            raise
        # Of lists of what does not fit, the first line says nothing.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(
            f"{folder}: cannot be put on {base.ref.id}: {' '.join(lines[:2] if lines[0].endswith(':') else lines[:1])}"
        ) from error
    return model


def check_applied(model: "PeftModel", name: str, folder: Path) -> None:
    """Make sure that an adapter's layers hold exactly what its file holds.

    Raises:
        InputError: the file lacks weights of a module that the configuration names, holds others, or they are not as in the file.
    """
    from peft import get_peft_model_state_dict

    there = {_plain(key): each for key, each in get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).items()}
    held = {_plain(key): each for key, each in _in_names_of(model, folder).items()}
    if lacking := there.keys() - held.keys():
        raise InputError(
            f"{folder}: {CONFIG} names modules whose weights {WEIGHTS} does not hold ({some(lacking)}), so they would be at random"
        )
    if further := held.keys() - there.keys():
        raise InputError(f"{folder}: {WEIGHTS} holds weights of modules that {CONFIG} does not name ({some(further)})")
    if unlike := {key for key, each in held.items() if not _equal(each.to(there[key]), there[key])}:
        raise InputError(f"{folder}: after loading the model's weights are not those of {WEIGHTS} ({some(unlike)})")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Weights that are not numbers are as in the file too; readings say so.
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _plain(key: str) -> str:
    # Files of older versions of PEFT name the magnitudes of DoRA so.
    return key.removeprefix(_PREFIX).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


@contextmanager
def restored(base: Loaded) -> Iterator[None]:
    """Take adapters off a base in the end, also after an error, and make sure that it is what it was.

    Raises:
        RuntimeError: it is not; what is read from it afterwards would be wrong.
    """
    before = _structure(base.model)
    # PEFT sets it to 1 for good.
    slices = getattr(base.model.config, "pretraining_tp", None)
    try:
        yield
    finally:
        wrapped = _wrapped_tensors(base.model)
        take_off(base.model)
        if slices is not None:
            base.model.config.pretraining_tp = slices
        # A model may note something of its own when it answers; only what PEFT leaves behind is damage.
        found = _structure(base.model)
        after = {name: each for name, each in found.items() if name in before or not name.startswith("attribute ") or "peft" in name}
        # At each pass PEFT takes an update of such a tensor on and off again, which counts as writing to it; its sample stays.
        for name in wrapped & before.keys() & after.keys():
            after[name]["version"] = before[name]["version"]
        if changed := {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}:
            raise RuntimeError(f"{base.ref.id} is not what it was before adapters were put on it ({some(changed)}); load it again")


def take_off(model: torch.nn.Module) -> None:
    """Put the base's own modules back in place of those that PEFT wrapped, however many of them it has come to."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        own = module
        while isinstance(own, BaseTunerLayer):
            own = own.get_base_layer()
        if own is not module and ".base_layer" not in name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, own)
    if hasattr(model, "peft_config"):
        del model.peft_config


def _structure(model: "PreTrainedModel") -> dict[str, Any]:
    """Return attributes, modules, tensors and configuration of a model; a tensor that was written to has another version or sample."""
    found: dict[str, Any] = {f"module {name}": type(module) for name, module in model.named_modules(remove_duplicate=False)}
    found |= dict.fromkeys((f"attribute {name}" for name in vars(model)), True)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | _saved_buffers(model)
    for name, each in tensors.items():
        # PEFT may hold the numbers of a quantised layer in another parameter afterwards; where they are does not change.
        which = (type(each).__name__, each.data_ptr(), tuple(each.shape), each.dtype, each.requires_grad)
        found[name] = {"which": which, "version": each._version, "sample": _sample(each)}
    return found | {"config": json.dumps(model.config.to_dict(), sort_keys=True, default=str)}


def _sample(tensor: torch.Tensor) -> float:
    """Return the sum of some numbers all over a tensor."""
    if tensor.is_meta:
        return 0.0
    flat = tensor.detach().reshape(-1)
    return float(flat[:: max(1, len(flat) // _SAMPLED)].double().nan_to_num().sum())


def _wrapped_tensors(model: torch.nn.Module) -> set[str]:
    """Return the base's names of tensors that adapters update without being a layer's weight."""
    from peft.tuners.lora.layer import ParamWrapper

    return {
        f"{name}.{module.parameter_name}".replace(".base_layer", "")
        for name, module in model.named_modules()
        if isinstance(module, ParamWrapper)
    }


def _saved_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that are part of the model; others are computed, by some kinds of position embedding at every pass."""
    return {
        f"{name}.{key}": each
        for name, module in model.named_modules(remove_duplicate=False)
        for key, each in module.named_buffers(recurse=False)
        if key not in module._non_persistent_buffers_set
    }
