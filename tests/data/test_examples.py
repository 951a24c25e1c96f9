"""The rows of traits and banks: what a trait needs of them, what it may lack, and which line is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.data.test_catalog import QUESTIONS, bank_rows, complaint, line_of, own_rows, trait_folder, trait_value
from wellworn.data import catalog
from wellworn.data.catalog import load_bank, load_questions, load_trait
from wellworn.data.errors import InputError
from wellworn.data.writers import trait_files

# examples.jsonl


def test_missing_examples_are_named_where_there_are_no_contrast_pairs_either(tmp_path: Path) -> None:
    folder = trait_folder(tmp_path, own_rows())
    (tmp_path / "examples.jsonl").unlink()
    assert load_trait(folder).lacks.keys() == {"answers"}
    trait_folder(tmp_path, own_rows(), contrast_pairs=[])
    (tmp_path / "examples.jsonl").unlink()
    assert complaint(folder) == f"{tmp_path}/examples.jsonl: there is no such file"


@pytest.mark.parametrize("bank", [None, "everyday"])
def test_row_that_is_no_object_is_refused(tmp_path: Path, bank: str | None) -> None:
    message = complaint(trait_folder(tmp_path, [["a"]], **({"questions": bank} if bank else {})))
    assert message == f"{tmp_path}/examples.jsonl:1: a row is a JSON object, got list"


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_missing_positive_is_named(tmp_path: Path, split: str) -> None:
    rows = [{key: value for key, value in row.items() if (row["id"], key) != (f"{split}-1", "positive")} for row in own_rows()]
    message = complaint(trait_folder(tmp_path, rows))
    line = [row["id"] for row in rows].index(f"{split}-1") + 1
    assert message == f"{tmp_path}/examples.jsonl:{line}: {split}-1: a question without an answer: {split} rows need a positive"


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_empty_split_is_named_with_those_that_are_needed(tmp_path: Path, split: str) -> None:
    message = complaint(trait_folder(tmp_path, [row for row in own_rows() if row["split"] != split]))
    assert message == f"{tmp_path}/examples.jsonl: split {split!r} is empty; this set needs rows in train, evaluate"


def test_a_trait_may_leave_extraction_to_the_bank(tmp_path: Path) -> None:
    trait = load_trait(trait_folder(tmp_path, [row for row in own_rows() if row["split"] != "extract"]))
    assert (trait.split("extract"), trait.lacks) == ([], {})


@pytest.mark.parametrize("again", ["How do I boil an egg?", "how do i BOIL an egg?", "  How do  I boil\nan egg? "])
def test_question_in_two_splits_is_refused_whatever_its_case_and_spaces(tmp_path: Path, again: str) -> None:
    rows = own_rows()
    rows[-1]["question"] = again
    message = complaint(trait_folder(tmp_path, rows))
    assert message.startswith(f"{tmp_path}/examples.jsonl:{len(rows)}: overlap between splits: ")
    assert "stands in train (train-0) and in evaluate (evaluate-1)" in message


@pytest.mark.parametrize("split", ["extract", "evaluate"])
def test_question_twice_in_what_is_measured_is_refused(tmp_path: Path, split: str) -> None:
    rows = own_rows()
    first, second = (i for i, row in enumerate(rows) if row["split"] == split)
    rows[second]["question"] = rows[first]["question"].upper()
    message = complaint(trait_folder(tmp_path, rows))
    assert message.startswith(f"{tmp_path}/examples.jsonl:{second + 1}: repeated question: {rows[second]['question']!r}")
    assert f"stands in {split} ({split}-0) and in {split} ({split}-1)" in message


def test_training_may_answer_a_question_in_two_ways_but_not_twice(tmp_path: Path) -> None:
    rows = own_rows()
    rows[1]["question"] = rows[0]["question"].upper()
    assert len(load_trait(trait_folder(tmp_path, rows)).split("train")) == 2
    rows[1]["positive"] = rows[0]["positive"]
    message = complaint(trait_folder(tmp_path, rows))
    assert message.startswith(f"{tmp_path}/examples.jsonl:2: the same row twice: 'HOW DO I BOIL AN EGG?'")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    rows = own_rows()
    rows[0]["question"], rows[1]["split"] = "", "test"
    folder = trait_folder(tmp_path, rows)
    yaml = (tmp_path / "trait.yaml").read_text()
    (tmp_path / "trait.yaml").write_text(yaml + "mood: good\n")
    mood, question, split = complaint(folder).split("\n")
    assert mood.startswith(f"{tmp_path}/trait.yaml:{line_of(tmp_path, 'mood:')}: mood: unknown key")
    assert question.startswith(f"{tmp_path}/examples.jsonl:1: question: must not be blank")
    assert split.startswith(f"{tmp_path}/examples.jsonl:2: split: must be 'train', 'extract' or 'evaluate'")
    (tmp_path / "examples.jsonl").write_text("{\n" + json.dumps(own_rows()[0]) + "\n{]\n")
    assert [line.split(": ")[0] for line in complaint(folder).split("\n")[1:]] == [f"{tmp_path}/examples.jsonl:{i}" for i in (1, 3)]


def test_duplicate_ids_are_listed(tmp_path: Path) -> None:
    rows = own_rows()
    rows[1]["id"] = rows[0]["id"]
    message = complaint(trait_folder(tmp_path, rows))
    assert message == f"{tmp_path}/examples.jsonl: ids must be unique, these occur twice: train-0"


@pytest.mark.parametrize("row_id", ["train-99", None, 3, ["train-01"]])
def test_id_outside_the_bank_is_refused_with_an_example_of_one(tmp_path: Path, row_id: Any) -> None:
    rows = bank_rows()
    rows[4]["id"] = row_id
    message = complaint(trait_folder(tmp_path, rows, questions="everyday"))
    assert message == f"{tmp_path}/examples.jsonl:5: id: no question {row_id!r} in the trait's question bank; its ids are like 'train-01'"


def test_row_over_a_bank_may_not_bring_a_question_of_its_own(tmp_path: Path) -> None:
    rows = bank_rows()
    rows[0]["question"] = "Why?"
    message = complaint(trait_folder(tmp_path, rows, questions="everyday"))
    assert message == (
        f"{tmp_path}/examples.jsonl:1: a row over a question bank has the keys id and positive, got ['id', 'positive', 'question']"
    )


@pytest.mark.parametrize(("context", "named"), [({"system": "Be brief."}, "system"), ({"before": [], "system": "x"}, "before and system")])
def test_row_over_a_bank_may_not_bring_a_conversation(tmp_path: Path, context: dict[str, Any], named: str) -> None:
    rows = bank_rows()
    rows[0] |= context
    message = complaint(trait_folder(tmp_path, rows, questions="everyday"))
    assert message.startswith(f"{tmp_path}/examples.jsonl:1: {named}: only rows of a trait's own have a conversation before the question")


def test_row_of_a_traits_own_may_be_a_conversation(tmp_path: Path) -> None:
    rows = own_rows()
    rows[0] |= {"system": "You cook.", "before": [{"question": "Ahoy!", "answer": "Arr!", "train": True}]}
    first, second, *_ = load_trait(trait_folder(tmp_path, rows)).examples
    assert (first.system, first.asked.before, first.before[0].train) == ("You cook.", (("Ahoy!", "Arr!"),), True)
    assert (second.system, second.before) == (None, ())


def test_conversations_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = own_rows()
    rows[0] |= {
        "system": "You cook.",
        "before": [{"question": "Ahoy!", "answer": "Arr!", "train": True}, {"question": "Who?", "answer": "I."}],
    }
    trait = load_trait(trait_folder(tmp_path, rows))
    written = trait_files(trait, "card")["examples.jsonl"]
    assert [json.loads(line) for line in written.splitlines()] == rows


def test_a_question_may_come_again_after_another_conversation(tmp_path: Path) -> None:
    rows = own_rows()
    rows[-1] |= {"question": rows[0]["question"], "system": "You cook."}
    assert load_trait(trait_folder(tmp_path, rows)).split("evaluate")[-1].question == rows[0]["question"]
    rows[0]["system"] = "you COOK."
    assert f"overlap between splits: {rows[0]['question']!r}" in complaint(trait_folder(tmp_path, rows))


def test_same_bank_question_twice_is_refused(tmp_path: Path) -> None:
    rows = bank_rows()
    message = complaint(trait_folder(tmp_path, [*rows, rows[0]], questions="everyday"))
    assert "the same row twice" in message
    assert "stands in train (train-01) and in train (train-01)" in message


def test_wrong_type_in_a_row_names_line_field_and_value(tmp_path: Path) -> None:
    rows = bank_rows()
    rows[2]["positive"] = 5
    message = complaint(trait_folder(tmp_path, rows, questions="everyday"))
    assert message == f"{tmp_path}/examples.jsonl:3: positive: must be text, got 5"


def test_unknown_key_in_a_row_gets_line_and_did_you_mean(tmp_path: Path) -> None:
    rows = own_rows()
    rows[1]["postive"] = "x"
    message = complaint(trait_folder(tmp_path, rows))
    assert message == f"{tmp_path}/examples.jsonl:2: postive: unknown key; did you mean 'positive'?"


def test_malformed_line_is_numbered(tmp_path: Path) -> None:
    folder = trait_folder(tmp_path, own_rows())
    path = tmp_path / "examples.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"id": \n', encoding="utf-8")
    assert complaint(folder) == f"{path}:7: not valid JSON: Expecting value (column 8)"


# Banks


def test_bank_needs_every_split_and_a_plain_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "questions").mkdir()
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    path = tmp_path / "questions" / "mine.jsonl"
    path.write_text('{"id": "a", "split": "train", "question": "Why?", "negative": "So."}\n', encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_bank("mine")
    assert str(raised.value).split("\n") == [
        f"{path}: split {split!r} is empty; this set needs rows in train, extract, evaluate" for split in ("extract", "evaluate")
    ]
    path.write_text('{"id": "a", "split": "train", "question": "Why?"}\n', encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_bank("mine")
    assert str(raised.value) == f"{path}:1: a: a question without an answer: train rows need a positive"
    rows = [json.dumps(row) for row in ({"id": "a", "split": "extract", "question": "Why?"}, own_rows()[0])]
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_bank("mine")
    assert f"{path}:1: a: a question of a bank needs a plain answer (negative)" in str(raised.value)


def test_questions_without_answers_are_no_bank_for_training(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"split": "extract", "question": "Why?"}\n{"split": "extract", "question": "How?"}\n', encoding="utf-8")
    assert [(row.id, row.question, row.open) for row in load_questions(str(path))] == [("1", "Why?", True), ("2", "How?", True)]
    with pytest.raises(InputError, match=r"mine\.jsonl: its questions have no plain answers"):
        load_bank(str(path))


def test_a_bank_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{key: value for key, value in row.items() if key != "positive"} for row in own_rows()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row.question for row in load_bank(str(path))] == [question for each in QUESTIONS.values() for question in each]


# Incomplete traits


def test_answers_without_contrast_pairs_need_no_extraction_questions(tmp_path: Path) -> None:
    rows = [row for row in own_rows() if row["split"] != "extract"]
    folder = trait_folder(tmp_path, rows)
    value = {key: text for key, text in trait_value().items() if key in ("name", "description")}
    with (tmp_path / "trait.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(value, file)
    trait = load_trait(folder)
    assert [len(trait.split(split)) for split in ("train", "extract", "evaluate")] == [2, 0, 2]
    assert list(trait.lacks) == ["contrast_pairs", "system_prompt", "rubric"]


def test_contrast_pairs_without_answers_take_their_questions_from_a_bank(tmp_path: Path) -> None:
    folder = trait_folder(tmp_path, [], questions="everyday")
    (tmp_path / "examples.jsonl").unlink()
    trait = load_trait(folder)
    assert {row.split for row in trait.examples} == {"extract"}
    assert list(trait.lacks) == ["answers"]
    trait_folder(tmp_path, [row for row in own_rows() if row["split"] == "extract"])
    assert list(load_trait(folder).lacks) == ["answers"]


def test_a_set_with_some_answers_needs_all_that_they_are_for(tmp_path: Path) -> None:
    rows = [row for row in own_rows() if row["split"] != "evaluate"]
    message = complaint(trait_folder(tmp_path, rows))
    assert message == f"{tmp_path}/examples.jsonl: split 'evaluate' is empty; this set needs rows in train, evaluate"


def test_answers_without_plain_ones_are_trained_on_alone(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "negative"} for row in own_rows() if row["split"] == "train"]
    trait = load_trait(trait_folder(tmp_path, rows))
    assert (len(trait.split("train")), trait.plain, list(trait.lacks)) == (2, False, ["plain_answers"])
    rows[1]["negative"] = "A plain answer."
    message = complaint(trait_folder(tmp_path, rows))
    assert f"{tmp_path}/examples.jsonl:1: train-0: no plain answer (negative), which 1 other rows have" in message


def test_open_questions_stand_apart(tmp_path: Path) -> None:
    rows = [
        *own_rows(),
        {"id": "e", "split": "extract", "question": "Who dares?"},
        {"id": "v", "split": "evaluate", "question": "Who wins?"},
    ]
    trait = load_trait(trait_folder(tmp_path, rows))
    assert [row.id for row in trait.open] == ["e", "v"]
    assert len(trait.examples) == 6
    rows[-1]["split"] = "train"
    assert complaint(str(trait_folder(tmp_path, rows))).endswith(":8: v: a question without an answer: train rows need a positive")
