"""How much of what a run says goes through its own direction: shares of one run, or of runs that differ in their seed alone."""

from collections.abc import Sequence

import numpy as np

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.mediated import pool_graded
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.measurement import Graded, Known
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE, parse_part, parts_named
from wellworn.experiments.stages.pathways import CHANCE_OWN
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.mediation.pathways import OWN
from wellworn.probes.mediation.shares import Outcomes, is_within_noise
from wellworn.probes.statistics.intervals import FloatArray, question_interval, ratio_interval

WORDS, JUDGE = "words", "judge"
UNFOUND = "the run has no own direction that was found"
# Answers of these interventions are shown.
SHOWN = (BEFORE, AFTER, f"{OWN}.into", f"{OWN}.out")


class SaidShares(Record):
    """How much of the change of one score of answers goes through the own direction.

    Attributes:
        by: `words` (log-odds a word), or the `judge` (0 to 100).
        effect: of the run's answers less the reference's.
        into: of the reference's answers with the own direction set to the run's, less its own.
        out: of the run's answers less those with the own direction set to the reference's.
        share: the mean of the two over the effect, M; null without a clear effect.
        chance: the same of chance directions, the mean over them; null without a clear effect, or without any.
        why: why there is no share, in words.
        known: how well the score discriminates written answers with the trait from plain ones.
        graded: the judge; null for words.
        questions: number of questions with all scores.
    """

    by: str
    effect: Interval | None
    into: Interval | None
    out: Interval | None
    share: Interval | None
    chance: float | None
    why: str | None
    known: Known
    graded: Graded | None
    questions: int


class OwnSaid(Record):
    """What models say with the state along a run's own direction set to the other's.

    Attributes:
        why: why nothing was said, in words.
        scores: one entry for each score.
        samples: the first answers of the first run: the question, then what reference, run, reference with the run's own direction, and run
            with the reference's say.
    """

    why: str | None
    scores: Sequence[SaidShares]
    samples: Sequence[Sequence[str]]


def own_said(runs: Sequence[RunResult], samples: int = 3) -> OwnSaid | None:
    """Return how much of what runs say goes through their own direction; None where the study does not ask.

    Args:
        runs: one run, or several that differ in their seed alone; intervals are then over runs × questions.
        samples: number of questions whose answers are shown.
    """
    found = [run.own_answers for run in runs if run.own_answers]
    if not runs or len(found) < len(runs) or any(each.asked != found[0].asked for each in found):
        return None
    if not all(each.arms for each in found):
        return OwnSaid(why=UNFOUND, scores=[], samples=[])
    arms = found[0].arms
    scores = [_shares(WORDS, arms, [np.array(each.words, dtype=np.float64) for each in found], found[0].known, None)]
    grades = [run.own_grades for run in runs if run.own_grades]
    if len(grades) == len(runs):
        values = [np.array(each.grades, dtype=np.float64) for each in grades]
        scores.append(_shares(JUDGE, arms, values, grades[0].known, pool_graded([each.graded for each in grades])))
    places = [list(arms).index(name) for name in SHOWN]
    shown = [[asked, *(found[0].answers[place][q] for place in places)] for q, asked in enumerate(found[0].asked[:samples])]
    return OwnSaid(why=None, scores=scores, samples=shown)


def _shares(by: str, arms: Sequence[str], scores: Sequence[FloatArray], known: Known, graded: Graded | None) -> SaidShares:
    """Return the shares of one score, of [interventions, questions] of each run; questions without all of them are left out."""
    values = np.stack(scores, axis=1)
    whole = np.isfinite(values).all(axis=(0, 1))
    values = values[:, 0, whole] if len(scores) == 1 else values[:, :, whole]
    nothing = dict.fromkeys(("effect", "into", "out", "share", "chance"))
    plain = {"by": by, "known": known, "graded": graded, "questions": int(whole.sum())}
    if whole.sum() < FEWEST_PROMPTS:
        return SaidShares(**plain, **nothing, why=f"only {int(whole.sum())} questions have all scores")
    outcomes = dict(zip(arms, values, strict=True))
    parts = {part: each for part in (OWN, *parts_named(arms, CHANCE_OWN)) if (each := parse_part(outcomes, part))}
    change, swapped = Outcomes(outcomes[BEFORE], outcomes[AFTER], parts), parts[OWN]
    clear = not is_within_noise(change.effect) and change.effect.mean() > 0
    return SaidShares(
        **plain,
        effect=question_interval(change.effect),
        into=question_interval(swapped.into - change.before),
        out=question_interval(change.after - swapped.out),
        share=ratio_interval(change.mediated_effect(swapped), change.effect) if clear else None,
        chance=_chance_share(change) if clear else None,
        why=None if clear else "the answers do not clearly show more of the trait",
    )


def _chance_share(change: Outcomes) -> float | None:
    """Return the share of chance directions, the mean over them; None without any."""
    drawn = [change.mediated_effect(each).mean() for part, each in change.parts.items() if part != OWN]
    return float(np.mean(drawn) / change.effect.mean()) if drawn else None
