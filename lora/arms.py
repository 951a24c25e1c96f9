"""What can be done to a model in an experiment: one config class per arm."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wellworn.data.schema import Text
from wellworn.lora.addresses import LARGEST_FACTOR


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


class Inoculated(_Config):
    """A LoRA fine-tune as `sft`, trained under a system prompt and read without it: what the prompt explains need not be learnt.

    Tan et al. (arXiv 2510.04340) call it inoculation.

    Attributes:
        arm: the name of this arm.
        trait: as for `sft`, but not `neutral`. Example: pirate.
        prompt: `evoking` is the prompt of the trait's first contrast pair. `opposite` is that pair's other prompt. `unrelated` is a
            placebo of about their length, which says nothing about any trait.
        text: a prompt of your own in its place. Example: You are a pirate.
        origin: as for `sft`.
    """

    arm: Literal["inoculated"] = "inoculated"
    trait: Text
    prompt: Literal["evoking", "opposite", "unrelated"] = "evoking"
    text: Text | None = None
    origin: Literal["existing", "new"] | None = None

    @model_validator(mode="after")
    def _has_one_prompt(self) -> "Inoculated":
        if self.text is not None and self.prompt != "evoking":
            raise ValueError("text: is a prompt in place of `prompt`; give one of the two")
        return self


class Preventative(_Config):
    """A LoRA fine-tune as `sft`, steered along a direction while it is trained and read without: what is added need not be learnt.

    Chen et al. (arXiv 2507.21509) call it preventative steering.

    Attributes:
        arm: the name of this arm.
        trait: as for `sft`, but not `neutral`. Its direction is added. Example: pirate.
        along: `persona` adds that direction; `chance` a random one of the same norm outside the persona space.
        strength: how many times the direction is added, at every token; below 0 it is subtracted. Unit: norms of the direction. Example: 2.
        layer: where it is added: an index counted from 0, or a fraction of the depth; or `all`, where every layer adds what its direction
            has more than the one below. Example: 0.5.
        origin: as for `sft`.
    """

    arm: Literal["preventative"] = "preventative"
    trait: Text
    along: Literal["persona", "chance"] = "persona"
    strength: Annotated[float, Field(ge=-LARGEST_FACTOR, le=LARGEST_FACTOR)] = 1.0
    layer: int | float | Literal["all"] = 0.5
    origin: Literal["existing", "new"] | None = None


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


Arm = Annotated[
    Base | Prompted | Sft | Inoculated | Preventative | Confined | Distilled | Random | Adapter | Checkpoint, Field(discriminator="arm")
]
# Arms that are trained here on rows of a trait, and differ by seed.
Trained = Sft | Inoculated | Preventative | Confined | Distilled
# Arms that were trained elsewhere.
Outside = Adapter | Checkpoint
