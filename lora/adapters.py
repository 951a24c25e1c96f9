"""LoRA adapters: put on a base for a while, merged, scaled, copied, and parted by the memory that they take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from wellworn.data.errors import InputError
from wellworn.data.files import read_json, read_text
from wellworn.lora.addresses import CONFIG, WEIGHTS
from wellworn.lora.checkpoints import CHANGES, held_checkpoints, is_checkpoint
from wellworn.lora.fit import check_adapter, put_on, read_config, restored
from wellworn.lora.models import OTHER_TEMPLATE, Loaded, ModelRef, load_tokenizer

TEMPLATE = "chat_template.jinja"
# Lists of an adapter's configuration that have no order.
SETS = ("target_modules", "exclude_modules", "target_parameters")


@contextmanager
def adapted(base: Loaded, adapters: Mapping[str, Path]) -> Iterator[torch.nn.Module]:
    """Put LoRA adapters on the base for a while, the first one active, or let it hold checkpoints; the base is restored afterwards.

    Args:
        base: the model; it is changed in place and restored.
        adapters: name → folder of a PEFT adapter, or of a checkpoint's changes, all of one of the two kinds; with none the base is yielded
            as it is.

    Raises:
        InputError: a folder is not a safetensors adapter, was made for another base model, or its configuration and its file disagree.
        RuntimeError: the base could not be restored.
    """
    if not adapters:
        yield base.model
        return
    kinds = {is_checkpoint(folder) for folder in adapters.values()}
    if len(kinds) > 1:
        raise InputError("adapters and whole models cannot be put in place of one base together; compare them with the base in turn")
    with restored(base):
        if kinds == {True}:
            with held_checkpoints(base, adapters) as model:
                yield model
        else:
            yield put_on(base, adapters).eval()


def merge_adapter(base: Loaded, adapter: Path) -> Loaded:
    """Add a LoRA adapter's update to a model's weights, in place.

    Raises:
        InputError: the adapter is not a safetensors adapter, or was made for another base model.
    """
    return replace(base, model=put_on(base, {"merged": adapter}).merge_and_unload().eval())


def scale_adapter(source: Path, target: Path, factor: float) -> None:
    """Write a LoRA adapter whose update is a given factor of another's, into an existing folder.

    Raises:
        InputError: the other is not a safetensors adapter, or its update is not a product of two matrices (DoRA).
    """
    from safetensors.torch import load_file, save_file

    if check_adapter(source).get("use_dora"):
        raise InputError(f"{source}: the update of a DoRA adapter (use_dora) is not a product of two matrices, and cannot be scaled")
    weights = load_file(source / WEIGHTS)
    # The update is BA, so one of the two is scaled.
    # In float32, as PEFT holds it.
    scaled = {key: factor * each.float() if ".lora_B." in key or ".lora_embedding_B" in key else each for key, each in weights.items()}
    save_file(scaled, target / WEIGHTS)
    copy_adapter_config(source, target)


def groups_that_fit(folders: Sequence[Path | None], device: torch.device) -> list[list[Path | None]]:
    """Part adapters into groups of one kind whose weights take at most half of the memory that is free; None is the bare base.

    Args:
        folders: in the order to keep. A group holds at least one, whether it fits or not.
        device: where the base is.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    groups: list[list[Path | None]] = []
    used, whole = 0, None
    for folder in folders:
        size, kind = _memory(folder) if folder else (0, whole)
        if not groups or used + size > free // 2 or (None not in (kind, whole) and kind != whole):
            groups.append([])
            used, whole = 0, None
        groups[-1].append(folder)
        used, whole = used + size, kind if kind is not None else whole
    return groups


def _memory(folder: Path) -> tuple[int, bool]:
    """Return the bytes that an adapter's or a checkpoint's weights take, and whether it is a checkpoint."""
    if is_checkpoint(folder):
        return (folder / CHANGES).stat().st_size, True
    # PEFT holds in float32 what a file may hold in 16 bits.
    return 2 * (folder / WEIGHTS).stat().st_size, False


def copy_adapter_config(source: Path, target: Path, base: str | None = None) -> None:
    """Copy an adapter's configuration with its base named symbolically.

    Args:
        source: folder of the adapter.
        target: folder to write to; may be the same.
        base: the base's name; where None, the name in the file, without the path of the machine it was made on.
    """
    config = read_config(source)
    name = base or str(config.get("base_model_name_or_path"))
    config["base_model_name_or_path"] = Path(name).name if Path(name).is_absolute() else name
    # PEFT holds these as sets, which it writes in another order in each process.
    config |= {key: sorted(value) for key in SETS if isinstance(value := config.get(key), list)}
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unlike_base(ref: ModelRef, adapter: Path, template: str, trust_remote_code: bool = False) -> list[str]:
    """Return what an adapter's folder says of its base that is not so of the model it is put on, each in one sentence.

    Args:
        ref: the model.
        adapter: its folder.
        template: how conversations are written: `model`, `plain` or a file, as in a study.
        trust_remote_code: whether code that comes with the model may run.
    """
    config = read_config(adapter)
    given = str(config.get("base_model_name_or_path") or "")
    name, revision = _bare_name(given), config.get("revision")
    found = []
    # Adapters name the base by the folder that it was loaded from, which is not always the model's own name.
    if name and name not in (_bare_name(ref.id), _bare_name(ref.path)):
        shown = Path(given).name if Path(given).is_absolute() else given
        found.append(f"its configuration names the base {shown}, and it is put on {ref.id}")
    if revision not in (None, "main") and ref.revision and not ref.revision.startswith(str(revision)):
        found.append(f"its configuration names revision {revision} of its base, and it is put on {ref.revision}")
    own = _own_template(adapter) if template == "model" else None
    usual = None
    if own is not None:
        # A model that cannot be loaded says so itself.
        with suppress(InputError):
            usual = load_tokenizer(ref, trust_remote_code)[0].chat_template or ""
    if own is not None and isinstance(usual, str) and own.strip() != usual.strip():
        found.append(f"its folder holds {OTHER_TEMPLATE}")
    return found


def _bare_name(model: str) -> str:
    """Return a model's name without its owner, its place and its revision."""
    return model.partition("@")[0].rstrip("/").removeprefix("local:").rpartition("/")[2].lower()


def _own_template(adapter: Path) -> str | None:
    """Return the chat template beside an adapter; None where there is none, or several."""
    try:
        if (adapter / TEMPLATE).is_file():
            return read_text(adapter / TEMPLATE)
        facts = read_json(adapter / "tokenizer_config.json")
    except InputError:
        return None
    own = facts.get("chat_template") if isinstance(facts, dict) else None
    return own if isinstance(own, str) else None
