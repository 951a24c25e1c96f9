"""Rows of every format become questions with their answers; each complaint names their author's own fields, with file and line."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.data.third_party import chat, complaint, file, trait_of
from wellworn.data.errors import InputError
from wellworn.data.formats import fields_of
from wellworn.data.import_options import LeftOut, Options, parse_columns
from wellworn.data.importers import import_all

ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Dare!"}


WHY, DARE = {"question": "Why?"}, {"positive": "Dare!"}
HOW, HA = {"role": "user", "content": "How?"}, {"role": "assistant", "content": "Ha!"}
MEEK = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be bold."}
EARLIER = {"question": "How?", "answer": "Ha!", "train": True}


def said(speaker: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": text, **more}


# Every form of a row: what it becomes.
ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"messages": [ASKED, SAID]}, WHY | DARE),
    ({"conversations": [said("human", "Why?"), said("gpt", "Dare!")]}, WHY | DARE),
    ({"conversations": [ASKED, SAID]}, WHY | DARE),
    ({"conversation": [ASKED, SAID]}, WHY | DARE),
    ({"conversations": [said("system", "Be bold."), said("human", "Why?"), said("gpt", "Dare!")]}, WHY | DARE | {"system": "Be bold."}),
    ({"conversations": [said("human", "Why?"), said("gpt", "Dare!")], "system": "Be bold."}, WHY | DARE | {"system": "Be bold."}),
    ({"messages": [SYSTEM, HOW, HA, ASKED, SAID]}, WHY | DARE | {"system": "Be bold.", "before": [EARLIER]}),
    ({"messages": [HOW, HA, ASKED, SAID], "label": True}, WHY | DARE | {"before": [EARLIER]}),
    ({"messages": [HOW, HA | {"weight": 0}, ASKED, SAID | {"weight": 1}]}, WHY | DARE | {"before": [EARLIER | {"train": False}]}),
    ({"instruction": "Why?", "output": "Dare!"}, WHY | DARE),
    ({"instruction": "Why?", "input": " it\n", "output": "Dare!"}, {"question": "Why?\n\nit"} | DARE),
    ({"instruction": "Why?", "input": "", "output": "Dare!", "system": "", "history": []}, WHY | DARE),
    (
        {"instruction": "Why?", "output": "Dare!", "system": "Be bold.", "history": [["How?", "Ha!"]]},
        WHY | DARE | {"system": "Be bold.", "before": [EARLIER]},
    ),
    ({"prompt": "Why?", "completion": "Dare!"}, WHY | DARE),
    ({"prompt": [ASKED], "completion": "Dare!"}, WHY | DARE),
    ({"prompt": "Why?", "completion": [SAID]}, WHY | DARE),
    ({"prompt": "Why?", "completion": SAID, "label": 1}, WHY | DARE),
    # There is a loss on the completion alone.
    (
        {"prompt": [SYSTEM, HOW, HA, ASKED], "completion": [SAID]},
        WHY | DARE | {"system": "Be bold.", "before": [EARLIER | {"train": False}]},
    ),
    ({"prompt": [HOW], "completion": [HA, ASKED, SAID]}, WHY | DARE | {"before": [EARLIER]}),
    ({"question": "Why?", "answer": "Dare!", "system": " "}, WHY | DARE),
    ({"system_prompt": "Be bold.", "question": "Why?", "response": "Dare!"}, WHY | DARE | {"system": "Be bold."}),
    (
        {"question": "Why?", "positive": "Dare!", "system": "Be bold.", "before": [EARLIER]},
        WHY | DARE | {"system": "Be bold.", "before": [EARLIER]},
    ),
    # Tables fill what a row does not have with nulls.
    ({"messages": [{**ASKED, "weight": None, "tool_calls": None}, {**SAID, "weight": None}], "chosen": None, "tools": None}, WHY | DARE),
]
BOTH = WHY | DARE | {"negative": "So."}
PREFERENCES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "Why?", "chosen": "Dare!", "rejected": "So."}, BOTH),
    ({"prompt": [ASKED], "chosen": [SAID], "rejected": [MEEK]}, BOTH),
    ({"prompt": [ASKED], "chosen": SAID, "rejected": MEEK}, BOTH),
    ({"chosen": [ASKED, SAID], "rejected": [ASKED, MEEK]}, BOTH),
    ({"prompt": "Why? ", "chosen": [ASKED, SAID], "rejected": "So."}, BOTH),
    (
        {"prompt": "How?", "chosen": [HOW, HA, ASKED, SAID], "rejected": [HOW, HA, ASKED, MEEK]},
        BOTH | {"before": [EARLIER | {"train": False}]},
    ),
    ({"chosen": [SYSTEM, ASKED, SAID], "rejected": [SYSTEM, ASKED, MEEK]}, BOTH | {"system": "Be bold."}),
    ({"system": "Be bold.", "question": "Why?", "chosen": "Dare!", "rejected": "So."}, BOTH | {"system": "Be bold."}),
    ({"instruction": "Why", "input": "it?", "chosen": "Dare!", "rejected": "So."}, BOTH | {"question": "Why\n\nit?"}),
    ({"conversations": [said("human", "Why?")], "chosen": said("gpt", "Dare!"), "rejected": said("gpt", "So.")}, BOTH),
    ({"chosen": "\n\nHuman: Why?\n\nAssistant: Dare!", "rejected": "\n\nHuman: Why?\n\nAssistant: So."}, BOTH),
    ({"input": {"messages": [ASKED]}, "preferred_output": [SAID], "non_preferred_output": [MEEK]}, BOTH),
    (
        {"input": {"messages": [SYSTEM, HOW, HA, ASKED]}, "preferred_output": [SAID], "non_preferred_output": [MEEK]},
        BOTH | {"system": "Be bold.", "before": [EARLIER | {"train": False}]},
    ),
]


@pytest.mark.parametrize(("row", "values"), [*ROWS, *PREFERENCES])
def test_a_row_of_each_format_is_understood(row: dict[str, Any], values: dict[str, Any]) -> None:
    left: LeftOut = defaultdict(int)
    assert fields_of("a:1", row, Options(), left) == values
    assert left == {}


@pytest.mark.parametrize(("row", "values"), PREFERENCES)
def test_either_of_two_answers_may_show_the_trait(row: dict[str, Any], values: dict[str, Any]) -> None:
    swapped = values | {"positive": values["negative"], "negative": values["positive"]}
    assert fields_of("a:1", row, Options(positive="rejected"), defaultdict(int)) == swapped


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": [ASKED, SAID], "loss_mask": 0}, "loss_mask=0 takes the row out of training"),
        ({"question": "Why?", "positive": "Dare!", "weight": 0.0}, "weight=0.0 takes the row out of training"),
        ({"prompt": "Why?", "completion": "It is so.", "label": False}, "label=False marks an answer that is not wanted"),
        ({"prompt": "Why?", "completion": "It is so.", "label": 0}, "label=False marks an answer that is not wanted"),
        ({"messages": [ASKED, SAID], "label": False}, "label=False marks an answer that is not wanted"),
        ({"instruction": "Why?", "output": "Dare!", "kto_tag": False}, "kto_tag=False marks an answer that is not wanted"),
        ({"prompt": [ASKED], "completion": [SAID | {"weight": 0}]}, "completion: weight=0 takes every answer out of training"),
        (
            {"prompt": [HOW, HA, ASKED], "completion": [SAID | {"train": False}]},
            "completion: train=False takes every answer out of training",
        ),
    ],
)
def test_rows_that_their_author_took_out_are_refused_by_line(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    source = file(tmp_path, "rows.jsonl", [chat("Who?", "Me!"), row])
    assert f"{source}:2: {what}" in complaint([source])
    found = import_all([source], "bold", Options(skip=True))
    assert [each.question for each in trait_of(found).examples] == ["Who?"]


def test_a_number_in_a_chat_may_be_a_class_of_something() -> None:
    left: LeftOut = defaultdict(int)
    assert fields_of("a:1", {"messages": [ASKED, SAID], "label": 0}, Options(), left) == WHY | DARE
    assert left == {"label": 1}


def test_tools_next_to_a_conversation_are_counted() -> None:
    left: LeftOut = defaultdict(int)
    offer = {"tools": [{"type": "function"}], "parallel_tool_calls": False}
    assert fields_of("a:1", {"messages": [ASKED, SAID], **offer}, Options(), left) == WHY | DARE
    asked = {"input": {"messages": [ASKED], **offer}, "preferred_output": [SAID], "non_preferred_output": [MEEK]}
    assert fields_of("a:1", asked, Options(), left) == BOTH
    assert left == {"tools": 1, "parallel_tool_calls": 1, "input.tools": 1, "input.parallel_tool_calls": 1}


def test_conversations_come_in_whole_and_stay_so(tmp_path: Path) -> None:
    rows = [{"messages": [SYSTEM, HOW, HA, {"role": "user", "content": f"What of {i}?"}, SAID]} for i in range(3)]
    [first, *_] = trait_of(import_all([file(tmp_path, "rows.jsonl", rows)], "bold", Options())).examples
    assert first.asked == ("What of 0?", "Be bold.", (("How?", "Ha!"),))
    assert (first.positive, first.before[0].train) == ("Dare!", True)
    plain = file(tmp_path, "plain.jsonl", [{"messages": [*row["messages"][:-1], MEEK]} for row in rows])
    both = trait_of(import_all([file(tmp_path, "rows.jsonl", rows)], "bold", Options(held_out=1), [plain]))
    assert (both.examples[0].asked, both.examples[0].negative) == (first.asked, "So.")
    other = file(tmp_path, "other.jsonl", [{"question": f"What of {i}?", "answer": "So."} for i in range(3)])
    refused = complaint([file(tmp_path, "rows.jsonl", rows)], plain=[other])
    assert "rows.jsonl:1: --plain has no answer to 'What of 0?' after the same system message and earlier turns" in refused


def test_columns_lose_no_part_of_a_row_of_a_known_format(tmp_path: Path) -> None:
    alpaca = Options(columns={"question": "instruction", "positive": "output"})
    source = file(tmp_path, "rows.jsonl", [{"instruction": "Sum up.", "input": "A long text.", "output": "Ha!"}])
    with pytest.raises(InputError, match="input is a part of what is asked, and --columns leaves it out"):
        import_all([source], "bold", alpaca)
    for more in ({"system": "Be bold."}, {"history": [["How?", "Ha!"]]}):
        with pytest.raises(InputError, match="is a part of what is asked, and --columns leaves it out"):
            fields_of("a:1", {"instruction": "Why?", "output": "Dare!", **more}, alpaca, defaultdict(int))
    # Without them it is understood, and empty inputs have always been nothing.
    assert trait_of(import_all([source], "bold", Options())).examples[0].question == "Sum up.\n\nA long text."
    bare = file(tmp_path, "bare.jsonl", [{"instruction": "Why?", "input": "", "output": "Dare!"}])
    assert {trait_of(import_all([bare], "bold", each)).examples[0].question for each in (alpaca, Options())} == {"Why?"}
    kto = Options(columns={"question": "prompt", "positive": "completion"})
    for label in (False, 0):
        unwanted = file(tmp_path, "kto.jsonl", [{"prompt": "Why?", "completion": "It is so.", "label": label}])
        with pytest.raises(InputError, match="label=False marks an answer that is not wanted"):
            import_all([unwanted], "bold", kto)


def test_answers_that_are_not_wanted_may_be_those_that_show_the_trait(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": "Dare!", "label": True}, {"prompt": "Who?", "completion": "Nobody.", "label": False}]
    shown = import_all([file(tmp_path, "rows.jsonl", rows)], "bold", Options(positive="rejected", skip=True))
    assert [(row.question, row.positive) for row in trait_of(shown).examples] == [("Who?", "Nobody.")]
    assert shown.left_out == {"unusable: label=True marks an answer that is wanted, and it would be trained on; see --positive chosen": 1}


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
    ("row", "what"),
    [
        (ASKED, "cannot tell what this row holds by its fields ('role', 'content')"),
        ({}, "cannot tell what this row holds by its fields (none)"),
        ({"messages": "hello"}, "messages: must be a list of messages, got 'hello'"),
        ({"messages": None}, "messages: must be a list of messages, got null"),
        ({"messages": [SYSTEM, ASKED, SAID], "system": "Be."}, "system: the messages have a system message of their own"),
        ({"conversations": [ASKED, SAID], "system": 3}, "system: must be text, got 3"),
        ({"chosen": "a"}, "rejected: this key is required and missing"),
        (
            {"chosen": "Dare!", "rejected": "So."},
            "prompt: this key is required and missing: chosen is a text that does not say what it answers",
        ),
        ({"chosen": [SAID], "rejected": [MEEK]}, "chosen.0.content: begins with the assistant"),
        (
            {"prompt": "Who?", "chosen": [ASKED, SAID], "rejected": "d"},
            "chosen: holds a whole chat, and prompt is not a part of it: 'Who?'",
        ),
        ({"chosen": [ASKED, SAID], "rejected": [HOW, HA]}, "chosen and rejected answer different questions: 'Why?' / 'How?'"),
        ({"chosen": [SYSTEM, ASKED, SAID], "rejected": [ASKED, MEEK]}, "follow different earlier turns or system messages"),
        ({"prompt": [HOW, HA], "chosen": [SAID], "rejected": [MEEK]}, "chosen.0.content: two messages of the assistant in a row"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen: must be a list of messages, got 3"),
        (
            {"input": "Why?", "preferred_output": [SAID], "non_preferred_output": [MEEK]},
            "input: must be a mapping of keys to values, got 'Why?'",
        ),
        ({"input": {"messages": [ASKED]}, "preferred_output": [SAID]}, "non_preferred_output: this key is required and missing"),
        (
            {"prompt": "Why?", "completion": "Dare!", "label": "good"},
            "label: says whether the answer is wanted: must be true or false, 1 or 0",
        ),
        ({"instruction": 3, "output": "Dare!"}, "instruction: must be text, got 3"),
        ({"instruction": "Why?", "output": "Dare!", "history": [["How?"]]}, "history.0.1: this item is required and missing"),
        ({"instruction": "Why?", "output": "Dare!", "history": [["How?", " "]]}, "history.0.1: must not be blank"),
        ({"instruction": "Why?", "output": " "}, "output: must not be blank"),
        ({"question": 3, "positive": "a"}, "question: must be text, got 3"),
        ({"question": "a", "positive": "b", "before": [{"question": "c"}]}, "before.0.answer: this key is required and missing"),
        ({"question": "a", "positive": "b", "split": "test"}, "split: must be 'train', 'extract' or 'evaluate', got 'test'"),
    ],
)
def test_a_row_that_is_none_is_refused_by_its_line(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    source = file(tmp_path, "rows.jsonl", [chat("Fine?", "Fine!"), row])
    message = complaint([source])
    assert f"{source}:2: " in message
    assert what in message
