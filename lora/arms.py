"""What can be done to a model in an experiment: one config class per arm, and how arms are trained."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wellworn.lora.models import beyond_lora


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Base(_Config):
    """The model as it is; the reference that every other arm is read against."""

    arm: Literal["base"] = "base"
    trait: None = None


class Prompted(_Config):
    """The base under the trait's held-out system prompt: an in-context change, no training."""

    arm: Literal["prompted"] = "prompted"
    trait: str


class Sft(_Config):
    """Supervised LoRA fine-tuning on a trait's answers, a control's, or `neutral` (plain ones)."""

    arm: Literal["sft"] = "sft"
    trait: str


class Distilled(_Config):
    """A student, fine-tuned on what the base answers while it is steered along a direction: a change whose origin is known.

    Attributes:
        trait: a trait or a control, whose direction it is and whose outcome is scored.
        along: `persona`, that very direction, or `chance`, one of its norm outside the persona space.
        strength: how many times the direction is added, at every token.
        layer: where, as an index or as a fraction of the depth.
    """

    arm: Literal["distilled"] = "distilled"
    trait: str
    along: Literal["persona", "chance"] = "persona"
    strength: Annotated[float, Field(gt=0)] = 8.0
    layer: int | float = 0.5


class Random(_Config):
    """A LoRA of random weights that shifts states as far as the `sft` adapter of that trait and seed does."""

    arm: Literal["random"] = "random"
    trait: str


class Adapter(_Config):
    """A LoRA adapter that someone else trained. `trait` says which one it is suspected of, if any."""

    arm: Literal["adapter"] = "adapter"
    path: str
    trait: str | None = None


Arm = Annotated[Base | Prompted | Sft | Distilled | Random | Adapter, Field(discriminator="arm")]

# What the suite decides itself, and the key to use instead.
_OWNED_SFT = {
    "output_dir": "--runs-dir",
    "seed": "seeds",
    "data_seed": "seeds",
    "bf16": "dtype",
    "fp16": "dtype",
    "use_cpu": "the accelerate file",
    "report_to": "the report of the study",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "save_strategy": "train.sft.save_steps",
    "disable_tqdm": "nothing: progress is shown by the suite",
    "completion_only_loss": "nothing: the loss is taken on responses only",
    "push_to_hub": "nothing: adapters stay in the runs folder",
}
_OWNED_LORA = {"task_type": "nothing: it is CAUSAL_LM", "base_model_name_or_path": "model", "inference_mode": "nothing: it is False"}


class TrainConfig(_Config):
    """How the `sft` arms of a study are trained.

    Attributes:
        batch_size: the global batch; the number of processes must divide it.
        lora: passed to `peft.LoraConfig` by its own names.
        sft: passed to `trl.SFTConfig` by its own names; keys that the suite owns are refused.
    """

    batch_size: Annotated[int, Field(ge=1)] = 8
    lora: dict[str, Any] = {}
    sft: dict[str, Any] = {}

    @field_validator("sft")
    @classmethod
    def _own_sft(cls, keys: dict[str, Any]) -> dict[str, Any]:
        _refuse_owned(keys, _OWNED_SFT)
        return keys

    @field_validator("lora")
    @classmethod
    def _own_lora(cls, keys: dict[str, Any]) -> dict[str, Any]:
        _refuse_owned(keys, _OWNED_LORA)
        if reason := beyond_lora(keys):
            raise ValueError(reason)
        return keys


def _refuse_owned(keys: dict[str, Any], owned: dict[str, str]) -> None:
    for key in keys:
        if key in owned:
            raise ValueError(f"{key!r} is set by the suite; use {owned[key]} instead")
