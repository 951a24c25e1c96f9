"""The plan of a study: its stages, and the stages of each run that a report shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wellworn.data.schema import Example
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.layout import Layout
from wellworn.experiments.stages.generated_directions import Generated
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.study import Run, Study


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run with the stages that a report shows.

    Attributes:
        run: the run.
        questions: the questions of the sample answers.
        answers: its sample answers.
        missing: field → why it is not measured.
        measure: the measurement; None for `base`, which is the reference itself.
        instructions: the null N2 of its headline share, if the study asks for it.
        averaged: the states that chance is drawn from among fine-tunes; None in a study with few kinds of control.
        dictionary: directions that may explain the change outside its space, if the study names roles.
        said: answers of its patched models, if the study asks for them.
        training: the stage with its training curve, if it was trained.
        weights: where its adapter writes, if it has one.
        capability: capabilities of its adapter, if it has one and the study asks.
        scores: its trait scores, if the study asks for them.
        pathways: reference → where its change goes.
        stand_ins: other directions in place of its own one, if the study asks for them.
        wording: whether its own direction is more than its words, if the study asks for it.
        written: reference → what it writes along persona directions.
        own_answers: what models say with the state along its own direction set, if the study asks for it.
        own_grades: a judge's grades of that, if the study has a judge.
        trait: the trait's own name, also where the study gave a path.
        adapter: name and digest of a third-party adapter.
        own: the name of the run's own direction, in the library or next to it, if there is one.
        adapted: the stage with its adapter, if it has one.
        notes: what a third-party adapter says of its base that is not so here.
        screen: its trait score alone, by which a study with `only_changed` decides what else is measured; None in other studies.
    """

    run: Run
    questions: Sequence[Example]
    answers: Stage
    missing: Mapping[str, str]
    measure: Stage | None = None
    instructions: Stage | None = None
    averaged: Stage | None = None
    dictionary: Stage | None = None
    said: Stage | None = None
    training: Stage | None = None
    weights: Stage | None = None
    capability: Stage | None = None
    scores: Stage | None = None
    pathways: Mapping[str, Stage] = field(default_factory=dict)
    stand_ins: Stage | None = None
    wording: Stage | None = None
    written: Mapping[str, Stage] = field(default_factory=dict)
    own_answers: Stage | None = None
    own_grades: Stage | None = None
    trait: str | None = None
    adapter: str | None = None
    own: str | None = None
    adapted: Stage | None = None
    notes: Sequence[str] = ()
    screen: Stage | None = None

    @property
    def targets(self) -> list[Stage]:
        """The stages to finish; patched answers and the training curve are inputs of these."""
        stages = (self.measure, self.instructions, self.averaged, self.dictionary, self.answers, self.weights, self.capability, self.scores)
        ways = (*self.pathways.values(), self.stand_ins, self.wording, *self.written.values(), self.own_answers, self.own_grades)
        return [stage for stage in (*stages, *ways) if stage is not None]


@dataclass(frozen=True, kw_only=True)
class PlannedKnockIn:
    """The stages that teach the study's model a persona; all others are of the taught model, and come after these.

    Attributes:
        trait: the persona.
        context: the untaught model.
        taught: the adapter that is merged into it.
        check: what the taught model shows, and what it has kept.
    """

    trait: str
    context: StudyContext
    taught: Stage
    check: Stage


@dataclass(frozen=True)
class PlannedCalibration:
    """The stages that test the share on planted changes.

    Attributes:
        run: title of the run that planted changes are modelled on.
        planted: their share at the layer of planting.
        later: their share at a later layer, if the study asks for it.
    """

    run: str
    planted: Stage
    later: Stage | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of a study.

    Attributes:
        study: the study.
        context: its model.
        layer: the layer where shares are read.
        library: the names of its traits.
        questions: the questions of the base's sample answers.
        chat: how the model takes a system prompt.
        space: the directions of the library.
        dimension: the dimension of their space.
        base_answers: sample answers of the base.
        base_capability: capabilities of the base, if the study asks.
        runs: in the study's order.
        calibration: planted changes, if any.
        generated: directions of the base's own answers, if the study asks for them.
        judge: the judge of answers, if there is one.
        layouts: of each run, what it was planned from.
        knock_in: the persona that its model is taught first, if there is one.
    """

    study: Study
    context: StudyContext
    layer: int
    library: Sequence[str]
    questions: Sequence[Example]
    chat: Stage
    space: Stage
    dimension: Stage
    base_answers: Stage
    base_capability: Stage | None
    runs: Sequence[PlannedRun]
    calibration: PlannedCalibration | None
    generated: Generated | None
    judge: Judge | None
    layouts: Sequence[Layout]
    knock_in: PlannedKnockIn | None = None

    @property
    def first(self) -> list[Stage]:
        """The stages of the untaught model, to finish before all others."""
        return [self.knock_in.taught, self.knock_in.check] if self.knock_in else []

    @property
    def screens(self) -> list[Stage]:
        """The stages by which it is decided what else is measured, to finish before all others; none in most studies."""
        return [run.screen for run in self.runs if run.screen]

    @property
    def targets(self) -> list[Stage]:
        """The stages to finish; everything else is an input of one of them."""
        planned = [stage for run in self.runs for stage in run.targets]
        planned += [stage for stage in (self.calibration.planted, self.calibration.later) if stage] if self.calibration else []
        planned += [self.base_capability] if self.base_capability else []
        planned += [self.generated.space, self.generated.agreement] if self.generated else []
        return [self.chat, self.space, self.dimension, self.base_answers, *planned]
