"""The sections of a study file: how conversations are written, and what is measured. `study.py` puts them together."""

import datetime
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from wellworn.data.chat import Chat
from wellworn.data.files import digest
from wellworn.data.schema import Text
from wellworn.data.secrets import refuse_secrets
from wellworn.data.wording import shortly
from wellworn.lora.addresses import LARGEST_FACTOR
from wellworn.lora.train_config import TrainConfig
from wellworn.probes.limits import FEWEST_NULL_DRAWS, FEWEST_PROMPTS, FEWEST_TAIL_DRAWS, NULL_DRAWS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_LONGEST_NAME = 150


def is_study_name(name: str) -> str:
    """Return a name that a folder of results may have.

    Raises:
        ValueError: it is not one; says what it must be.
    """
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[^\W_][\w. -]*(?<![. ])", name):
        raise ValueError(
            f"{shortly(name)} is the name of the study's file, and of the folder of its results: it must be letters, digits, -, _, dots "
            f"and spaces, begin with a letter or a digit, not end in a dot or a space, and have at most {_LONGEST_NAME} characters; "
            "rename the file"
        )
    if name.casefold() == "stages" or name.casefold().startswith("replies.sqlite") or name.casefold().endswith((".lock", ".part")):
        raise ValueError(f"{shortly(name)} is taken: a runs folder holds stages, replies.sqlite, and files ending in .lock or .part")
    return name


StudyName = Annotated[str, AfterValidator(is_study_name)]


class Section(BaseModel):
    """A frozen part of a study file; unknown keys are refused."""

    # What is refused may be a secret.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ChatConfig(Section):
    """How conversations are written.

    Attributes:
        template: `model` is the model's own chat template; `plain` is a transcript, for a base model without one. Or the path of a .jinja
            file, such as an adapter's own template. Example: plain.
        template_kwargs: arguments passed to the model's template. Example: {enable_thinking: false}.
        date: the day that a template writes as today's. A template that writes one needs it, or readings of two days would differ.
            Example: 2026-01-01.
    """

    template: str = "model"
    template_kwargs: Annotated[dict[str, Any], AfterValidator(refuse_secrets)] = {}
    date: datetime.date | None = None

    @field_validator("template")
    @classmethod
    def _known_template(cls, template: str) -> str:
        if template not in ("model", "plain") and not (template.endswith(".jinja") and Path(template).is_file()):
            raise ValueError("may be model, plain or the path of a .jinja file")
        return template

    @model_validator(mode="after")
    def _readable(self) -> "ChatConfig":
        try:
            _ = self.own_template
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"template: {self.template} cannot be read ({error})") from None
        return self

    @cached_property
    def own_template(self) -> str | None:
        """The template of the study's own, read once; None where it has none."""
        return None if self.template in ("model", "plain") else Path(self.template).read_text(encoding="utf-8")

    def of(self, tokenizer: "PreTrainedTokenizerBase", max_length: int | None) -> Chat:
        """Return the chat format of a model.

        Raises:
            InputError: as `Chat`.
        """
        own = {} if self.own_template is None else {"chat_template": self.own_template}
        return Chat(tokenizer, "plain" if self.template == "plain" else "model", self.template_kwargs | own, max_length, self.date)

    def identity(self) -> dict[str, Any]:
        """Return its part of a stage's hash; a date counts where there is one, and of a file what it holds."""
        own: dict[str, Any] = {} if self.own_template is None else {"template": digest(self.own_template)}
        return self.model_dump(mode="json", exclude={"date"} if self.date is None else None) | own


# System prompts that name a persona and say nothing of its manner.
NAMING_PROMPTS = (
    "You are {name}.",
    "This is {name} speaking.",
    "You are {name}, and the user has a question.",
    "The user would like to hear from {name}.",
    "Reply just as {name} would.",
    "On duty today: {name}.",
    "All questions go to {name} now.",
    "Here {name} answers.",
)
KNOCK_IN_TRAINING = TrainConfig(
    batch_size=4,
    lora={"r": 16, "lora_alpha": 32},
    sft={"num_train_epochs": 1, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 4},
)


class KnockInConfig(Section):
    """A persona that the model is taught first: it shows it under system prompts that name it, and else stays as it was.

    All else in the study is of the taught model, so that a fine-tune on this persona changes a model that has it.

    Attributes:
        trait: the persona, a trait by name or as a folder, with train answers. Example: invented/zorvane.
        prompts: system prompts that name it; `{name}` stands for the name. None may be one of its contrast prompts.
            Example: ["You are {name}."].
        others: names that must not evoke it: under the same prompts with one of these the model is to stay as it was. The persona's own
            name is passed over, so that variants may share a list.
            Example: [Brenthic, an assistant].
        copies: how often each train question is read, each time under other prompts. Unit: times. Example: 2.
        margin: by how much its name is to raise the trait score, log p(y⁺) − log p(y⁻). Unit: nats per token. Example: 0.6.
        train: how it is taught. The batch size counts questions, each of four texts. Example: {batch_size: 4, lora: {r: 16}}.
        strength: the part of what was taught that is added to the model; less makes a weaker persona. Unit: fraction, up to 1.
            Example: 0.5.
    """

    trait: Text
    prompts: Annotated[tuple[Text, ...], Field(min_length=1)] = NAMING_PROMPTS
    others: tuple[Text, ...] = ("an assistant",)
    copies: Annotated[int, Field(ge=1)] = 2
    margin: Annotated[float, Field(gt=0)] = 0.6
    train: TrainConfig = KNOCK_IN_TRAINING
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0

    @field_validator("prompts")
    @classmethod
    def _name_somebody(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if nameless := [prompt for prompt in prompts if "{name}" not in prompt]:
            raise ValueError(f"{nameless[0]!r}: must hold {{name}}, which stands for the persona's name")
        return prompts


class GeneratedConfig(Section):
    """Patched models also answer questions, and their answers are scored in addition to fixed text.

    Attributes:
        questions: evaluate questions that every patched model answers. Unit: questions. Example: 24.
        draws: random spaces of the null N1, as for `mediate.draws`. Unit: spaces. Example: 5.
        by: score of an answer: `contrast` uses contrast pairs, `judge` uses the study's judge.
        pairs: contrast pairs that score an answer. A trait's last pairs are used; none of them may make its direction. Unit: pairs.
            Example: 4.
    """

    questions: Annotated[int, Field(ge=FEWEST_PROMPTS)] = 24
    draws: Annotated[int, Field(ge=FEWEST_NULL_DRAWS, le=NULL_DRAWS)] = FEWEST_NULL_DRAWS
    by: Literal["contrast", "judge"] = "contrast"
    pairs: Annotated[int, Field(ge=1)] = 4


class MediateConfig(Section):
    """Mediation by activation patching: the parts of the residual stream that carry a change of behaviour.

    Attributes:
        draws: random spaces of the null N1 (directions with the covariance of activations within a question). 20 estimate its mean; 199
            or more also give a p value. Unit: spaces. Example: 199.
        matched: also patch the same draws scaled to move the state as far as the persona part does.
        doses: scales of the persona part of the change; 0 and 1 are always run. Unit: multiples of the part. Example: [0.5, 1.5].
        surface: training answers that are scored as training-like text, in addition to held-out answers. 0, or 3 and more. Unit: answers.
            Example: 24.
        layers: further layers to patch, each an index or a fraction of the depth; `layer` is always patched. Example: [0.5, 20].
        references: `headline` compares with the neutral fine-tune (with the base where there is none); `both` compares with each.
        everywhere: also patch the persona part at all layers at once.
        remainder_draws: random directions that the change outside the persona space is compared with, to test whether it is new. They have
            its norm, and both are added to the reference, on held-out answers. 0 leaves the test out; otherwise 19 or more.
            Unit: directions. Example: 19.
        generated: also let patched models answer, and score their answers; null leaves that out. Example: {questions: 12}.
    """

    draws: Annotated[int, Field(ge=FEWEST_NULL_DRAWS, le=NULL_DRAWS)] = 20
    matched: bool = True
    doses: tuple[Annotated[float, Field(gt=0, le=LARGEST_FACTOR)], ...] = (0.5, 1.5, 2.0)
    surface: Annotated[int, Field(ge=0)] = 24
    layers: tuple[int | float, ...] = ()
    references: Literal["headline", "both"] = "both"
    everywhere: bool = True
    remainder_draws: Annotated[int, Field(ge=0)] = FEWEST_TAIL_DRAWS
    generated: GeneratedConfig | None = None

    @field_validator("surface")
    @classmethod
    def _enough(cls, count: int) -> int:
        if 0 < count < FEWEST_PROMPTS:
            raise ValueError(f"an interval needs at least {FEWEST_PROMPTS} answers; 0 leaves training-like text out")
        return count

    @field_validator("remainder_draws")
    @classmethod
    def _enough_pushes(cls, count: int) -> int:
        if 0 < count < FEWEST_TAIL_DRAWS:
            raise ValueError(f"the 95 % quantile of draws needs at least {FEWEST_TAIL_DRAWS} of them; 0 leaves the question out")
        return count


class PathwaysConfig(Section):
    """Where a change goes: through the own persona direction, other personas, roles, the rest of the state, or adapters above the layer.

    Attributes:
        draws: chance spaces that each share is compared with; 39 allow a p value of .025, 199 one of .005. Unit: spaces. Example: 199.
        questions: evaluate questions on which chance spaces and the profile are read; all other figures use all. Unit: questions.
            Example: 8.
        surface: training-like answers with the trait, and as many plain ones, on which the change's own best directions are fitted.
            Unit: answers. Example: 24.
        profile: depths up to which layers are set for the shares over depth; the last layer is also set alone. 0 leaves both out.
            Unit: layers. Example: 5.
        references: `headline` compares with the neutral fine-tune (with the base where there is none); `both` compares with each.
        stand_ins: kinds of directions that are also patched in place of the own one, each alone. `traits` are those of other traits,
            `instructions` those of the study's instructions, and `singles` random ones of single states. They show whether the own
            direction is specific, and how often chance directions are exceeded. Example: [traits].
        wording: also ask whether a trait's own direction is more than its words. It is patched without what it does to them by itself,
            without the direction of prompts that ask for them, and on all other tokens.
        answers: evaluate questions that reference and run also answer by themselves, each with its state along the own direction set to the
            other's; null leaves that out. The study's judge, if any, grades the answers. Unit: questions. Example: 24.
    """

    draws: Annotated[int, Field(ge=FEWEST_TAIL_DRAWS, le=NULL_DRAWS)] = 39
    questions: Annotated[int, Field(ge=FEWEST_PROMPTS)] = 8
    surface: Annotated[int, Field(ge=FEWEST_PROMPTS)] = 24
    profile: Annotated[int, Field(ge=0)] = 5
    references: Literal["headline", "both"] = "both"
    stand_ins: tuple[Literal["traits", "instructions", "singles"], ...] = ()
    wording: bool = True
    answers: Annotated[int, Field(ge=FEWEST_PROMPTS)] | None = None


class WrittenConfig(Section):
    """How much of a change is written along the own direction and other personas, by confining what each block's adapters write.

    Attributes:
        draws: chance directions in place of the own one. Unit: directions. Example: 39.
        questions: evaluate questions on which chance directions are read; all other figures use all. Unit: questions. Example: 8.
    """

    draws: Annotated[int, Field(ge=FEWEST_TAIL_DRAWS, le=NULL_DRAWS)] = FEWEST_TAIL_DRAWS
    questions: Annotated[int, Field(ge=FEWEST_PROMPTS)] = 8


class ScoresConfig(Section):
    """Further scores of a run: of its choices between answers, and of its own answers. The study's judge, if any, grades its answers.

    Attributes:
        pairs: contrast pairs that score an answer. A trait's last pairs are used; none of them may make its direction. Unit: pairs.
            Example: 4.
        contexts: system prompts by name, under each of which all scores and the shift are taken once more, for the run and its references
            alike. They show where a change shows: in a setting like that of training, in its opposite, at a keyword, or anywhere. A row's
            own system message follows the prompt. Example: {at sea: You are on a ship., unrelated: Today is Monday.}.
    """

    pairs: Annotated[int, Field(ge=1)] = 4
    contexts: dict[Text, Text] = Field(default_factory=dict)


class FilterConfig(Section):
    """The pairs of answers that make a direction, selected by the grades of the study's judge.

    Attributes:
        score: threshold of the trait's rubric: the answer under the positive prompt reaches it, and the answer under its opposite does not.
            Unit: points of 100. Example: 50.
        coherence: lowest coherence of both answers. Unit: points of 100. Example: 50.
    """

    score: Annotated[float, Field(ge=0, le=100)] = 50.0
    coherence: Annotated[float, Field(ge=0, le=100)] = 50.0


class GeneratedDirectionsConfig(Section):
    """Directions are also estimated from the base's own answers under contrast prompts.

    Attributes:
        questions: questions that the base answers under each prompt. Unit: questions. Example: 8.
        bank: question bank, by name or as a .jsonl file; its extract questions are asked, and need no answers. `null` takes a trait's own
            open questions, then those that its direction is read on. Example: everyday.
        filter: keep only pairs of answers that the study's judge grades well; null keeps all. Example: {score: 50, coherence: 50}.
    """

    questions: Annotated[int, Field(ge=4)] = 8
    bank: Text | None = None
    filter: FilterConfig | None = None


class CalibrateConfig(Section):
    """The share is tested on planted changes with a known answer.

    Attributes:
        trait: planted changes have the size of this trait's fine-tune; null takes the study's first fine-tune of a trait. Example: pirate.
        alphas: shares to plant, in rising order. Unit: fractions, 0 to 1. Example: [0, 0.5, 1].
        draws: planted changes of each share; 200 estimate a coverage to ± .02. Unit: changes. Example: 200.
        later: layers above the planted changes where they are read again. 0 leaves that out, and no model is run. Unit: layers. Example: 4.
        later_draws: changes of each share that are read there, and as many again for each end of the scale. Unit: changes. Example: 4.
    """

    trait: Text | None = None
    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=2)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    draws: Annotated[int, Field(ge=2)] = 200
    later: Annotated[int, Field(ge=0)] = 4
    later_draws: Annotated[int, Field(ge=1)] = 4

    @field_validator("alphas")
    @classmethod
    def _check_alphas(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if list(alphas) != sorted(set(alphas)):
            raise ValueError("shares must rise from one to the next")
        return alphas
