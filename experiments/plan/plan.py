"""Expand a study into stages: what every run needs, each thing once."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from wellworn.data.catalog import (
    NEUTRAL,
    control_names,
    instruction_names,
    load_bank,
    load_control,
    load_instruction,
    load_roles,
    load_trait,
    role_names,
)
from wellworn.data.errors import InputError
from wellworn.data.files import sha256
from wellworn.data.mixtures import Turn, changed_turns, plain_turns
from wellworn.data.schema import ContrastPair, Control, Example, Role, Split, Trait
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Output, Stage, TickFn
from wellworn.experiments.plan.mediations import Analyses, Key
from wellworn.experiments.plan.planned import Plan, PlannedCalibration, PlannedRun
from wellworn.experiments.stages.answers import answer_stage
from wellworn.experiments.stages.calibration import Real, calibrate_stage, later_stage
from wellworn.experiments.stages.capability import capability_stage
from wellworn.experiments.stages.generated_directions import generated_of
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.instruction_null import Instructions, instructions_of, instructions_stage
from wellworn.experiments.stages.measure import BASE_ANSWERS, VERSION, measure
from wellworn.experiments.stages.mediation import load_mediated
from wellworn.experiments.stages.persona_space import (
    Library,
    RoleStages,
    dictionary_stage,
    dimension_stage,
    extraction,
    library_of,
    roles_of,
)
from wellworn.experiments.stages.readings import read_stage
from wellworn.experiments.stages.scores import Scored, scores_stage, scoring_pairs
from wellworn.experiments.stages.steered_teacher import teacher_stage
from wellworn.experiments.stages.training import adapter_stage, chat_stage, random_stage, train_stage
from wellworn.experiments.stages.weights import weights_stage
from wellworn.experiments.study import CalibrateConfig, Run, Study, runs_of
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.reading.layers import resolve_layer

REFERENCE_OF_REFERENCE = "a neutral run is read against a neutral run of another seed, and this study has one seed"
NO_PLAIN = "the trait has no plain answers to its questions, so nothing is trained on them, and no answer is held against one"
NO_NEUTRAL = {
    "prompted": "a prompt has no neutral fine-tune",
    "random": "random weights were not trained, and have no neutral fine-tune",
    "adapter": "how the adapter was trained is not known",
}


@cache
def subject_of(name: str) -> Trait | Control | None:
    """Return what a run is about: a trait, a control, or None for `neutral`."""
    if name == NEUTRAL:
        return None
    return load_control(name) if name in control_names() else load_trait(name)


def plan(study: Study, context: StudyContext) -> Plan:
    """Expand a study; every error that can be found without computing is raised here.

    Raises:
        InputError: an unknown trait or instruction, a layer out of range, an adapter that is none, no run that planted changes can take
            after.
    """
    traits = [load_trait(name) for name in study.library]
    names = [trait.name for trait in traits]
    _check_names(study, traits)
    bank = load_bank(study.questions)
    layer = resolve_layer(study.layer, context.depth)
    library = library_of(context, traits, _roles(study.roles), bank, layer)
    wider = library.roles or (roles_of(context, named, bank) if (named := _roles(study.dictionary)) else None)
    shared = [example for example in bank if example.split == "evaluate"]
    asked = instruction_names() if study.instructions == "all" else study.instructions
    instructions = instructions_of(context, [load_instruction(name) for name in asked], bank) if asked else None
    judge = Judge.of(context, study.judge) if study.judge else None
    runs = [_PlanRun(context, run, library, wider, instructions, bank, judge) for run in runs_of(study)]
    calibration = _taken_after(runs, study.calibrate).calibration(study.calibrate) if study.calibrate else None
    planned = [run.planned() for run in runs]
    answers = answer_stage(context, Condition(), shared)
    (space,) = library.spaces
    size = (library.roles.dimension if library.roles else None) or dimension_stage(library, layer)
    generated = generated_of(context, traits, bank, library, layer, judge) if study.generated_directions else None
    can = capability_stage(context, Condition()) if study.capability and any(run.capability for run in planned) else None
    return Plan(
        study, context, layer, names, shared, chat_stage(context), space, size, answers, can, planned, calibration, generated, judge
    )


def _check_names(study: Study, traits: Sequence[Trait]) -> None:
    """Refuse two things of one name, which results could not tell apart."""
    for name in (trait.name for trait in traits):
        if sum(trait.name == name for trait in traits) > 1:
            raise InputError(f"library: two traits are named {name!r}")
    named: dict[str, Trait | Control] = {trait.name: trait for trait in traits}
    for arm in study.runs:
        subject = subject_of(arm.trait) if arm.trait else None
        if subject and (subject.name == NEUTRAL or named.setdefault(subject.name, subject) != subject):
            raise InputError(f"{arm.trait}: the study has another {subject.name!r}; give this one a name of its own")


def _roles(asked: Sequence[str]) -> list[Role]:
    """Return the roles that a study names."""
    return load_roles(role_names() if asked == "all" else asked)


class _PlanRun:
    """Lay out the stages of one run."""

    def __init__(
        self,
        context: StudyContext,
        run: Run,
        library: Library,
        wider: RoleStages | None,
        instructions: Instructions | None,
        bank: Sequence[Example],
        judge: Judge | None,
    ) -> None:
        self.judge = judge
        self.context, self.run, self.shared, self.library, self.instructions = context, run, library, library, instructions
        layer = resolve_layer(run.study.layer, context.depth)
        self.dictionary = dictionary_stage(library, wider, layer) if wider else None
        self.subject = subject_of(run.arm.trait) if run.arm.trait else None
        # A control and `neutral` have no questions of their own, nor has a trait without plain answers; they borrow the bank's.
        self.paired = not isinstance(self.subject, Trait) or bool(plain_turns(self.subject.examples, "evaluate"))
        self.examples = self.subject.examples if isinstance(self.subject, Trait) and self.paired else bank
        self.evaluate = self._asked("evaluate")
        if len(self.evaluate) < FEWEST_PROMPTS:
            raise InputError(
                f"{run.arm.trait}: an interval needs at least {FEWEST_PROMPTS} evaluate rows, this trait has {len(self.evaluate)}"
            )
        self.base = Condition()
        self.trait = self.subject.name if self.subject else run.arm.trait
        self.missing: dict[str, str] = {}
        if self.subject is not None:
            try:
                self.library = library.with_own(context, self.subject, extraction(self.subject, bank))
            except InputError as lacking:
                self.missing["own_direction"] = str(lacking)
        # A trait without a direction may still have a namesake among the roles.
        namesakes = {who for pair in library.roles.namesakes for who in pair} if library.roles else set()
        self.own = self.trait if self.trait in self.library.names or self.trait in namesakes else None
        self.title = run.title(self.trait, run.seed)

    def planned(self) -> PlannedRun:
        condition = self._condition()
        answers = answer_stage(self.context, condition, self.evaluate)
        if self.run.arm.arm == "base":
            reason = "base is the reference that other runs are read against"
            self.missing |= dict.fromkeys(("effect", "share", "coordinates", "verdict"), reason)
            return PlannedRun(run=self.run, questions=self.evaluate, answers=answers, missing=self.missing)
        if self.subject is None:
            self.missing["effect"] = "the run has no trait of its own to score"
        elif not self.paired:
            self.missing["effect"] = NO_PLAIN
        reference = self._reference()
        if reference is None and self.run.arm.arm == "sft" and self.subject is None:
            self.missing |= dict.fromkeys(("share", "verdict"), REFERENCE_OF_REFERENCE)
        mediations, said = self._mediations(condition, reference)
        stage = self._measure(condition, reference, answers, mediations)
        training = condition.adapter if self.run.arm.arm in ("sft", "distilled") else None
        weights = None
        if condition.adapter:
            weights = weights_stage(self.context, condition, plain_turns(self.examples, "evaluate"), self.own, self.library)
        return PlannedRun(
            run=self.run,
            questions=self.evaluate,
            answers=answers,
            missing=self.missing,
            measure=stage,
            instructions=self._among_instructions(condition, reference),
            dictionary=self.dictionary,
            said=said,
            training=training,
            weights=weights,
            capability=capability_stage(self.context, condition) if condition.adapter and self.run.study.capability else None,
            scores=self._scores(condition, reference, answers),
            trait=self.trait,
            adapter=self._adapter(),
            own=self.own,
        )

    def _condition(self) -> Condition:
        arm, title = self.run.arm, self.title
        if arm.arm == "base":
            return self.base
        if arm.arm == "adapter":
            return Condition(title, adapter=adapter_stage(self.context, Path(arm.path), f"adapter {Path(arm.path).name}"))
        if arm.arm == "prompted":
            assert isinstance(self.subject, Trait)  # held when the study was loaded
            if self.subject.system_prompt is None:
                raise InputError(f"{self.trait}: the arm prompted needs a trait's system_prompt, and this trait has none")
            return Condition(title, system=self.subject.system_prompt)
        if arm.arm == "distilled":
            assert self.subject is not None  # held when the study was loaded
            if self.own is None:
                raise InputError(f"{self.title}: {self.missing['own_direction']}")
            taught = teacher_stage(self.context, self.library, arm, self.own, self._asked("train"), self.run.seed)
            return Condition(title, adapter=self._train(plain_turns(self.examples, "train"), self.run.seed, title, taught))
        turns = plain_turns(self.examples, "train") if self.subject is None else self._trait_turns("train")
        if not turns:
            raise InputError(f"{self.trait}: the arm {arm.arm} needs train rows, and this trait has none")
        if arm.arm == "random":
            real = self._train(turns, self.run.seed, f"sft {self.trait} (seed {self.run.seed})")
            layer = resolve_layer(self.run.study.layer, self.context.depth)
            return Condition(title, adapter=random_stage(self.context, real, plain_turns(self.examples, "evaluate"), layer, self.run.seed))
        return Condition(title, adapter=self._train(turns, self.run.seed, title))

    def _adapter(self) -> str | None:
        if self.run.arm.arm != "adapter":
            return None
        folder = Path(self.run.arm.path)
        return f"{folder.resolve().name}@{sha256(folder / 'adapter_model.safetensors')[:12]}"

    def _trait_turns(self, split: Split) -> list[Turn]:
        if self.subject is None or (split == "evaluate" and not self.paired):
            return []
        return changed_turns(self.subject, self.subject.examples if isinstance(self.subject, Trait) else self.examples, split)

    def _asked(self, split: Split) -> list[Example]:
        return [example for example in self.examples if example.split == split]

    def _train(self, turns: Sequence[Turn], seed: int, title: str, answers_of: Stage | None = None) -> Stage:
        return train_stage(self.context, turns, self.run.study.train, seed, f"train {title}", answers_of)

    def _reads_plain(self, condition: Condition) -> Stage:
        return read_stage(self.context, condition, plain_turns(self.examples, "evaluate"), self.evaluate, "plain answers")

    def _reference(self) -> Condition | None:
        """Return the neutral fine-tune of the same size, steps and seed; for a neutral run, one of another seed."""
        arm, seeds = self.run.arm, self.run.study.seeds
        if arm.arm == "distilled":
            # A student too, of the base as it is.
            taught = answer_stage(self.context, self.base, self._asked("train"))
            title = f"student of the base (seed {self.run.seed})"
            return Condition(title, adapter=self._train(plain_turns(self.examples, "train"), self.run.seed, title, taught))
        if arm.arm != "sft":
            self.missing["neutral"] = NO_NEUTRAL[arm.arm]
            return None
        if not self.paired:
            self.missing["neutral"] = NO_PLAIN
            return None
        seed = self.run.seed
        if self.subject is None:
            if len(seeds) < 2:
                return None
            seed = seeds[(seeds.index(seed) + 1) % len(seeds)]
        title = self.run.title(NEUTRAL, seed)
        return Condition(title, adapter=self._train(plain_turns(self.examples, "train"), seed, title))

    def _mediations(self, condition: Condition, reference: Condition | None) -> tuple[dict[Key, Stage], Stage | None]:
        """Lay out the mediation analyses, and what their arms say, if that is asked for."""
        if self.run.study.mediate is None:
            self.missing["mediation"] = "the study leaves mediation out"
            return {}, None
        if self.subject is None:
            self.missing["mediation"] = "the run has no trait of its own whose change could be mediated"
            return {}, None
        if not self.paired:
            self.missing["mediation"] = NO_PLAIN
            return {}, None
        asked = Analyses(
            self.context,
            self.run,
            self.run.study.mediate,
            self.subject,
            self.examples,
            self.library,
            self.own,
            self.base,
            condition,
            reference,
            self.judge,
        )
        self.missing |= asked.missing
        stages = asked.stages(tuple(self._reads_plain(by) for by in (reference or self.base, condition)))
        if asked.generated is None:
            return stages, None
        key, said, scored = asked.generated
        return stages | {key: scored}, said

    def _measure(self, condition: Condition, reference: Condition | None, answers: Stage, mediations: Mapping[Key, Stage]) -> Stage:
        texts: dict[str, tuple[str, Sequence[Turn] | Stage]] = {"neutral": ("plain answers", plain_turns(self.examples, "evaluate"))}
        if trait := self._trait_turns("evaluate"):
            texts["trait"] = (f"{self.trait} answers", trait)
        if self.subject is not None or self.run.arm.arm == "adapter":
            texts["own"] = (f"answers of {condition.title}", answers)
        conditions = {"run": condition, "base": self.base} | ({"neutral": reference} if reference else {})
        readings = {
            (who, text): read_stage(self.context, by, source, self.evaluate, title)
            for who, by in conditions.items()
            for text, (title, source) in texts.items()
        }
        if "own" in texts:
            unchanged = answer_stage(self.context, self.base, self.evaluate)
            readings["base", BASE_ANSWERS] = read_stage(self.context, self.base, unchanged, self.evaluate, "answers of base")
        layer = resolve_layer(self.run.study.layer, self.context.depth)
        own = self.own
        headline = "neutral" if reference else "base"
        library, pairs, asked = self.library, list(readings), list(mediations)

        def compute(_bench: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
            space, folders = library.load(inputs)
            loaded: dict[str, dict[str, dict[str, np.ndarray]]] = {}
            for (who, text), folder in zip(pairs, folders, strict=False):
                loaded.setdefault(who, {})[text] = load_file(folder / "reading.safetensors")
            mediated = [load_mediated(folder, *key) for key, folder in zip(asked, folders[len(pairs) :], strict=True)]
            facts, arrays = measure(space, layer, own, loaded, headline, mediated)
            return {"measurement.json": facts, "arrays.safetensors": arrays}

        config = {"layer": layer, "own": own, "headline": headline, "readings": pairs, "mediations": asked}
        inputs = (*library.inputs, *readings.values(), *mediations.values())
        return Stage("measure", VERSION, config, inputs, f"measure {condition.title}", compute, everywhere=False)

    def _scores(self, condition: Condition, reference: Condition | None, answers: Stage) -> Stage | None:
        """Lay out the scores of the run beside its reference's and the base's, if the study asks for them."""
        if (asked := self.run.study.scores) is None:
            return None
        if self.subject is None:
            self.missing["scores"] = "the run has no trait of its own to score"
            return None
        if not self.paired:
            self.missing["scores"] = NO_PLAIN
            return None
        changed, plain = self._trait_turns("evaluate"), plain_turns(self.examples, "evaluate")
        pairs: Sequence[ContrastPair] = ()
        if self.subject.contrast_pairs:
            pairs = scoring_pairs(self.subject, asked.pairs, self.run.study.contrast_pairs, "scores.pairs")
        conditions = {"run": condition} | ({"neutral": reference} if reference else {}) | {"base": self.base}
        texts = {"trait": (f"{self.trait} answers", changed), "neutral": ("plain answers", plain)}
        readings = {
            (who, text): read_stage(self.context, by, turns, self.evaluate, title)
            for who, by in conditions.items()
            for text, (title, turns) in texts.items()
        }
        said = {who: answers if by is condition else answer_stage(self.context, by, self.evaluate) for who, by in conditions.items()}
        trained = self._trait_turns("train"), plain_turns(self.examples, "train")
        what = Scored(self.subject, self.evaluate, changed, plain, pairs, trained)
        return scores_stage(self.context, what, self.judge, conditions, readings, said)

    def _among_instructions(self, condition: Condition, reference: Condition | None) -> Stage | None:
        if self.instructions is None or "share" in self.missing:
            return None
        layer = resolve_layer(self.run.study.layer, self.context.depth)
        before, after = (self._reads_plain(by) for by in (reference or self.base, condition))
        return instructions_stage(condition.title, layer, self.trait, self.library, self.instructions, before, after)

    def calibration(self, config: CalibrateConfig) -> PlannedCalibration:
        """Lay out a calibration whose planted changes take after this run."""
        layer, depth = resolve_layer(self.run.study.layer, self.context.depth), self.context.depth
        if layer + config.later >= depth:
            raise InputError(f"calibrate.later: may be 0 to {depth - 1 - layer} above layer {layer} of {depth}, got {config.later}")
        plain = plain_turns(self.examples, "evaluate")
        neutral = self._reference()
        assert neutral is not None  # a fine-tune of something else than `neutral` has one
        run, before, base = (self._reads_plain(by) for by in (self._condition(), neutral, self.base))
        real = Real(self.title, layer, (run, before, base), plain)
        later = later_stage(real, config, self.shared) if config.later else None
        return PlannedCalibration(self.title, calibrate_stage(real, config, self.shared), later)


def _taken_after(runs: Sequence[_PlanRun], config: CalibrateConfig) -> _PlanRun:
    """Return the run that planted changes take after."""
    tuned = [run for run in runs if run.run.arm.arm == "sft" and run.subject is not None and run.paired]
    wanted = [run for run in tuned if (isinstance(run.subject, Trait) if config.trait is None else run.trait == config.trait)]
    if not wanted:
        names = ", ".join(dict.fromkeys(str(run.trait) for run in tuned)) or "none"
        asked = "a trait" if config.trait is None else repr(config.trait)
        raise InputError(f"calibrate.trait: planted changes take after an sft run of {asked}, and this study fine-tunes: {names}")
    return wanted[0]
