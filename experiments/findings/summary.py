"""The type of `summary.json`: a study's directions, the numbers and verdicts of every run, and joint results of runs.

A value that was not measured is null, and `missing` says why.
"""

from collections.abc import Mapping, Sequence

from wellworn.experiments.engine.record import Record
from wellworn.experiments.findings.false_verdicts import FalseVerdicts, false_verdicts
from wellworn.experiments.findings.group_rows import GroupRow, group_rows, group_runs
from wellworn.experiments.findings.nearest_personas import SpecificityRow, study_specificity
from wellworn.experiments.findings.null_ranks import own_removed
from wellworn.experiments.findings.pathways import BetweenRuns, pool_groups
from wellworn.experiments.findings.projected_shift import ProjectedShift, projected_shifts
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.findings.run_rows import RunRow, run_row
from wellworn.experiments.findings.score_agreement import StudyAgreement, agree_over_study
from wellworn.experiments.findings.stand_ins import DirectionMatrix, direction_matrices
from wellworn.experiments.stages.calibration import LaterShares, PlantedPoint, missed_targets
from wellworn.experiments.stages.capability import Capability, capability
from wellworn.experiments.stages.generated_directions import KeptAnswers
from wellworn.experiments.stages.knock_in import KnockInCheck
from wellworn.experiments.stages.persona_space import SpaceDimension
from wellworn.probes.statistics.corrections import benjamini_hochberg
from wellworn.probes.statistics.intervals import FloatArray, finite


class GeneratedDirection(Record):
    """A trait's direction from the base's own answers under its contrast prompts.

    Attributes:
        reliability: mean cosine of halves, from −1 to 1.
        null_reliability: its 95 % quantile by chance.
        found: whether it passes both tests of reliability.
        agreement: the cosine with the direction of fixed text.
        agreement_high: the 95 % quantile of that cosine by chance.
        kept: the pairs of answers that make it, where a judge filters them.
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
    """The accuracy of measured shares on planted changes; null where no draw counts.

    Attributes:
        alpha: the planted share, from 0 to 1.
        gated: whether only changes that passed the gate count.
        draws: the number of changes that count.
        error: mean |F − target|, where the target is the share in the other half's space.
        error_held: mean |F − the share that the measured space holds|.
        bias: mean of F − target.
        bias_of_space: the part of the bias that is due to the difference of the two spaces.
        coverage: the fraction of intervals that contain the target.
        coverage_held: the fraction of intervals that contain the share that the measured space holds.
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
    """The results on planted changes.

    Attributes:
        run: the run that they are modelled on.
        layer: the layer where they were planted.
        directions: the number of directions found there.
        size: the norm of a planted change.
        why: why none was planted, in words.
        points: the measurements of each planted share.
        accuracy: one row for each planted share, with the gate and without.
        later: the shares at a later layer; null where the study does not ask.
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
    """The results of a study.

    Attributes:
        study: its name.
        question: its question.
        expects: the expected answer.
        refuted_by: the result that would refute it.
        model: the model's id.
        dtype: its number format.
        layer: the layer where shares are read, from 0.
        depth: the number of the model's layers.
        system_prompt: how the model's template takes a system prompt.
        directions: the traits of the library.
        dimension: the dimension of the persona space.
        runs: in the study's order.
        groups: runs that differ only in seed.
        between_runs: how much findings vary between the runs of a group, pooled over groups, for the intervals of groups.
        false_verdicts: the verdicts of non-persona runs; null without any.
        specificity: whether fine-tunes lie nearest their own traits; null with fewer than four trained traits.
        direction_matrices: what traits' directions carry of each other's changes, for each outcome; empty where that was not measured.
        agreement: agreement of scores over fine-tunes; null where no scores were taken.
        projected_shifts: whether the shift along the own direction predicts the trait score, on each text; empty with fine-tunes on fewer
            than six traits.
        capability: the base's capabilities.
        calibration: results on planted changes; null where none were planted.
        knock_in: what the model shows of the persona that it was taught first; null where it was taught none.
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
    between_runs: BetweenRuns
    false_verdicts: FalseVerdicts | None
    specificity: SpecificityRow | None
    direction_matrices: Sequence[DirectionMatrix]
    agreement: StudyAgreement | None
    projected_shifts: Sequence[ProjectedShift]
    capability: Capability | None
    calibration: CalibrationRow | None
    knock_in: KnockInCheck | None

    @property
    def stated(self) -> bool:
        """Whether statements say what may be said; the older analysis' verdict is then no answer, and is not shown."""
        return any(row.statement for row in self.runs)

    @property
    def mediated(self) -> bool:
        """Whether the older analysis was made of any run."""
        return any(row.mediated for row in self.runs)

    @property
    def alone(self) -> list[RunRow]:
        """The runs that are in no group."""
        together = [(group.arm, group.trait, group.settings) for group in self.groups]
        return [row for row in self.runs if (row.arm, row.trait, row.settings) not in together]


def summarise(results: Results) -> Summary:
    """Return a study's results in machine-readable form."""
    index, study = results.index, results.index.study
    adjusted = _adjust_p(results.runs)
    rows = [run_row(results, run, p) for run, p in zip(results.runs, adjusted, strict=True)]
    between_runs = pool_groups([[results.runs[i] for i in places] for places in group_runs(results)])
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
        groups=group_rows(results, adjusted, [row.verdict for row in rows], between_runs),
        between_runs=between_runs,
        false_verdicts=false_verdicts(rows),
        specificity=study_specificity(results),
        direction_matrices=direction_matrices(results.runs),
        agreement=agree_over_study(results.runs),
        projected_shifts=projected_shifts(results.runs),
        capability=capability([results.capability], None) if results.capability else None,
        calibration=_calibration(results),
        knock_in=results.knock_in,
    )


def _direction(results: Results, i: int, name: str) -> Direction:
    """Return a trait's direction, and that of the base's own answers where the study asks for it."""
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
    """Return the results on planted changes, with the targets that each row misses; None where none were planted."""
    planted, entry = results.calibration, results.index.calibration
    if planted is None or entry is None:
        return None
    rows = [AccuracyRow(**vars(row), missed=missed_targets(row)) for row in planted.accuracy]
    return CalibrationRow(run=entry.run, **vars(planted) | {"accuracy": rows}, later=results.later)


def _adjust_p(runs: Sequence[RunResult]) -> list[float | None]:
    """Return every run's p against N1, corrected for all runs of the study."""
    readings = [own_removed(run) for run in runs]
    return benjamini_hochberg([reading.p if reading and reading.share else None for reading in readings])
