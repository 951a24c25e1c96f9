"""Whether the change outside the space is new: the tests of `probes.geometry.novelty` on the runs of a study."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wellworn.data.catalog import NEUTRAL
from wellworn.data.schema import seed_for
from wellworn.experiments.findings.results import Results, RunResult
from wellworn.experiments.stages.measurement import Analysis
from wellworn.experiments.stages.mediation_arms import CHANCE, PUSHED, REMAINDER, parse_outcomes
from wellworn.probes.geometry.novelty import LIBRARY, OPEN, Finding, Novelty, agreement, movement, necessity, novelty, use
from wellworn.probes.geometry.sparse_explanation import explanation
from wellworn.probes.statistics.intervals import FloatArray


def own_removed_basis(run: RunResult) -> FloatArray | None:
    """Return the basis [d_model, k] of the verdict's space, of directions found at the run's layer without its own; None without any."""
    return run.arrays["basis"].astype(np.float64) if "basis" in run.arrays else None


def joint_scores(runs: Sequence[RunResult], analyses: Sequence[Analysis | None]) -> tuple[Sequence[str], FloatArray] | None:
    """Return the interventions that runs share, and their outcomes [interventions, runs, questions]; without the axis of runs for one run.

    None where a run has no such analysis, or other interventions.
    """
    there = [each for each in analyses if each]
    if len(there) < len(runs) or any(each.arms != there[0].arms for each in there):
        return None
    scores = [run.arrays[each.outcomes] for run, each in zip(runs, there, strict=True)]
    return there[0].arms, scores[0] if len(scores) == 1 else np.stack(scores, axis=1)


def judge_novelty(results: Results, runs: Sequence[RunResult]) -> Novelty | None:
    """Judge whether the change outside the persona space is new, for one run or for runs that differ only in seed.

    None where the study does not ask, or where there is no space. Whether a wider dictionary explains the remainder (iii) is tested only
    where the study names roles and the answer can change the verdict.
    """
    found = joint_scores(runs, [run.facts.headline_analysis if run.facts else None for run in runs])
    basis = own_removed_basis(runs[0])
    if found is None or PUSHED not in found[0] or basis is None:
        return None
    names, scores = found
    y = dict(zip(names, scores, strict=True))
    outcomes = parse_outcomes(names, scores)
    drawn = np.stack([outcome for name, outcome in y.items() if name.startswith(CHANCE)])
    tests = (
        agreement(_peers(results, runs[0]), str(runs[0].entry.trait), basis),
        movement(outcomes.before, outcomes.after, y[PUSHED], drawn),
        _use(runs),
        necessity(outcomes.before, outcomes.after, outcomes.parts[REMAINDER]),
    )
    judged = novelty(*tests)
    # It can change the verdict only where the seeds agree.
    if judged.name == OPEN and tests[0].holds and (explained := _explanation(runs, basis)):
        judged = novelty(*tests, explained)
    if judged.name == LIBRARY and runs[0].entry.own in results.index.library:
        # The verdict's space leaves this direction out on purpose, so (ii) finds it again.
        return replace(judged, why=f"{judged.why}; the library's own direction of the run is part of what lies outside")
    return judged


def _peers(results: Results, run: RunResult) -> dict[tuple[str, int], FloatArray]:
    """Return the shifts [prompts, d_model] of all traits and controls that were trained and read like this run."""
    return {
        (str(other.entry.trait), other.entry.seed): other.arrays["shifts"].astype(np.float64)
        for other in results.runs
        if other.facts is not None
        and other.entry.trait != NEUTRAL
        # Traits with their own questions are read on other text, against another neutral fine-tune.
        and (other.entry.arm, other.entry.settings, other.entry.questions) == (run.entry.arm, run.entry.settings, run.entry.questions)
    }


def _explanation(runs: Sequence[RunResult], basis: FloatArray) -> Finding | None:
    """Return whether the study's wider dictionary explains the runs' mean remainder; None without a dictionary."""
    if (wider := runs[0].dictionary) is None:
        return None
    shifts = np.stack([run.arrays["shifts"] for run in runs]).mean(0, dtype=np.float64)
    return explanation(shifts, wider["directions"].astype(np.float64), basis, wider["activations"].astype(np.float64), seed_for(0, "wider"))


def _use(runs: Sequence[RunResult]) -> Finding | None:
    """Return whether the base uses the runs' mean remainder; None where the trait has no contrast prompts."""
    projections = [run.arrays["use"].astype(np.float64) for run in runs if "use" in run.arrays]
    if len(projections) < len(runs):
        return None
    # The same in all runs of a trait.
    assay: FloatArray | str = runs[0].arrays["assay"].astype(np.float64) if "assay" in runs[0].arrays else "the own direction was not read"
    if not all(run.facts and run.entry.own in run.facts.found for run in runs):
        assay = "the own direction was not found"
    # A projection is linear in the direction; the runs' chance directions differ only in length.
    return use(np.mean([each[0] for each in projections], axis=0), projections[0][1:], assay)
