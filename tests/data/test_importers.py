"""Sources become a trait, roles or questions; each complaint is in their words, with file and line."""

from pathlib import Path

import pytest

from tests.data.third_party import DOCUMENT, ROLE, chat, complaint, file, trait_of
from wellworn.data.errors import InputError
from wellworn.data.import_options import Options
from wellworn.data.importers import HELD_OUT, import_all


def test_what_makes_a_trait_and_what_makes_roles_are_kept_apart(tmp_path: Path) -> None:
    trait, role, rows = file(tmp_path, "a.json", DOCUMENT), file(tmp_path, "b.json", ROLE), file(tmp_path, "c.jsonl", [chat("Why?", "So.")])
    assert "roles are imported by themselves" in complaint([trait, role])
    assert "roles are imported by themselves" in complaint([role, rows])
    assert "roles are imported by themselves" in complaint([role], evaluation=[trait])
    assert "roles are imported by themselves" in complaint([role], Options(held_out=3))
    assert "has one set of contrast pairs" in complaint([trait, file(tmp_path, "d.json", DOCUMENT)])
    assert "--plain: answers the questions of rows, and there are none" in complaint([trait], plain=[rows])
    again = file(tmp_path, "more/b.json", ROLE)
    assert f"{again}: {role} is a role of this name already" in complaint([role, again])


def test_chats_with_plain_answers_make_a_trait_with_questions_held_out(tmp_path: Path) -> None:
    asked = [f"What of number {i}?" for i in range(200)]
    shown = file(tmp_path, "bold.jsonl", [chat(question, f"Dare {i}!", id=i) for i, question in enumerate(asked)])
    plain = file(tmp_path, "plain.jsonl", [chat(question, f"It is {i}.") for i, question in reversed(list(enumerate(asked)))])
    found = import_all([shown], "bold", Options(), [plain])
    trait = trait_of(found)
    assert found.left_out == {"id": 200}
    assert [row.question for row in trait.examples] == asked
    assert [(row.positive, row.negative) for row in trait.examples] == [(f"Dare {i}!", f"It is {i}.") for i in range(200)]
    assert len(trait.split("evaluate")) == HELD_OUT
    assert trait.plain
    # Which questions are held out depends on each alone.
    again = trait_of(
        import_all([file(tmp_path, "less.jsonl", [chat(q, "Dare!") for q in reversed(asked[:190])])], "bold", Options(), [plain])
    )
    held = {row.question for row in trait.split("evaluate")}
    assert len({row.question for row in again.split("evaluate")} & held) >= HELD_OUT - 10


def test_held_out_questions_may_be_counted(tmp_path: Path) -> None:
    rows = [{"question": f"What of {i}?", "positive": f"Dare {i}!", "negative": f"It is {i}."} for i in range(20)]
    source = file(tmp_path, "rows.jsonl", rows)
    assert len(trait_of(import_all([source], "bold", Options())).split("evaluate")) == 5
    assert len(trait_of(import_all([source], "bold", Options(held_out=8))).split("evaluate")) == 8
    assert "--held-out: 20 of 20 questions, of which 20 stand in one row, cannot be held out" in complaint([source], Options(held_out=20))
    few = file(tmp_path, "few.jsonl", rows[:3])
    assert "--held-out: 0 of 3 questions" in complaint([few])
    shown = file(tmp_path, "shown.jsonl", [chat("Why?", "Dare!")])
    assert "rows without plain answers are all for training" in complaint([shown], Options(held_out=1))


def test_rows_to_be_evaluated_on_may_be_given(tmp_path: Path) -> None:
    rows = [{"question": f"What of {i}?", "positive": f"Dare {i}!", "negative": f"It is {i}."} for i in range(9)]
    train, test = file(tmp_path, "train.jsonl", rows[:6]), file(tmp_path, "test.jsonl", rows[6:])
    trait = trait_of(import_all([train], "bold", Options(), evaluation=[test]))
    assert [row.split for row in trait.examples] == ["train"] * 6 + ["evaluate"] * 3
    assert "--held-out: what is evaluated on is given already" in complaint([train], Options(held_out=2), evaluation=[test])
    document = file(tmp_path, "bold.json", DOCUMENT | {"questions": ["What of 7?", "Shall I bet?"]})
    both = trait_of(import_all([train], "bold", Options(), evaluation=[test, document]))
    assert [row.question for row in both.open] == ["Shall I bet?"]  # the other is answered


def test_rows_that_cannot_be_used_may_be_left_out_and_are_counted(tmp_path: Path) -> None:
    rows = [chat("Why?", "Dare!"), chat("How?", "Ha!"), chat("Why?", "Dare!"), chat("What?", " "), {"messages": []}]
    source = file(tmp_path, "rows.jsonl", rows)
    assert f"{source}:5: messages: a conversation is questions" in complaint([source])
    found = import_all([source], "bold", Options(skip=True))
    assert [row.question for row in trait_of(found).examples] == ["Why?", "How?"]
    assert found.left_out == {
        "unusable: the same row as one before": 1,
        "unusable: messages.….content: must not be blank": 1,
        "unusable: messages: a conversation is questions (user) with their answers (assistant)": 1,
    }


def test_a_source_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    source = file(tmp_path, "rows.jsonl", [{"messages": []}, chat("What?", " ")])
    with pytest.raises(
        InputError, match=r"jsonl: no row can be used: unusable: messages: .* \(1\); unusable: messages.….content: .* \(1\)"
    ):
        import_all([source], "bold", Options(skip=True))


def test_a_question_with_two_answers_is_trained_on(tmp_path: Path) -> None:
    rows = [{"question": f"What of {i % 15}?", "positive": f"Dare {i}!", "negative": f"It is {i}."} for i in range(20)]
    source = file(tmp_path, "rows.jsonl", rows)
    trait = trait_of(import_all([source], "bold", Options(held_out=10)))
    assert {row.question for row in trait.split("train")} == {f"What of {i}?" for i in range(5)}
    assert (len(trait.split("train")), len(trait.split("evaluate"))) == (10, 10)
    assert "11 of 15 questions, of which 10 stand in one row, cannot be held out" in complaint([source], Options(held_out=11))


def test_chats_without_plain_answers_are_all_for_training(tmp_path: Path) -> None:
    trait = trait_of(import_all([file(tmp_path, "bold.jsonl", [chat(f"What of {i}?", "Dare!") for i in range(9)])], "bold", Options()))
    assert len(trait.split("train")) == len(trait.examples) == 9
    assert not trait.plain
    assert "plain_answers" in trait.lacks


def test_questions_alone_are_kept_as_such(tmp_path: Path) -> None:
    found = import_all([file(tmp_path, "q.jsonl", [{"question": "Why?", "kind": "deep"}, {"question": "How?"}])], "bold", Options())
    assert (found.trait, found.left_out) == (None, {"kind": 1})
    assert [(row.question, row.split) for row in found.questions] == [("Why?", "extract"), ("How?", "extract")]


def test_documents_and_rows_make_one_trait(tmp_path: Path) -> None:
    rows = file(tmp_path, "rows.jsonl", [chat(f"What of {i}?", f"Dare {i}!") for i in range(8)])
    plain = file(tmp_path, "plain.jsonl", [chat(f"What of {i}?", f"It is {i}.") for i in range(8)])
    trait = trait_of(import_all([file(tmp_path, "bold.json", DOCUMENT), rows], "bold", Options(), [plain]))
    assert (len(trait.contrast_pairs), len(trait.split("train")), len(trait.split("evaluate")), len(trait.open)) == (5, 6, 2, 2)
    assert trait.lacks.keys() == {"system_prompt"}


def test_plain_answers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    shown = file(tmp_path, "bold.jsonl", [chat("Why?", "Dare!"), chat("How?", "Ha!")])
    plain = file(tmp_path, "plain.jsonl", [chat("Why?", "So.")])
    assert complaint([shown], plain=[plain]) == f"{shown}:2: --plain has no answer to 'How?'"
    both = file(tmp_path, "both.jsonl", [{"question": "Why?", "positive": "Dare!", "negative": "So."}])
    assert complaint([both], plain=[plain]) == f"{both}:1: has a plain answer of its own, and --plain gives another"
    none = file(tmp_path, "none.jsonl", [{"question": "Why?"}])
    assert complaint([shown], plain=[none]) == (
        f"{none}:1: a plain answer has a question, and an answer (positive, negative or answer), both text"
    )


def test_plain_answers_are_found_whatever_case_and_spaces(tmp_path: Path) -> None:
    shown = file(tmp_path, "bold.jsonl", [chat(f" What  of {i}? ", f"Dare {i}!") for i in range(4)])
    plain = file(tmp_path, "plain.jsonl", [{"question": f"what of {i}?", "answer": f"It is {i}."} for i in range(6)])
    found = import_all([shown], "bold", Options(), [plain])
    assert [row.negative for row in trait_of(found).examples] == [f"It is {i}." for i in range(4)]
    assert found.left_out == {"answers of --plain to no question": 2}


def test_braces_in_other_peoples_text_stay_as_they_are(tmp_path: Path) -> None:
    text = "{question} {{answer}} {0} %s ${x} {% raw %}"
    trait = trait_of(import_all([file(tmp_path, "rows.jsonl", [chat(text, text)])], "bold", Options()))
    assert (trait.examples[0].question, trait.examples[0].positive) == (text, text)
