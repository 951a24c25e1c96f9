"""A reference that is trained on the model's own answers: as many steps as its run, and no answer twice."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import finished, stages_of
from wellworn.data.catalog import load_bank
from wellworn.data.errors import InputError
from wellworn.data.files import read_json
from wellworn.experiments.engine.context import StudyContext
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import in_order
from wellworn.experiments.engine.stage import Stage
from wellworn.experiments.plan.plan import plan
from wellworn.experiments.plan.subjects import Subject
from wellworn.experiments.study_file import load_study
from wellworn.lora.train_config import TrainConfig

Write = Callable[..., Path]
RUNS: dict[str, Any] = {
    "runs": [{"arm": "sft", "trait": "pirate"}, {"arm": "sft", "trait": "neutral"}],
    "neutral": "self",
    "mediate": None,
    "pathways": None,
}


def stages(study: Path) -> dict[str, Stage]:
    loaded = load_study(str(study))
    return {stage.title: stage for stage in in_order(plan(loaded, StudyContext.of(loaded, Ranks())).targets)}


@pytest.mark.parametrize(
    ("sft", "data_sets", "steps", "answers"),
    [
        # 72 questions in batches of 8 take 9 steps.
        ({"num_train_epochs": 2}, 1, 18, {2}),
        ({"num_train_epochs": 1}, 1, 9, {1}),
        ({"num_train_epochs": 1.5}, 1, 14, {2}),
        # 14 questions take two batches, of which one is not full.
        ({"num_train_epochs": 3}, 5, 6, {4}),
        ({"max_steps": 18}, 3, 18, {6}),
        ({"max_steps": 3}, 1, 3, {1}),
    ],
)
def test_it_takes_the_steps_of_its_run_and_has_an_answer_for_each_row_it_reads(
    tiny_study: Write, sft: dict[str, Any], data_sets: int, steps: int, answers: set[int]
) -> None:
    train: dict[str, Any] = {"batch_size": 8, "lora": {"r": 2}, "sft": sft}
    found = stages(tiny_study(**RUNS | {"train": train, "data_sets": data_sets, "seeds": [1]}))
    own, neutral, kept = (
        found[title] for title in ("train sft pirate (seed 1)", "train sft neutral (seed 1)", "answers of the base to train on")
    )
    assert own.config["train"]["sft"] == sft
    assert neutral.config["train"]["sft"] == {"max_steps": steps}
    assert {key: value for key, value in neutral.config["train"].items() if key != "sft"} == {"batch_size": 8, "lora": {"r": 2}}
    subject = Subject.load("pirate", load_bank("everyday")).of_seed(1, data_sets)
    assert TrainConfig(**train).steps(len(subject.training_turns())) == steps
    asked = Counter(question for question, _ in kept.config["asked"])
    assert set(asked.values()) == answers
    assert asked.total() >= steps * 8


def test_answers_to_one_question_differ(tiny_study: Write, tmp_path: Path) -> None:
    train = {"batch_size": 24, "lora": {"r": 2}, "sft": {"max_steps": 6, "save_steps": 5}}
    runs = finished(tiny_study(**RUNS | {"train": train, "answer_tokens": 8}), tmp_path)
    [kept] = stages_of(runs, "kept_answers").values()
    asked = [question for question, _ in read_json(kept / "manifest.json")["config"]["asked"]]
    answers = read_json(kept / "answers.json")
    assert len(asked) == len(answers) == 144
    assert len(set(zip(asked, answers, strict=True))) == 144
    curve = read_json(stages_of(runs, "train")["train sft neutral (seed 0)"] / "training.json")
    assert curve[-1]["step"] == 6


@pytest.mark.parametrize("key", ["packing", "dataloader_drop_last"])
def test_keys_by_which_steps_are_not_known_need_a_fixed_number_of_steps(tiny_study: Write, key: str) -> None:
    with pytest.raises(InputError, match=f"train.sft.{key}: the number of steps is not known beforehand; set train.sft.max_steps too"):
        stages(tiny_study(**RUNS | {"train": {"sft": {key: True}}}))
    assert stages(tiny_study(**RUNS | {"train": {"sft": {key: True, "max_steps": 2}}}))


def test_without_one_all_is_compared_with_the_base(tiny_study: Write, tmp_path: Path) -> None:
    changes = {"runs": [{"arm": "sft", "trait": "pirate"}], "neutral": None, "pathways": {"draws": 19, "profile": 0}}
    runs = finished(tiny_study(**RUNS | changes), tmp_path)
    assert len(stages_of(runs, "train")) == 1
    [row] = read_json(runs / "tiny" / "summary.json")["runs"]
    assert row["reference"] == "base"
    assert list(row["pathways"]) == ["base"]
    assert "no neutral fine-tunes" in row["missing"]["neutral"]


@pytest.mark.parametrize("neutral", [None, "self"])
def test_confined_runs_follow_the_same_rule(tiny_study: Write, neutral: str | None) -> None:
    train = {"batch_size": 8, "lora": {"r": 2, "target_modules": ["down_proj"]}, "sft": {"max_steps": 2}}
    found = stages(tiny_study(**RUNS | {"runs": [{"arm": "confined", "trait": "pirate"}], "neutral": neutral, "train": train}))
    assert any("confined pirate" in title for title in found)
    assert any("sft neutral" in title for title in found) == (neutral is not None)


def test_a_neutral_run_where_there_are_to_be_none_is_refused(tiny_study: Write) -> None:
    with pytest.raises(InputError, match="neutral: null leaves neutral fine-tunes out"):
        load_study(str(tiny_study(**RUNS | {"neutral": None})))


def test_planted_changes_have_no_size_without_neutral_fine_tunes(tiny_study: Write) -> None:
    trained = RUNS | {"runs": [{"arm": "sft", "trait": "pirate"}], "calibrate": {"draws": 2}}
    assert load_study(str(tiny_study(**trained | {"neutral": "self"}))).calibrate
    with pytest.raises(InputError, match=r"calibrate: .* neutral: null leaves these out"):
        load_study(str(tiny_study(**trained | {"neutral": None})))
