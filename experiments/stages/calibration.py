"""The stages `calibrate` and `later`: plant changes of known share where a real run was measured, and measure their share.

Planted changes have the size of a real run's shift from its neutral fine-tune, and the noise of that neutral fine-tune's shift from the
base. The difference of two neutral fine-tunes of different seeds has too little noise: fine-tunes on the same answers move the state at
each prompt in much the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.record import Interval, Record, Sparse
from wellworn.experiments.engine.stage import Folders, Output, Stage, TickFn, in_group
from wellworn.experiments.stages import kinds
from wellworn.experiments.stages.loaded_space import NO_SPACE, Chosen, PersonaSpace
from wellworn.experiments.stages.persona_space import SpaceStages
from wellworn.experiments.stages.readings import load_responses
from wellworn.experiments.study_sections import CalibrateConfig
from wellworn.probes.geometry.planted import Accuracy, Ground, Trial, accuracy, calibrate, later_curve
from wellworn.probes.geometry.space import SPLITS, half_means, span
from wellworn.probes.statistics.intervals import Estimate, FloatArray, finite

PLANTED, LATER = "calibration.json", "later.json"
LARGEST_ERROR = 0.05
LEAST_COVERAGE = 0.93


class PlantedPoint(Record):
    """The measurements of one planted share.

    Attributes:
        alpha: the planted share, from 0 to 1.
        share: the mean measured share of changes that passed the gate, with the middle 95 % of values; null where none passed.
        target: the mean share that the space of the other half holds.
        held: the mean share that the measured space holds.
    """

    alpha: float
    share: Interval | None
    target: float
    held: float


class PlantedShares(Record):
    """The content of `calibration.json`.

    Attributes:
        layer: the layer where changes were planted.
        directions: the number of directions found there.
        size: the norm of a planted change.
        why: why none was planted, in words.
        points: one for each planted share.
        accuracy: one row for each planted share, with the gate and without.
    """

    layer: int
    directions: int
    size: float
    why: str | None
    points: Sequence[PlantedPoint] = ()
    accuracy: Sequence[Accuracy] = ()


class LaterShares(Sparse):
    """The content of `later.json`: planted changes read at a later layer, where the true share is not known.

    Attributes:
        layer: the layer where they were planted.
        later: the layer where they were read.
        draws: number of changes for each share.
        why: why there are no values, in words.
        alphas: the planted shares.
        raw: the mean share at the later layer.
        anchors: the mean shares for alpha 0 and 1, from separate draws.
        scaled: `raw` as a fraction of the distance between the anchors.
        rank_correlation: Spearman's correlation of planted and raw shares.
    """

    layer: int
    later: int
    draws: int
    why: str | None
    alphas: Sequence[float] = ()
    raw: Sequence[float] = ()
    anchors: Sequence[float] = ()
    scaled: Sequence[float] = ()
    rank_correlation: float | None = None


@dataclass(frozen=True)
class Real:
    """The run that planted changes are modelled on.

    Attributes:
        title: the run's name; planted changes have the size of its shift.
        layer: the layer where changes are planted.
        readings: of plain answers, by the run, its neutral fine-tune, and the base.
        turns: these answers.
    """

    title: str
    layer: int
    readings: tuple[Stage, Stage, Stage]
    turns: Sequence[Turn]

    def inputs(self, space_stages: SpaceStages) -> dict[str, Stage | Sequence[Stage]]:
        """Return the inputs of a stage that plants changes."""
        return {**in_group("space", space_stages.inputs), **dict(zip(("run", "neutral", "base"), self.readings, strict=True))}


def calibrate_stage(real: Real, config: CalibrateConfig, space_stages: SpaceStages) -> Stage:
    """Plant changes along directions from one half of the contrast pairs and questions, and measure them in the space of the other half.

    Only traits take part: roles have no contrast pairs to halve. Shares are read at the layer of planting, so no model is run.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(folders, space_stages, real.layer)
        members = Chosen(space.members(real.layer).traits)
        facts = PlantedShares(layer=real.layer, directions=len(members), size=size, why=None if members else NO_SPACE)
        if not members:
            return {PLANTED: facts.to_json()}
        differences = [space.differences(real.layer, i) for i in members.traits]
        trials = trials_in_halves(differences, space.activations(real.layer, members), noise_nD, size, config, tick)
        points = {"points": planted_points(trials), "accuracy": accuracy(trials)}
        return {PLANTED: facts.model_copy(update=points).to_json()}

    plain = {"layer": real.layer, "alphas": list(config.alphas), "draws": config.draws, "names": list(space_stages.names)}
    title = f"calibrate on planted changes like {real.title}"
    return Stage(kind=kinds.CALIBRATE, config=plain, inputs=real.inputs(space_stages), title=title, compute=compute, everywhere=False)


def later_stage(real: Real, config: CalibrateConfig, space_stages: SpaceStages) -> Stage:
    """Plant changes in the base model and read their share at a later layer.

    Directions and spaces use all contrast pairs and questions, so that α is the true share at the layer of planting.
    """
    layer, later = real.layer, real.layer + config.later

    def compute(context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(folders, space_stages, layer)
        here, there = (Chosen(space.members(at).traits) for at in (layer, later))
        facts = LaterShares(layer=layer, later=later, draws=config.later_draws, why=None if here and there else NO_SPACE)
        if facts.why:
            return {LATER: facts.to_json()}
        ground = Ground(space.vectors[list(here.traits), layer], space.basis(layer, here), space.activations(layer, here), noise_nD, size)
        chat = context.chat(context.base)
        rows = [chat.encode(turn) for turn in real.turns]
        rng = np.random.default_rng(seed_for(0, "later curve"))
        basis_DK = space.basis(later, there)
        try:
            curve = later_curve(context.base.model, rows, layer, later, ground, basis_DK, config.alphas, config.later_draws, rng)
        except InputError as lost:
            return {LATER: facts.model_copy(update={"why": str(lost)}).to_json()}
        found = vars(curve) | {"rank_correlation": finite(curve.rank_correlation)}
        return {LATER: facts.model_copy(update=found).to_json()}

    plain = {"layer": layer, "later": later, "alphas": list(config.alphas), "draws": config.later_draws, "names": list(space_stages.names)}
    plain |= {"turns": fingerprint(real.turns)}
    title = f"read planted changes like {real.title} at layer {later}"
    return Stage(kind=kinds.LATER, config=plain, inputs=real.inputs(space_stages), title=title, compute=compute)


def _inputs(folders: Folders, space_stages: SpaceStages, layer: int) -> tuple[PersonaSpace, float, FloatArray]:
    """Return the space, the norm of the run's mean shift, and the neutral fine-tune's shift from the base [prompts, d_model]."""
    space = space_stages.load(folders.within("space"))
    run, neutral, base = (load_responses(folders[who], layer) for who in ("run", "neutral", "base"))
    return space, float(np.linalg.norm((run - neutral).mean(0))), neutral - base


def trials_in_halves(
    differences: Sequence[FloatArray], centred_ND: FloatArray, noise_nD: FloatArray, size: float, config: CalibrateConfig, tick: TickFn
) -> list[Trial]:
    """Plant changes with random halves of the contrast pairs and questions, drawn ten times, and measure their share.

    Args:
        differences: for each trait, positive minus negative, [pairs, questions, d_model].
        centred_ND: as in `probes.geometry.planted.Ground`.
        noise_nD: [n, d_model].
        size: the norm of a planted change.
        config: the shares to plant, and the number of draws.
        tick: called with the number of halves that are done.
    """
    rng = np.random.default_rng(seed_for(0, "calibration"))
    halves = half_means(differences, None, min(SPLITS, config.draws), rng)
    trials = []
    for i, (a_RD, b_RD) in enumerate(halves):
        draws = len(range(i, config.draws, len(halves)))
        ground = Ground(b_RD, span(a_RD), centred_ND, noise_nD, size)
        trials += calibrate(ground, span(b_RD), config.alphas, draws, rng)
        tick(i + 1, len(halves))
    return trials


def planted_points(trials: Sequence[Trial]) -> list[PlantedPoint]:
    """Summarise the trials of each planted share."""
    points = []
    for alpha in dict.fromkeys(trial.alpha for trial in trials):
        some = [trial for trial in trials if trial.alpha == alpha]
        shares = [trial.found.estimate.value for trial in some if trial.found.why is None]
        points.append(
            PlantedPoint(
                alpha=alpha,
                share=Estimate(float(np.mean(shares)), *np.quantile(shares, (0.025, 0.975)).tolist()) if shares else None,
                target=float(np.mean([trial.target for trial in some])),
                held=float(np.mean([trial.held for trial in some])),
            )
        )
    return points


def missed_targets(row: Accuracy) -> list[str]:
    """Return in words the targets that a row of `accuracy` misses; none for a row without draws."""
    out = []
    for error, coverage, share in (
        (row.error, row.coverage, "other half's space"),
        (row.error_held, row.coverage_held, "measured space"),
    ):
        if error is not None and error > LARGEST_ERROR:
            out.append(f"{share}: error {error:.3f}, {LARGEST_ERROR} at most")
        if coverage is not None and coverage < LEAST_COVERAGE:
            out.append(f"{share}: coverage {coverage:.3f}, at least {LEAST_COVERAGE}")
    return out
