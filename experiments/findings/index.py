"""The type of `study.json`: which finished stages answer a study."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wellworn.experiments.engine.record import Record, Settings

INDEX = "study.json"


class RunEntry(Record):
    """A run, with the ids of its stages; null where the study does not ask for one, or the run has none.

    Attributes:
        arm: what was done to the model.
        trait: the trait's own name.
        adapter: name and digest of a third-party adapter.
        seed: of the run.
        settings: what the grid and the arm set.
        own: the name of the run's own direction, if there is one.
        measure: the measurement.
        instructions: the null N2.
        dictionary: directions that may explain what lies outside the space.
        said: what patched arms say.
        answers: sample answers.
        training: the training curve.
        weights: where the adapter writes.
        capability: what it cost.
        scores: how much of the trait it shows.
        questions: what the sample answers answer.
        missing: field → why it was not measured.
    """

    arm: str
    trait: str | None
    adapter: str | None
    seed: int
    settings: Settings
    own: str | None
    measure: str | None
    instructions: str | None = None
    dictionary: str | None = None
    said: str | None = None
    answers: str
    training: str | None
    weights: str | None
    capability: str | None = None
    scores: str | None = None
    questions: Sequence[str]
    missing: Mapping[str, str]

    @property
    def stages(self) -> Iterator[str | None]:
        """The ids of all its stages."""
        yield from (self.measure, self.instructions, self.dictionary, self.said, self.answers)
        yield from (self.training, self.weights, self.capability, self.scores)

    @property
    def group(self) -> tuple[Any, ...]:
        """What runs that differ in their seed alone have in common."""
        return self.arm, self.trait, self.adapter, dict(self.settings)


class CalibrationEntry(Record):
    """The stages of planted changes.

    Attributes:
        run: title of the run that they are modelled on.
        planted: their share where they are planted.
        later: the same some layers on, if that was asked for.
    """

    run: str
    planted: str
    later: str | None


class GeneratedEntry(Record):
    """The stages of directions from the base's own answers.

    Attributes:
        space: the directions.
        agreement: how they agree with those of fixed text.
        kept: of each trait, which pairs of answers make its direction; none where they are not filtered.
    """

    space: str
    agreement: str
    kept: Sequence[str] = ()


class Index(Record):
    """A study's finished stages.

    Attributes:
        study: the study file, with names and digests in place of paths.
        model: the model's id.
        dtype: what it was loaded in.
        layer: where shares are read.
        depth: how many layers the model has.
        library: the traits whose directions span the persona space.
        questions: what the base's sample answers answer.
        chat: how the model takes a system prompt.
        space: the directions of the library.
        dimension: of their space.
        base_answers: sample answers of the base.
        base_capability: what the base can do.
        runs: in the study's order.
        calibration: planted changes.
        generated: directions of the base's own answers.
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

    @property
    def stages(self) -> set[str]:
        """The ids of all stages."""
        used = {self.chat, self.space, self.dimension, self.base_answers, self.base_capability}
        used |= {stage for run in self.runs for stage in run.stages}
        used |= {self.calibration.planted, self.calibration.later} if self.calibration else set()
        used |= {self.generated.space, self.generated.agreement, *self.generated.kept} if self.generated else set()
        return {stage for stage in used if stage}
