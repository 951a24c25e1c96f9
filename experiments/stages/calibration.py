"""The stages `calibrate` and `later`: changes of known share are planted where a real run was measured, and looked for.

Planted changes have the size of a real run's shift against its neutral fine-tune, and the noise of that neutral fine-tune's
shift against the base. Its shift against a neutral fine-tune of another seed would not do: fine-tunes on the same answers
move the state at each prompt in much the same way, so that far less is left between them than between a run and its neutral one.
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
from wellworn.experiments.study import CalibrateConfig
from wellworn.probes.geometry.planted import Accuracy, Ground, Trial, accuracy, calibrate, later_curve
from wellworn.probes.geometry.space import SPLITS, half_means, span
from wellworn.probes.statistics.intervals import Estimate, FloatArray, finite

PLANTED, LATER = "calibration.json", "later.json"
LARGEST_ERROR = 0.05
LEAST_COVERAGE = 0.93


class PlantedPoint(Record):
    """What was measured of one planted share.

    Attributes:
        alpha: the planted share, from 0 to 1.
        share: the mean of the plants that passed the gate, with the range of the middle 95 %; null where none passed.
        target: what the space of the other half holds of them, on average.
        held: what the measured space holds of them, on average.
    """

    alpha: float
    share: Interval | None
    target: float
    held: float


class PlantedShares(Record):
    """What `calibration.json` holds.

    Attributes:
        layer: where changes were planted.
        directions: how many were found there.
        size: the norm of a planted change.
        why: why none was planted, in words.
        points: for each planted share.
        accuracy: for each of them, with the gate and without.
    """

    layer: int
    directions: int
    size: float
    why: str | None
    points: Sequence[PlantedPoint] = ()
    accuracy: Sequence[Accuracy] = ()


class LaterShares(Sparse):
    """What `later.json` holds: planted changes read some layers on, where no share is true.

    Attributes:
        layer: where they were planted.
        later: where they were read.
        draws: for each share.
        why: why there is nothing, in words.
        alphas: what was planted.
        raw: the mean share at the later layer.
        anchors: the same for 0 and 1, from draws of their own.
        scaled: between those anchors.
        rank_correlation: Spearman's, of planted and raw shares.
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
    """What planted changes are modelled on.

    Attributes:
        title: the run whose shift they have the size of.
        layer: where they are planted.
        readings: of plain answers, by that run, by its neutral fine-tune, and by the base.
        turns: these answers.
    """

    title: str
    layer: int
    readings: tuple[Stage, Stage, Stage]
    turns: Sequence[Turn]

    def inputs(self, library: SpaceStages) -> dict[str, Stage | Sequence[Stage]]:
        """Return what a stage that plants changes reads."""
        return {**in_group("space", library.inputs), **dict(zip(("run", "neutral", "base"), self.readings, strict=True))}


def calibrate_stage(real: Real, config: CalibrateConfig, library: SpaceStages) -> Stage:
    """Plant changes along directions of one half of the contrast pairs and questions, and look for them in the space of the other.

    Of traits alone, as roles have no contrast to halve. All is arithmetic on finished readings: shares are taken where a change is planted.
    """

    def compute(_context: StudyContext, folders: Folders, _out: Path, tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(folders, library, real.layer)
        members = Chosen(space.members(real.layer).traits)
        facts = PlantedShares(layer=real.layer, directions=len(members), size=size, why=None if members else NO_SPACE)
        if not members:
            return {PLANTED: facts.to_json()}
        differences = [space.differences(real.layer, i) for i in members.traits]
        trials = trials_in_halves(differences, space.activations(real.layer, members), noise_nD, size, config, tick)
        points = {"points": planted_points(trials), "accuracy": accuracy(trials)}
        return {PLANTED: facts.model_copy(update=points).to_json()}

    plain = {"layer": real.layer, "alphas": list(config.alphas), "draws": config.draws, "names": list(library.names)}
    title = f"calibrate on planted changes like {real.title}"
    return Stage(kind=kinds.CALIBRATE, config=plain, inputs=real.inputs(library), title=title, compute=compute, everywhere=False)


def later_stage(real: Real, config: CalibrateConfig, library: SpaceStages) -> Stage:
    """Plant changes in the base model and take their share some layers on.

    Directions and spaces are those of all contrast pairs and questions, so that α is the true share where a change is planted.
    """
    layer, later = real.layer, real.layer + config.later

    def compute(context: StudyContext, folders: Folders, _out: Path, _tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(folders, library, layer)
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

    plain = {"layer": layer, "later": later, "alphas": list(config.alphas), "draws": config.later_draws, "names": list(library.names)}
    plain |= {"turns": fingerprint(real.turns)}
    title = f"read planted changes like {real.title} at layer {later}"
    return Stage(kind=kinds.LATER, config=plain, inputs=real.inputs(library), title=title, compute=compute)


def _inputs(folders: Folders, library: SpaceStages, layer: int) -> tuple[PersonaSpace, float, FloatArray]:
    """Return the space, the norm of the run's mean shift, and the neutral fine-tune's shift from the base [prompts, d_model]."""
    space = library.load(folders.within("space"))
    run, neutral, base = (load_responses(folders[who], layer) for who in ("run", "neutral", "base"))
    return space, float(np.linalg.norm((run - neutral).mean(0))), neutral - base


def trials_in_halves(
    differences: Sequence[FloatArray], centred_ND: FloatArray, noise_nD: FloatArray, size: float, config: CalibrateConfig, tick: TickFn
) -> list[Trial]:
    """Plant changes with random halves of the contrast pairs and questions, drawn ten times, and measure their share.

    Args:
        differences: of each trait, positive less negative, [pairs, questions, d_model].
        centred_ND: as in `probes.geometry.planted.Ground`, as are the next two.
        noise_nD: [n, d_model].
        size: the norm of a planted change.
        config: what to plant, and how often.
        tick: told how many halves are done.
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
    """Return for each planted share what was measured of it."""
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
    """Return in words the targets that a row of `accuracy` misses; none where no draw counts."""
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
