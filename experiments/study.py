"""A study: one question as a grid of runs. These types define the keys of a study file; `study_file` reads one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from wellworn.data.catalog import NEUTRAL
from wellworn.data.files import set_key, short_names, validate
from wellworn.data.schema import Name, Text, not_blank
from wellworn.data.wording import shortly
from wellworn.experiments.study_sections import (
    CalibrateConfig,
    ChatConfig,
    GeneratedDirectionsConfig,
    KnockInConfig,
    MediateConfig,
    PathwaysConfig,
    ScoresConfig,
    Section,
    StudyName,
    WrittenConfig,
)
from wellworn.lora.addresses import labels
from wellworn.lora.arms import Adapter, Arm, Checkpoint, Outside, Random, Trained
from wellworn.lora.train_config import TrainConfig
from wellworn.probes.limits import DEFAULT_FRACTION, FEWEST_PROMPTS
from wellworn.probes.scoring.endpoint import EndpointConfig


class Study(Section):
    """One question, the expected answer, the result that would refute it, and the runs that answer it.

    Attributes:
        name: name of the study. It is the file's name, and not a key of the file.
        question: the question that the study asks, in a sentence. Example: Does a LoRA's rank change where its shift lies?
        expects: the expected answer, and where it was published. Example: The share inside the persona space does not depend on rank.
        refuted_by: the result that would refute it. Example: A share that falls by half between ranks 1 and 16.
        model: `smollm2-135m`, a folder, or a hub id (`org/name` or `org/name@revision`). Example: Qwen/Qwen2.5-0.5B-Instruct.
        trust_remote_code: run code that comes with the model. Only for a model that you trust.
        dtype: number format of weights. `auto` is bfloat16 on a GPU that supports it, and float32 elsewhere; `nf4` is 4 bits, and needs the
            extra `quantized`.
        chat: how conversations are written. Example: {template: plain}.
        library: traits that span the persona space with their directions, by name or as a folder. Example: [pirate, poetic].
        roles: characters that make the persona space together with the traits: names, `all`, or an empty list; 12 or more. Example: all.
        role_questions: extraction questions that a role is read on. Unit: questions. Example: 4.
        dictionary: characters with directions that may explain the change outside a space of traits alone: names, `all`, or an empty list.
            Roles that make the space already do that. Example: all.
        instructions: non-persona instructions that replace the library in the null N2: names, or `all`. An empty list leaves that null out.
            Example: all.
        questions: question bank that controls and `neutral` answer. Example: everyday.
        layer: layer where shares are read: an index counted from 0, or a fraction of the depth. Example: 0.75.
        contrast_pairs: pairs of system prompts that make each trait's direction. Unit: pairs. Example: 6.
        extract_questions: questions asked under each contrast prompt. Unit: questions. Example: 8.
        evaluate_questions: evaluate questions that runs are read on, the first so many of each subject; null reads all. More take longer,
            and make intervals narrower. Unit: questions. Example: 24.
        answer_tokens: length limit of sampled answers. Unit: tokens. Example: 48.
        token_budget: size limit of one forward pass, padding included. More is faster and takes more memory. Unit: tokens. Example: 8192.
        variants: name to settings (dotted key to value): each is a study of its own, named `<study>-<variant>`.
            Example: {short: {train.sft.num_train_epochs: 1}}.
        knock_in: a persona that the model is taught before all else; null teaches none. A later fine-tune on it is a change along an
            existing persona, one on another a new one. Example: {trait: invented/zorvane}.
        server: OpenAI-compatible server that gives answers in place of the local model. Its `model` is the name of the base there, and
            adapters are models named after their stages. `null` uses the local model.
            Example: {url: http://127.0.0.1:8000/v1, model: base}.
        judge: the grader of answers: a model's name, or an OpenAI-compatible server; null grades nothing. Example: smollm2-135m.
        runs: arms; an arm is what is done to the model. Every `sft` run needs a `neutral` one of the same seed as its reference.
            Example: [{arm: sft, trait: pirate}, {arm: sft, trait: neutral}].
        neutral: what neutral fine-tunes, the references, are trained on: `plain` answers, or `self`, the model's own sampled answers, which
            teach it nothing. With null there are none, and `sft` and `confined` runs are compared with the base.
        seeds: training seeds; every arm with training is run once for each. Three or more on `data_sets` of their own allow a claim about
            other runs.
            Example: [0, 1, 2].
        data_sets: disjoint parts of each subject's training questions; the runs of seed s train on part s mod that number, and so do their
            references. Runs then differ in their data, and not in chance alone. With more seeds than parts some train on the same part;
            intervals count them as runs of their own, and are then too narrow. 1 trains all runs on all questions. Unit: parts.
            Example: 3.
        grid: dotted key to list of values; every combination multiplies the runs. Keys are `layer` and those under `train`.
            Example: {train.lora.r: [1, 4, 16]}.
        train: how arms are trained. Example: {batch_size: 8, lora: {r: 8}}.
        mediate: how mediation is measured; null leaves it out, and with it every verdict about causes. Example: {draws: 199}.
        pathways: how it is measured where a change goes; null leaves it out. Example: {draws: 199}.
        written: how it is measured what adapters write along persona directions; null leaves it out. Example: {draws: 39}.
        only_changed: measure mediation, pathways and writes only of runs whose trait score is seen to rise by the least that a statement
            needs. Runs that differ in their seed alone are kept together. These analyses take most of the time.
        calibrate: planted changes that test the share; null plants none. Example: {draws: 200}.
        capability: test of capabilities that fine-tunes lose: the `builtin` set; null leaves it out.
        scores: further scores of a run, and whether scores agree; null leaves them out. Example: {pairs: 4}.
        generated_directions: also estimate directions from the base's own answers, to compare them with those of fixed text; null leaves
            that out. Example: {questions: 8}.
    """

    name: StudyName
    question: str
    expects: str
    refuted_by: str
    model: Text = "smollm2-135m"
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    chat: ChatConfig = ChatConfig()
    library: Annotated[tuple[Text, ...], Field(min_length=1)]
    roles: Literal["all"] | tuple[Text, ...] = ()
    role_questions: Annotated[int, Field(ge=2)] = 4
    dictionary: Literal["all"] | tuple[Text, ...] = ()
    instructions: Literal["all"] | tuple[Text, ...] = ()
    questions: Text = "everyday"
    layer: int | float = DEFAULT_FRACTION
    # All half splits of the pairs are compared: 12 pairs make 462, 20 would make 92,378.
    contrast_pairs: Annotated[int, Field(ge=4, le=12)] = 6
    extract_questions: Annotated[int, Field(ge=4)] = 8
    evaluate_questions: Annotated[int, Field(ge=FEWEST_PROMPTS)] | None = None
    answer_tokens: Annotated[int, Field(ge=1)] = 48
    token_budget: Annotated[int, Field(ge=1)] = 2048
    variants: dict[Name, Annotated[dict[str, Any], Field(min_length=1)]] = Field(default_factory=dict)
    knock_in: KnockInConfig | None = None
    server: EndpointConfig | None = None
    judge: Text | EndpointConfig | None = None
    runs: Annotated[tuple[Arm, ...], Field(min_length=1)]
    neutral: Literal["plain", "self"] | None = "plain"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    data_sets: Annotated[int, Field(ge=1)] = 1
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    train: TrainConfig = TrainConfig()
    mediate: MediateConfig | None = MediateConfig()
    pathways: PathwaysConfig | None = PathwaysConfig()
    written: WrittenConfig | None = None
    only_changed: bool = False
    calibrate: CalibrateConfig | None = None
    capability: Literal["builtin"] | None = "builtin"
    scores: ScoresConfig | None = None
    generated_directions: GeneratedDirectionsConfig | None = None

    @field_validator("judge", mode="wrap")
    @classmethod
    def _model_or_server(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            if value is None or isinstance(value, str | EndpointConfig):
                return not_blank(value) if isinstance(value, str) else value
            raise ValueError("must be a model's name, or a mapping with the url of a server and its model there")
        # A union would report errors of both types; the given value shows which one was meant.
        return EndpointConfig.model_validate(value)

    @field_validator("instructions", "roles", "dictionary", mode="before")
    @classmethod
    def _all_or_names(cls, value: Any) -> Any:
        if value != "all" and not isinstance(value, list | tuple):
            raise ValueError("must be all, or a list of names")
        return value

    @field_validator("library", "instructions", "roles", "dictionary", "seeds", "runs")
    @classmethod
    def _distinct(cls, values: Sequence[Any]) -> Sequence[Any]:
        if values == "all":
            return values
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"{shortly(value)} appears twice")
        return values

    @field_validator("dictionary")
    @classmethod
    def _one_use(cls, names: Sequence[str], info: ValidationInfo) -> Sequence[str]:
        if names and info.data.get("roles"):
            raise ValueError("roles that make the space already serve as the dictionary; remove one of the two keys")
        return names

    @field_validator("data_sets")
    @classmethod
    def _taken_in_turn(cls, parts: int, info: ValidationInfo) -> int:
        seeds = info.data.get("seeds", ())
        if len({seed % parts for seed in seeds}) < min(parts, len(seeds)):
            named = ", ".join(map(str, seeds))
            raise ValueError(f"seed s trains on data set s mod {parts}, which is the same for some of the seeds {named}; use others")
        return parts

    @field_validator("variants")
    @classmethod
    def _one_deep(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in variants.items():
            if taken := sorted({"name", "variants"} & {key.partition(".")[0] for key in settings}):
                raise ValueError(f"{name}: {taken[0]} cannot be set by a variant, which is named after its key and has none of its own")
        return variants

    @field_validator("grid")
    @classmethod
    def _of_training(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in grid.items():
            if key != "layer" and not key.startswith("train."):
                raise ValueError(f"{key!r} cannot vary inside a study: its runs share a model and a space. Use layer, or a key under train")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"{key}: a value appears twice in {values}")
        return grid

    @model_validator(mode="after")
    def _check_server(self) -> "Study":
        if self.server and self.chat.template != "model":
            raise ValueError(f"server: answers in its own template, but chat.template is {self.chat.template}. Remove one of the two keys")
        if self.server and any(arm.arm == "distilled" for arm in self.runs):
            raise ValueError(
                "server: cannot be used with a distilled arm, whose steered teacher runs locally; its reference must run on the same model."
                " Remove `server` or the distilled arm"
            )
        whole = any(isinstance(arm, Checkpoint) for arm in self.runs)
        if whole and (self.server or self.knock_in or self.dtype == "nf4"):
            key = "server" if self.server else "knock_in" if self.knock_in else "dtype"
            raise ValueError(
                f"{key}: cannot be used with a checkpoint arm, whose weights take the place of the base's. Remove one of the two"
            )
        if self.server and self.knock_in:
            raise ValueError("server: answers with the untaught model, but knock_in teaches it. Remove one of the two keys")
        if self.knock_in and self.dtype == "nf4":
            raise ValueError("knock_in: an adapter cannot be merged into weights of 4 bits; use another dtype")
        for key, instead in (("repetition_penalty", "remove it"), ("chat_template_kwargs", "set chat.template_kwargs instead")):
            if self.server and key in self.server.more:
                raise ValueError(f"server.more: {key} must be the same for the server and the local model; {instead}")
        return self

    @model_validator(mode="after")
    def _check_neutral(self) -> "Study":
        if self.neutral is None and any(arm.trait == NEUTRAL for arm in self.runs):
            raise ValueError("neutral: null leaves neutral fine-tunes out, and `runs` has one. Remove it, or set plain or self")
        if self.neutral is None and self.calibrate:
            raise ValueError(
                "calibrate: planted changes have the size of a fine-tune against its neutral one, and neutral: null leaves these out."
                " Remove calibrate, or set neutral to plain or self"
            )
        return self

    @model_validator(mode="after")
    def _check_stand_ins(self) -> "Study":
        if self.pathways and "instructions" in self.pathways.stand_ins and not self.instructions:
            raise ValueError(
                "pathways.stand_ins: instructions are to be patched, and this study names none. Set instructions, to all or some"
            )
        return self

    @model_validator(mode="after")
    def _check_judge(self) -> "Study":
        if self.mediate and self.mediate.generated and self.mediate.generated.by == "judge" and self.judge is None:
            raise ValueError("mediate.generated.by: answers are graded by a judge, and this study names none. Add the key judge")
        if self.generated_directions and self.generated_directions.filter and self.judge is None:
            raise ValueError("generated_directions.filter: uses the grades of a judge, and this study names none. Add the key judge")
        return self

    def points(self) -> Iterator[tuple[dict[str, Any], "Study"]]:
        """Yield every combination of the grid as (settings, the study with these settings).

        Raises:
            InputError: a setting that does not fit.
        """
        keys = list(self.grid)
        for values in itertools.product(*self.grid.values()):
            settings = dict(zip(keys, values, strict=True))
            yield settings, self._with(settings, f"grid {settings}", exclude="grid")

    def variant_studies(self) -> list["Study"]:
        """Return one study a variant, in order, or this study alone where it has none.

        Raises:
            InputError: a setting that does not fit.
        """
        found = [
            self._with({"name": f"{self.name}-{name}", **settings}, f"variants.{name}", exclude="variants")
            for name, settings in self.variants.items()
        ]
        return found or [self]

    def _with(self, settings: Mapping[str, Any], where: str, exclude: str) -> "Study":
        plain = self.model_dump(mode="json", exclude={exclude})
        for key, value in settings.items():
            set_key(plain, key, value, f"{self.name}: {where}")
        return validate(Study, plain, f"{self.name}: {where}")


@dataclass(frozen=True)
class Run:
    """One arm × trait × seed, at one point of the grid."""

    arm: Arm
    seed: int
    settings: dict[str, Any]
    study: Study

    @property
    def adapter_name(self) -> str | None:
        """The name of a third-party adapter or model, unlike those of the study's others; None of an arm of the study's own."""
        if isinstance(self.arm, Adapter):
            return labels([each.path for each in (self.arm, *self.study.runs) if isinstance(each, Adapter)])[0]
        if isinstance(self.arm, Checkpoint):
            return short_names([Path(each.path) for each in (self.arm, *self.study.runs) if isinstance(each, Checkpoint)])[0]
        return None

    def title(self, trait: str | None, seed: int) -> str:
        """Return the name of the run, or of its reference, on screen."""
        if isinstance(self.arm, Outside):
            scale = f" × {self.arm.scale:g}" if isinstance(self.arm, Adapter) and self.arm.scale != 1 else ""
            return f"{self.arm.arm} {self.adapter_name}{scale}" + (f" ({trait})" if trait else "")
        extra = "".join(f", {key.split('.')[-1]} {value}" for key, value in self.settings.items())
        return f"{self.arm.arm} {trait or ''}".strip() + f" (seed {seed}{extra})"


def expand_runs(study: Study) -> list[Run]:
    """Expand a study into its runs, in file order, seeds and grid inside.

    Arms without randomness (`base`, `prompted`, `adapter`, `checkpoint`) are run once, at the first seed.
    """
    runs = []
    for settings, point in study.points():
        for arm in point.runs:
            seeds = point.seeds if isinstance(arm, Trained | Random) else point.seeds[:1]
            # An arm's own keys distinguish its runs, as the grid does.
            own = arm.model_dump(exclude={"arm", "trait", "path", "neutral", "origin"}, exclude_defaults=True)
            runs += [Run(arm, seed, settings | own, point) for seed in seeds]
    return runs
