"""How arms are trained: batch size, and the fields of PEFT's and TRL's configurations by their own names."""

from functools import partial
from math import ceil
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from wellworn.data.errors import InputError
from wellworn.data.files import find_infinite
from wellworn.data.secrets import refuse_secrets
from wellworn.lora.keys import Section, beyond_lora, refuse_owned, unknown_keys

DEFAULT_EPOCHS = 2
MOST_EPOCHS, MOST_STEPS = 100_000, 10**9


class TrainConfig(BaseModel):
    """How the fine-tuned arms of a study are trained.

    Attributes:
        batch_size: global batch size, which the number of processes must divide. Unit: examples. Example: 8.
        lora: fields of `peft.LoraConfig`, by their own names. The suite's defaults: r 8, lora_alpha 16, target_modules all-linear.
            Example: {r: 8, lora_alpha: 16}.
        sft: fields of `trl.SFTConfig`, by their own names, except those that the suite sets. The suite's defaults: num_train_epochs 2,
            learning_rate 4e-4. Example: {num_train_epochs: 2, learning_rate: 4e-4}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

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
