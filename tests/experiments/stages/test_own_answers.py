"""What models say with the own direction set: in a whole study on the tiny model, and its shares where they are known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.experiments.conftest import stages_of
from tests.experiments.stages.test_scores import graded
from tests.experiments.synthetic import facts, run
from tests.probes.scoring.servers import Server, chat_server
from wellworn.data.files import read_json
from wellworn.experiments.cli import main
from wellworn.experiments.findings.own_answers import JUDGE, SHOWN, UNFOUND, WORDS, OwnSaid, own_said
from wellworn.experiments.findings.results import RunResult
from wellworn.experiments.stages.measurement import Graded, Known
from wellworn.experiments.stages.mediation_arms import AFTER, BEFORE
from wellworn.experiments.stages.own_answers import CHANCE_DRAWS, OwnAnswers, OwnGrades, _word_score, load_own_answers, load_own_grades
from wellworn.experiments.stages.pathways import CHANCE_OWN

Write = Callable[..., Path]
PATHWAYS = {"draws": 19, "questions": 4, "surface": 6, "profile": 0, "references": "headline"}
LIBRARY = ["pirate", "pessimistic", "poetic"]
QUESTIONS = 6


def compute(write: Write, folder: Path, answers: int | None = QUESTIONS, **changes: Any) -> Path:
    runs = [{"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "poetic"}]
    study = write(runs=runs, library=LIBRARY, mediate=None, answer_tokens=8, pathways=PATHWAYS | {"answers": answers}, **changes)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(study), "--runs-dir", str(folder)])
    assert stop.value.code in (0, None)
    return folder


@pytest.fixture
def judge() -> Iterator[Server]:
    with chat_server(graded) as server:
        yield server


def test_models_answer_with_the_own_direction_set_and_a_judge_grades_it(
    tiny_study: Write, tmp_path: Path, all_found: None, judge: Server
) -> None:
    folder = compute(tiny_study, tmp_path / "runs", judge={"url": judge.url, "model": "judge", "retries": 0})
    [found] = (load_own_answers(path) for path in stages_of(folder, "own_answers").values())
    chance = [f"{CHANCE_OWN}{i}.{way}" for i in range(CHANCE_DRAWS) for way in ("into", "out")]
    assert list(found.arms) == [*SHOWN, *chance]
    assert np.array(found.words).shape == (len(found.arms), QUESTIONS)
    said = {name: list(each) for name, each in zip(found.arms, found.answers, strict=True)}
    # What reference and run say by themselves is what the sample answers hold.
    index = read_json(folder / "tiny" / "study.json")
    entry = next(each for each in index["runs"] if each["arm"] == "sft")
    assert said[AFTER] == read_json(folder / "stages" / entry["answers"] / "answers.json")[:QUESTIONS]
    assert said[BEFORE] != said[AFTER]
    assert said["own.into"] != said[BEFORE]
    assert said["own.out"] != said[AFTER]
    [grades] = (load_own_grades(path) for path in stages_of(folder, "own_grades").values())
    assert np.array(grades.grades).shape == (len(found.arms), QUESTIONS)
    assert grades.graded.judge == "judge"
    tuned, prompted = read_json(folder / "tiny" / "summary.json")["runs"]
    assert [each["by"] for each in tuned["own_answers"]["scores"]] == [WORDS, JUDGE]
    assert prompted["own_answers"] is None
    assert "changed weights" in prompted["missing"]["own_answers"]
    page = (folder / "tiny" / "report.html").read_text(encoding="utf-8")
    assert 'id="own-answers"' in page
    assert "run, own direction of the reference" in page


def test_without_an_own_direction_nothing_is_said_or_graded(tiny_study: Write, tmp_path: Path, judge: Server) -> None:
    # Directions of a random model are not found.
    folder = compute(tiny_study, tmp_path / "runs", judge={"url": judge.url, "model": "judge", "retries": 0})
    [found] = (load_own_answers(path) for path in stages_of(folder, "own_answers").values())
    assert (list(found.arms), list(found.answers), judge.asks) == ([], [], [])
    tuned, _ = read_json(folder / "tiny" / "summary.json")["runs"]
    assert tuned["own_answers"] == {"why": UNFOUND, "scores": [], "samples": []}
    assert UNFOUND in (folder / "tiny" / "report.html").read_text(encoding="utf-8")


def test_answers_without_a_word_of_the_texts_have_no_score() -> None:
    score = _word_score(["Arr, matey!"], ["Yes, friend."])
    assert (score("Xyzzy."), score("")) == (None, None)
    assert (score("arr") or 0) > 0 > (score("friend xyzzy") or 0)


def test_a_study_that_does_not_ask_says_nothing(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    folder = compute(tiny_study, tmp_path / "runs", answers=None)
    assert stages_of(folder, "own_answers") == {}
    assert read_json(folder / "tiny" / "summary.json")["runs"][0]["own_answers"] is None
    assert 'id="own-answers"' not in (folder / "tiny" / "report.html").read_text(encoding="utf-8")


def speaking(into: float, out: float, effect: float = 1.0, seed: int = 0, grades: bool = False, missing: int = 0) -> RunResult:
    """A run whose words change by so much; the own direction brings about known parts of it, put in and taken out."""
    rng = np.random.default_rng(seed)
    before, change = rng.normal(0, 0.1, 12), effect * (1 + 0.2 * rng.standard_normal(12))
    parts = {BEFORE: 0.0, AFTER: 1.0, "own.into": into, "own.out": 1 - out}
    parts |= {f"{CHANCE_OWN}{i}.{way}": (way == "out") + 0.1 * i * (1 if way == "into" else -1) for i in (0, 1) for way in ("into", "out")}
    words = [before + part * change for part in parts.values()]
    answers = [[f"{arm} {q}" for q in range(12)] for arm in parts]
    known = Known(shown=1.0, absent=0.0, separation=0.9, of=[4, 4])
    asked = [f"question {q}" for q in range(12)]
    said = OwnAnswers(arms=list(parts), asked=asked, answers=answers, words=[list(each) for each in words], known=known)
    scores = [[None if q < missing else 50 + 10 * float(each) for q, each in enumerate(of_arm)] for of_arm in words]
    given = OwnGrades(grades=scores, known=known, graded=Graded(judge="judge", drawn=False, failures={}))
    return replace(run(facts(), seed=seed), own_answers=said, own_grades=given if grades else None)


def said_by(*runs: RunResult) -> OwnSaid:
    found = own_said(runs)
    assert found is not None
    return found


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_shares_are_what_the_own_direction_brings_about(seeds: tuple[int, ...]) -> None:
    found = said_by(*(speaking(0.6, 0.3, seed=seed, grades=True, missing=2) for seed in seeds))
    words, judge = found.scores
    assert (words.by, judge.by, words.questions, judge.questions) == (WORDS, JUDGE, 12, 10)
    for each in (words, judge):
        assert each.effect is not None
        assert each.share is not None
        assert each.share.value == pytest.approx(0.45)
        assert each.chance == pytest.approx(0.05)
        assert each.into is not None
        assert each.into.value == pytest.approx(0.6 * each.effect.value)
        assert each.out is not None
        assert each.out.value == pytest.approx(0.3 * each.effect.value)
    assert found.samples[1] == ["question 1", f"{BEFORE} 1", f"{AFTER} 1", "own.into 1", "own.out 1"]


def test_answers_that_show_no_more_of_the_trait_have_no_share() -> None:
    for effect in (-1.0, 0.0):
        [words] = said_by(speaking(0.6, 0.3, effect=effect)).scores
        assert words.share is words.chance is None
        assert words.why == "the answers do not clearly show more of the trait"
    few = said_by(speaking(0.6, 0.3, grades=True, missing=10)).scores[1]
    assert few.why == "only 2 questions have all scores"


def test_runs_that_said_nothing_and_runs_without_an_own_direction() -> None:
    assert own_said([run(facts())]) is None
    assert own_said([]) is None
    assert own_said([speaking(0.6, 0.3), run(facts(), seed=1)]) is None
    one = speaking(0.6, 0.3)
    assert one.own_answers is not None
    unfound = replace(one, own_answers=one.own_answers.model_copy(update={"arms": [], "answers": [], "words": []}))
    assert said_by(unfound).why == UNFOUND
