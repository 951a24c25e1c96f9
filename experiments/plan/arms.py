"""The stages of each arm: what is done to the model, and its reference. One function per arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from wellworn.data.catalog import NEUTRAL
from wellworn.data.errors import InputError
from wellworn.data.files import digest
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Stage
from wellworn.experiments.plan.subjects import Subject
from wellworn.experiments.stages.answers import answer_stage, kept_answers_stage
from wellworn.experiments.stages.confined import confined_stage
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.preventative import preventative_stage
from wellworn.experiments.stages.steered_teacher import teacher_stage
from wellworn.experiments.stages.training import Training, adapter_stage, checkpoint_stage, random_stage, sum_stage, train_stage
from wellworn.experiments.study import Run
from wellworn.lora.adapters import unlike_base
from wellworn.lora.addresses import WEIGHTS, find_adapter, labels, terms
from wellworn.lora.arms import Adapter, Base, Checkpoint, Confined, Distilled, Inoculated, Outside, Preventative, Prompted, Random, Sft
from wellworn.lora.checkpoints import compare_models
from wellworn.lora.models import resolve
from wellworn.probes.reading.layers import resolve_layer

BASE_IS_REFERENCE = "base is the reference that other runs are read against"
REFERENCE_OF_REFERENCE = "a neutral run is read against a neutral run of another seed, and this study has one seed"
NO_PLAIN = "the trait has no plain answers to its questions, so nothing is trained on them, and no answer is compared with one"
NO_NEUTRAL = "the study has no neutral fine-tunes, so runs are compared with the base"
# A placebo for prompts under which fine-tunes are trained.
UNRELATED = "This conversation takes place on a website where visitors ask whatever they would like to know."
NO_NEUTRAL_PROMPT = "a prompt has no neutral fine-tune"
NO_NEUTRAL_RANDOM = "random weights were not trained, and have no neutral fine-tune"
NO_NEUTRAL_OUTSIDE = (
    "no neutral fine-tune of the same recipe was given, and relative to the base answers become likelier by their form too, of any kind"
)


@dataclass(frozen=True, kw_only=True)
class ArmStages:
    """The stages of an arm.

    Attributes:
        condition: the changed model.
        reference: its neutral fine-tune of the same size, steps and seed (for a neutral run, of another seed), if there is one.
        adapter: name and digest of a third-party adapter.
        trained: whether it has a training curve.
        missing: field → why it is not measured.
        notes: what a third-party adapter says of its base that is not so here.
    """

    condition: Condition
    reference: Condition | None = None
    adapter: str | None = None
    trained: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ArmInputs:
    """The inputs for laying out an arm.

    Attributes:
        context: the study's model.
        run: the run.
        subject: its trait or control, with all its training questions.
        space_stages: the persona space, with the run's own direction where there is one.
        own: the name of that direction, if there is one.
        no_own: why there is no such direction, if that is an error.
    """

    context: StudyContext
    run: Run
    subject: Subject
    space_stages: SpaceStages
    own: str | None
    no_own: str | None

    @property
    def title(self) -> str:
        """The run's name on screen."""
        return self.run.title(self.subject.name, self.run.seed)

    def subject_of_seed(self, seed: int) -> Subject:
        """Return the subject with the training questions of that seed's data set."""
        return self.subject.of_seed(seed, self.run.study.data_sets)

    def train_neutral(self, seed: int, title: str) -> Stage:
        """Return the stage that trains a neutral fine-tune: on plain answers, or on the model's own, which teach it nothing.

        No answer of its own is read twice: a model that reads one again learns that one, and drifts from what it was. It takes as many
        steps as the run.

        Raises:
            InputError: a key of training by which the number of steps is not known beforehand.
        """
        subject, config = self.subject_of_seed(seed), self.run.study.train
        plain = subject.plain_turns("train")
        if self.run.study.neutral == "plain":
            return self.train(plain, seed, title)
        steps = config.steps(len(subject.training_turns()))
        turns = plain * ceil(steps * config.batch_size / len(plain))
        kept = kept_answers_stage(self.context, [turn.asked for turn in turns], "answers of the base to train on")
        return train_stage(self.context, Training(turns, config.with_steps(steps), seed, f"train {title}"), kept)

    def train(self, turns: Sequence[Turn], seed: int, title: str, answers_of: Stage | None = None) -> Stage:
        """Return the stage that trains an adapter with the study's settings."""
        return train_stage(self.context, Training(turns, self.run.study.train, seed, f"train {title}"), answers_of)


def arm_stages(given: ArmInputs) -> ArmStages:
    """Lay out the stages of a run's arm.

    Raises:
        InputError: the trait lacks something that the arm needs.
    """
    match given.run.arm:
        case Base():
            missing = dict.fromkeys(("effect", "share", "coordinates", "verdict"), BASE_IS_REFERENCE)
            return ArmStages(condition=Condition(), missing=missing)
        case Prompted():
            return _prompted_arm(given)
        case Sft():
            return _sft_arm(given)
        case Inoculated() as arm:
            return _inoculated_arm(given, arm)
        case Preventative() | Confined() as arm:
            return _constrained_arm(given, arm)
        case Distilled() as arm:
            return _distilled_arm(given, arm)
        case Random():
            return _random_arm(given)
        case Adapter() | Checkpoint() as arm:
            return _outside_arm(given, arm)


def _prompted_arm(given: ArmInputs) -> ArmStages:
    trait = given.subject.of
    assert isinstance(trait, Trait)  # checked when the study was loaded
    if trait.system_prompt is None:
        raise InputError(f"{trait.name}: the arm prompted needs a trait's system_prompt, and this trait has none")
    return ArmStages(condition=Condition(given.title, system=trait.system_prompt), missing={"neutral": NO_NEUTRAL_PROMPT})


def _sft_arm(given: ArmInputs) -> ArmStages:
    run, subject = given.run, given.subject
    turns = _training_turns(given)
    mine = given.train_neutral(run.seed, given.title) if subject.of is None else given.train(turns, run.seed, given.title)
    condition = Condition(given.title, adapter=mine)
    if why := _why_no_neutral(given):
        return ArmStages(condition=condition, trained=True, missing={"neutral": why})
    seed, seeds = run.seed, run.study.seeds
    if subject.of is None:
        if len(seeds) < 2:
            missing = dict.fromkeys(("share", "verdict"), REFERENCE_OF_REFERENCE)
            return ArmStages(condition=condition, trained=True, missing=missing)
        seed = seeds[(seeds.index(seed) + 1) % len(seeds)]
    title = run.title(NEUTRAL, seed)
    reference = Condition(title, adapter=given.train_neutral(seed, title))
    return ArmStages(condition=condition, reference=reference, trained=True)


def _inoculated_arm(given: ArmInputs, arm: Inoculated) -> ArmStages:
    prompt = arm.text or _training_prompt(given.subject, arm.prompt)
    turns = [turn.under(prompt) for turn in _training_turns(given)]
    return _with_neutral(given, given.train(turns, given.run.seed, given.title))


def _training_prompt(subject: Subject, which: str) -> str:
    """Return the system prompt that a fine-tune is inoculated with."""
    if which == "unrelated":
        return UNRELATED
    if subject.of is None or not subject.of.contrast_pairs:
        raise InputError(f"{subject.name}: the arm inoculated takes a prompt of its contrast pairs, and it has none; give `text`")
    pair = subject.of.contrast_pairs[0]
    return pair.positive if which == "evoking" else pair.negative


def _constrained_arm(given: ArmInputs, arm: Preventative | Confined) -> ArmStages:
    if given.own is None:
        raise InputError(f"{given.title}: {given.no_own}")
    training = Training(_training_turns(given), given.run.study.train, given.run.seed, f"train {given.title}")
    if isinstance(arm, Confined):
        return _with_neutral(given, confined_stage(given.context, given.space_stages, arm, given.own, training))
    return _with_neutral(given, preventative_stage(given.context, given.space_stages, arm, given.own, training))


def _with_neutral(given: ArmInputs, mine: Stage) -> ArmStages:
    """Return the stages of an arm that a free fine-tune on plain answers is the reference of."""
    run, condition = given.run, Condition(given.title, adapter=mine)
    if why := _why_no_neutral(given):
        return ArmStages(condition=condition, trained=True, missing={"neutral": why})
    title = f"sft {NEUTRAL} (seed {run.seed})"
    return ArmStages(condition=condition, reference=Condition(title, adapter=given.train_neutral(run.seed, title)), trained=True)


def _why_no_neutral(given: ArmInputs) -> str | None:
    if given.run.study.neutral is None:
        return NO_NEUTRAL
    return None if given.subject.paired else NO_PLAIN


def _distilled_arm(given: ArmInputs, arm: Distilled) -> ArmStages:
    run = given.run
    if given.own is None:
        raise InputError(f"{given.title}: {given.no_own}")
    plain, asked = given.subject_of_seed(run.seed).plain_turns("train"), given.subject_of_seed(run.seed).examples_in("train")
    taught = teacher_stage(given.context, given.space_stages, arm, given.own, asked, run.seed)
    # The reference is also a student, of the unchanged base.
    title = f"student of the base (seed {run.seed})"
    untaught = answer_stage(given.context, Condition(), asked)
    return ArmStages(
        condition=Condition(given.title, adapter=given.train(plain, run.seed, given.title, taught)),
        reference=Condition(title, adapter=given.train(plain, run.seed, title, untaught)),
        trained=True,
    )


def _random_arm(given: ArmInputs) -> ArmStages:
    run, subject = given.run, given.subject
    real = given.train(_training_turns(given), run.seed, f"sft {subject.name} (seed {run.seed})")
    layer = resolve_layer(run.study.layer, given.context.depth)
    adapter = random_stage(given.context, real, subject.plain_turns("evaluate"), layer, run.seed)
    return ArmStages(condition=Condition(given.title, adapter=adapter), missing={"neutral": NO_NEUTRAL_RANDOM})


def _outside_arm(given: ArmInputs, arm: Outside) -> ArmStages:
    """Lay out a third-party adapter or model, and its neutral fine-tune if one was given; the notes say what is not so here."""
    find = _outside_model if isinstance(arm, Checkpoint) else _outside_adapter
    reference, notes = None, list[str]()
    if arm.neutral is not None:
        scale = f" × {arm.scale:g}" if isinstance(arm, Adapter) and arm.scale != 1 else ""
        title = f"neutral {arm.arm} {labels([arm.neutral])[0]}{scale}"
        stage, _, found = find(given, arm, arm.neutral, title)
        reference = Condition(title, adapter=stage)
        notes = [f"of its neutral {arm.arm}: {each}" for each in found]
    name = given.run.adapter_name
    stage, held, found = find(given, arm, arm.path, f"{arm.arm} {name}")
    return ArmStages(
        condition=Condition(given.title, adapter=stage),
        adapter=f"{name}@{held[:12]}",
        reference=reference,
        missing={} if reference else {"neutral": NO_NEUTRAL_OUTSIDE},
        notes=[*found, *notes],
    )


def _outside_adapter(given: ArmInputs, arm: Outside, address: str, title: str) -> tuple[Stage, str, list[str]]:
    """Return the stage with an adapter or a sum of them, a digest of it, and what they say of their base that is not so here."""
    assert isinstance(arm, Adapter)
    study, ref = given.run.study, given.context.ref
    # Rank 0 decides what an address on the hub stands for.
    parts = given.context.ranks.from_main(lambda: [(arm.scale * weight, find_adapter(name)) for weight, name in terms(address)])
    notes = [each for _, folder in parts for each in unlike_base(ref, folder, study.chat.template, study.trust_remote_code)]
    [(weight, folder), *others] = parts
    if others or weight != 1:
        stage = sum_stage(given.context, parts, title)
        return stage, digest(stage.config["parts"]), list(dict.fromkeys(notes))
    stage = adapter_stage(given.context, folder, title)
    return stage, stage.config["files"][WEIGHTS], notes


def _outside_model(given: ArmInputs, _arm: Outside, name: str, title: str) -> tuple[Stage, str, list[str]]:
    """Return the stage with what a model changes of the base, a digest of it, and what is not so here."""
    study, tuned = given.run.study, given.context.ranks.from_main(lambda: resolve(name))
    notes = compare_models(given.context.ref, tuned, study.trust_remote_code, study.chat.template)
    return checkpoint_stage(given.context, tuned, title), digest(tuned.id), notes


def _training_turns(given: ArmInputs) -> list[Turn]:
    if not (turns := given.subject_of_seed(given.run.seed).training_turns()):
        raise InputError(f"{given.subject.name}: the arm {given.run.arm.arm} needs train rows, and this trait has none")
    return turns
