"""What can be done to a model in an experiment: one config class per arm, and how arms are trained."""

from functools import partial
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from wellworn.data.errors import InputError
from wellworn.data.files import find_infinite
from wellworn.data.schema import Text
from wellworn.data.secrets import refuse_secrets
from wellworn.lora.addresses import LARGEST_FACTOR
from wellworn.lora.keys import Section, beyond_lora, refuse_owned, unknown_keys

DEFAULT_EPOCHS = 2
MOST_EPOCHS, MOST_STEPS = 100_000, 10**9


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Base(_Config):
    """The model without any change: the reference of every arm that has no neutral fine-tune.

    Attributes:
        arm: the name of this arm.
        trait: always null; the key may be left out.
    """

    arm: Literal["base"] = "base"
    trait: None = None


class Prompted(_Config):
    """The base under the trait's held-out system prompt: a change in context, without training.

    Attributes:
        arm: the name of this arm.
        trait: a trait, by name or as a folder. Example: pirate.
    """

    arm: Literal["prompted"] = "prompted"
    trait: Text


class Sft(_Config):
    """A LoRA fine-tune, supervised on answers that show a trait or a control, or on plain answers.

    Attributes:
        arm: the name of this arm.
        trait: a trait or a control, by name or as a folder; or `neutral`, which trains on plain answers. Example: pirate.
        origin: what is known of the change beforehand: that the model had such a persona (`existing`), or that it had not (`new`). Findings
            are compared with it; it changes nothing else. Example: existing.
    """

    arm: Literal["sft"] = "sft"
    trait: Text
    origin: Literal["existing", "new"] | None = None


class Confined(_Config):
    """A LoRA fine-tune that can write along some directions alone, or everywhere but along them: a change of known way.

    LoRA is on the modules through which blocks write last (such as `down_proj`), so that what a block writes is what its adapter writes.

    Attributes:
        arm: the name of this arm.
        trait: as for `sft`, but not `neutral`. Example: pirate.
        to: `own`: the base's direction of this trait; `space`: that and the other personas of the library; `chance`: a random direction in
            place of the own one.
        outside: write everywhere but along these.
        reset: in training, also set the state along these to the base's after every layer up to the study's. Nothing learnt then relies on
            what frozen blocks carry there; needs `outside`.
        origin: as for `sft`.
    """

    arm: Literal["confined"] = "confined"
    trait: Text
    to: Literal["own", "space", "chance"] = "own"
    outside: bool = False
    reset: bool = False
    origin: Literal["existing", "new"] | None = None

    @model_validator(mode="after")
    def _resets_where_it_cannot_write(self) -> "Confined":
        if self.reset and not self.outside:
            raise ValueError("reset: what is written along these directions would be lost; set `outside: true` too, or remove `reset`")
        return self


class Distilled(_Config):
    """A student, fine-tuned on what the base answers while it is steered along a direction: a change of known origin.

    Attributes:
        arm: the name of this arm.
        trait: a trait or a control. Its direction steers the teacher, and its outcome is scored. Example: pirate.
        along: `persona` steers along that direction; `chance` steers along a random one of the same norm outside the persona space.
        strength: how many times the direction is added, at every token. Unit: norms of the direction. Example: 8.
        layer: where it is added: an index counted from 0, or a fraction of the depth. Example: 0.5.
    """

    arm: Literal["distilled"] = "distilled"
    trait: Text
    along: Literal["persona", "chance"] = "persona"
    strength: Annotated[float, Field(gt=0, le=LARGEST_FACTOR)] = 8.0
    layer: int | float = 0.5


class Random(_Config):
    """A LoRA of random weights that shifts activations as far as the `sft` adapter of that trait and seed does.

    Attributes:
        arm: the name of this arm.
        trait: the trait of the `sft` adapter. Example: pirate.
    """

    arm: Literal["random"] = "random"
    trait: Text


class Adapter(_Config):
    """A third-party LoRA adapter.

    Attributes:
        arm: the name of this arm.
        path: its folder, which holds `adapter_config.json` and `adapter_model.safetensors`. Or its address on the hub,
            `org/name[/folder][@revision]`. Or a weighted sum, such as `adapters/pirate+0.5*adapters/poetic`. Example: adapters/pirate.
        trait: the trait that it may have been trained on; null if none is suspected. Example: pirate.
        neutral: the adapter that it is compared with, of the same base and recipe, trained on answers without the trait. It is given as
            `path` is; null compares with the base. Example: adapters/neutral.
        scale: factor of its update, and of its neutral adapter's. Unit: multiples. Example: 0.5.
    """

    arm: Literal["adapter"] = "adapter"
    path: Text
    trait: Text | None = None
    neutral: Text | None = None
    scale: Annotated[float, Field(ge=-LARGEST_FACTOR, le=LARGEST_FACTOR)] = 1.0


class Checkpoint(_Config):
    """A whole model of the base's architecture: a full fine-tune of it, or a merged checkpoint.

    Attributes:
        arm: the name of this arm.
        path: a folder, or a hub id (`org/name` or `org/name@revision`). Example: models/pirate-7b.
        trait: the trait that it may have been trained on; null if none is suspected. Example: pirate.
        neutral: the model that it is compared with, of the same base and recipe, trained on answers without the trait; null compares it
            with the base. Example: models/neutral-7b.
    """

    arm: Literal["checkpoint"] = "checkpoint"
    path: Text
    trait: Text | None = None
    neutral: Text | None = None


Arm = Annotated[Base | Prompted | Sft | Confined | Distilled | Random | Adapter | Checkpoint, Field(discriminator="arm")]
# Arms that were trained elsewhere.
Outside = Adapter | Checkpoint


class TrainConfig(_Config):
    """How the fine-tuned arms of a study are trained.

    Attributes:
        batch_size: global batch size, which the number of processes must divide. Unit: examples. Example: 8.
        lora: fields of `peft.LoraConfig`, by their own names. The suite's defaults: r 8, lora_alpha 16, target_modules all-linear.
            Example: {r: 8, lora_alpha: 16}.
        sft: fields of `trl.SFTConfig`, by their own names, except those that the suite sets. The suite's defaults: num_train_epochs 2,
            learning_rate 4e-4. Example: {num_train_epochs: 2, learning_rate: 4e-4}.
    """

    batch_size: Annotated[int, Field(ge=1)] = 8
    lora: Annotated[dict[Annotated[str, AfterValidator(partial(refuse_owned, "lora"))], Any], AfterValidator(refuse_secrets)] = {}
    sft: Annotated[dict[Annotated[str, AfterValidator(partial(refuse_owned, "sft"))], Any], AfterValidator(refuse_secrets)] = {}

    @field_validator("lora")
    @classmethod
    def _plain_lora(cls, keys: dict[str, Any]) -> dict[str, Any]:
        if reason := beyond_lora(keys):
            raise ValueError(reason)
        modules = keys.get("target_modules", "all-linear")
        if keys.get("layers_to_transform") is not None and isinstance(modules, str):
            raise ValueError(f"layers_to_transform needs target_modules as a list, such as [q_proj, v_proj]; got {modules!r}")
        return keys

    @field_validator("lora", "sft")
    @classmethod
    def _finite(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for place in find_infinite(keys):
            raise ValueError(f"{'.'.join(map(str, place))}: must be a finite number")
        return keys

    @field_validator("sft")
    @classmethod
    def _countable(cls, keys: dict[str, Any]) -> dict[str, Any]:
        # By these the suite computes how long a training is. TRL takes 0 steps for as many as the epochs have.
        steps, epochs = keys.get("max_steps", -1), keys.get("num_train_epochs", DEFAULT_EPOCHS)
        if type(steps) is not int or not (steps == -1 or 1 <= steps <= MOST_STEPS):
            raise ValueError(f"max_steps: must be a whole number from 1 to {MOST_STEPS:,}, or -1 to go by num_train_epochs; got {steps!r}")
        if type(epochs) not in (int, float) or not 0 < epochs <= MOST_EPOCHS:
            raise ValueError(f"num_train_epochs: must be a number above 0, at most {MOST_EPOCHS:,}; got {epochs!r}")
        return keys

    def steps(self, rows: int) -> int:
        """Return the number of optimiser steps that training on so many rows takes.

        Raises:
            InputError: a key by which rows and steps have another relation.
        """
        if (fixed := self.sft.get("max_steps", -1)) > 0:
            return int(fixed)
        for key in ("packing", "dataloader_drop_last"):
            if self.sft.get(key):
                raise InputError(f"train.sft.{key}: the number of steps is not known beforehand; set train.sft.max_steps too")
        epochs: float = self.sft.get("num_train_epochs", DEFAULT_EPOCHS)
        return ceil(epochs * ceil(rows / self.batch_size))

    def with_steps(self, steps: int) -> "TrainConfig":
        """Return the same settings with a fixed number of steps."""
        sft = {key: value for key, value in self.sft.items() if key != "num_train_epochs"} | {"max_steps": steps}
        return self.model_copy(update={"sft": sft})

    def find_unknown_keys(self) -> dict[tuple[Section, str], str]:
        """Return what is wrong with each key that PEFT or TRL does not have: (section, key) → message."""
        sections: tuple[tuple[Section, dict[str, Any]], ...] = (("lora", self.lora), ("sft", self.sft))
        return {(section, key): message for section, keys in sections for key, message in unknown_keys(section, keys).items()}


def check_keys(config: TrainConfig) -> None:
    """Compare every key of a training configuration with PEFT's and TRL's.

    Raises:
        InputError: a key that LoraConfig or SFTConfig does not have; a line for each.
    """
    if wrong := config.find_unknown_keys():
        raise InputError("\n".join(f"train.{section}.{key}: {message}" for (section, key), message in wrong.items()))
