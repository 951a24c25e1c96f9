"""Directions of what the base itself says: read where it was said, kept as others are, and held against those of `state`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiments.conftest import command, finished, refused, stages_of
from tests.experiments.stages.test_scores import grade_of
from tests.experiments.test_cli import Write
from tests.probes.scoring.servers import chat_server
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.files import digest, read_json
from wellworn.data.mixtures import Turn, plain_turns
from wellworn.data.schema import seed_for
from wellworn.experiments.stages.answers import nonempty
from wellworn.experiments.stages.generated_directions import AGREEMENT
from wellworn.experiments.stages.loaded_space import centre_within_questions
from wellworn.experiments.stages.persona_space import KEPT
from wellworn.lora.models import load, resolve
from wellworn.probes.geometry.nearest import largest_by_chance
from wellworn.probes.geometry.nulls import Null
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.scoring.judge import COHERENCE, judge_prompt


@pytest.fixture
def study(tiny_study: Write) -> dict[str, Any]:
    return {"runs": [{"arm": "base"}], "mediate": None, "generated_directions": {"questions": 5}}


def test_answers_are_read_under_the_prompts_that_they_were_given_to(
    tiny_study: Write, tiny_model: Path, tmp_path: Path, all_found: None, study: dict[str, Any]
) -> None:
    folder = finished(tiny_study(**study), tmp_path)
    stage = stages_of(folder, "generated")["what the base says as pessimistic and its opposite"]
    states, answers = load_file(stage / "states.safetensors")["states"], read_json(stage / "answers.json")
    assert states.shape == (4, 2, 5, 4, 32)
    assert len(answers) == 4 * 2 * 5
    trait = load_trait("pessimistic")
    asked = [turn.question for turn in plain_turns(trait.examples, "extract")][:5]
    base = load(resolve(str(tiny_model)), "float32")
    for pair, side, question in ((0, 0, 0), (2, 1, 3), (3, 0, 4)):
        system = (trait.contrast_pairs[pair].positive, trait.contrast_pairs[pair].negative)[side]
        answer = nonempty(answers[(pair * 2 + side) * 5 + question])
        row = Chat(base.tokenizer).encode(Turn(asked[question], answer, system))
        alone = read(base.model, [row], Spec(spans=("response",), pad_id=base.tokenizer.pad_token_id))
        assert states[pair, side, question] == pytest.approx(np.asarray(alone.states)[0, :, 0], rel=1e-3, abs=1e-4)


def test_both_directions_of_a_trait_are_held_against_each_other_and_chance(
    tiny_study: Write, tmp_path: Path, all_found: None, study: dict[str, Any]
) -> None:
    folder = finished(tiny_study(**study), tmp_path)
    spaces = {title: load_file(path / "space.safetensors") for title, path in stages_of(folder, "space").items()}
    state, said = spaces["persona space"], spaces["directions of what the base says"]
    [agreement] = stages_of(folder, "agreement").values()
    found = read_json(agreement / AGREEMENT)
    stages = stages_of(folder, "generated")
    names = ["pirate", "pessimistic"]
    rows = [load_file(stages[f"what the base says as {name} and its opposite"] / "states.safetensors")["states"] for name in names]
    for i, name in enumerate(names):
        differences = (rows[i][:, 0] - rows[i][:, 1]).mean((0, 1))
        assert said["vectors"][i] == pytest.approx(differences, abs=1e-5)
        unit = state["vectors"][i] / np.linalg.norm(state["vectors"][i], axis=-1, keepdims=True)
        cosines = (unit * differences).sum(-1) / np.linalg.norm(differences, axis=-1)
        assert found[name]["cosine"] == pytest.approx(cosines, abs=1e-4)
        drawn = largest_by_chance(
            unit[2].astype(float), 1, centre_within_questions(rows, ["same", "same"], 2), Null(seed_for(0, "agreement"))
        )
        assert found[name]["chance"] == pytest.approx(np.quantile(drawn, 0.95), rel=0.05)
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    for i, row in enumerate(summary["directions"]):
        assert row["generated"]["agreement"] == pytest.approx(found[row["trait"]]["cosine"][2])
        assert row["generated"]["reliability"] == pytest.approx(float(said["reliability"][i, 2]))
    assert "Two estimators" in (folder / "tiny" / "report.html").read_text()


def test_open_questions_of_a_trait_are_what_it_is_asked(tiny_study: Write, tmp_path: Path, all_found: None, study: dict[str, Any]) -> None:
    command("traits", "export", "childish", "--format", "persona-vectors", "--to", tmp_path / "theirs")
    theirs = tmp_path / "theirs" / "extract" / "childish.json"
    value = json.loads(theirs.read_text())
    value["questions"] = [f"Would you share number {i}?" for i in range(6)]
    theirs.write_text(json.dumps(value))
    command("traits", "import", theirs, "--to", tmp_path / "bold")
    own, others = (finished(tiny_study(**study, library=library), tmp_path) for library in ([str(tmp_path / "bold")], ["childish"]))
    said = [read_json(path / "manifest.json")["config"]["prompts"] for path in stages_of(own, "generated").values()]
    assert own == others
    assert len(set(said)) == 2  # other prompts than those of the questions that its direction is read on
    asked = digest([(question, side) for pair in load_trait("childish").contrast_pairs[:4] for side in (pair.positive, pair.negative)
                    for question in value["questions"][:5]])  # fmt: skip
    assert asked in said


def test_a_study_may_name_the_questions(tiny_study: Write, tmp_path: Path, all_found: None, study: dict[str, Any]) -> None:
    source = tmp_path / "theirs.jsonl"
    source.write_text("".join(json.dumps({"question": f"Would you share number {i}?"}) + "\n" for i in range(5)))
    command("traits", "import", source, "--to", tmp_path / "asked")
    bank = str(tmp_path / "asked" / "questions.jsonl")
    folder = finished(tiny_study(**study | {"generated_directions": {"questions": 5, "bank": bank}}), tmp_path)
    pairs = load_trait("pirate").contrast_pairs[:4]
    asked = digest([(f"Would you share number {i}?", side) for pair in pairs for side in (pair.positive, pair.negative) for i in range(5)])
    assert asked in [read_json(path / "manifest.json")["config"]["prompts"] for path in stages_of(folder, "generated").values()]


def test_fewer_questions_than_the_study_asks_for_are_refused(
    tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], study: dict[str, Any]
) -> None:
    asked = tiny_study(**study | {"generated_directions": {"questions": 500}})
    assert "generated_directions.questions: pirate has 120 extract questions, the study asks for 500" in refused(
        capsys, "run", asked, "--runs-dir", tmp_path / "runs"
    )


def test_answers_may_be_filtered_by_a_judges_grades(tiny_study: Write, tmp_path: Path, all_found: None, study: dict[str, Any]) -> None:
    """A pair of answers makes the direction if the positive one is graded high, its opposite low, and both coherent."""

    def graded(messages: list[dict[str, str]], _longest: int, _ask: Any) -> tuple[str, list[tuple[str, float]]]:
        grade = grade_of(messages[-1]["content"])
        return ("Well.", [("Well", -0.01)]) if grade == 33 else (str(grade), [(str(grade), -0.01)])

    limits = {"score": 40, "coherence": 12}
    with chat_server(graded) as server:
        judge = {"url": server.url, "model": "judge"}
        changed = study | {"generated_directions": {"questions": 5, "filter": limits}, "judge": judge}
        folder = finished(tiny_study(**changed), tmp_path)
    stage = stages_of(folder, "generated")["what the base says as pirate and its opposite"]
    answers, states = read_json(stage / "answers.json"), load_file(stage / "states.safetensors")["states"].astype(float)
    trait = load_trait("pirate")
    asked = [turn.question for turn in plain_turns(trait.examples, "extract")][:5]
    turns = [Turn(question, nonempty(answer)) for question, answer in zip(asked * 8, answers, strict=True)]
    graded_by = {
        rubric: np.array([float(grade_of(judge_prompt(rubric, turn))) for turn in turns]) for rubric in (str(trait.rubric), COHERENCE)
    }
    ungraded = np.any([each == 33 for each in graded_by.values()], axis=0).sum()
    score, coherence = (np.where(each == 33, np.nan, each).reshape(4, 2, 5) for each in graded_by.values())
    kept = (score[:, 0] >= 40) & (score[:, 1] < 40) & (coherence >= 12).all(1)
    assert 0 < kept.sum() < kept.size
    found = load_file(stages_of(folder, "kept")["answers that make the direction of pirate"] / KEPT)["kept"]
    assert (found == kept).all()
    space = load_file(stages_of(folder, "space")["directions of what the base says"] / "space.safetensors")
    assert space["vectors"][0] == pytest.approx((states[:, 0] - states[:, 1])[kept].mean(0), abs=1e-5)
    [pirate, _] = json.loads((folder / "tiny" / "summary.json").read_text())["directions"]
    assert pirate["generated"]["kept"] == {"kept": int(kept.sum()), "of": 20, "ungraded": int(ungraded)}
    assert f"{kept.sum()} of 20 ({ungraded})" in (folder / "tiny" / "report.html").read_text()


def test_where_hardly_an_answer_is_kept_there_is_no_direction(
    tiny_study: Write, tiny_model: Path, tmp_path: Path, study: dict[str, Any]
) -> None:
    # A random model is no judge: no answer has a grade.
    changed = study | {"generated_directions": {"questions": 5, "filter": {}}, "judge": str(tiny_model)}
    folder = finished(tiny_study(**changed), tmp_path)
    for row in json.loads((folder / "tiny" / "summary.json").read_text())["directions"]:
        said = row["generated"]
        assert (said["reliability"], said["found"], said["agreement"], said["kept"]["kept"]) == (None, False, None, 0)
        assert said["kept"]["ungraded"] == 4 * 5
    assert "0 of 20 (20)" in (folder / "tiny" / "report.html").read_text()


def test_a_filter_needs_a_judge(tiny_study: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], study: dict[str, Any]) -> None:
    asked = tiny_study(**study | {"generated_directions": {"questions": 5, "filter": {}}})
    assert "generated_directions.filter: uses the grades of a judge" in refused(capsys, "run", asked, "--runs-dir", tmp_path / "runs")
