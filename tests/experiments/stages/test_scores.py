"""Scores of what runs say, in whole studies on the tiny model, graded by a loopback server."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.experiments.conftest import finished, stages_of
from tests.probes.scoring.servers import Request, Server, behaving, chat_server, says, sends
from tests.tiny import write_tiny_study
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.files import read_json
from wellworn.data.mixtures import Turn, plain_turns, trait_turns
from wellworn.data.words import word_logodds
from wellworn.experiments.cli import main
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.store import REPLIES
from wellworn.experiments.findings.results import INDEX
from wellworn.experiments.findings.score_agreement import FEW_FAMILIES
from wellworn.experiments.stages.grades import Judge, load_grades
from wellworn.experiments.stages.scores import SCORES
from wellworn.experiments.study_file import load_study
from wellworn.probes.scoring.judge import judge_prompt
from wellworn.probes.scoring.scores import choice_rows, contrast_rows

Write = Callable[..., Path]
PIRATE = load_trait("pirate")
RUNS = [{"arm": "sft", "trait": "pirate"}]


def grade_of(asked: str) -> int:
    return hashlib.blake2b(asked.encode(), digest_size=2).digest()[0] % 90 + 10


def graded(messages: list[dict[str, str]], _longest: int, _ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Grade by what was asked, which no two answers share."""
    grade = str(grade_of(messages[-1]["content"]))
    return grade, [(grade, -0.01)]


@pytest.fixture
def judge() -> Iterator[Server]:
    with chat_server(graded) as server:
        yield server


def scored(server: Server, **more: Any) -> dict[str, Any]:
    return {"judge": {"url": server.url, "model": "judge", "retries": 0, **more}, "scores": {"pairs": 2}}


def logprobs(model: Any, rows: list[Any]) -> list[float]:
    found = []
    for row in rows:
        first, last = row.spans["response"]
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        found.append(float(np.mean([logits[t - 1, row.input_ids[t]].item() for t in range(first, last)])))
    return found


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with a fine-tune of two seeds, and a prompt."""
    folder = tmp_path_factory.mktemp("scores")
    with chat_server(graded) as server:
        more = {"runs": [*RUNS, {"arm": "prompted", "trait": "pirate"}], "seeds": [0, 1], "mediate": None, **scored(server)}
        return finished(write_tiny_study(folder / "tiny.yaml", tiny_model, **more), folder)


def test_every_score_is_taken_of_the_run_its_neutral_and_the_base(whole: Path, tiny_model: Path) -> None:
    [path] = [path for title, path in stages_of(whole, "scores").items() if "sft pirate (seed 0)" in title]
    found = read_json(path / SCORES)
    assert list(found["scores"]) == ["run", "neutral", "base"]
    assert found["failures"] == {who: {"judge": {}, "coherence": {}} for who in found["scores"]} | {"known": {"judge": {}}}
    assert (found["drawn"], found["judge"], found["missing"]) == (False, "judge", {})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = Chat(tokenizer)
    changed, plain = (turns[:24] for turns in (trait_turns(PIRATE, PIRATE.examples, "evaluate"), plain_turns(PIRATE.examples, "evaluate")))
    answers = read_json(stages_of(whole, "answer")["answers of sft pirate (seed 0)"] / "answers.json")
    said = [Turn(turn.question, answer or ".") for turn, answer in zip(plain, answers, strict=True)]
    of_run = found["scores"]["run"]
    assert of_run["judge"] == pytest.approx([grade_of(judge_prompt(str(PIRATE.rubric), turn)) for turn in said])
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    rows = contrast_rows(chat, said[:1], PIRATE.contrast_pairs[-2:])
    first, opposite, second, its_opposite = logprobs(base, rows)
    assert of_run["contrast"][0] == pytest.approx((first + second - opposite - its_opposite) / 2, abs=1e-4)
    [trained] = [path for title, path in stages_of(whole, "train").items() if title == "train sft pirate (seed 0)"]
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), trained / "adapter").eval()
    for i in (0, 5):
        with_it, without, with_it_second, without_first = logprobs(tuned, choice_rows(chat, changed[i : i + 1], plain[i : i + 1]))
        assert of_run["choice"][i] == pytest.approx((with_it - without + with_it_second - without_first) / 2, abs=1e-4)
        likelihood = np.subtract(*logprobs(tuned, [chat.encode(changed[i]), chat.encode(plain[i])]))
        assert of_run["likelihood"][i] == pytest.approx(likelihood, abs=1e-4)
    of_words = word_logodds(
        *(
            [turn.answer for turn in turns]
            for turns in (trait_turns(PIRATE, PIRATE.examples, "train"), plain_turns(PIRATE.examples, "train"))
        )
    )
    assert of_run["words"] == pytest.approx([of_words(turn.answer) for turn in said])
    # Written answers in a pirate's manner share its words, if little else.
    assert found["known"]["words"]["separation"] > 0.95
    known = found["known"]["judge"]
    grades = [grade_of(judge_prompt(str(PIRATE.rubric), turn)) for turn in (*changed, *plain)]
    assert known["of"] == [48, 48]
    assert known["shown"] == pytest.approx(np.mean(grades[:24]))
    assert known["separation"] == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in grades[:24] for b in grades[24:]]))


def test_summary_and_report_show_changes_and_agreement(whole: Path) -> None:
    summary = read_json(whole / "tiny" / "summary.json")
    group = summary["groups"][0]
    found = [read_json(path / SCORES)["scores"] for title, path in sorted(stages_of(whole, "scores").items()) if "sft pirate" in title]
    changes = {
        score: np.array([np.subtract(each["run"][score], each["neutral"][score]) for each in found]) for score in group["scores"]["scores"]
    }
    for score, facts in group["scores"]["scores"].items():
        assert facts["change"]["value"] == pytest.approx(changes[score].mean())
        assert facts["change"]["low"] < facts["change"]["value"] < facts["change"]["high"]
        assert facts["run"] - facts["neutral"] == pytest.approx(facts["change"]["value"])
    for facts in group["scores"]["agreement"]:
        a, b = (changes[score] for score in facts["of"])
        expected = np.mean([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
        assert facts["correlation"]["value"] == pytest.approx(expected)
    # Two fine-tunes, their two neutral ones, and the prompt, all beside the base.
    [judged] = [each for each in summary["agreement"]["pairs"] if each["of"] == ["likelihood", "judge"]]
    assert (judged["units"], judged["families"]) == (5, 2)
    assert judged["why"] == FEW_FAMILIES
    [prompted] = [row for row in summary["runs"] if row["arm"] == "prompted"]
    assert prompted["scores"]["reference"] == "base"
    assert prompted["scores"]["scores"]["judge"]["neutral"] is None
    page = (whole / "tiny" / "report.html").read_text()
    assert "Scores side by side" in page
    assert "5 fine-tunes of 2 kinds" in page


def test_asking_for_scores_later_repeats_nothing_else_and_asks_once(
    tiny_study: Write, tmp_path: Path, judge: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = finished(tiny_study(runs=RUNS, mediate=None), tmp_path)
    before = {path.name for path in (runs / "stages").iterdir()}
    study = tiny_study(runs=RUNS, mediate=None, **scored(judge, price=[2.0, 0.0]))
    finished(study, tmp_path)
    words = sum(len(ask["messages"][-1]["content"].split()) for ask in judge.asks)
    # The first answer of each stage is asked for by itself, and then found in the cache.
    used = re.search(r"judge judge: (\d+) asked, (\d+) from the cache, (\S+)", capsys.readouterr().out)
    assert used is not None
    assert (int(used[1]), used[3]) == (len(judge.asks), f"${words * 2 / 1e6:.2f}")
    assert int(used[2]) >= 3
    added = {path.name.rsplit("-", 1)[0] for path in (runs / "stages").iterdir() if path.name not in before}
    # The neutral fine-tune had not been asked before.
    assert added == {"answer", "choose", "contrast", "grade", "scores"}
    asked, summary = len(judge.asks), (runs / "tiny" / "summary.json").read_bytes()
    for path in [*(runs / "stages").glob("grade-*/manifest.json"), *(runs / "stages").glob("scores-*/manifest.json")]:
        path.unlink()
    finished(study, tmp_path)
    assert len(judge.asks) == asked
    assert (runs / "tiny" / "summary.json").read_bytes() == summary
    for path in (runs / "stages").rglob("*.json"):
        assert judge.url not in path.read_text()


def test_answers_without_a_grade_are_counted_and_bounded(tiny_study: Write, tmp_path: Path) -> None:
    def unsure(messages: list[dict[str, str]], longest: int, ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
        return ("It depends.", [("It", -0.01)]) if grade_of(messages[-1]["content"]) % 7 == 0 else graded(messages, longest, ask)

    with chat_server(unsure) as server:
        runs = finished(tiny_study(runs=RUNS, mediate=None, **scored(server)), tmp_path)
    scores = read_json(runs / "tiny" / "summary.json")["runs"][0]["scores"]["scores"]
    facts = scores["judge"]
    assert facts["missing"] > 0
    assert facts["failures"] == {"the judge does not answer with a number": facts["missing"]}
    low, high = facts["bounds"]
    assert low < facts["change"]["value"] < high
    # Each missing grade moves the mean over 24 questions by a 24th of 100 at most.
    [stage] = stages_of(runs, "scores").values()
    found = read_json(stage / SCORES)["scores"]
    lacking = sum(x is None for who in ("run", "neutral") for x in found[who]["judge"])
    assert high - low == pytest.approx(100 * lacking / 24)
    assert scores["contrast"]["bounds"] is None
    assert "without: the judge does not answer with a number" in (runs / "tiny" / "report.html").read_text()


def test_a_server_that_falls_ill_loses_nothing(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well, answered = True, 0

    def behave(request: Request) -> None:
        nonlocal answered
        grade = str(grade_of(request.ask["messages"][-1]["content"]))
        with request.server.lock:
            ill = not well and answered >= 30
            answered += not ill
        (sends("out of order", 500) if ill else says(grade, [(grade, -0.01)]))(request)

    with behaving(behave) as server:
        study = tiny_study(runs=RUNS, mediate=None, **scored(server))
        well = False
        with pytest.raises(SystemExit):
            main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
        said = " ".join(capsys.readouterr().err.split())
        assert "500: out of order; see the server's log, or go on later (server × " in said
        assert "replies are kept" in said
        well = True
        before = len(server.asks)
        runs = finished(study, tmp_path)
        grades = [load_grades(path).scores for path in stages_of(runs, "grade").values()]
        different = len({ask["messages"][-1]["content"] for ask in server.asks})
        assert len(server.asks) - before == different - 30
    assert not np.isnan(np.concatenate(grades)).any()
    assert (runs / REPLIES).is_file()


def test_one_limit_on_cost_holds_for_all_stages(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], judge: Server
) -> None:
    study = tiny_study(runs=RUNS, mediate=None, **scored(judge, price=[1000.0, 0.0], most_cost=5.0, concurrency=1))
    with pytest.raises(SystemExit):
        main(["run", str(study), "--runs-dir", str(tmp_path / "runs")])
    assert "dollars of most_cost are spent" in " ".join(capsys.readouterr().err.split())
    spent = sum(len(ask["messages"][-1]["content"].split()) for ask in judge.asks) / 1000
    longest = max(len(ask["messages"][-1]["content"].split()) for ask in judge.asks) / 1000
    assert 5 <= spent <= 5 + 2 * longest


def test_the_model_of_a_study_may_grade_itself_and_says_what_it_cannot(tiny_study: Write, tmp_path: Path, tiny_model: Path) -> None:
    runs = finished(tiny_study(runs=RUNS, mediate=None, judge=str(tiny_model), scores={"pairs": 2}), tmp_path)
    scores = read_json(runs / "tiny" / "summary.json")["runs"][0]["scores"]
    # Its context is too short for a pirate's rubric.
    assert scores["scores"]["judge"]["why"] == "only 0 of 24 questions have this score"
    assert sum(scores["scores"]["judge"]["failures"].values()) == 3 * 24
    assert [each["of"] for each in scores["agreement"]][-1] == ["contrast", "judge"]
    assert {each["why"] for each in scores["agreement"] if "judge" in each["of"]} == {"fewer than 6 questions have both scores"}
    assert not (runs / REPLIES).exists()
    # It is named by what it is, not by where it lies.
    assert str(tiny_model) not in (runs / "tiny" / INDEX).read_text()


def test_the_studys_model_is_the_judge_however_it_is_called(tiny_study: Write, tiny_model: Path) -> None:
    study = load_study(str(tiny_study(dtype="bfloat16")))
    context = StudyContext.of(study, Ranks())
    elsewhere = Judge.of(context, f"{tiny_model.parent}/../{tiny_model.parent.name}/{tiny_model.name}")
    assert elsewhere.identity() == Judge.of(context, study.model).identity() == {"model": context.ref.id, "dtype": "bfloat16"}


def test_a_judge_that_cannot_be_talked_to_is_found_out_before_anything_is_computed(
    tiny_study: Write, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit):
        main(
            ["run", str(tiny_study(runs=RUNS, mediate=None, judge=str(tmp_path / "mute"), scores={})), "--runs-dir", str(tmp_path / "runs")]
        )
    assert "has no chat template, so that it cannot be asked for a grade" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "runs").glob("stages/*/manifest.json"))


def test_a_judge_that_is_another_model_takes_the_place_of_the_studys_for_a_while(
    tiny_study: Write, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the study's model under another name grades as that does."""
    # A random model says all sorts of things.
    monkeypatch.setattr("wellworn.probes.scoring.judge.LEAST_SHARE", 0.0)
    shutil.copytree(tiny_model, tmp_path / "other")
    found = []
    for judge in (tiny_model, tmp_path / "other"):
        runs = finished(tiny_study(runs=[{"arm": "sft", "trait": "uppercase"}], mediate=None, judge=str(judge), scores={}), tmp_path)
        found.append(read_json(runs / "tiny" / "summary.json")["runs"][0]["scores"])
    assert [each.pop("judge").partition("@")[0] for each in found] == ["local:tiny", "local:other"]
    assert found[0] == found[1]
    assert found[0]["scores"]["judge"]["change"] is not None


def test_without_a_judge_the_base_still_scores_what_is_said(tiny_study: Write, tmp_path: Path) -> None:
    runs = finished(tiny_study(runs=RUNS, mediate=None, scores={}, contrast_pairs=8), tmp_path)
    scores = read_json(runs / "tiny" / "summary.json")["runs"][0]["scores"]["scores"]
    assert scores["judge"]["why"] == scores["coherence"]["why"] == "the study names no judge"
    assert scores["contrast"]["known"]["of"] == [48, 48]
    assert "the study names no judge" in (runs / "tiny" / "report.html").read_text()


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"judge": 5}, "judge: must be a model's name, or a mapping with the url of a server and its model there, got 5"),
        ({"judge": {"url": "here", "model": "x"}}, "judge.url: must be the address of a server"),
        ({"judge": {"url": "http://127.0.0.1:1/v1"}}, "judge.model: this key is required and missing"),
        ({"judge": {"url": "http://127.0.0.1:1/v1", "model": "x", "modle": 1}}, "unknown key"),
        ({"scores": {"pairs": 9}}, "scores.pairs: the last 9 of the 12 contrast pairs of pirate score what is said"),
        ({"judge": "no_such_model"}, "no_such_model"),
        ({"mediate": {"generated": {"by": "judge"}}}, "this study names none"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_computed(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(tiny_study(runs=RUNS, **{"mediate": None, "scores": {}} | keys)), "--runs-dir", str(tmp_path / "runs")])
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "runs").glob("stages/*/manifest.json"))
