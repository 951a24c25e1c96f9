"""Time contenders in turn, and void those with results that disagree."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wellworn.probes.statistics.intervals import FloatArray

FEWEST_REPEATS = 5
LEAST_COSINE = 0.9999
LARGEST_ERROR = 1e-4

# Facts and measurements of a case, by name: plain JSON.
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        name: its name.
        work: does it once; returns its result and, if it timed itself, its seconds.
        compare: turns the result into vectors [..., d] that must agree with those of the first contender.
        exact: whether results must agree to float32's rounding; for a lower precision only the cosine is checked.
        least_cosine: the smallest cosine of two vectors that agree.
        against: returns the vectors to compare with, if these are not the first contender's.
    """

    name: str
    work: Callable[[], Any]
    compare: Callable[[Any], FloatArray | None] = lambda result: result
    exact: bool = True
    least_cosine: float = LEAST_COSINE
    against: Callable[[], FloatArray] | None = None


@dataclass(frozen=True)
class Outcome:
    """A contender's times, and how well its results agree with the first one's.

    Attributes:
        name: the contender.
        seconds: of each repeat.
        cosine: smallest cosine of any vector with the first contender's.
        error: largest relative error of any vector.
        void: why the row does not count; None where it does.
    """

    name: str
    seconds: list[float]
    cosine: float | None
    error: float | None
    void: str | None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    Attributes:
        title: name of the work.
        facts: facts about the work: rows, tokens, …
        outcomes: by contender, the suite's own first.
        targets: contender → smallest ratio of its time to the suite's, or the largest if negative.
    """

    title: str
    facts: Facts
    outcomes: Sequence[Outcome]
    targets: Mapping[str, float] = field(default_factory=dict)

    def ratios(self, outcome: Outcome) -> list[float]:
        """Return a contender's time divided by the suite's, for each repeat: how many times faster the suite is."""
        return [theirs / ours for theirs, ours in zip(outcome.seconds, self.outcomes[0].seconds, strict=True)]

    def to_json(self) -> Facts:
        """Return the case as plain JSON."""
        rows = []
        for outcome in self.outcomes:
            ratios = self.ratios(outcome)
            rows.append(
                {
                    "name": outcome.name,
                    "seconds": outcome.seconds,
                    "median": outcome.median,
                    "ratio": statistics.median(ratios),
                    "ratio_low": min(ratios),
                    "ratio_high": max(ratios),
                    "target": self.targets.get(outcome.name),
                    "cosine": outcome.cosine,
                    "error": outcome.error,
                    "void": outcome.void,
                }
            )
        return {"title": self.title, "facts": dict(self.facts), "contenders": rows}


def race(
    title: str,
    contenders: Sequence[Contender],
    repeats: int,
    facts: Facts,
    targets: Mapping[str, float] | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> Case:
    """Run contenders in turn, A B A B, after one warm-up round in which results are compared.

    Args:
        title: name of the work.
        contenders: the suite's own first.
        repeats: timed rounds.
        facts: about the work.
        targets: contender → how many times slower than the suite it must be.
        tick: called with the name of the next contender.
    """
    truth: FloatArray | None = None
    judged: list[tuple[float | None, float | None, str | None]] = []
    for contender in contenders:
        tick(contender.name)
        vectors = contender.compare(contender.work())
        if truth is None:
            truth = vectors
        judged.append(_judge(contender, vectors, contender.against() if contender.against else truth))
        del vectors
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(repeats):
        for k, contender in enumerate(contenders):
            tick(contender.name)
            _wait()
            start = time.perf_counter()
            result = contender.work()
            _wait()
            own = time.perf_counter() - start
            # A worker in another process times itself, so that communication is not counted.
            seconds[k].append(result.seconds if isinstance(result, Timed) else own)
            del result
    outcomes = [Outcome(c.name, s, *j) for c, s, j in zip(contenders, seconds, judged, strict=True)]
    return Case(title, facts, outcomes, targets or {})


@dataclass(frozen=True)
class Timed:
    """A result with its own time."""

    seconds: float
    result: Any


def _judge(contender: Contender, vectors: FloatArray | None, truth: FloatArray | None) -> tuple[float | None, float | None, str | None]:
    if vectors is None or truth is None:
        return None, None, None
    if vectors.shape != truth.shape:
        return None, None, f"its result has shape {vectors.shape}, not {truth.shape}"
    norms = np.linalg.norm(truth, axis=-1)
    cosine = float(((vectors * truth).sum(-1) / (np.linalg.norm(vectors, axis=-1) * norms)).min())
    error = float((np.linalg.norm(vectors - truth, axis=-1) / norms).max())
    if cosine < contender.least_cosine:
        return cosine, error, f"cosine {cosine:.5f} is below {contender.least_cosine}"
    if contender.exact and error > LARGEST_ERROR:
        return cosine, error, f"relative error {error:.1e} is above {LARGEST_ERROR}"
    return cosine, error, None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
