"""What a study found: the directions, the numbers and verdicts of every run, and what runs say together; `summary.json`.

What was not measured is null, and `missing` says why.
"""

from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.false_verdicts import FalseVerdicts, false_verdicts
from wellworn.experiments.findings.group_rows import GroupRow, group_rows
from wellworn.experiments.findings.nearest_personas import SpecificityRow, study_specificity
from wellworn.experiments.findings.null_ranks import own_removed
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.findings.run_rows import RunRow, run_row
from wellworn.experiments.findings.score_agreement import StudyAgreement, agree_over_study
from wellworn.experiments.stages.calibration import LaterShares, PlantedPoint, missed_targets
from wellworn.experiments.stages.capability import Capability, capability
from wellworn.experiments.stages.generated_directions import KeptAnswers
from wellworn.experiments.stages.persona_space import SpaceDimension
from wellworn.probes.statistics.corrections import benjamini_hochberg
from wellworn.probes.statistics.intervals import FloatArray, finite


class GeneratedDirection(Record):
    """A trait's direction from what the base itself says under its contrast prompts.

    Attributes:
        reliability: mean cosine of halves, from −1 to 1.
        null_reliability: its 95 % quantile by chance.
        found: whether both tests are passed.
        agreement: the cosine with the direction of fixed text.
        agreement_high: the 95 % quantile of that cosine by chance.
        kept: which pairs of answers make it, where a judge filters them.
    """

    reliability: float | None
    null_reliability: float | None
    found: bool
    agreement: float | None
    agreement_high: float | None
    kept: KeptAnswers | None


class Direction(Record):
    """A trait of the library at the study's layer.

    Attributes:
        trait: its name.
        reliability: mean cosine of halves of contrast pairs, or of questions, whichever is smaller; from −1 to 1.
        null_reliability: its 95 % quantile by chance.
        found: whether it is .5 or more and above chance; otherwise the direction is left out of the space.
        generated: the direction of the base's own answers; null where the study does not ask.
    """

    trait: str
    reliability: float | None
    null_reliability: float | None
    found: bool
    generated: GeneratedDirection | None


class AccuracyRow(Record):
    """How well planted shares were found; null where no draw counts.

    Attributes:
        alpha: the planted share, from 0 to 1.
        gated: whether only plants that passed the gate count.
        draws: how many count.
        error: mean |F − target|, the target being the share in the other half's space.
        error_held: mean |F − what the measured space holds|.
        bias: mean of F − target.
        bias_of_space: the part of it that is the difference of the two spaces.
        coverage: how many intervals hold the target.
        coverage_held: how many hold what the measured space holds.
        missed: the targets that the row misses, in words.
    """

    alpha: float
    gated: bool
    draws: int
    error: float | None
    error_held: float | None
    bias: float | None
    bias_of_space: float | None
    coverage: float | None
    coverage_held: float | None
    missed: Sequence[str]


class CalibrationRow(Record):
    """What was found of planted changes.

    Attributes:
        run: the run that they are modelled on.
        layer: where they were planted.
        directions: how many were found there.
        size: the norm of a planted change.
        why: why none was planted, in words.
        points: what was measured of each planted share.
        accuracy: with the gate and without.
        later: the same some layers on; null where that was not asked.
    """

    run: str
    layer: int
    directions: int
    size: float
    why: str | None
    points: Sequence[PlantedPoint]
    accuracy: Sequence[AccuracyRow]
    later: LaterShares | None


class Summary(Record):
    """What a study found.

    Attributes:
        study: its name.
        question: what it asks.
        expects: what was expected.
        refuted_by: what would refute it.
        model: the model's id.
        dtype: what it was loaded in.
        layer: where shares are read, from 0.
        depth: how many layers the model has.
        system_prompt: how the model's template takes a system prompt.
        directions: the traits of the library.
        dimension: of the persona space.
        runs: in the study's order.
        groups: runs that differ in their seed alone.
        false_verdicts: what is said of non-persona runs; null without any.
        specificity: null with fewer than four traits trained.
        agreement: of scores over fine-tunes; null where none were taken.
        capability: the base's own.
        calibration: null where no change was planted.
    """

    study: str
    question: str
    expects: str
    refuted_by: str
    model: str
    dtype: str
    layer: int
    depth: int
    system_prompt: str
    directions: Sequence[Direction]
    dimension: SpaceDimension
    runs: Sequence[RunRow]
    groups: Sequence[GroupRow]
    false_verdicts: FalseVerdicts | None
    specificity: SpecificityRow | None
    agreement: StudyAgreement | None
    capability: Capability | None
    calibration: CalibrationRow | None

    @property
    def alone(self) -> list[RunRow]:
        """The runs that no group speaks for."""
        together = [(group.arm, group.trait, group.settings) for group in self.groups]
        return [row for row in self.runs if (row.arm, row.trait, row.settings) not in together]


def summarise(results: Results) -> Summary:
    """Return a study's answer for machines."""
    index, study = results.index, results.index.study
    adjusted = _adjust_p(results.runs)
    rows = [run_row(results, run, p) for run, p in zip(results.runs, adjusted, strict=True)]
    return Summary(
        study=study["name"],
        question=study["question"],
        expects=study["expects"],
        refuted_by=study["refuted_by"],
        model=index.model,
        dtype=index.dtype,
        layer=index.layer,
        depth=index.depth,
        system_prompt=results.chat["system_prompt"],
        directions=[_direction(results, i, name) for i, name in enumerate(index.library)],
        dimension=results.dimension,
        runs=rows,
        groups=group_rows(results, adjusted, [row.verdict for row in rows]),
        false_verdicts=false_verdicts(rows),
        specificity=study_specificity(results),
        agreement=agree_over_study(results.runs),
        capability=capability([results.capability], None) if results.capability else None,
        calibration=_calibration(results),
    )


def _direction(results: Results, i: int, name: str) -> Direction:
    """Return a trait's direction, and that of the base's own answers where it was asked for."""
    layer, generated = results.index.layer, None
    if results.generated is not None and results.agreement is not None:
        agreement = results.agreement[name]
        generated = GeneratedDirection(
            **_reliability(results.generated, i, layer),
            agreement=agreement.cosine[layer],
            agreement_high=agreement.chance,
            kept=results.kept[i] if results.kept else None,
        )
    return Direction(trait=name, **_reliability(results.space, i, layer), generated=generated)


def _reliability(space: Mapping[str, FloatArray], i: int, layer: int) -> dict[str, float | None]:
    return {
        "reliability": finite(space["reliability"][i, layer]),
        "null_reliability": finite(space["null_reliability"][i, layer]),
        "found": bool(space["found"][i, layer] > 0.5),
    }


def _calibration(results: Results) -> CalibrationRow | None:
    """Return what was found of planted changes, with the targets that each row misses; None where none were planted."""
    planted, entry = results.calibration, results.index.calibration
    if planted is None or entry is None:
        return None
    rows = [AccuracyRow(**vars(row), missed=missed_targets(row)) for row in planted.accuracy]
    return CalibrationRow(run=entry.run, **vars(planted) | {"accuracy": rows}, later=results.later)


def _adjust_p(runs: Sequence[RunResult]) -> list[float | None]:
    """Return every run's p against N1, corrected for all runs of the study."""
    readings = [own_removed(run) for run in runs]
    return benjamini_hochberg([reading.p if reading and reading.share else None for reading in readings])
