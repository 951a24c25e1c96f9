"""The stages `calibrate` and `later`: changes of known share are planted where a real run was measured, and looked for.

Planted changes have the size of a real run's shift against its neutral fine-tune, and the noise of that neutral fine-tune's
shift against the base. Its shift against a neutral fine-tune of another seed would not do: fine-tunes on the same answers
move the state at each prompt in much the same way, so that far less is left between them than between a run and its neutral one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn, fingerprint
from wellworn.data.schema import seed_for
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.stage import Output, Stage, TickFn
from wellworn.experiments.stages.loaded_space import NO_SPACE, Chosen, PersonaSpace
from wellworn.experiments.stages.persona_space import Library
from wellworn.experiments.stages.readings import responses
from wellworn.experiments.study import CalibrateConfig
from wellworn.probes.geometry.planted import Ground, Trial, accuracy, calibrate, later_curve
from wellworn.probes.geometry.space import SPLITS, half_means, span
from wellworn.probes.statistics.intervals import FloatArray, finite

PLANTED, LATER = "calibration.json", "later.json"
LARGEST_ERROR = 0.05
LEAST_COVERAGE = 0.93


@dataclass(frozen=True)
class Real:
    """What planted changes take after.

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


def calibrate_stage(real: Real, config: CalibrateConfig, library: Library) -> Stage:
    """Plant changes along directions of one half of the contrast pairs and questions, and look for them in the space of the other.

    Of traits alone, as roles have no contrast to halve. All is arithmetic on finished readings: shares are taken where a change is planted.
    """

    def compute(_bench: StudyContext, inputs: list[Path], _out: Path, tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(inputs, library, real.layer)
        members = Chosen(space.members(real.layer).traits)
        facts: dict[str, Any] = {"layer": real.layer, "directions": len(members), "size": size, "why": None if members else NO_SPACE}
        if not members:
            return {PLANTED: facts}
        differences = [space.differences(real.layer, i) for i in members.traits]
        trials = trials_in_halves(differences, space.activations(real.layer, members), noise_nD, size, config, tick)
        return {PLANTED: facts | findings(trials)}

    plain = {"layer": real.layer, "alphas": list(config.alphas), "draws": config.draws, "names": list(library.names)}
    title = f"calibrate on planted changes like {real.title}"
    return Stage("calibrate", 2, plain, (*library.inputs, *real.readings), title, compute, everywhere=False)


def later_stage(real: Real, config: CalibrateConfig, library: Library) -> Stage:
    """Plant changes in the base model and take their share some layers on.

    Directions and spaces are those of all contrast pairs and questions, so that α is the true share where a change is planted.
    """
    layer, later = real.layer, real.layer + config.later

    def compute(context: StudyContext, inputs: list[Path], _out: Path, _tick: TickFn) -> Output:
        space, size, noise_nD = _inputs(inputs, library, layer)
        here, there = (Chosen(space.members(at).traits) for at in (layer, later))
        facts: dict[str, Any] = {"layer": layer, "later": later, "draws": config.later_draws, "why": None if here and there else NO_SPACE}
        if facts["why"]:
            return {LATER: facts}
        ground = Ground(space.vectors[list(here.traits), layer], space.basis(layer, here), space.activations(layer, here), noise_nD, size)
        chat = context.chat(context.base)
        rows = [chat.encode(turn) for turn in real.turns]
        rng = np.random.default_rng(seed_for(0, "later curve"))
        basis_DK = space.basis(later, there)
        try:
            curve = later_curve(context.base.model, rows, layer, later, ground, basis_DK, config.alphas, config.later_draws, rng)
        except InputError as lost:
            return {LATER: facts | {"why": str(lost)}}
        return {LATER: facts | asdict(curve) | {"rank_correlation": finite(curve.rank_correlation)}}

    plain = {"layer": layer, "later": later, "alphas": list(config.alphas), "draws": config.later_draws, "names": list(library.names)}
    plain |= {"turns": fingerprint(real.turns)}
    title = f"read planted changes like {real.title} at layer {later}"
    return Stage("later", 1, plain, (*library.inputs, *real.readings), title, compute)


def _inputs(folders: Sequence[Path], library: Library, layer: int) -> tuple[PersonaSpace, float, FloatArray]:
    """Return the space, the norm of the run's mean shift, and the neutral fine-tune's shift from the base [prompts, d_model]."""
    space, readings = library.load(folders)
    run, neutral, base = (responses(folder, layer) for folder in readings)
    return space, float(np.linalg.norm((run - neutral).mean(0))), neutral - base


def trials_in_halves(
    differences: Sequence[FloatArray], centred_ND: FloatArray, noise_nD: FloatArray, size: float, config: CalibrateConfig, tick: TickFn
) -> list[Trial]:
    """Plant changes with random halves of the contrast pairs and questions, drawn ten times, and measure their share.

    Args:
        differences: of each trait, positive less negative, [pairs, questions, d_model].
        centred_ND: as in `lora.planted.Ground`, as are the next two.
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


def findings(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return plain facts about trials.

    Returns:
        `accuracy`, the rows of `lora.planted.accuracy`; and `points`, for each α the mean share of the plants that passed the gate
        with the range of the middle 95 % (None where none passed), and what both spaces hold of them in the mean.
    """
    points = []
    for alpha in dict.fromkeys(trial.alpha for trial in trials):
        some = [trial for trial in trials if trial.alpha == alpha]
        shares = [trial.found.estimate.value for trial in some if trial.found.why is None]
        low, high = np.quantile(shares, (0.025, 0.975)).tolist() if shares else (None, None)
        points.append(
            {
                "alpha": alpha,
                "share": {"value": float(np.mean(shares)), "low": low, "high": high} if shares else None,
                "target": float(np.mean([trial.target for trial in some])),
                "held": float(np.mean([trial.held for trial in some])),
            }
        )
    return {"points": points, "accuracy": [asdict(row) for row in accuracy(trials)]}


def missed(row: Mapping[str, Any]) -> list[str]:
    """Return in words the targets that a row of `accuracy` misses; none where no draw counts."""
    out = []
    for suffix, share in (("", "other half's space"), ("_held", "measured space")):
        error, coverage = row[f"error{suffix}"], row[f"coverage{suffix}"]
        if error is not None and error > LARGEST_ERROR:
            out.append(f"{share}: error {error:.3f}, {LARGEST_ERROR} at most")
        if coverage is not None and coverage < LEAST_COVERAGE:
            out.append(f"{share}: coverage {coverage:.3f}, at least {LEAST_COVERAGE}")
    return out
