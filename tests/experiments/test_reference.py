"""The reference of keys: made from types of any nesting, complete for studies, and its page is current."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le
from pydantic import BaseModel, Field, PositiveFloat

from wellworn.experiments.commands.reference_pages import pages
from wellworn.experiments.commands.studies import LEFT_OUT
from wellworn.experiments.findings.summary import Summary
from wellworn.experiments.reference import Key, in_words, keys, markdown
from wellworn.experiments.stages.measurement import Measurement
from wellworn.experiments.study import Study


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        value: the estimate. Unit: nats.
        low: lower bound, at 95 %.
            It may be infinite. Unit: nats per token. Example: -0.5.
    """

    value: float
    low: float | None = None


class Cell(BaseModel):
    """A cell.

    Attributes:
        id: name of the cell.
        inner: cells inside it.
    """

    id: str
    inner: "list[Cell]" = []


class Square(BaseModel):
    """A square."""

    shape: Literal["square"]
    side: PositiveFloat = 1.0


class Disc(BaseModel):
    """A disc."""

    shape: Literal["disc"]
    radius: int = Field(default=2, ge=1, le=9)


class Table(BaseModel):
    """A table. It has two sentences.

    Attributes:
        size: how large it is. Unit: cells. Example: 4.
        effect: what it shows.
        by_name: intervals by name.
        cells: its cells.
        shapes: what is drawn.
        tags: labels.
    """

    size: Annotated[int, Ge(4), Le(12)]
    effect: Interval | None = None
    by_name: Mapping[str, list[Interval]] = {}
    cells: tuple[Cell, ...] = ()
    shapes: list[Annotated[Square | Disc, Field(discriminator="shape")]] = []
    tags: Annotated[set[str], Field(min_length=1)] = {"a"}
    plain: dict[str, Any] = field(default_factory=dict)


def found(path: str) -> list[Key]:
    return [key for key in keys(Table) if key.path == path]


def test_paths_of_nested_lists_mappings_alternatives_and_loops() -> None:
    assert [key.path for key in keys(Table)] == [
        *("size", "effect", "by_name", "cells", "shapes", "tags", "plain"),
        *("effect.value", "effect.low", "by_name.<key>[].value", "by_name.<key>[].low"),
        *("cells[].id", "cells[].inner"),
        *("shapes[].shape", "shapes[].side", "shapes[].shape", "shapes[].radius"),
    ]


@pytest.mark.parametrize(
    ("path", "takes", "default"),
    [
        ("size", "whole number, 4 to 12", None),
        ("effect", "mapping, or null", "null"),
        ("by_name", "mapping of texts to lists of mappings", "{}"),
        ("cells", "list of mappings", "[]"),
        ("tags", "list of texts, at least 1 item", "[a]"),
        ("plain", "mapping of texts to any values", "{}"),
        ("effect.value", "number", None),
        ("effect.low", "number, or null", "null"),
        ("shapes[].side", "number, more than 0", "1.0"),
        ("shapes[].radius", "whole number, 1 to 9", "2"),
    ],
)
def test_types_ranges_and_defaults(path: str, takes: str, default: str | None) -> None:
    [key] = found(path)
    assert (key.takes, key.default) == (takes, default)


def test_meaning_unit_and_example_are_taken_apart() -> None:
    [low] = found("effect.low")
    assert (low.meaning, low.unit, low.example) == ("Lower bound, at 95 %. It may be infinite.", "nats per token", "-0.5")


def test_words_for_types() -> None:
    assert in_words(Literal["a", "b", "c"]) == "`a`, `b` or `c`"
    assert in_words(tuple[float, float] | None) == "list of 2 numbers, or null"
    assert in_words(tuple[int, str]) == "list of: whole number; text"
    assert in_words(list[int | float]) == "list of numbers"


def test_a_page_has_a_section_for_each_class_and_a_line_for_each_sentence() -> None:
    page = markdown(Table, "A table", leave_out=("plain",))
    lines = page.split("\n")
    assert lines[0] == "# A table"
    assert "A table." in lines
    assert "It has two sentences." in lines
    assert "- **`size`**: whole number, 4 to 12. Required." in lines
    assert "  Unit: cells. Example: `4`." in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## `effect`",
        "## `by_name.<key>[]`",
        "## `cells[]`",
        "## `shapes[]` with `shape: square`",
        "## `shapes[]` with `shape: disc`",
    ]
    assert "plain" not in page
    assert "Required" not in markdown(Table, "A table", defaults=False)


@pytest.mark.parametrize(("path", "text"), [pytest.param(*each, id=each[0].name) for each in pages().items()])
def test_pages_are_current(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run: make reference"
    assert max(map(len, text.split("\n"))) <= 160


@pytest.mark.parametrize("model", [Summary, Measurement])
def test_every_key_of_what_is_written_has_a_meaning(model: type) -> None:
    assert [key.path for key in keys(model) if not key.meaning.endswith(".")] == []


def test_a_class_that_occurs_again_is_explained_once() -> None:
    page = markdown(Summary, "A summary", once=True)
    # Of runs, of groups, and of two classes of other outcomes.
    assert page.count("S, the persona part of the state put into the reference.") == 4
    assert "The same keys as `runs[].surface`." in page


def test_every_key_of_a_study_has_a_meaning_and_shows_what_to_write() -> None:
    for key in keys(Study, LEFT_OUT):
        assert key.meaning.endswith("."), key.path
        chosen = key.takes.startswith("`") or key.takes in ("true or false", "null")
        assert key.example or chosen, f"{key.path}: give an example"
        # A layer is an index or a fraction, and a seed is a name.
        counted = "number" in key.takes and not key.path.endswith(("layer", "layers", "seeds"))
        assert key.unit or not counted, f"{key.path}: give a unit"


def test_examples_of_study_keys_are_yaml_that_the_study_takes() -> None:
    from wellworn.data.files import parse_yaml_value, set_key, validate

    start = {"name": "s", "question": "q", "expects": "e", "refuted_by": "r", "library": ["pirate"], "runs": [{"arm": "base"}]}
    tried = 0
    for key in keys(Study, LEFT_OUT):
        # Parts of a list, and of a mapping that needs other keys too, are tried by the example of the whole.
        if key.example is None or "[]" in key.path or key.path.startswith(("server.", "judge.")):
            continue
        value: dict[str, Any] = dict(start)
        set_key(value, key.path, parse_yaml_value(key.example), key.path)
        if key.path == "server":
            value["runs"] = [{"arm": "sft", "trait": "pirate"}]
        if key.path.startswith("knock_in."):
            value["knock_in"].setdefault("trait", "invented/zorvane")
        if "filter" in key.path:
            value["judge"] = "smollm2-135m"
        validate(Study, value, key.path)
        tried += 1
    assert tried > 40
