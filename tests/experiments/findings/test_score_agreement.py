"""Whether scores agree, on scores made up."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.experiments.synthetic import run
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.findings.score_agreement import FEW_FAMILIES, FineTunesAgree, agree_over_study, score_runs
from wellworn.experiments.stages.scores import CHOICE, JUDGE, LIKELIHOOD, TakenScores

QUESTIONS = 8


def scored(
    likelihood: float,
    choice: float,
    trait: str = "pirate",
    seed: int = 0,
    neutral: tuple[float, float] | None = None,
    grades: list[float | None] | None = None,
    **entry: Any,
) -> RunResult:
    """A run whose changes beside the base are these, and whose base, if there are grades, has no grade for its first answer."""
    said = {"base": (0.0, 0.0), "run": (likelihood, choice)} | ({"neutral": neutral} if neutral else {})
    scores: dict[str, dict[str, list[float | None]]] = {
        who: {
            LIKELIHOOD: [first + q for q in range(QUESTIONS)],
            # Changes that differ from question to question, and have this mean.
            CHOICE: [second - q + (who == "run") * (q - (QUESTIONS - 1) / 2) for q in range(QUESTIONS)],
        }
        for who, (first, second) in said.items()
    }
    failures: dict[str, Any] = {}
    if grades:
        lacking: dict[str, list[float | None]] = {"base": [None, *[5.0] * (QUESTIONS - 1)], "run": grades}
        for who, given in lacking.items():
            scores[who][JUDGE], failures[who] = given, {JUDGE: {"timeout": given.count(None)} if None in given else {}}
    taken = TakenScores(scores=scores, failures=failures, drawn=False, alike=False, judge=None, known={}, missing={})
    return replace(run(None, trait=trait, seed=seed, **entry), scores=taken)


def pair(runs: list[RunResult]) -> FineTunesAgree:
    found = agree_over_study(runs)
    assert found is not None
    [each] = [each for each in found.pairs if each.of == [LIKELIHOOD, CHOICE]]
    return each


def test_adapters_of_one_trait_are_units_of_their_own_and_of_one_family() -> None:
    found = pair([scored(k, -k, arm="adapter", adapter=f"a{k}@0", settings={}) for k in range(1, 8)])
    assert (found.units, found.families, found.why) == (7, 1, FEW_FAMILIES)


def test_doses_of_one_trait_are_no_families_of_their_own() -> None:
    found = pair([scored(k, k, neutral=(0.1 * k, 0.2), settings={"train.lora.r": k}) for k in range(1, 8)])
    assert (found.units, found.families) == (14, 2)
    assert found.correlation is None


def test_a_fine_tune_that_runs_share_counts_once() -> None:
    found = pair([scored(1, 2, neutral=(0.5, 0.25), settings={"layer": layer}) for layer in (0.25, 0.5, 0.75)])
    assert (found.units, found.families) == (2, 2)


def test_over_six_families_scores_are_held_against_each_other() -> None:
    traits = ["pirate", "poetic", "childish"]
    changes = np.random.default_rng(0).normal(size=(3, 2, 2, 2))
    runs = [
        scored(*changes[t, seed, 0], trait=trait, seed=seed, neutral=tuple(changes[t, seed, 1]))
        for t, trait in enumerate(traits)
        for seed in (0, 1)
    ]
    found = pair(runs)
    assert (found.units, found.families, found.why) == (12, 6, None)
    assert found.correlation is not None
    assert found.correlation.value == pytest.approx(spearmanr(*changes.reshape(-1, 2).T).statistic)
    assert found.correlation.low < found.correlation.value < found.correlation.high


def test_an_answer_of_the_base_without_a_grade_counts_once_for_all_runs() -> None:
    runs = [scored(1, 2, seed=seed, grades=[50.0, None, *[60.0 + seed] * (QUESTIONS - 2)]) for seed in (0, 1, 2)]
    found = score_runs(runs)
    assert found is not None
    facts = found.scores[JUDGE]
    assert (facts.missing, facts.failures) == (4, {"timeout": 4})
    assert facts.change is not None
    assert facts.change.value == pytest.approx(56)


def test_over_five_questions_nothing_is_said_of_agreement() -> None:
    grades = [float(x) for x in np.random.default_rng(0).permutation(QUESTIONS)]
    for lacking, why in ((2, None), (3, "fewer than 6 questions have both scores")):
        found = score_runs([scored(1, 2, grades=[*[None] * lacking, *grades[lacking:]])])
        assert found is not None
        [each] = [each for each in found.agreement if each.of == [CHOICE, JUDGE]]
        assert (each.questions, each.why) == (QUESTIONS - lacking, why)
        assert (each.correlation is None) == (why is not None)
