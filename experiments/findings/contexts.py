"""Where a change shows: scores and shift in each context of a study, and how much more it is there than without one."""

from collections.abc import Mapping, Sequence

import numpy as np

from wellworn.experiments.engine.record import Interval, Record
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.score_agreement import ScoreChange, reference_of, score_change, score_values
from wellworn.experiments.stages.measure import PLAIN_UNDER
from wellworn.experiments.stages.measurement import ShiftReading
from wellworn.experiments.stages.scores import NAMES, UNDER, TakenScores
from wellworn.probes.limits import FEWEST_PROMPTS
from wellworn.probes.statistics.intervals import question_interval


class ScoreInContext(ScoreChange):
    """The change of one score in a context.

    Attributes:
        more: how much larger the change is than without the context, paired by question; null where one of the two is missing.
    """

    more: Interval | None = None


class ShiftInContext(Record):
    """The shift on plain answers in a context; of several runs, means over them.

    Attributes:
        relative_norm: norm of the shift over the mean norm of the base's states there.
        own: cosine with the run's own direction; null without one.
        share: F, the share inside the persona space without that direction; null for several runs.
        why: why there is no share, in words.
    """

    relative_norm: float
    own: float | None
    share: Interval | None
    why: str | None


class InContext(Record):
    """What is seen in one context, or without any.

    Attributes:
        scores: score → its change there; those that were taken.
        shift: the shift there; null where none was measured.
    """

    scores: Mapping[str, ScoreInContext]
    shift: ShiftInContext | None


class Contexts(Record):
    """Where a change shows.

    Attributes:
        without: without a context.
        under: name of a context → what is seen there.
    """

    without: InContext
    under: Mapping[str, InContext]

    @property
    def columns(self) -> Sequence[InContext]:
        """What is seen without a context, and then in each."""
        return [self.without, *self.under.values()]


def in_contexts(runs: Sequence[RunResult]) -> Contexts | None:
    """Return what one run, or several that differ only in seed, show in each context; None where the study names none."""
    found = [run.scores for run in runs if run.scores is not None]
    if not found or len(found) < len(runs):
        return None
    names = dict.fromkeys(score.partition(UNDER)[2] for score in found[0].scores["run"] if UNDER in score)
    if not names:
        return None
    taken = [score for score in NAMES if score_values(found, score)]
    return Contexts(
        without=InContext(
            scores={score: ScoreInContext(**vars(score_change(score, found))) for score in taken}, shift=_shift(runs, "neutral")
        ),
        under={
            name: InContext(scores={score: _change(score, name, found) for score in taken}, shift=_shift(runs, f"{PLAIN_UNDER}{name}"))
            for name in names
        },
    )


def _change(score: str, context: str, found: Sequence[TakenScores]) -> ScoreInContext:
    there = f"{score}{UNDER}{context}"
    change = score_change(there, found)
    reference = reference_of(found[0])
    by_who = [score_values(found, each) for each in (there, score)]
    more_RQ = np.subtract(*(values["run"] - values[reference] for values in by_who))
    more_RQ = more_RQ[:, np.isfinite(more_RQ).all(0)]
    more = None
    if more_RQ.shape[1] >= FEWEST_PROMPTS:
        more = question_interval(more_RQ)
    return ScoreInContext(**vars(change), more=more)


def _shift(runs: Sequence[RunResult], text: str) -> ShiftInContext | None:
    readings = [run.facts.headline.texts.get(text) for run in runs if run.facts is not None]
    there: list[ShiftReading] = [reading for reading in readings if reading is not None]
    if not there or len(there) < len(runs):
        return None
    cosines = [reading.coordinates.get(str(runs[0].entry.trait)) for reading in there]
    own = [cosine for cosine in cosines if cosine is not None]
    share = there[0].own_removed if len(there) == 1 else None
    return ShiftInContext(
        relative_norm=float(np.mean([reading.relative_norm for reading in there])),
        own=float(np.mean(own)) if len(own) == len(there) else None,
        share=share.share if share else None,
        why=share.why if share else None,
    )
