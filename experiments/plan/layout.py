"""One run laid out: the stages that make its model, and its readings. All that is measured of it starts here."""

from collections.abc import Sequence
from dataclasses import dataclass

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Example
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Condition, Stage
from wellworn.experiments.plan.arms import ArmInputs, ArmStages, arm_stages
from wellworn.experiments.plan.subjects import Subject
from wellworn.experiments.stages.grades import Judge
from wellworn.experiments.stages.instruction_null import Instructions
from wellworn.experiments.stages.persona_directions import RoleStages, extraction_examples
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.readings import read_stage
from wellworn.experiments.study import Run
from wellworn.probes.reading.layers import resolve_layer


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all runs of a study have in common.

    Attributes:
        context: the study's model.
        space_stages: the persona space.
        dictionary: roles that may explain the change outside it, if the study names some.
        instructions: instructions that replace it in the null N2, if the study names some.
        bank: the questions for controls and `neutral`.
        judge: the judge of answers, if there is one.
    """

    context: StudyContext
    space_stages: SpaceStages
    dictionary: RoleStages | None
    instructions: Instructions | None
    bank: Sequence[Example]
    judge: Judge | None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One run, with the stages that make its model.

    Attributes:
        run: the run.
        shared: the parts that all runs have in common.
        subject: its trait or control.
        space_stages: the persona space, with the run's own direction where there is one.
        own: the name of that direction, in the library or next to it, if there is one.
        no_own: why there is no such direction, if one was requested.
        arm: the stages of its arm.
        unchanged: why its causes are not measured, if its trait score was read and is not seen to change.
    """

    run: Run
    shared: Shared
    subject: Subject
    space_stages: SpaceStages
    own: str | None
    no_own: str | None
    arm: ArmStages
    unchanged: str | None = None

    @property
    def layer(self) -> int:
        """The layer where shares are read."""
        return resolve_layer(self.run.study.layer, self.shared.context.depth)

    @property
    def conditions(self) -> dict[str, Condition]:
        """The models that are compared: `run`, `neutral` where there is one, and `base`."""
        return {"run": self.arm.condition} | ({"neutral": self.arm.reference} if self.arm.reference else {}) | {"base": Condition()}

    @property
    def contexts(self) -> dict[str, dict[str, Condition]]:
        """The same models in each context of the study."""
        scores = self.run.study.scores
        return {
            name: {who: by.within(name, prompt) for who, by in self.conditions.items()}
            for name, prompt in (scores.contexts if scores else {}).items()
        }

    @property
    def references(self) -> dict[str, Condition]:
        """The models that the run is compared with, the headline's first."""
        return {name: condition for name, condition in self.conditions.items() if name != "run"}

    @property
    def headline(self) -> str:
        """The reference that the verdict uses."""
        return next(iter(self.references))

    def read(self, condition: Condition, texts: Sequence[Turn] | Stage, title: str) -> Stage:
        """Return the stage in which a model reads texts to the evaluate questions."""
        return read_stage(self.shared.context, condition, texts, self.subject.evaluate, title)

    def read_plain(self, who: str) -> Stage:
        """Return the stage in which one of the models that are compared reads plain answers."""
        return self.read(self.conditions[who], self.subject.plain_turns("evaluate"), "plain answers")

    def plain_readings(self) -> tuple[Stage, Stage]:
        """Return the stages in which the reference and the run read plain answers."""
        return self.read_plain(self.headline), self.read_plain("run")


def lay_out(shared: Shared, run: Run) -> Layout:
    """Lay out one run.

    Raises:
        InputError: an unknown trait, or one that lacks what the run needs.
    """
    subject, space_stages, no_own = Subject.load(run.arm.trait, shared.bank, run.study.evaluate_questions), shared.space_stages, None
    if subject.of is not None:
        try:
            space_stages = space_stages.with_own(shared.context, subject.of, extraction_examples(subject.of, shared.bank))
        except InputError as lacking:
            no_own = str(lacking)
    # A trait without a direction may still have a namesake among the roles.
    namesakes = {who for pair in space_stages.roles.namesakes for who in pair} if space_stages.roles else set()
    own = subject.name if subject.name in space_stages.names or subject.name in namesakes else None
    arm = arm_stages(ArmInputs(context=shared.context, run=run, subject=subject, space_stages=space_stages, own=own, no_own=no_own))
    return Layout(run=run, shared=shared, subject=subject, space_stages=space_stages, own=own, no_own=no_own, arm=arm)
