"""A pair of models of one architecture: a base, and a full fine-tune of it or a merged checkpoint.

What differs between their weights is kept, and takes the place of the base's own while the other model is read. All else has to be the
same: what a configuration computes cannot be exchanged with its weights.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wellworn.data.errors import InputError
from wellworn.data.wording import some
from wellworn.lora.models import OTHER_TEMPLATE, Loaded, ModelRef, load, load_config, load_tokenizer
from wellworn.probes.reading.checkpoints import holding

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FACTS, CHANGES = "checkpoint.json", "model.safetensors"
# What a configuration says besides how a state is computed in evaluation mode.
_NO_MATTER = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
# Position embeddings of these kinds do not depend on how long a context may be.
_ANY_LENGTH = {"default", "linear", "llama3"}


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds what a checkpoint changes, and not an adapter."""
    return (folder / FACTS).is_file()


def compare_models(base: ModelRef, tuned: ModelRef, trust_remote_code: bool = False, template: str = "model") -> list[str]:
    """Compare two models without loading their weights; return what differs and is not used, each in one sentence.

    Args:
        base: the model that all is measured with, and whose tokenizer and template are used.
        tuned: the other one.
        trust_remote_code: whether code that comes with the models may run.
        template: how conversations are written: `model`, `plain` or a file, as in a study.

    Raises:
        InputError: they are not of one architecture and size, or their tokens differ.
    """
    configs = [load_config(ref, trust_remote_code) for ref in (base, tuned)]
    for ref, config in zip((base, tuned), configs, strict=True):
        if getattr(config, "quantization_config", None) is not None:
            raise InputError(f"{ref.id}: holds quantised weights, which cannot take the place of others; give models in 16 or 32 bits")
    one, other = (_facts(config) for config in configs)
    if unlike := {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}:
        shown = some(f"{key} {other.get(key)!r} for {one.get(key)!r}" for key in unlike)
        raise InputError(
            f"{tuned.id}: is of another architecture than the base {base.id}, so that their states cannot be compared ({shown})"
        )
    mine, theirs = (load_tokenizer(ref, trust_remote_code)[0] for ref in (base, tuned))
    notes = _compare_tokens(base, tuned, mine, theirs)
    rows = [config.get_text_config().vocab_size for config in configs]
    if rows[1] < rows[0]:
        if rows[1] <= max(mine.get_vocab().values()):
            raise InputError(f"{tuned.id}: has embeddings of {rows[1]:,} tokens, and the base {base.id} of {rows[0]:,}")
        notes.append(f"its embeddings have {rows[0] - rows[1]:,} rows fewer than the base's, of no tokens; the base's are kept")
    if template == "model" and mine.chat_template != theirs.chat_template:
        notes.append(f"it comes with {OTHER_TEMPLATE}")
    return notes


def _facts(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return what a configuration says of how states are computed, by dotted key."""
    found = dict(_flat(config.to_dict(), _keys(config)))
    # Keys of a part are those of its own class.
    for key, part in vars(config).items():
        if hasattr(part, "to_dict") and isinstance(found_part := part.to_dict(), dict):
            found = {each: value for each, value in found.items() if not each.startswith(f"{key}.")}
            found |= {f"{key}.{each}": value for each, value in _flat(found_part, _keys(part))}
    kinds = {value for key, value in found.items() if key.rpartition(".")[2] == "rope_type"}
    if kinds and kinds <= _ANY_LENGTH:
        found = {key: value for key, value in found.items() if not key.endswith("max_position_embeddings")}
    return found


def _keys(config: "PreTrainedConfig") -> set[str] | None:
    """Return the keys that a configuration's class knows; others are notes of a tool. None where code of the model's own may read any."""
    if getattr(config, "auto_map", None):
        return None
    try:
        return set(type(config)().to_dict())
    except (TypeError, ValueError):
        return None


def _flat(values: Mapping[str, Any], known: Collection[str] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if value is None or key in _NO_MATTER or str(key).endswith(("dropout", "_pdrop", "dropout_prob")):
            continue
        if known is not None and key not in known:
            continue
        if isinstance(value, dict):
            yield from _flat(value, None, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _compare_tokens(base: ModelRef, tuned: ModelRef, mine: "PreTrainedTokenizerBase", theirs: "PreTrainedTokenizerBase") -> list[str]:
    one, other = mine.get_vocab(), theirs.get_vocab()
    if moved := [token for token, place in one.items() if other.get(token) != place]:
        raise InputError(
            f"{tuned.id}: {len(moved):,} of the tokens of {base.id} are others there, or at other places ({some(map(repr, moved))})"
        )
    further = other.keys() - one.keys()
    return [f"it has {len(further):,} tokens more than the base, which are not used"] if further else []


def save_changes(base: Loaded, tuned: ModelRef, dtype: str, out: Path, trust_remote_code: bool = False) -> None:
    """Write the tensors in which a model differs from its base into an existing folder, in the base's dtype.

    Both models are in memory meanwhile.

    Args:
        base: the base.
        tuned: the other model, which `compare_models` lets through.
        dtype: the base's, as for `load`.
        out: receives `checkpoint.json` and `model.safetensors`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        InputError: the other model cannot be loaded, is of another class, or has tensors that the base has not, or of other sizes.
    """
    from safetensors.torch import save_file

    other = load(tuned, dtype, trust_remote_code)
    if type(other.model) is not type(base.model):
        raise InputError(f"{tuned.id}: is a {type(other.model).__name__}, and the base {base.ref.id} a {type(base.model).__name__}")
    mine, theirs = _tensors(base.model), _tensors(other.model)
    if lacking := mine.keys() ^ theirs.keys():
        raise InputError(f"{tuned.id}: does not hold the same tensors as the base {base.ref.id} ({some(lacking)})")
    changed = {}
    for key, own in mine.items():
        each = _fit_rows(base, tuned, key, own, theirs[key])
        if each.dtype != own.dtype:
            raise InputError(f"{tuned.id}: {key} is {each.dtype}, and the base {base.ref.id} has {own.dtype}")
        if not torch.equal(each.to(own.device), own):
            changed[key] = each.detach().cpu().contiguous()
    save_file(changed, out / CHANGES)
    facts = {"base": base.ref.id, "model": tuned.id, "changed": len(changed), "tensors": len(mine)}
    (out / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tensors(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Return a model's parameters and saved buffers, shared ones once."""
    saved = set(model.state_dict())
    return dict(model.named_parameters()) | {key: each for key, each in model.named_buffers() if key in saved}


def _fit_rows(base: Loaded, tuned: ModelRef, key: str, own: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the base's size: embeddings lose rows of tokens that the base has not, and get the base's of no tokens."""
    if each.shape == own.shape:
        return each
    embeddings: list[nn.Module] = [base.model.get_input_embeddings(), base.model.get_output_embeddings()]
    is_embedding = any(own is parameter for module in embeddings if module is not None for parameter in module.parameters())
    if is_embedding and each.shape[1:] == own.shape[1:] and len(each) > max(base.tokenizer.get_vocab().values()):
        return torch.cat([each[: len(own)].to(own.device), own[len(each) :]])
    raise InputError(f"{tuned.id}: {key} is {list(each.shape)}, and the base {base.ref.id} has {list(own.shape)}")


@contextmanager
def held_checkpoints(base: Loaded, folders: Mapping[str, Path]) -> Iterator[torch.nn.Module]:
    """Let a base hold checkpoints for a while, so that variants can name them; it runs as itself until then.

    Args:
        base: the model; it is restored afterwards.
        folders: name → folder that `save_changes` wrote.

    Raises:
        InputError: a file is corrupt, or was made for another base.
    """
    from safetensors import SafetensorError, safe_open

    weights, own = {}, _tensors(base.model)
    for name, folder in folders.items():
        made_for = json.loads((folder / FACTS).read_text(encoding="utf-8"))["base"]
        if made_for != base.ref.id:
            raise InputError(f"{folder}: holds what differs from {made_for}, and the base is {base.ref.id}")
        try:
            with safe_open(folder / CHANGES, "pt") as file:
                weights[name] = {key: file.get_tensor(key).to(own[key].device) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{folder / CHANGES}: corrupt ({error})") from None
    with holding(base.model, weights):
        yield base.model
