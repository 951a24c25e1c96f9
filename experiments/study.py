"""A study: one question as a grid of runs, read from a YAML file."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from wellworn.data.catalog import NEUTRAL, control_names
from wellworn.data.errors import InputError
from wellworn.data.files import did_you_mean, parse_yaml_value, read_yaml, validated
from wellworn.lora.arms import Arm, TrainConfig
from wellworn.probes.geometry.novelty import FEWEST_DRAWS as FEWEST_PUSHES
from wellworn.probes.geometry.nulls import DRAWS
from wellworn.probes.geometry.shift import FEWEST_PROMPTS
from wellworn.probes.mediation.shares import FEWEST_DRAWS
from wellworn.probes.reading.layers import DEFAULT_FRACTION
from wellworn.probes.scoring.endpoint import EndpointConfig

ROOT = Path(__file__).parent / "studies"


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChatConfig(_Config):
    """How conversations are written.

    Attributes:
        template: the model's own chat template, or `plain` for a base model without one.
        template_kwargs: passed to the model's template.
    """

    template: Literal["model", "plain"] = "model"
    template_kwargs: dict[str, Any] = {}


class GeneratedConfig(_Config):
    """What the arms of a mediation analysis say themselves, beside the fixed text that they score.

    Attributes:
        questions: evaluate questions that every arm answers, three and more.
        draws: of the null N1.
        by: what scores an answer: `contrast` pairs, or the study's `judge`.
        pairs: contrast pairs that score an answer: a trait's last ones, none of which may make its direction.
    """

    questions: Annotated[int, Field(ge=FEWEST_PROMPTS)] = 24
    draws: Annotated[int, Field(ge=FEWEST_DRAWS, le=DRAWS)] = FEWEST_DRAWS
    by: Literal["contrast", "judge"] = "contrast"
    pairs: Annotated[int, Field(ge=1)] = 4


class MediateConfig(_Config):
    """How it is measured through which part of the state behaviour changes.

    Attributes:
        draws: of the null N1: 20 estimate what chance mediates, 199 or more also give a p.
        matched: also swap the same draws scaled to move the state as far as the persona part does.
        doses: scales of the persona part of the change; 0 and 1 are always run.
        surface: training answers that are scored as training-like text, beside the held-out ones: none, or three and more.
        layers: further layers, as `layer` is given; the headline's is always among them.
        references: `headline` reads against the neutral fine-tune (the base where there is none), `both` against each.
        everywhere: also set the persona part at all layers at once.
        remainder_draws: what lies outside the space is added to the reference by itself, and so are this many chance directions of its
            norm, to learn whether it is new: 19 and more, or 0 to leave the question out. Held-out answers, headline alone.
        generated: also let the arms answer, and score what they say; null leaves that out.
    """

    draws: Annotated[int, Field(ge=FEWEST_DRAWS, le=DRAWS)] = 20
    matched: bool = True
    doses: tuple[Annotated[float, Field(gt=0)], ...] = (0.5, 1.5, 2.0)
    surface: Annotated[int, Field(ge=0)] = 24
    layers: tuple[int | float, ...] = ()
    references: Literal["headline", "both"] = "both"
    everywhere: bool = True
    remainder_draws: Annotated[int, Field(ge=0)] = FEWEST_PUSHES
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
        if 0 < count < FEWEST_PUSHES:
            raise ValueError(f"what 5 % of draws exceed needs at least {FEWEST_PUSHES} of them; 0 leaves the remainder out")
        return count


class ScoresConfig(_Config):
    """By what else than likelihood it is scored how much of a trait a run shows: what it would choose to say, and what it says.

    What it says is scored by contrast pairs, and graded where the study names a judge.

    Attributes:
        pairs: contrast pairs that score an answer: a trait's last ones, none of which may make its direction.
    """

    pairs: Annotated[int, Field(ge=1)] = 4


class FilterConfig(_Config):
    """Which answers make a direction, by the grades of the study's judge.

    Attributes:
        score: what an answer under the positive prompt reaches by the trait's rubric, and the one under its opposite does not.
        coherence: what both of them reach.
    """

    score: Annotated[float, Field(ge=0, le=100)] = 50.0
    coherence: Annotated[float, Field(ge=0, le=100)] = 50.0


class GeneratedDirectionsConfig(_Config):
    """How directions are also estimated from what the base itself says under contrast prompts.

    Attributes:
        questions: that it answers under each prompt.
        bank: whose extract questions they are, by name or as a .jsonl file, also of questions without answers; null means a trait's own
            open questions, then those that its direction is read on.
        filter: leave out pairs of answers by the grades of the study's judge; null keeps all.
    """

    questions: Annotated[int, Field(ge=4)] = 8
    bank: str | None = None
    filter: FilterConfig | None = None


class CalibrateConfig(_Config):
    """How the share is tried on planted changes whose answer is known.

    Attributes:
        trait: whose fine-tune gives planted changes their size; the study's first fine-tune of a trait unless it is given.
        alphas: shares to plant, rising.
        draws: planted changes for each share; 200 tell a coverage to .02.
        later: how many layers above the planted changes they are read as well; with 0 they are not, and no model is run.
        later_draws: of these for each share, and as many for each end of the scale.
    """

    trait: str | None = None
    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=2)] = (0.0, 0.25, 0.5, 0.75, 1.0)
    draws: Annotated[int, Field(ge=2)] = 200
    later: Annotated[int, Field(ge=0)] = 4
    later_draws: Annotated[int, Field(ge=1)] = 4

    @field_validator("alphas")
    @classmethod
    def _rising(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if list(alphas) != sorted(set(alphas)):
            raise ValueError(f"shares rise from one to the next, got {list(alphas)}")
        return alphas


class Study(_Config):
    """One question, what it expects, what would refute it, and the runs that answer it.

    Attributes:
        model: `smollm2-135m`, a folder, or a hub id.
        library: the traits whose directions span the persona space.
        roles: characters that make the space together with the traits: names, `all`, or none; twelve at least.
        role_questions: extraction questions that a role is read on.
        dictionary: characters whose directions may explain what lies outside a space of traits alone: names, `all`, or none. Roles that
            make the space are that by themselves.
        instructions: whose directions stand in for the library's in the null N2: names, or `all`; none leaves that null out.
        layer: where shares are read: an index, or a fraction of the depth.
        questions: the bank that controls and `neutral` answer.
        contrast_pairs: pairs of each trait that make its direction.
        extract_questions: questions under each contrast prompt.
        answer_tokens: longest sample answer.
        server: an OpenAI-compatible server that gives answers in place of the model here: `model` is its name for the base, and adapters
            are models named after their stages; null: the model here.
        judge: who grades answers: a model's name, or how an OpenAI-compatible server is reached; null: nobody.
        runs: arms; every `sft` run gets a `neutral` one of the same seed as its reference.
        seeds: training seeds; each multiplies the runs.
        mediate: which arms are run; null leaves mediation out, and with it every verdict about causes.
        calibrate: which changes are planted; null plants none.
        capability: what is measured of what fine-tunes cost: the `builtin` set; null leaves that out.
        scores: by what else than likelihood runs are scored, and whether scores agree; null: by nothing else.
        generated_directions: also estimate directions from the base's own answers, to hold them against those of the library; null: do not.
        grid: dotted key → values; every combination multiplies the runs.
    """

    name: str
    question: str
    expects: str
    refuted_by: str
    model: str = "smollm2-135m"
    trust_remote_code: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = "auto"
    chat: ChatConfig = ChatConfig()
    library: Annotated[tuple[str, ...], Field(min_length=1)]
    roles: Literal["all"] | tuple[str, ...] = ()
    role_questions: Annotated[int, Field(ge=2)] = 4
    dictionary: Literal["all"] | tuple[str, ...] = ()
    instructions: Literal["all"] | tuple[str, ...] = ()
    questions: str = "everyday"
    layer: int | float = DEFAULT_FRACTION
    # All half splits of the pairs are compared: 12 pairs make 462, 20 would make 92,378.
    contrast_pairs: Annotated[int, Field(ge=4, le=12)] = 6
    extract_questions: Annotated[int, Field(ge=4)] = 8
    answer_tokens: Annotated[int, Field(ge=1)] = 48
    token_budget: Annotated[int, Field(ge=1)] = 2048
    server: EndpointConfig | None = None
    judge: str | EndpointConfig | None = None
    runs: Annotated[tuple[Arm, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    train: TrainConfig = TrainConfig()
    mediate: MediateConfig | None = MediateConfig()
    calibrate: CalibrateConfig | None = None
    capability: Literal["builtin"] | None = "builtin"
    scores: ScoresConfig | None = None
    generated_directions: GeneratedDirectionsConfig | None = None

    @field_validator("judge", mode="wrap")
    @classmethod
    def _model_or_server(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            if value is None or isinstance(value, str | EndpointConfig):
                return value
            raise ValueError("may be a model's name, or the url of a server and its model there")
        # Of two possible types each would complain; what was given says which was meant.
        return EndpointConfig.model_validate(value)

    @field_validator("instructions", "roles", "dictionary", mode="before")
    @classmethod
    def _all_or_names(cls, value: Any) -> Any:
        if value != "all" and not isinstance(value, list | tuple):
            raise ValueError("may be all, or a list of names")
        return value

    @field_validator("library", "instructions", "roles", "dictionary", "seeds", "runs")
    @classmethod
    def _distinct(cls, values: Sequence[Any]) -> Sequence[Any]:
        if values == "all":
            return values
        for i, value in enumerate(values):
            if value in values[:i]:
                raise ValueError(f"{value!r} stands twice")
        return values

    @field_validator("dictionary")
    @classmethod
    def _one_use(cls, names: Sequence[str], info: ValidationInfo) -> Sequence[str]:
        if names and info.data.get("roles"):
            raise ValueError("roles that make the space are a dictionary by themselves; leave one of the two keys out")
        return names

    @field_validator("grid")
    @classmethod
    def _of_training(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in grid.items():
            if key != "layer" and not key.startswith("train."):
                raise ValueError(
                    f"{key!r} cannot vary inside a study, whose runs share a model and a space; use layer or a key under train"
                )
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"{key}: a value stands twice in {values}")
        return grid

    @model_validator(mode="after")
    def _served(self) -> "Study":
        if self.server and self.chat.template == "plain":
            raise ValueError("server: answers in the model's own template, and chat.template is plain; leave one of the two out")
        if self.server and any(arm.arm == "distilled" for arm in self.runs):
            raise ValueError("server: the steered teacher of a distilled arm answers here, and so has to what it is held against")
        for key, instead in (("repetition_penalty", "leave it out"), ("chat_template_kwargs", "set chat.template_kwargs instead")):
            if self.server and key in self.server.more:
                raise ValueError(f"server.more: {key} is the same for answers of the server and of the model here; {instead}")
        return self

    @model_validator(mode="after")
    def _graded(self) -> "Study":
        if self.mediate and self.mediate.generated and self.mediate.generated.by == "judge" and self.judge is None:
            raise ValueError("mediate.generated.by: judge grades what is said, and this study names no judge; add the key judge")
        if self.generated_directions and self.generated_directions.filter and self.judge is None:
            raise ValueError("generated_directions.filter: goes by a judge's grades, and this study names no judge; add the key judge")
        return self

    def points(self) -> Iterator[tuple[dict[str, Any], "Study"]]:
        """Yield every combination of the grid as (settings, the study with these settings).

        Raises:
            InputError: a setting that does not fit.
        """
        keys = list(self.grid)
        for values in itertools.product(*self.grid.values()):
            settings = dict(zip(keys, values, strict=True))
            plain = self.model_dump(mode="json", exclude={"grid"})
            for key, value in settings.items():
                _set(plain, key, value, f"{self.name}: grid")
            yield settings, validated(Study, plain, f"{self.name}: grid {settings}")


@dataclass(frozen=True)
class Run:
    """One arm × trait × seed, at one point of the grid."""

    arm: Arm
    seed: int
    settings: dict[str, Any]
    study: Study

    def title(self, trait: str | None, seed: int) -> str:
        """Return what to call the run, or its reference, on screen."""
        extra = "".join(f", {key.split('.')[-1]} {value}" for key, value in self.settings.items())
        return f"{self.arm.arm} {trait or ''}".strip() + f" (seed {seed}{extra})"


def runs_of(study: Study) -> list[Run]:
    """Expand a study into its runs, in file order, seeds and grid inside.

    Arms that nothing random touches (`base`, `prompted`, `adapter`) are run once, at the first seed.
    """
    runs = []
    for settings, point in study.points():
        for arm in point.runs:
            seeds = point.seeds if arm.arm in ("sft", "distilled", "random") else point.seeds[:1]
            # What an arm sets beyond its trait tells its runs apart as the grid does.
            own = arm.model_dump(exclude={"arm", "trait", "path"}, exclude_defaults=True)
            runs += [Run(arm, seed, settings | own, point) for seed in seeds]
    return runs


def study_names() -> list[str]:
    """Return the names of the studies that come with the suite."""
    return sorted(path.stem for path in ROOT.glob("*.yaml"))


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> Study:
    """Load a study by name or from a YAML file, with `key.sub=value` overrides.

    Raises:
        InputError: no such study, malformed YAML, an unknown key or a value out of range; names
            file, line and key.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = ROOT / f"{name_or_path}.yaml"
        if name_or_path not in study_names():
            raise InputError(
                f"unknown study {name_or_path!r}: neither built in nor a .yaml file{did_you_mean(name_or_path, study_names())}"
            )
    value, lines = read_yaml(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}:1: a study is a mapping of keys, got {type(value).__name__}")
    if "name" in value:
        raise InputError(f"{path}:{lines[('name',)]}: name: is the file's name; take this key out")
    value["name"] = path.stem
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise InputError(f"{override!r}: an override is written key.sub=value, such as train.sft.learning_rate=1e-4")
        _set(value, key, parse_yaml_value(text), override)
        # The line of the file no longer says where this value came from.
        lines = {at: line for at, line in lines.items() if at[: key.count(".") + 1] != tuple(key.split("."))}
    study = validated(Study, value, str(path), lines)
    for arm in study.runs:
        if arm.arm == "distilled" and arm.trait == NEUTRAL:
            raise InputError(f"{path}: runs: {NEUTRAL!r} has no direction to steer along; the arm distilled takes a trait or a control")
        if arm.arm == "prompted" and arm.trait in (NEUTRAL, *control_names()):
            raise InputError(f"{path}: runs: {arm.trait!r} has no system prompt to be prompted with; the arm prompted takes a trait")
    list(study.points())
    return study


def _set(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(f"{where}: {part!r} in {key!r} holds no keys of its own")
    tree[last] = value
