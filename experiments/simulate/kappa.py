"""κ on planted outcomes of known own share, floor and ceiling: how often it is defined, its bias, and its coverage.

Every case has 24 questions. Questions differ in their effect and in how much of it each part carries: the own direction, the best
direction, and chance directions. Chance directions differ from one another, and are read on 8 of the questions, spread as the stage
`pathways` spreads them. Of several runs each has an effect and shares of its own, on the same questions and the same chance directions.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats

from wellworn.experiments.simulate.rows import Row
from wellworn.experiments.stages.pathways import sampled_questions
from wellworn.probes.mediation.pathways import Scaled, floor, scaled_share
from wellworn.probes.statistics.intervals import FloatArray

ROOMS = (0.1, 0.2, 0.4)
KAPPAS = (0.0, 0.2, 0.5, 0.8, 1.0)
RUNS = (1, 3)
QUESTIONS = 24
SAMPLED = 8
DRAWS = 39
FLOOR = 0.10

# Standard deviations of run, question and residual: of the effect, whose mean is 1, and of each part's share of it. Answers with the trait
# gain alike on all questions; what is specific to the trait varies as much between questions as it is large.
EFFECT_SDS = (0.15, 0.35, 0.10)
SPREADS = (0.35, 1.0)
SHARE_SDS = (0.02, 0.06, 0.03)
# Any two parts carry more on the same questions and in the same runs.
CORRELATION = 0.5
# Of chance directions: between directions, of one direction between questions, and the residual between runs.
DRAW_SD, DRAW_QUESTION_SD, DRAW_RESIDUAL_SD = 0.05, 0.04, 0.01

LARGEST_BIAS = 0.03
COVERAGE = (0.92, 0.97)
CLAIMED_FROM = 0.5


def simulate_kappa(
    repeats: int,
    seed: int,
    rooms: Sequence[float] = ROOMS,
    kappas: Sequence[float] = KAPPAS,
    runs: Sequence[int] = RUNS,
    spreads: Sequence[float] = SPREADS,
) -> list[Row]:
    """Return one row per cell of the grid.

    Args:
        repeats: cases for each cell.
        seed: random seed of all draws.
        rooms: values of ceiling − floor, as shares of TE.
        kappas: true values of κ.
        spreads: standard deviations of the effect between questions.
        runs: numbers of runs R. One run has no variance between runs, as its interval is about that run.

    Returns:
        Rows with the cell's settings and: `defined`, the fraction of cases with a κ; `bias`, `rmse` (root mean square error) and
        `coverage` over those cases, with the Clopper-Pearson interval of the coverage, `coverage_low` and `coverage_high`. These are
        None where no case has a κ.
    """
    rows = []
    cells = list(product(spreads, runs, rooms, kappas))
    for (spread, count, room, kappa), stream in zip(cells, np.random.SeedSequence(seed).spawn(len(cells)), strict=True):
        rng = np.random.default_rng(stream)
        found = [_estimate(*draw(rng, count, room, kappa, spread)) for _ in range(repeats)]
        rows.append({"spread": spread, "runs": count, "room": room, "kappa": kappa, "repeats": repeats} | _summary(kappa, found))
    return rows


def missed_targets(row: Row) -> list[str]:
    """Return in words the targets that a row misses; none are set where κ is defined in fewer than half of the cases."""
    if row["defined"] < CLAIMED_FROM:
        return []
    low, high = COVERAGE
    out = []
    if abs(row["bias"]) > LARGEST_BIAS:
        out.append(f"bias {row['bias']:+.3f}, {LARGEST_BIAS} at most")
    if not low <= row["coverage"] <= high:
        out.append(f"coverage {row['coverage']:.3f}, {low} to {high}")
    return out


def draw(
    rng: np.random.Generator, runs: int, room: float, kappa: float, spread: float = EFFECT_SDS[1]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Draw one case: TE, and M·TE of the own and of the best direction, [runs, questions], and of chance directions on sampled questions.

    Chance directions are [DRAWS, runs, sampled questions].
    """
    few = sampled_questions(QUESTIONS, SAMPLED)
    effect = 1 + _terms(rng, 1, runs, (EFFECT_SDS[0], spread, EFFECT_SDS[2]))[0]
    axes = np.linalg.cholesky(np.full((3, 3), CORRELATION) + (1 - CORRELATION) * np.eye(3))
    means = FLOOR + room * np.array([kappa, 1, 0])
    own, best, chance = means[:, None, None] + np.tensordot(axes, _terms(rng, 3, runs, SHARE_SDS), 1)
    own_draw, at_question, residual = (rng.standard_normal((DRAWS, *shape)) for shape in ((1, 1), (1, SAMPLED), (runs, SAMPLED)))
    draws = chance[:, few] + DRAW_SD * own_draw + DRAW_QUESTION_SD * at_question + DRAW_RESIDUAL_SD * residual
    return effect, own * effect, best * effect, draws * effect[:, few]


def _terms(rng: np.random.Generator, kinds: int, runs: int, sds: tuple[float, float, float]) -> FloatArray:
    """Return the sum of terms of run, question and residual, [kinds, runs, questions]; a single run has no term of the run."""
    shapes = ((runs, 1), (1, QUESTIONS), (runs, QUESTIONS))
    by_run, by_question, residual = (sd * rng.standard_normal((kinds, *shape)) for sd, shape in zip(sds, shapes, strict=True))
    return np.asarray((by_run if runs > 1 else 0) + by_question + residual)


def _estimate(effect: FloatArray, own: FloatArray, best: FloatArray, draws: FloatArray) -> Scaled:
    """Return κ of a case as a study has it: the outcomes of a single run have no axis of runs."""
    if len(effect) == 1:
        effect, own, best, draws = effect[0], own[0], best[0], draws[:, 0]
    few = sampled_questions(QUESTIONS, SAMPLED)
    return scaled_share(effect, own, best, floor(effect[..., few], draws, own[..., few]), few)


def _summary(kappa: float, found: Sequence[Scaled]) -> Row:
    """Return the numbers of one cell."""
    defined = [each.value for each in found if each.value]
    row: Row = {"defined": len(defined) / len(found)}
    if not defined:
        return row | dict.fromkeys(("bias", "rmse", "coverage", "coverage_low", "coverage_high"))
    errors = np.array([each.value for each in defined]) - kappa
    covered = sum(each.low <= kappa <= each.high for each in defined)
    interval = stats.binomtest(covered, len(defined)).proportion_ci(method="exact")
    return row | {
        "bias": float(errors.mean()),
        "rmse": float((errors**2).mean() ** 0.5),
        "coverage": covered / len(defined),
        "coverage_low": float(interval.low),
        "coverage_high": float(interval.high),
    }
