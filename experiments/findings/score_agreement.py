"""The scores of a study: how each changed, and whether the changes agree."""

import itertools
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from wellworn.data.schema import seed_for
from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.measurement import Known
from wellworn.experiments.stages.scores import CHOICE, COHERENT, CONTRAST, JUDGE, LIKELIHOOD, NAMES, UNDER, TakenScores
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.scoring.judge import MOST
from wellworn.probes.statistics.correlations import rank_correlation, rank_correlation_within
from wellworn.probes.statistics.intervals import FloatArray, question_interval

# Coherence is not a score of the trait, and words are a smoke check.
COMPARED = (LIKELIHOOD, CHOICE, CONTRAST, JUDGE)
GRADED = (JUDGE, COHERENT)
# Questions, and families of fine-tunes. The bootstrap of unrelated scores finds agreement or opposition in up to 32 of 100 cases over
# three families, in 15 over five, and in at most 7 over six.
FEWEST_RANKED = 6
DO_NOT_VARY = "one of the scores is the same for all questions"
TOO_FEW = f"fewer than {FEWEST_RANKED} questions have both scores"
FEW_FAMILIES = f"fewer than {FEWEST_RANKED} kinds of fine-tune are scored (a trait, or neutral ones on a trait)"


class ScoreChange(Record):
    """The change of one score.

    Attributes:
        base: the base's mean.
        neutral: the neutral fine-tune's mean.
        run: the run's mean.
        change: of the run against its reference, paired by question.
        bounds: the change if each missing grade were 0 or 100, whichever is worse.
        known: how well the score discriminates answers of known label.
        why: why there is no change, in words.
        missing: how many of the compared values are missing.
        failures: reason → how many are missing for it.
    """

    base: float | None = None
    neutral: float | None = None
    run: float | None = None
    change: Interval | None = None
    bounds: Sequence[float] | None = None
    known: Known | None = None
    why: str | None = None
    missing: int = 0
    failures: Mapping[str, int] = {}


class ScoresAgree(Record):
    """Whether two scores agree over questions.

    Attributes:
        of: the two scores.
        questions: the number of questions with both.
        correlation: Spearman's correlation of their changes, the mean over runs.
        why: why there is no correlation, in words.
    """

    of: Sequence[str]
    questions: int
    correlation: Interval | None
    why: str | None


class FineTunesAgree(Record):
    """Whether two scores rank fine-tunes alike.

    Attributes:
        of: the two scores.
        units: the number of fine-tunes with both.
        families: the number of families of fine-tunes.
        correlation: Spearman's correlation of their changes.
        why: why there is no correlation, in words.
    """

    of: Sequence[str]
    units: int
    families: int
    correlation: Interval | None
    why: str | None


class RunScores(Record):
    """The trait scores of a run.

    Attributes:
        reference: the reference of changes, `neutral` or `base`.
        judge: the judge of the run's answers; null where nothing was graded.
        drawn: whether grades are means of sampled replies.
        alike: whether all replies to one prompt were the same.
        scores: `likelihood` (nats per token), `choice` (log-odds), `contrast` (nats per token), `judge` and `coherence` (0–100), `words`.
        agreement: of each pair of scores.
    """

    reference: str
    judge: str | None
    drawn: bool
    alike: bool
    scores: Mapping[str, ScoreChange]
    agreement: Sequence[ScoresAgree]


class StudyAgreement(Record):
    """Whether scores agree over the fine-tunes of a study.

    Attributes:
        pairs: one entry for each pair of scores.
    """

    pairs: Sequence[FineTunesAgree]


def score_runs(runs: Sequence[RunResult]) -> RunScores | None:
    """Return the scores of one run, or of several that differ only in seed; None where the study does not ask.

    Intervals are over questions; for several runs, over runs × questions.
    """
    if not runs or any(run.scores is None for run in runs):
        return None
    found = [run.scores for run in runs if run.scores is not None]
    reference = reference_of(found[0])
    values = {score: score_values(found, score) for score in NAMES}
    return RunScores(
        reference=reference,
        judge=found[0].judge,
        drawn=any(each.drawn for each in found),
        alike=any(each.alike for each in found),
        scores={score: score_change(score, found) for score in NAMES},
        agreement=[_agree((a, b), values, reference) for a, b in itertools.combinations(COMPARED, 2) if values[a] and values[b]],
    )


def agree_over_study(runs: Sequence[RunResult]) -> StudyAgreement | None:
    """Test whether scores rank fine-tunes alike, whatever they were trained on; None where no run has scores.

    A unit is a fine-tune relative to the base, scored on a trait: every run on its own trait, and its neutral fine-tune on the same one.
    A neutral fine-tune that several runs share counts once. The bootstrap draws families: all units of one trait are a family, and so are
    all neutral fine-tunes that are scored on one trait.
    """
    units: dict[Hashable, tuple[tuple[str, str], dict[str, float]]] = {}
    for run in runs:
        if run.scores is None:
            continue
        for who in ("run", "neutral"):
            if who in run.scores.scores:
                changes = {}
                for score in COMPARED:
                    by_who = score_values([run.scores], score)
                    change = by_who[who] - by_who["base"] if by_who else np.empty(0)
                    if np.isfinite(change).sum() >= FEWEST_PROMPTS:
                        changes[score] = float(np.nanmean(change))
                trait = str(run.entry.trait)
                # Equal to the last digit: runs that differ only in layer or reference are one fine-tune.
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
        correlation, why = None, None
        if len(set(families)) < FEWEST_RANKED:
            why = FEW_FAMILIES
        elif np.ptp(x) == 0 or np.ptp(y) == 0:
            why = DO_NOT_VARY
        else:
            rng = np.random.default_rng(seed_for(0, "agreement over a study", a, b))
            correlation = rank_correlation(x, y, families, rng)
        pairs.append(FineTunesAgree(of=[a, b], units=len(both), families=len(set(families)), correlation=correlation, why=why))
    return StudyAgreement(pairs=pairs)


def reference_of(taken: TakenScores) -> str:
    """Return the reference of changes, `neutral` or `base`."""
    return "neutral" if "neutral" in taken.scores else "base"


def score_values(found: Sequence[TakenScores], score: str) -> dict[str, FloatArray]:
    """Return a score, who → [runs, questions], NaN for missing values; empty where the score was not taken."""
    by_who = found[0].scores
    if any(score not in of for each in found for of in each.scores.values()):
        return {}
    return {who: np.array([each.scores[who][score] for each in found], dtype=np.float64) for who in by_who}


def score_change(score: str, found: Sequence[TakenScores]) -> ScoreChange:
    """Return the change of one score, also one in a context, in one run or in several that differ only in seed."""
    by_who, reference, kind = score_values(found, score), reference_of(found[0]), score.partition(UNDER)[0]
    if not by_who:
        return ScoreChange(why=found[0].missing.get(kind, "was not taken"))
    # There is one base, whatever the number of runs.
    own = [(each, who) for k, each in enumerate(found) for who in by_who if k == 0 or who != "base"]
    failures = Counter[str]()
    for each, who in own:
        failures.update(each.failures.get(who, {}).get(score, {}))
    missing = sum(list(each.scores[who][score]).count(None) for each, who in own)
    facts = ScoreChange(known=found[0].known.get(score), missing=missing, failures=dict(failures))
    if kind in GRADED and missing:
        least = np.nan_to_num(by_who["run"], nan=0.0) - np.nan_to_num(by_who[reference], nan=MOST)
        most = np.nan_to_num(by_who["run"], nan=MOST) - np.nan_to_num(by_who[reference], nan=0.0)
        facts = facts.model_copy(update={"bounds": [float(least.mean()), float(most.mean())]})
    whole = np.flatnonzero(np.isfinite(np.stack(list(by_who.values()))).all(axis=(0, 1)))
    if len(whole) < FEWEST_PROMPTS:
        return facts.model_copy(update={"why": f"only {len(whole)} of {by_who['run'].shape[1]} questions have this score"})
    change = (by_who["run"] - by_who[reference])[:, whole]
    means = {who: float(values[:, whole].mean()) for who, values in by_who.items()}
    return facts.model_copy(update=means | {"change": question_interval(change)})


def _agree(of: tuple[str, str], values: Mapping[str, Mapping[str, FloatArray]], reference: str) -> ScoresAgree:
    """Return the rank correlation of the changes of two scores over questions, or why there is none."""
    change_2RQ = np.stack([values[score]["run"] - values[score][reference] for score in of])
    change_2RQ = change_2RQ[:, :, np.isfinite(change_2RQ).all((0, 1))]
    correlation, why = None, None
    if change_2RQ.shape[2] < FEWEST_RANKED:
        why = TOO_FEW
    elif (np.ptp(change_2RQ, axis=2) == 0).any():
        why = DO_NOT_VARY
    else:
        rng = np.random.default_rng(seed_for(0, "agreement of scores"))
        correlation = rank_correlation_within(change_2RQ[0], change_2RQ[1], rng)
    return ScoresAgree(of=list(of), questions=change_2RQ.shape[2], correlation=correlation, why=why)
