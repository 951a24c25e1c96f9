"""Keys under `train.lora` and `train.sft`: PEFT's and TRL's own names, except those that the suite sets itself."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from wellworn.data.wording import did_you_mean

Section = Literal["lora", "sft"]

# The keys that the suite sets itself, and what to use instead.
OWNED: dict[Section, dict[str, str]] = {
    "lora": {"task_type": "nothing: it is CAUSAL_LM", "base_model_name_or_path": "model", "inference_mode": "nothing: it is False"},
    "sft": {
        "output_dir": "--runs-dir",
        "seed": "seeds",
        "data_seed": "seeds",
        "bf16": "dtype",
        "fp16": "dtype",
        "use_cpu": "the accelerate file",
        "report_to": "the report of the study",
        "batch_size": "train.batch_size",
        "per_device_train_batch_size": "train.batch_size",
        "gradient_accumulation_steps": "train.batch_size",
        "save_strategy": "train.sft.save_steps",
        "disable_tqdm": "nothing: progress is shown by the suite",
        "completion_only_loss": "nothing: the loss is taken on responses only",
        "push_to_hub": "nothing: adapters stay in the runs folder",
    },
}
# Names that other libraries and papers use, where spelling alone would not find the right key.
SYNONYMS: dict[Section, dict[str, str]] = {
    "lora": {
        "alpha": "lora_alpha",
        "dora": "use_dora",
        "dropout": "lora_dropout",
        "layers": "layers_to_transform",
        "lora_r": "r",
        "lora_rank": "r",
        "modules": "target_modules",
        "rank": "r",
        "rslora": "use_rslora",
    },
    "sft": {
        "clip_grad_norm": "max_grad_norm",
        "epochs": "num_train_epochs",
        "grad_clip": "max_grad_norm",
        "lr": "learning_rate",
        "lr_schedule": "lr_scheduler_type",
        "lr_scheduler": "lr_scheduler_type",
        "max_seq_len": "max_length",
        "max_seq_length": "max_length",
        "n_epochs": "num_train_epochs",
        "num_epochs": "num_train_epochs",
        "num_steps": "max_steps",
        "optimizer": "optim",
        "scheduler": "lr_scheduler_type",
        "steps": "max_steps",
        "warmup": "warmup_steps",
        "wd": "weight_decay",
    },
}
# Known without loading PEFT or TRL, which takes seconds.
USUAL: dict[Section, frozenset[str]] = {
    "lora": frozenset({"layers_to_transform", "lora_alpha", "lora_dropout", "r", "target_modules", "use_rslora"}),
    "sft": frozenset(
        {"learning_rate", "logging_steps", "lr_scheduler_type", "max_grad_norm", "max_length", "max_steps", "num_train_epochs"}
        | {"optim", "save_steps", "save_total_limit", "warmup_steps", "weight_decay"}
    ),
}


def field_names(section: Section) -> frozenset[str]:
    """Return the names that `peft.LoraConfig` or `trl.SFTConfig` takes."""
    if section == "lora":
        from peft import LoraConfig

        fields = dataclasses.fields(LoraConfig)
    else:
        # TRL sends telemetry unless this is set before its first import.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from trl import SFTConfig

        fields = dataclasses.fields(SFTConfig)
    return frozenset(field.name for field in fields if field.init)


def unknown_keys(section: Section, keys: Iterable[str]) -> dict[str, str]:
    """Return what is wrong with each key that PEFT or TRL does not have: key → message with the nearest name.

    Example:
        >>> unknown_keys("sft", ["lr", "max_steps"])
        {'lr': "SFTConfig has no such key; did you mean 'learning_rate'?"}
    """
    synonyms = SYNONYMS[section]
    name, library = ("LoraConfig", "peft") if section == "lora" else ("SFTConfig", "trl")
    doubtful = [key for key in keys if key not in USUAL[section]]
    wrong = {key: f"{name} has no such key; did you mean {synonyms[key]!r}?" for key in doubtful if key in synonyms}
    if len(wrong) < len(doubtful):
        allowed = field_names(section)
        every = f"; it may be any field of {library}.{name}"
        wrong |= {
            key: f"{name} has no such key{did_you_mean(key, allowed, every)}"
            for key in doubtful
            if key not in allowed and key not in synonyms
        }
    return wrong


def refuse_owned(section: Section, key: str) -> str:
    """Return a key unless the suite sets it itself.

    Raises:
        ValueError: the suite sets it; names what to use instead.
    """
    if instead := OWNED[section].get(key):
        raise ValueError(f"{key!r} is set by the suite; use {instead} instead")
    return key


# Fields of `peft.LoraConfig` with which an adapter acts on every token alike, and leaves its base as it is.
PLAIN = frozenset(
    {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules", "fan_in_fan_out"}
    | {"inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias"}
    | {"lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"}
    | {"runtime_config", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora", "velora_config"}
)
# What others do, as far as PEFT has them today.
UNTRIED = "is not known to leave the base as it is, and to act on every token alike"
WHY_NOT = {
    "alora_invocation_tokens": "makes an adapter act on some tokens only",
    "arrow_config": "chooses among adapters by the token",
    "corda_config": "changes weights of the base itself",
    "ensure_weight_tying": UNTRIED,
    "kasa_config": "changes weights of the base itself",
    "layer_replication": "makes another model of the base's blocks",
    "lora_ga_config": "changes weights of the base itself",
    "megatron_config": "needs a base that is split over machines",
    "modules_to_save": "changes weights of the base itself",
    "monteclora_config": "adds noise to every pass",
    "trainable_token_indices": "changes weights of the base itself",
    "use_bdlora": UNTRIED,
    "use_qalora": UNTRIED,
}
EMPTY_IS_UNSET = ("ensure_weight_tying", "layer_replication", "megatron_config", "modules_to_save", "use_bdlora", "use_qalora")
# Ways to begin that leave the base as it is. With others an adapter is an update of a base that was changed first.
BEGINNINGS = ("gaussian", "orthogonal")
# These too, but they need data, or train a part of the adapter only: of a trained one it does not matter how it began.
OTHER_BEGINNINGS = ("eva", "mica")


def beyond_lora(config: Mapping[str, Any], trained: bool = False) -> str | None:
    """Say what in a LoRA configuration keeps an adapter from being compared with its base.

    Args:
        config: keys of `peft.LoraConfig`.
        trained: whether it is that of a trained adapter, which may hold fields that today's PEFT does not know. Of one to train with
            such names are misspelt (`unknown_keys`).

    Returns:
        The key, what it got and what it may be; None where all is well.
    """
    for key, value in config.items():
        # What PEFT writes for a field that was not set. For most of those above, any other value is a setting, an empty one too.
        unset = value is None or ((key not in WHY_NOT or key in EMPTY_IS_UNSET) and (value is False or value in ([], {})))
        if not unset and (key in WHY_NOT or (trained and key not in PLAIN)):
            return f"{key}={value!r} {WHY_NOT.get(key, UNTRIED)}, so it cannot be compared with the base; remove it"
    if config.get("bias", "none") != "none":
        return f"bias={config['bias']!r} changes weights of the base itself; it may be none"
    begins = config.get("init_lora_weights", True)
    if isinstance(begins, bool) or begins in BEGINNINGS or (trained and begins in OTHER_BEGINNINGS):
        return None
    may = f"it may be true, {' or '.join(BEGINNINGS)}"
    if begins in OTHER_BEGINNINGS:
        return f"init_lora_weights={begins!r} is not possible here; {may}"
    return f"init_lora_weights={begins!r} changes weights of the base itself; {may}"
