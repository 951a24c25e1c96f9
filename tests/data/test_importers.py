"""Other people's documents and rows become traits, roles and questions; each complaint is in their words, with file and line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from wellworn.data.errors import InputError
from wellworn.data.formats import JUDGED, Options, parse_columns
from wellworn.data.importers import HELD_OUT, Imported, import_all
from wellworn.data.schema import Trait

PAIRS = [{"pos": f"Be bold, way {i}.", "neg": f"Be timid, way {i}."} for i in range(5)]
DOCUMENT: dict[str, Any] = {
    "instruction": PAIRS,
    "questions": ["What is worth a risk?", "Would you jump?"],
    "eval_prompt": "How bold is {answer} to {question}, from 0 to 100?",
}
ROLE: dict[str, Any] = {
    "instruction": [{"pos": f"You keep bees, and have for {years} years."} for years in range(2, 7)],
    "questions": ["How is the honey?"],
    "eval_prompt": "Is {answer} a beekeeper's?",
}


def file(folder: Path, name: str, content: object) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = name.endswith(".jsonl") and isinstance(content, list)
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if rows else json.dumps(content), encoding="utf-8")  # type: ignore[attr-defined]
    return str(path)


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def trait_of(found: Imported) -> Trait:
    assert found.trait is not None
    assert not found.roles
    return found.trait


def complaint(
    sources: Sequence[str],
    options: Options = Options(),  # noqa: B008
    plain: Sequence[str] = (),
    evaluation: Sequence[str] = (),
) -> str:
    with pytest.raises(InputError) as raised:
        import_all(sources, "bold", options, plain, evaluation)
    return str(raised.value)


# Documents


def test_a_trait_document_gives_pairs_rubric_and_open_questions(tmp_path: Path) -> None:
    source = file(tmp_path, "bold.json", DOCUMENT)
    other = file(tmp_path, "eval.json", DOCUMENT | {"questions": ["Shall I bet?"]})
    trait = trait_of(import_all([source], "bold", Options(), evaluation=[other]))
    assert [(pair.positive, pair.negative) for pair in trait.contrast_pairs] == [(pair["pos"], pair["neg"]) for pair in PAIRS]
    assert trait.rubric == DOCUMENT["eval_prompt"]
    assert [(row.split, row.question, row.open) for row in trait.open] == [
        ("extract", "What is worth a risk?", True),
        ("extract", "Would you jump?", True),
        ("evaluate", "Shall I bet?", True),
    ]
    assert trait.examples == ()
    assert trait.lacks.keys() == {"answers", "system_prompt"}


def test_the_places_that_an_export_added_to_a_rubric_are_taken_off_again(tmp_path: Path) -> None:
    for prompt, rubric in ((f"How bold?{JUDGED}", "How bold?"), (f"{{answer}}: bold?{JUDGED}", f"{{answer}}: bold?{JUDGED}")):
        trait = trait_of(import_all([file(tmp_path, "bold.json", DOCUMENT | {"eval_prompt": prompt})], "bold", Options()))
        assert trait.rubric == rubric


def test_a_role_document_is_called_as_its_file(tmp_path: Path) -> None:
    found = import_all([file(tmp_path, "beekeeper.json", ROLE), file(tmp_path, "apiarist.json", ROLE)], "roles", Options())
    assert found.trait is None
    assert [role.name for role in found.roles] == ["beekeeper", "apiarist"]
    role = found.roles[0]
    assert (list(role.system_prompts), role.rubric) == ([each["pos"] for each in ROLE["instruction"]], ROLE["eval_prompt"])
    assert role.questions == ("How is the honey?",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (DOCUMENT | {"instruction": [*PAIRS[:4], {"pos": "Be bold."}]}, ":1: instruction.4.neg: this key is required and missing"),
        (DOCUMENT | {"instruction": "be bold"}, ":1: instruction: must be a list, got 'be bold'"),
        (DOCUMENT | {"instruction": []}, ":1: instruction: must be a list of at least 1"),
        (DOCUMENT | {"questions": ["Why?", 3]}, ":1: questions.1: must be text, got 3"),
        (DOCUMENT | {"questions": ["Why?", " "]}, ":1: questions.1: must not be blank"),
        (DOCUMENT | {"questions": ["Why?", "why?"]}, "questions.1: repeated question: 'why?' stands in extract (extract-1)"),
        (DOCUMENT | {"eval_prompt": "How bold?"}, ": eval_prompt: has no place for the {answer}"),
        (DOCUMENT | {"instruction": PAIRS[:3]}, ": contrast_pairs: a direction needs at least 4 pairs, not 3"),
        (DOCUMENT | {"instruction": [*PAIRS, PAIRS[0]]}, ": contrast_pairs: two of the prompts are the same text"),
        (DOCUMENT | {"questions": ["half \ud800"]}, ":1: questions.0: holds half of a surrogate pair"),
    ],
)
def test_a_trait_document_that_is_none_is_refused_in_its_own_words(tmp_path: Path, value: dict[str, Any], said: str) -> None:
    source = file(tmp_path, "bold.json", value)
    assert f"{source}{said}" in complaint([source]).replace(f"{source}: questions.1: rep", f"{source}questions.1: rep")


def test_lines_are_those_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "bold.json"
    path.write_text(json.dumps(DOCUMENT | {"questions": ["Why?", 3]}, indent=1), encoding="utf-8")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), start=1) if text.strip() == "3")
    assert complaint([str(path)]) == f"{path}:{line}: questions.1: must be text, got 3"


def test_a_role_needs_five_prompts_and_a_name(tmp_path: Path) -> None:
    few = file(tmp_path, "beekeeper.json", ROLE | {"instruction": ROLE["instruction"][:4]})
    assert f"{few}: system_prompts: must be a list of at least 5" in complaint([few])
    named = file(tmp_path, "Bee Keeper.json", ROLE)
    assert f"{named}: name: must be lower-case letters, digits" in complaint([named])


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


def test_a_prompt_with_a_misspelt_opposite_makes_no_role(tmp_path: Path) -> None:
    source = file(tmp_path, "bold.json", DOCUMENT | {"instruction": [{"pos": pair["pos"], "negative": pair["neg"]} for pair in PAIRS]})
    assert f"{source}:1: instruction.0.neg: this key is required and missing" in complaint([source])


def test_a_folder_of_documents_is_read_whole(tmp_path: Path) -> None:
    for name in ("beekeeper", "apiarist"):
        file(tmp_path / "roles", f"{name}.json", ROLE)
    bad = file(tmp_path / "roles", "default.json", {"instruction": [{"pos": ""}], "questions": []})
    assert f"{bad}:1: instruction.0.pos: must not be blank" in complaint([str(tmp_path / "roles")])
    found = import_all([str(tmp_path / "roles")], "roles", Options(skip=True))
    assert [role.name for role in found.roles] == ["apiarist", "beekeeper"]
    assert found.left_out == {"unusable: instruction.0.pos: must not be blank, got ''": 1}
    (tmp_path / "none").mkdir()
    assert "a folder of documents needs .json files" in complaint([str(tmp_path / "none")])


# Rows


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
    assert f"{source}:5: messages: a row is one question" in complaint([source])
    found = import_all([source], "bold", Options(skip=True))
    assert [row.question for row in trait_of(found).examples] == ["Why?", "How?"]
    assert found.left_out == {
        "unusable: the same row as one before": 1,
        "unusable: positive: must not be blank, got ' '": 1,
        "unusable: messages: a row is one question (user) and one answer (assistant), got turns of nobody": 1,
    }


ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Dare!"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [ASKED, SAID | {"weight": 0}]}, "weight=0 takes the answer out of training"),
        ({"messages": [ASKED, SAID | {"train": False}]}, "train=False takes the answer out of training"),
        ({"prompt": [ASKED], "completion": [SAID | {"weight": 0}]}, "weight=0 takes the answer out of training"),
        ({"messages": [ASKED, SAID], "loss_mask": 0}, "loss_mask=0 takes the row out of training"),
        ({"question": "Why?", "positive": "Dare!", "weight": 0.0}, "weight=0.0 takes the row out of training"),
        ({"prompt": "Why?", "completion": "It is so.", "label": False}, "label=False marks an answer that is not wanted"),
        ({"instruction": "Why?", "output": "Dare!", "system": "Be bold."}, "system and history are more"),
        ({"instruction": "Why?", "output": "Dare!", "history": [["How?", "So."]]}, "system and history are more"),
    ],
)
def test_rows_that_their_author_took_out_or_that_mean_more_are_refused_by_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    source = file(tmp_path, "rows.jsonl", [chat("Who?", "Me!"), row])
    refused = complaint([source])
    assert f"{source}:2: " in refused
    assert said in refused
    found = import_all([source], "bold", Options(skip=True))
    assert [each.question for each in trait_of(found).examples] == ["Who?"]


def test_columns_lose_no_part_of_a_row_of_a_known_format(tmp_path: Path) -> None:
    alpaca = Options(columns={"question": "instruction", "positive": "output"})
    source = file(tmp_path, "rows.jsonl", [{"instruction": "Sum up.", "input": "A long text.", "output": "Ha!"}])
    with pytest.raises(InputError, match="input is a part of the question, and --columns leaves it out"):
        import_all([source], "bold", alpaca)
    # Without them it is understood, and empty inputs have always been nothing.
    assert trait_of(import_all([source], "bold", Options())).examples[0].question == "Sum up.\n\nA long text."
    bare = file(tmp_path, "bare.jsonl", [{"instruction": "Why?", "input": "", "output": "Dare!"}])
    assert {trait_of(import_all([bare], "bold", each)).examples[0].question for each in (alpaca, Options())} == {"Why?"}
    kto = Options(columns={"question": "prompt", "positive": "completion"})
    for label in (False, 0):
        unwanted = file(tmp_path, "kto.jsonl", [{"prompt": "Why?", "completion": "It is so.", "label": label}])
        with pytest.raises(InputError, match="label=False marks an answer that is not wanted"):
            import_all([unwanted], "bold", kto)


def test_completions_are_read_in_both_forms_and_by_their_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "completion": "Dare!", "label": True},
        {"prompt": [ASKED | {"content": "How?"}], "completion": [SAID]},
        {"prompt": "Who?", "completion": "Nobody.", "label": False},
    ]
    sources = [file(tmp_path, f"{i}.jsonl", [row]) for i, row in enumerate(rows)]
    assert [row.question for row in trait_of(import_all(sources[:2], "bold", Options())).examples] == ["Why?", "How?"]
    # Where the answers that are not wanted show the trait, it is the others that are left out.
    shown = import_all([sources[0], sources[2]], "bold", Options(positive="rejected", skip=True))
    assert [(row.question, row.positive) for row in trait_of(shown).examples] == [("Who?", "Nobody.")]


def test_a_source_of_which_nothing_can_be_used_is_refused(tmp_path: Path) -> None:
    source = file(tmp_path, "rows.jsonl", [{"messages": []}, chat("What?", " ")])
    with pytest.raises(InputError, match=r"rows.jsonl: no row can be used: unusable: messages: .* \(1\); unusable: positive: .* \(1\)"):
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


def test_preferences_are_read_in_both_forms_and_both_ways_round(tmp_path: Path) -> None:
    user, bold, meek = (
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Dare!"},
        {"role": "assistant", "content": "So."},
    )
    forms: list[dict[str, Any]] = [
        {"prompt": "Why?", "chosen": "Dare!", "rejected": "So."},
        {"prompt": [user], "chosen": [bold], "rejected": [meek]},
        {"chosen": [user, bold], "rejected": [user, meek]},
        {"prompt": "Why? ", "chosen": [user, bold], "rejected": "So."},
        {"prompt": "Why?", "chosen": "Dare!", "rejected": "So.", "messages": [user, bold]},
    ]
    for i, form in enumerate(forms):
        source = file(tmp_path, f"{i}.jsonl", [form, {"prompt": "How?", "chosen": "Ha!", "rejected": "Thus."}, *_more(8)])
        row = trait_of(import_all([source], "bold", Options(held_out=1))).examples[0]
        assert (row.question, row.positive, row.negative) == ("Why?", "Dare!", "So.")
        row = trait_of(import_all([source], "bold", Options(positive="rejected", held_out=1))).examples[0]
        assert (row.question, row.positive, row.negative) == ("Why?", "So.", "Dare!")


def _more(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"What of {i}?", "chosen": f"Ha, {i}!", "rejected": f"{i}."} for i in range(count)]


def test_columns_of_a_table_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{i},What of {i}?,Dare {i}!,It is {i}.,{'train' if i % 2 else 'evaluate'}" for i in range(10)]
    path.write_text("nr,prompt,good,bad,part\n" + "\n".join(lines), encoding="utf-8")
    columns = parse_columns("question=prompt, positive=good,negative=bad,split=part")
    found = import_all([str(path)], "bold", Options(columns))
    assert found.left_out == {"nr": 10}
    assert [row.split for row in trait_of(found).examples] == ["evaluate", "train"] * 5
    assert trait_of(found).examples[3].positive == "Dare 3!"
    assert "--columns positive=better: the row has no such field; it has 'nr', 'prompt', 'good', 'bad', 'part'" in complaint(
        [str(path)], Options({"question": "prompt", "positive": "better"})
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question", "a mapping is written question=FIELD"),
        ("question=a,question=b", "each once"),
        ("question=a,answer=b", "'answer' is no field of a row here; it may be one of: question, positive, negative, split, id"),
        ("positive=a", "which field holds the question?"),
    ],
)
def test_a_mapping_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_columns(text)
    assert said in str(raised.value)


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


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "hello"}, "messages: must be a list, got 'hello'"),
        ({"messages": []}, "messages: a row is one question (user) and one answer (assistant), got turns of nobody"),
        (chat("Why?", "So.")["messages"][0], "cannot tell what this row holds by its fields ('role', 'content')"),
        ({"messages": chat("a", "b")["messages"] * 2}, "got turns of user, assistant, user, assistant"),
        ({"messages": [{"role": "system", "content": "x"}, *chat("a", "b")["messages"]]}, "messages: holds a system message"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: this key is required and missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "messages.0.content"),
        (chat(" ", "b"), "question: must not be blank"),
        (chat("a", "half \udc00"), "positive: holds half of a surrogate pair"),
        ({"chosen": "a"}, "rejected: this key is required and missing"),
        ({"prompt": "a", "chosen": chat("b", "c")["messages"], "rejected": "d"}, "prompt, chosen and rejected are of different questions"),
        ({"question": 3, "positive": "a"}, "question: must be text, got 3"),
        ({"question": "a", "positive": "b", "split": "test"}, "split: must be 'train', 'extract' or 'evaluate', got 'test'"),
        ({}, "cannot tell what this row holds by its fields (none)"),
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_refused_by_its_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    source = file(tmp_path, "rows.jsonl", [chat("Fine?", "Fine!"), row])
    message = complaint([source])
    assert f"{source}:2: " in message
    assert said in message


def test_parts_of_a_message_are_put_together(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Da"}, {"type": "text", "text": "re!"}]
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": parts}]}
    assert trait_of(import_all([file(tmp_path, "rows.jsonl", [row])], "bold", Options())).examples[0].positive == "Dare!"


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


def test_fields_are_counted_at_any_depth(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Why?", "name": "x"}, {"role": "assistant", "content": "So.", "weight": 1}]}
    found = import_all([file(tmp_path, "rows.jsonl", [row])], "bold", Options())
    assert found.left_out == {"messages.name": 1, "messages.weight": 1}


def test_a_system_message_that_says_nothing_is_none(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": ""}, *chat("Why?", "Dare!")["messages"]]}
    assert trait_of(import_all([file(tmp_path, "rows.jsonl", [row])], "bold", Options())).examples[0].question == "Why?"


def test_braces_in_other_peoples_text_stay_as_they_are(tmp_path: Path) -> None:
    text = "{question} {{answer}} {0} %s ${x} {% raw %}"
    trait = trait_of(import_all([file(tmp_path, "rows.jsonl", [chat(text, text)])], "bold", Options()))
    assert (trait.examples[0].question, trait.examples[0].positive) == (text, text)
