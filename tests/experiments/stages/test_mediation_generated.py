"""What patched arms say, in a whole study on the tiny model, whose directions are declared found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.experiments.conftest import find_all, finished, stages_of
from tests.experiments.stages.test_scores import grade_of
from tests.probes.scoring.servers import chat_server
from tests.tiny import write_tiny_study
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn
from wellworn.experiments.cli import main
from wellworn.experiments.findings.index import INDEX
from wellworn.experiments.findings.results import SEAL, load_results
from wellworn.experiments.report.mediation import SAYING
from wellworn.experiments.stages.answers import REPETITION_PENALTY, nonempty
from wellworn.experiments.stages.measurement import Graded
from wellworn.experiments.stages.mediation import load_mediated
from wellworn.experiments.stages.mediation_generated import SAID
from wellworn.probes.scoring.judge import judge_prompt
from wellworn.probes.scoring.scores import contrast_logprobs, contrast_rows

Write = Callable[..., Path]
RUNS = [{"arm": "sft", "trait": "pirate"}, {"arm": "prompted", "trait": "pirate"}]
MEDIATE = {"draws": 5, "surface": 0, "doses": [], "references": "headline", "everywhere": False}
GENERATED = {"questions": 4, "draws": 5, "pairs": 2}
FINE_TUNE = "what sft pirate (seed 0) says against neutral, part by part, layer 2"
PROMPT = "what prompted pirate (seed 0) says against base, part by part, layer 2"


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("said")
    with pytest.MonkeyPatch.context() as patch:
        find_all(patch)
        changes = {"runs": RUNS, "mediate": MEDIATE | {"generated": GENERATED}}
        return finished(write_tiny_study(folder / "tiny.yaml", tiny_model, **changes), folder)


def test_every_arm_answers_and_what_it_says_is_scored(runs: Path, tiny_model: Path) -> None:
    said = stages_of(runs, "say")
    scored = stages_of(runs, "score")
    assert sorted(said) == sorted([FINE_TUNE, PROMPT])
    assert sorted(scored) == sorted([f"score {FINE_TUNE}", f"score {PROMPT}"])
    questions = [example.question for example in load_trait("pirate").split("evaluate")[:4]]
    for title in (FINE_TUNE, PROMPT):
        found = read_json(said[title] / SAID)
        assert len(found["arms"]) == len(found["answers"])
        assert {len(arm) for arm in found["answers"]} == {4}
        assert set(SAYING) <= set(found["arms"])
    # The score is what the base makes of the answers, under the trait's last pairs.
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    found = read_json(said[FINE_TUNE] / SAID)
    mediated = load_mediated(scored[f"score {FINE_TUNE}"], "neutral", "generated", 2)
    assert list(mediated.interventions) == found["arms"]
    arm = found["arms"].index("after")
    turns = [Turn(q, nonempty(a)) for q, a in zip(questions, found["answers"][arm], strict=True)]
    logprob = []
    for row in contrast_rows(Chat(tokenizer), turns, load_trait("pirate").contrast_pairs[-2:]):
        first, last = row.spans["response"]
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        logprob.append(float(np.mean([logits[t - 1, row.input_ids[t]].item() for t in range(first, last)])))
    positive, negative = contrast_logprobs(np.array(logprob), 2)
    assert mediated.scores[arm] == pytest.approx(positive - negative, abs=1e-4)
    assert mediated.known is not None
    assert mediated.known.separation is not None
    assert 0 <= mediated.known.separation <= 1


def test_unpatched_arms_say_what_the_models_say(runs: Path, tiny_model: Path) -> None:
    """`before` is the neutral fine-tune and `after` the trait's, as each answers by itself."""
    found = read_json(stages_of(runs, "say")[FINE_TUNE] / SAID)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    questions = [example.question for example in load_trait("pirate").split("evaluate")[:4]]
    trained = {title.split(" (")[0]: path for title, path in stages_of(runs, "train").items()}
    for arm, title in (("before", "sft neutral"), ("after", "sft pirate")):
        (path,) = [path for name, path in trained.items() if title in name]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), path / "adapter").eval()
        for question, said in zip(questions, found["answers"][found["arms"].index(arm)], strict=True):
            ids = torch.tensor([Chat(tokenizer).encode_prompt(question)])
            out = model.generate(
                input_ids=ids, do_sample=False, max_new_tokens=4, repetition_penalty=REPETITION_PENALTY, pad_token_id=tokenizer.pad_token_id
            )
            assert said == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_summary_and_report_show_it(runs: Path) -> None:
    summary = read_json(runs / "tiny" / "summary.json")
    for row in (*summary["runs"], *summary["groups"]):
        assert row["generated"]["effect"] is not None
        assert set(row["generated"]["known"]) == {"shown", "absent", "separation", "of"}
    page = (runs / "tiny" / "report.html").read_text()
    assert "while part of their state at layer 2 is the other's" in page
    assert "what it says itself" in page
    assert summary["runs"][0]["generated"]["why"] is None or summary["runs"][0]["generated"]["why"] in page


def test_asking_for_it_later_repeats_nothing_else(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = finished(tiny_study(runs=RUNS[:1], mediate=MEDIATE), tmp_path)
    before = {path.name for path in (runs / "stages").iterdir()}
    finished(tiny_study(runs=RUNS[:1], mediate=MEDIATE | {"generated": GENERATED}), tmp_path)
    added = {path.name.rsplit("-", 1)[0] for path in (runs / "stages").iterdir() if path.name not in before}
    assert added == {"say", "score", "measure"}


def test_a_judge_may_grade_what_every_arm_says(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    """Grades stand where contrast scores do; questions without one in some arm are left out, counted and bounded."""
    unsure = load_trait("pirate").split("evaluate")[1].question

    def graded(messages: list[dict[str, str]], _longest: int, _ask: Any) -> tuple[str, list[tuple[str, float]]]:
        asked = messages[-1]["content"]
        if unsure in asked and grade_of(asked) % 2:
            return "Who can say?", [("Who", -0.01)]
        return str(grade_of(asked)), [(str(grade_of(asked)), -0.01)]

    with chat_server(graded) as server:
        mediate = MEDIATE | {"generated": {"questions": 6, "draws": 5, "by": "judge"}}
        judge = {"url": server.url, "model": "judge"}
        runs = finished(tiny_study(runs=RUNS[:1], seeds=[0, 1], mediate=mediate, judge=judge), tmp_path)
    said = read_json(stages_of(runs, "say")[FINE_TUNE] / SAID)
    path = stages_of(runs, "score")[f"grade {FINE_TUNE}"]
    mediated = load_mediated(path, "neutral", "generated", 2)
    rubric = str(load_trait("pirate").rubric)
    questions = [example.question for example in load_trait("pirate").split("evaluate")[:6]]
    lacking = 0
    for arm, answers, scores in zip(said["arms"], said["answers"], mediated.scores, strict=True):
        for question, answer, score in zip(questions, answers, scores, strict=True):
            grade = grade_of(judge_prompt(rubric, Turn(question, nonempty(answer))))
            if question == unsure and grade % 2:
                lacking += 1
                assert np.isnan(score), arm
            else:
                assert score == grade
    assert lacking > 0
    assert mediated.graded == Graded(judge="judge", drawn=False, failures={"the judge does not answer with a number": lacking})
    [row, other] = read_json(runs / "tiny" / "summary.json")["runs"]
    assert row["generated"]["left_out"] == 1
    before, after = (np.delete(mediated.scores[list(mediated.interventions).index(arm)], 1) for arm in ("before", "after"))
    assert row["generated"]["effect"]["value"] == pytest.approx((after - before).mean())
    low, high = row["generated"]["bounds"]
    assert low <= (after - before).sum() / 6 + 100 / 6
    assert high >= (after - before).sum() / 6 - 100 / 6
    assert low <= high
    [group] = read_json(runs / "tiny" / "summary.json")["groups"]
    assert group["generated"]["effect"] is not None
    [count], [of_other] = (each["generated"]["graded"]["failures"].values() for each in (row, other))
    assert list(group["generated"]["graded"]["failures"].values()) == [count + of_other]
    page = (runs / "tiny" / "report.html").read_text()
    assert "graded by judge" in page
    assert "1 question without a grade in some arm" in page


def test_where_hardly_an_answer_has_a_grade_there_are_no_shares(
    tiny_study: Write, tmp_path: Path, tiny_model: Path, all_found: None
) -> None:
    # A random model is no judge.
    mediate = MEDIATE | {"generated": {"questions": 4, "draws": 5, "by": "judge"}}
    runs = finished(tiny_study(runs=RUNS[:1], mediate=mediate, judge=str(tiny_model)), tmp_path)
    [row] = read_json(runs / "tiny" / "summary.json")["runs"]
    assert row["generated"]["why"] == "only 0 of 4 questions have a grade in every arm, and 3 are needed"
    assert row["generated"]["mediated"] is None
    assert row["generated"]["bounds"] == [-100.0, 100.0]
    assert row["mediated"] is not None or row["missing"]["mediated_of_carried"]
    assert "× the judge does not answer with a number" in (runs / "tiny" / "report.html").read_text()


def test_without_a_space_nothing_is_said(tiny_study: Write, tmp_path: Path) -> None:
    runs = finished(tiny_study(runs=RUNS[:1], mediate=MEDIATE | {"generated": GENERATED}), tmp_path)
    assert read_json(stages_of(runs, "say")[FINE_TUNE] / SAID) == {"arms": [], "answers": []}
    row = read_json(runs / "tiny" / "summary.json")["runs"][0]
    assert row["generated"]["effect"] is None
    assert "while part of their state" not in (runs / "tiny" / "report.html").read_text()


def test_results_from_before_there_was_any_still_load(tiny_study: Write, tmp_path: Path, all_found: None) -> None:
    runs = finished(tiny_study(runs=RUNS[:1], mediate=MEDIATE), tmp_path)
    path = runs / "tiny" / INDEX
    index = json.loads(path.read_text())
    for run in index["runs"]:
        run.pop("said")
    del index[SEAL]
    path.write_text(json.dumps(index))
    assert [run.said for run in load_results(runs / "tiny").runs] == [None]


def test_no_contrast_pair_both_makes_a_direction_and_scores_what_is_said(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(contrast_pairs=8, mediate={"draws": 5, "surface": 0, "generated": {"pairs": 5}})
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert "the last 5 of the 12 contrast pairs of pirate score what is said" in " ".join(capsys.readouterr().err.split())
