"""What the scores of a study say: how each changed, and whether they agree about it."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.scores import CHOICE, COHERENT, CONTRAST, JUDGE, LIKELIHOOD, NAMES
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.scoring.judge import MOST
from wellworn.probes.statistics.correlations import rank_correlation, rank_correlation_within
from wellworn.probes.statistics.intervals import FloatArray, crossed_interval, mean_interval

# Coherence is no score of the trait, and words are a smoke check.
COMPARED = (LIKELIHOOD, CHOICE, CONTRAST, JUDGE)
GRADED = (JUDGE, COHERENT)
# Questions, and families of fine-tunes. The bootstrap over three that have nothing to do with each other finds them agreed, or opposed, in
# up to 32 of 100 cases, over five in 15, over six in 7 at most.
FEWEST_RANKED = 6
DO_NOT_VARY = "one of the scores is the same for all questions"
TOO_FEW = f"fewer than {FEWEST_RANKED} questions have both scores"
FEW_FAMILIES = f"fewer than {FEWEST_RANKED} kinds of fine-tune are scored (a trait, or neutral ones on a trait)"


def scores_of(runs: Sequence[RunResult]) -> dict[str, Any] | None:
    """Return what the scores of one run say, or of several that differ in their seed alone; None where none were asked for.

    Under `scores` each has the means of `base`, `neutral` and `run` over the questions for which all have it, the `change` of the run
    beside its reference with its interval (over questions; of several runs, over runs × questions), how many of the values compared are
    `missing`, and for grades the `bounds` of the change if each missing one were 0 or 100, whichever is worse. `agreement` has the rank
    correlation of the changes of each two scores over questions, in the mean over runs.
    """
    if not runs or any(run.scores is None for run in runs):
        return None
    found = [run.scores for run in runs if run.scores is not None]
    reference = _reference(found[0])
    values = {score: _values(found, score) for score in NAMES}
    return {
        "reference": reference,
        "judge": found[0]["judge"],
        "drawn": any(each["drawn"] for each in found),
        "alike": any(each["alike"] for each in found),
        "scores": {score: _changed(score, by_who, reference, found) for score, by_who in values.items()},
        "agreement": [
            {"of": [a, b], **_agree(values[a], values[b], reference)}
            for a, b in itertools.combinations(COMPARED, 2)
            if values[a] and values[b]
        ],
    }


def over_study(runs: Sequence[RunResult]) -> dict[str, Any] | None:
    """Return whether scores order fine-tunes alike, whatever they were trained on; None where no run has scores.

    A unit is a fine-tune beside the base, scored on a trait: every run on its own, and its neutral fine-tune on the same; one that several
    runs share counts once. Units of one trait, however they were made, are a family, and so are neutral fine-tunes scored on one: the
    bootstrap draws families.
    """
    units: dict[Hashable, tuple[tuple[str, str], dict[str, float]]] = {}
    for run in runs:
        if run.scores is None:
            continue
        for who in ("run", "neutral"):
            if who in run.scores["scores"]:
                changes = {}
                for score in COMPARED:
                    by_who = _values([run.scores], score)
                    change = by_who[who] - by_who["base"] if by_who else np.empty(0)
                    if np.isfinite(change).sum() >= FEWEST_PROMPTS:
                        changes[score] = float(np.nanmean(change))
                trait = run.entry["trait"]
                # To the last digit alike: runs that differ in their layer alone, and what they are read against, are one fine-tune.
                units.setdefault((trait, *changes.items()), ((who, trait), changes))
    if not units:
        return None
    pairs = []
    for a, b in itertools.combinations(COMPARED, 2):
        both = [(family, changes) for family, changes in units.values() if a in changes and b in changes]
        if not both:
            continue
        families = [family for family, _ in both]
        x, y = ([changes[score] for _, changes in both] for score in (a, b))
        facts: dict[str, Any] = {"of": [a, b], "units": len(both), "families": len(set(families)), "correlation": None, "why": None}
        if len(set(families)) < FEWEST_RANKED:
            facts["why"] = FEW_FAMILIES
        elif np.ptp(x) == 0 or np.ptp(y) == 0:
            facts["why"] = DO_NOT_VARY
        else:
            rng = np.random.default_rng(seed_for(0, "agreement over a study", a, b))
            facts["correlation"] = rank_correlation(x, y, families, rng).to_json()
        pairs.append(facts)
    return {"pairs": pairs}


def _reference(scores: Mapping[str, Any]) -> str:
    return "neutral" if "neutral" in scores["scores"] else "base"


def _values(found: Sequence[Mapping[str, Any]], score: str) -> dict[str, FloatArray]:
    """Return a score, who → [runs, questions], NaN where it is missing; empty where it was not taken."""
    whose = found[0]["scores"]
    if any(score not in of for each in found for of in each["scores"].values()):
        return {}
    return {who: np.array([each["scores"][who][score] for each in found], dtype=np.float64) for who in whose}


def _changed(score: str, by_who: Mapping[str, FloatArray], reference: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what became of one score."""
    facts: dict[str, Any] = dict.fromkeys(("base", "neutral", "run", "change", "bounds", "known", "why"))
    facts |= {"missing": 0, "failures": {}}
    if not by_who:
        return facts | {"why": found[0]["missing"].get(score, "was not taken")}
    facts["known"] = found[0]["known"].get(score)
    # The base is one, whatever the number of runs.
    own = [(each, who) for k, each in enumerate(found) for who in by_who if k == 0 or who != "base"]
    facts["missing"] = sum(each["scores"][who][score].count(None) for each, who in own)
    for each, who in own:
        for kind, count in each["failures"].get(who, {}).get(score, {}).items():
            facts["failures"][kind] = facts["failures"].get(kind, 0) + count
    if score in GRADED and facts["missing"]:
        least = np.nan_to_num(by_who["run"], nan=0.0) - np.nan_to_num(by_who[reference], nan=MOST)
        most = np.nan_to_num(by_who["run"], nan=MOST) - np.nan_to_num(by_who[reference], nan=0.0)
        facts["bounds"] = [float(least.mean()), float(most.mean())]
    whole = np.flatnonzero(np.isfinite(np.stack(list(by_who.values()))).all(axis=(0, 1)))
    if len(whole) < FEWEST_PROMPTS:
        return facts | {"why": f"only {len(whole)} of {by_who['run'].shape[1]} questions have this score"}
    facts |= {who: float(values[:, whole].mean()) for who, values in by_who.items()}
    change = (by_who["run"] - by_who[reference])[:, whole]
    facts["change"] = (crossed_interval(change) if len(change) > 1 else mean_interval(change[0])).to_json()
    return facts


def _agree(x: Mapping[str, FloatArray], y: Mapping[str, FloatArray], reference: str) -> dict[str, Any]:
    """Return the rank correlation of the changes of two scores over questions, or why there is none."""
    change_2RQ = np.stack([of["run"] - of[reference] for of in (x, y)])
    change_2RQ = change_2RQ[:, :, np.isfinite(change_2RQ).all((0, 1))]
    facts: dict[str, Any] = {"questions": change_2RQ.shape[2], "correlation": None, "why": None}
    if change_2RQ.shape[2] < FEWEST_RANKED:
        return facts | {"why": TOO_FEW}
    if (np.ptp(change_2RQ, axis=2) == 0).any():
        return facts | {"why": DO_NOT_VARY}
    rng = np.random.default_rng(seed_for(0, "agreement of scores"))
    return facts | {"correlation": rank_correlation_within(change_2RQ[0], change_2RQ[1], rng).to_json()}
