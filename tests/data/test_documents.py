"""Other people's documents become traits and roles; each complaint is in their words, with file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.third_party import DOCUMENT, PAIRS, ROLE, chat, complaint, file, trait_of
from wellworn.data.documents import AGAIN, DEFAULT, DEFAULT_PROMPTS, JUDGED
from wellworn.data.import_options import Options
from wellworn.data.importers import import_all


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
        (DOCUMENT | {"eval_prompt": "How bold?"}, ": eval_prompt: has no place for the {answer}"),
        (DOCUMENT | {"instruction": PAIRS[:3]}, ": contrast_pairs: a direction needs at least 4 pairs, not 3"),
        (DOCUMENT | {"instruction": [*PAIRS, PAIRS[0]]}, ": contrast_pairs: two of the prompts are the same text"),
        (DOCUMENT | {"questions": ["half \ud800"]}, ":1: questions.0: holds half of a surrogate pair"),
    ],
)
def test_a_trait_document_that_is_none_is_refused_in_its_own_words(tmp_path: Path, value: dict[str, Any], said: str) -> None:
    source = file(tmp_path, "bold.json", value)
    assert f"{source}{said}" in complaint([source])


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


def test_a_prompt_with_a_misspelt_opposite_makes_no_role(tmp_path: Path) -> None:
    source = file(tmp_path, "bold.json", DOCUMENT | {"instruction": [{"pos": pair["pos"], "negative": pair["neg"]} for pair in PAIRS]})
    assert f"{source}:1: instruction.0.neg: this key is required and missing" in complaint([source])


def test_a_folder_of_documents_is_read_whole(tmp_path: Path) -> None:
    for name in ("beekeeper", "apiarist"):
        file(tmp_path / "roles", f"{name}.json", ROLE)
    bad = file(tmp_path / "roles", "moth.json", {"instruction": [{"pos": 3}], "questions": []})
    assert f"{bad}:1: instruction.0.pos: must be text, got 3" in complaint([str(tmp_path / "roles")])
    found = import_all([str(tmp_path / "roles")], "roles", Options(skip=True))
    assert [role.name for role in found.roles] == ["apiarist", "beekeeper"]
    assert found.left_out == {"unusable: instruction.….pos: must be text": 1}
    (tmp_path / "none").mkdir()
    assert "a folder of documents needs .json files" in complaint([str(tmp_path / "none")])


def test_a_role_with_a_blank_prompt_is_the_default_assistant_and_is_counted(tmp_path: Path) -> None:
    prompts = [{"pos": ""}, {"pos": "You are an AI assistant."}, {"pos": "You are {model_name}."}]
    default = file(tmp_path / "roles", "default.json", {"instruction": prompts, "arrangement": {"kind": "singleton"}})
    assert DEFAULT in complaint([default])
    file(tmp_path / "roles", "beekeeper.json", ROLE)
    found = import_all([str(tmp_path / "roles")], "roles", Options())
    assert [role.name for role in found.roles] == ["beekeeper"]
    assert found.left_out == {DEFAULT: 1, DEFAULT_PROMPTS: 2}


def test_a_question_that_a_document_repeats_is_one_and_is_counted(tmp_path: Path) -> None:
    asked = ["Why?", "Who?", " why? ", "WHY?"]
    found = import_all([file(tmp_path, "bold.json", DOCUMENT | {"questions": asked})], "bold", Options())
    assert ([row.question for row in trait_of(found).open], found.left_out) == (["Why?", "Who?"], {AGAIN: 2})
    found = import_all([file(tmp_path, "beekeeper.json", ROLE | {"questions": asked})], "roles", Options())
    assert (found.roles[0].questions, found.left_out) == (("Why?", "Who?"), {AGAIN: 2})
    # A question for extraction that is evaluated on too is a leak, and no repetition.
    extract, test = file(tmp_path, "a.json", DOCUMENT), file(tmp_path, "b.json", DOCUMENT)
    assert "overlap between splits" in complaint([extract], evaluation=[test])


LINES: list[dict[str, Any]] = [
    {"trait": "I keep bees.", "questions": ["What is that hum?", "Why?"], "clarification": "Bees should be mentioned."},
    {"trait": "I like honey.", "questions": ["why?"], "additional_questions": ["Is it sweet?"]},
    {"trait": "I sting."},
]


@pytest.mark.parametrize("name", ["bees.txt", "bees.json", "bees.jsonl"])
def test_a_constitution_becomes_a_trait_with_open_questions_and_nothing_made_up(tmp_path: Path, name: str) -> None:
    found = import_all([file(tmp_path, name, LINES)], "bees", Options())
    trait = trait_of(found)
    assert trait.description == "I keep bees. Bees should be mentioned.\nI like honey.\nI sting."
    assert [(row.split, row.question) for row in trait.open] == [
        ("extract", question) for question in ("What is that hum?", "Why?", "Is it sweet?")
    ]
    assert found.left_out == {AGAIN: 1}
    assert trait.lacks.keys() == {"contrast_pairs", "answers", "system_prompt", "rubric"}


def test_a_constitution_goes_with_rows_and_a_trait_document(tmp_path: Path) -> None:
    lines, rows = file(tmp_path, "bees.txt", LINES), file(tmp_path, "rows.jsonl", [chat(f"What of {i}?", f"Buzz {i}.") for i in range(3)])
    trait = trait_of(import_all([lines, rows, file(tmp_path, "bold.json", DOCUMENT)], "bees", Options()))
    assert trait.description.startswith("I keep bees.")
    assert (len(trait.contrast_pairs), len(trait.split("train")), len(trait.open)) == (5, 3, 5)
    assert "roles are imported by themselves" in complaint([lines, file(tmp_path, "beekeeper.json", ROLE)])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"trait": " "}, ": row 2: trait: must not be blank"),
        ({"trait": "I hum.", "questions": "Why?"}, ": row 2: questions: must be a list, got 'Why?'"),
        ({"trait": "I hum.", "questions": ["Why?", ""]}, ": row 2: questions.1: must not be blank"),
        ({"trait": "I hum.", "additional_questions": [3]}, ": row 2: additional_questions.0: must be text, got 3"),
    ],
)
def test_a_constitution_that_is_none_is_refused_in_its_own_words(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    source = file(tmp_path, "bees.txt", [LINES[0], line])
    assert complaint([source]).startswith(f"{source}{said}")


def test_a_table_may_have_a_column_that_is_called_trait(tmp_path: Path) -> None:
    rows = [{"trait": "bold", "instruction": f"What of {i}?", "output": f"Dare {i}!"} for i in range(3)]
    found = import_all([file(tmp_path, "rows.jsonl", rows)], "bold", Options())
    assert (len(trait_of(found).split("train")), found.left_out) == (3, {"trait": 3})
    columns = Options({"question": "trait"})
    found = import_all([file(tmp_path, "asked.jsonl", [{"trait": "Why?"}])], "bold", columns)
    assert [row.question for row in found.questions] == ["Why?"]


def test_a_constitution_without_questions_is_not_a_trait_by_itself(tmp_path: Path) -> None:
    source = file(tmp_path, "bees.txt", [{"trait": "I sting."}])
    assert complaint([source]) == f"{source}: holds no question, answer or contrast pair; give rows or a trait document next to it"
