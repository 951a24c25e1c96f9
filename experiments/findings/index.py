"""The type of `study.json`: the finished stages of a study."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from wellworn.experiments.engine.record import Record, Settings

INDEX = "study.json"


class RunEntry(Record):
    """A run, with the ids of its stages; null where the study does not ask for one, or the run has none.

    Attributes:
        arm: what was done to the model.
        trait: the trait's own name.
        adapter: name and digest of a third-party adapter.
        seed: of the run.
        origin: what was known of the change beforehand: `existing`, `new`, or null.
        settings: the keys that the grid and the arm set.
        own: the name of the run's own direction, if there is one.
        measure: the measurement.
        instructions: the null N2.
        averaged: the states that chance is drawn from among fine-tunes.
        dictionary: directions that may explain the change outside the space.
        said: answers of the patched models.
        answers: sample answers.
        training: the training curve.
        weights: the layers and directions that the adapter writes to.
        capability: capabilities of the adapter.
        scores: trait scores.
        pathways: reference → where its change goes.
        stand_ins: other directions in place of its own one.
        wording: whether its own direction is more than its words.
        written: reference → what it writes along persona directions.
        own_answers: what models say with the state along its own direction set.
        own_grades: a judge's grades of that.
        questions: the questions of the sample answers.
        missing: field → why it was not measured.
        adapted: its adapter.
        notes: what a third-party adapter says of its base that is not so here.
    """

    arm: str
    trait: str | None
    adapter: str | None
    seed: int
    origin: Literal["existing", "new"] | None = None
    settings: Settings
    own: str | None
    measure: str | None
    instructions: str | None = None
    averaged: str | None = None
    dictionary: str | None = None
    said: str | None = None
    answers: str
    training: str | None
    weights: str | None
    capability: str | None = None
    scores: str | None = None
    pathways: Mapping[str, str] = {}
    stand_ins: str | None = None
    wording: str | None = None
    written: Mapping[str, str] = {}
    own_answers: str | None = None
    own_grades: str | None = None
    questions: Sequence[str]
    missing: Mapping[str, str]
    adapted: str | None = None
    notes: Sequence[str] = ()

    @property
    def stages(self) -> Iterator[str | None]:
        """The ids of all its stages."""
        yield from (self.measure, self.instructions, self.averaged, self.dictionary, self.said, self.answers)
        yield from (self.training, self.adapted, self.weights, self.capability, self.scores)
        yield from self.pathways.values()
        yield from (self.stand_ins, self.wording)
        yield from self.written.values()
        yield from (self.own_answers, self.own_grades)

    @property
    def group(self) -> tuple[Any, ...]:
        """The key that runs have in common if they differ only in seed."""
        return self.arm, self.trait, self.adapter, dict(self.settings)


class CalibrationEntry(Record):
    """The stages of planted changes.

    Attributes:
        run: title of the run that they are modelled on.
        planted: their share at the layer of planting.
        later: their share at a later layer, if the study asks for it.
    """

    run: str
    planted: str
    later: str | None


class GeneratedEntry(Record):
    """The stages of directions from the base's own answers.

    Attributes:
        space: the directions.
        agreement: their agreement with the directions of fixed text.
        kept: for each trait, the pairs of answers that make its direction; empty where they are not filtered.
    """

    space: str
    agreement: str
    kept: Sequence[str] = ()


class KnockInEntry(Record):
    """The stages that taught the study's model a persona.

    Attributes:
        trait: the persona.
        taught: the adapter that is merged into the model.
        check: what the taught model shows, and what it has kept.
    """

    trait: str
    taught: str
    check: str


class Index(Record):
    """A study's finished stages.

    Attributes:
        study: the study file, with names and digests in place of paths.
        model: the model's id.
        dtype: its number format.
        layer: the layer where shares are read.
        depth: the number of the model's layers.
        library: the traits whose directions span the persona space.
        questions: the questions of the base's sample answers.
        chat: how the model takes a system prompt.
        space: the directions of the library.
        dimension: the dimension of their space.
        base_answers: sample answers of the base.
        base_capability: capabilities of the base.
        runs: in the study's order.
        calibration: planted changes.
        generated: directions of the base's own answers.
        knock_in: the persona that its model was taught first.
    """

    study: Mapping[str, Any]
    model: str
    dtype: str
    layer: int
    depth: int
    library: Sequence[str]
    questions: Sequence[str]
    chat: str
    space: str
    dimension: str
    base_answers: str
    base_capability: str | None = None
    runs: Sequence[RunEntry]
    calibration: CalibrationEntry | None = None
    generated: GeneratedEntry | None = None
    knock_in: KnockInEntry | None = None

    @property
    def stages(self) -> set[str]:
        """The ids of all stages."""
        used = {self.chat, self.space, self.dimension, self.base_answers, self.base_capability}
        used |= {stage for run in self.runs for stage in run.stages}
        used |= {self.calibration.planted, self.calibration.later} if self.calibration else set()
        used |= {self.generated.space, self.generated.agreement, *self.generated.kept} if self.generated else set()
        used |= {self.knock_in.taught, self.knock_in.check} if self.knock_in else set()
        return {stage for stage in used if stage}
