"""Contexts on scores made up: changes there, how much larger they are, and what is said where values are missing."""

from dataclasses import replace

import numpy as np
import pytest

from tests.experiments.synthetic import run
from wellworn.experiments.findings.contexts import in_contexts
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.scores import JUDGE, LIKELIHOOD, TakenScores

QUESTIONS = 8


def scored(seed: int, change: float, there: float, ungraded: int = 0) -> RunResult:
    """A run whose score changes by one value without a context and by another at sea; some of its answers there have no grade."""
    rng = np.random.default_rng(seed)
    before = {name: rng.normal(size=QUESTIONS) for name in (LIKELIHOOD, f"{LIKELIHOOD} under at sea", JUDGE, f"{JUDGE} under at sea")}
    scores: dict[str, dict[str, list[float | None]]] = {"base": {name: [*map(float, each)] for name, each in before.items()}}
    scores["run"] = {
        name: [float(value) + (there if "under" in name else change) + 0.01 * q for q, value in enumerate(each)]
        for name, each in before.items()
    }
    scores["run"][f"{JUDGE} under at sea"][:ungraded] = [None] * ungraded
    failures = {"run": {f"{JUDGE} under at sea": {"timeout": ungraded}}} if ungraded else {}
    taken = TakenScores(scores=scores, failures=failures, drawn=False, alike=False, judge="j", known={}, missing={})
    return replace(run(None, seed=seed), scores=taken)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_change_that_shows_more_in_a_context(seeds: int) -> None:
    found = in_contexts([scored(seed, 1.0, 3.0) for seed in range(seeds)])
    assert found is not None
    mean = 0.01 * (QUESTIONS - 1) / 2
    without, there = found.without.scores[LIKELIHOOD], found.under["at sea"].scores[LIKELIHOOD]
    assert without.change is not None
    assert there.change is not None
    assert there.more is not None
    assert without.change.value == pytest.approx(1 + mean)
    assert without.more is None
    assert there.change.value == pytest.approx(3 + mean)
    assert there.more.value == pytest.approx(2)
    # Paired by question: what differs between questions in both cancels.
    assert there.more.high - there.more.low < 1e-6
    assert found.under["at sea"].shift is None


def test_answers_without_a_grade_are_left_out_of_the_pairs_and_counted() -> None:
    found = in_contexts([scored(0, 1.0, 3.0, ungraded=2)])
    assert found is not None
    judge = found.under["at sea"].scores[JUDGE]
    assert (judge.missing, judge.failures) == (2, {"timeout": 2})
    assert judge.more is not None
    assert judge.more.value == pytest.approx(2)
    # As if they had the lowest and the highest grade.
    assert judge.bounds is not None
    assert judge.bounds[0] < judge.bounds[1]
    lacking = in_contexts([scored(0, 1.0, 3.0, ungraded=QUESTIONS - 1)])
    assert lacking is not None
    assert lacking.under["at sea"].scores[JUDGE].more is None
    assert lacking.under["at sea"].scores[JUDGE].why == "only 1 of 8 questions have this score"


def test_a_study_without_contexts_has_none() -> None:
    each = scored(0, 1.0, 3.0)
    assert each.scores is not None
    plain = {who: {name: values for name, values in of.items() if "under" not in name} for who, of in each.scores.scores.items()}
    assert in_contexts([replace(each, scores=each.scores.model_copy(update={"scores": plain}))]) is None
    assert in_contexts([replace(each, scores=None)]) is None
