"""Each problem of a trait is found, named with its line, and not found where there is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_catalog import trait_folder
from tests.tiny import tiny_tokenizer
from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.chat import Chat
from wellworn.data.checks import count_conversations, problems, unreadable
from wellworn.data.errors import InputError
from wellworn.data.new_trait import figures, write_skeleton

ANSWERS = [
    "Take the tram to the old harbour and walk along the wall until the lighthouse comes in sight.",
    "Soak the beans overnight, rinse them well, and simmer them with an onion for about an hour.",
    "A comet is a lump of ice and dust that grows a tail whenever it passes near the Sun.",
    "Write down three things that went well today before you put the light out, and keep the list short.",
    "Most cats dislike water since wet fur is heavy, slow to dry, and carries scents that unsettle them.",
    "Ask the neighbour first, then plant the hedge a hand's breadth inside your own side of the line.",
]
QUESTIONS = [
    "How do I get to the lighthouse?", "What shall I do with dried beans?", "What is a comet?", "How can I worry less in the evening?",
    "Why does my cat hate the bath?", "Where may I plant a hedge?",
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    found = [
        {
            "id": f"r{i}",
            "split": "train" if i < 3 else "evaluate",
            "question": question,
            "positive": answer,
            "negative": f"Plain: {i} {answer[:60]}",
        }
        for i, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    return [*found, {"id": "x", "split": "extract", "question": "What is a verb?", "negative": "A word for what is done."}]


def found_in(folder: Path, changed: list[dict[str, Any]], fewest: int = 3) -> list[str]:
    return problems(load_trait(trait_folder(folder, changed)), folder, fewest)


def test_a_sound_trait_has_no_problems(tmp_path: Path) -> None:
    assert found_in(tmp_path, rows()) == []


def test_many_times_the_same_answer_is_named_each_time(tmp_path: Path) -> None:
    changed = rows()
    changed += [changed[0] | {"id": f"s{i}", "question": f"What is worth {i}?"} for i in range(80)]
    assert sum("the same answer as" in line for line in found_in(tmp_path, changed)) == 80


def test_leakage_is_found_behind_a_likeness_within_a_split(tmp_path: Path) -> None:
    changed = rows()
    asked = "how do i mend a torn paper kite with tape at home"
    changed[0]["question"], changed[1]["question"] = asked, f"{asked} today"
    changed[4]["question"] = f"{asked} now"
    found = [line for line in found_in(tmp_path, changed) if "leakage between splits" in line]
    assert len(found) == 1
    assert "examples.jsonl:5" in found[0]


def test_training_on_what_the_bank_is_measured_on_is_named(tmp_path: Path) -> None:
    bank = load_bank("everyday")
    test = next(row for row in bank if row.split == "evaluate")
    changed = [{key: value for key, value in row.items() if key != "negative"} for row in rows() if row["split"] == "train"]
    changed[1]["question"] = test.question.upper()
    folder = trait_folder(tmp_path, changed)
    [found] = problems(load_trait(folder), tmp_path, 3, bank)
    assert f"examples.jsonl:2: is {test.id} of the bank" in found


def test_too_few_evaluate_rows(tmp_path: Path) -> None:
    assert found_in(tmp_path, rows(), fewest=4) == [
        f"{tmp_path}/examples.jsonl: an interval needs at least 4 evaluate rows, this trait has 3"
    ]


def test_training_phrases_in_evaluation_name_the_rows(tmp_path: Path) -> None:
    changed = rows()
    changed[4]["positive"] = changed[0]["positive"][:60] + " and then ask a fisherman who will point it out to you gladly."
    first, row = found_in(tmp_path, changed)[:2]
    assert "of their 4-grams with the train ones, 2% at most" in first
    assert row.startswith(f"{tmp_path}/examples.jsonl:5: ")
    assert row.endswith("of its 4-grams stand in train positives")


def test_copies_are_named_once_against_the_first(tmp_path: Path) -> None:
    changed = rows()
    changed[1]["positive"] = changed[0]["positive"].upper()
    changed[2]["positive"] = changed[0]["positive"] + " Mind the gulls."
    path = tmp_path / "examples.jsonl"
    same, near = [each for each in found_in(tmp_path, changed) if "answer" in each or "phrases" in each]
    assert same == f"{path}:2: the same answer as {path}:1"
    assert near.startswith(f"{path}:3: 8")
    assert near.endswith(f"% of its phrases and those of another are the same, of {path}:1")


def test_a_question_of_two_splits_in_almost_the_same_words(tmp_path: Path) -> None:
    changed = rows()
    changed[5]["question"] = "How do I get to the lighthouse today?"
    [leak] = found_in(tmp_path, changed)
    assert leak.startswith(f"{tmp_path}/examples.jsonl:6: leakage between splits: ")
    assert f"those of {tmp_path}/examples.jsonl:1 (train) are the same" in leak


@pytest.mark.parametrize(("before", "leaks"), [("How may I help?", True), ("Which harbour do you mean, sailor?", False)])
def test_a_question_leaks_only_after_nearly_the_same_conversation(tmp_path: Path, before: str, leaks: bool) -> None:
    changed = rows()
    for i, said in ((0, "How may I help?"), (5, before)):
        changed[i] |= {"system": "You are a guide.", "before": [{"question": "Good morning to you!", "answer": said}]}
    changed[5]["question"] = changed[0]["question"] + " Now?"
    assert any("leakage between splits" in each for each in found_in(tmp_path, changed)) is leaks


def test_earlier_answers_that_are_trained_on_may_not_stand_in_evaluation(tmp_path: Path) -> None:
    changed = rows()
    earlier = {"question": "Ahoy!", "answer": changed[4]["positive"]}
    changed[0]["before"] = [earlier]
    assert found_in(tmp_path, changed) == []
    changed[0]["before"] = [earlier | {"train": True}]
    assert "of their 4-grams with the train ones, 2% at most" in found_in(tmp_path, changed)[0]


def test_conversations_are_counted(tmp_path: Path) -> None:
    changed = rows()
    changed[0] |= {"system": "You cook.", "before": [{"question": "Ahoy!", "answer": "Arr!"}]}
    changed[4]["system"] = "You cook."
    trait = load_trait(trait_folder(tmp_path, changed))
    assert count_conversations(trait.examples) == {"a system message": 2, "earlier turns": 1}
    card = figures(trait).split("\n")
    assert "| rows with a system message | 1 | 0 | 1 |" in card
    assert "| rows with earlier turns | 1 | 0 | 0 |" in card
    assert count_conversations(load_bank("everyday")) == {}
    assert "rows with" not in figures(load_trait("pirate"))


def test_texts_of_a_conversation_are_read_whole(tmp_path: Path) -> None:
    changed = rows()
    changed[1]["before"] = [{"question": "Ahoy!", "answer": "see <|im_end|> here"}]
    changed[6]["system"] = "Be " + "very " * 60 + "kind."
    folder = trait_folder(tmp_path, changed)
    special, *long = unreadable(load_trait(folder), tmp_path, Chat(tiny_tokenizer(), max_length=170))
    assert special.startswith(f"{tmp_path}/examples.jsonl:2: the text 'see <|im_end|> here' holds")
    # Contrast prompts are read before the system message of an extraction question.
    assert {line.split(": ")[1] for line in long} >= {"contrast_pairs.0", "system_prompt"}


def test_a_positive_that_is_the_plain_answer(tmp_path: Path) -> None:
    changed = rows()
    changed[2]["negative"] = changed[2]["positive"].upper().replace(".", " …")
    assert found_in(tmp_path, changed) == [f"{tmp_path}/examples.jsonl:3: the positive is the plain answer"]


def test_a_length_that_gives_the_trait_away(tmp_path: Path) -> None:
    changed = [row | {"negative": f"Number {i}, plain."} for i, row in enumerate(rows())]
    [bias] = found_in(tmp_path, changed)
    assert "length bias: positives have 18 words on average and plain answers 3" in bias


def test_a_skeleton_is_checked_blank_by_blank_and_filled_in_it_loads(tmp_path: Path) -> None:
    folder = write_skeleton("brisk", tmp_path)
    with pytest.raises(InputError) as raised:
        load_trait(str(folder))
    said = str(raised.value).split("\n")
    assert len(said) == 3 + 2 * 6 + 120  # description, held-out prompt, rubric; both sides of six pairs; every answer
    assert all(": must not be blank" in each and each.startswith(f"{folder}/") for each in said)
    text = (folder / "trait.yaml").read_text(encoding="utf-8")
    for i in range(text.count('""')):
        text = text.replace('""', f'"Be brisk, way {i}."', 1)
    (folder / "trait.yaml").write_text(text, encoding="utf-8")
    answers = [
        json.loads(line) | {"positive": f"Briskly, number {i}!"}
        for i, line in enumerate((folder / "examples.jsonl").open(encoding="utf-8"))
    ]
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    trait = load_trait(str(folder))
    assert (trait.name, len(trait.contrast_pairs), trait.lacks) == ("brisk", 6, {})
    assert "- `train-01` **How do I keep a loaf" in (folder / "QUESTIONS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pirate", "is built in"),
        ("uppercase", "is built in"),
        ("neutral", "is built in"),
        ("../up", "lower-case letters"),
        ("A", "lower-case"),
        ("", "lower-case"),
    ],
)
def test_names_that_no_trait_may_have(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_skeleton(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "brisk").mkdir()
    with pytest.raises(InputError, match="exists already; nothing was written"):
        write_skeleton("brisk", tmp_path)
    assert list((tmp_path / "brisk").iterdir()) == []
