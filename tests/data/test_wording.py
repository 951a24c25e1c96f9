"""Validation errors in plain words: every type of error that pydantic has, and every one that the suite's models raise."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, core_schema

from wellworn.data import formats
from wellworn.data.capability_items import Arithmetic, FormatItem
from wellworn.data.documents import Principle, RoleDocument, TraitDocument
from wellworn.data.schema import Control, Example, Instruction, Role, Scenario, Trait
from wellworn.data.wording import MUST_BE, complaints
from wellworn.experiments.study import Study
from wellworn.probes.scoring.endpoint import EndpointConfig

RAW = re.compile(r"Input|should|Field required|Extra inputs|permitted|unable to|Value error|Assertion|validation error", re.IGNORECASE)
# Error types that have a sentence of their own.
SENTENCES = {"missing", "extra_forbidden", "invalid_key", "union_tag_invalid", "union_tag_not_found", "value_error", "assertion_error"}
MODELS = [
    Arithmetic,
    FormatItem,
    formats.Completion,
    formats.Instruction,
    formats.OutputPreference,
    formats.Preference,
    Principle,
    RoleDocument,
    TraitDocument,
]
MODELS += [Control, Example, Instruction, Role, Scenario, Trait, Study, EndpointConfig]
STUDY = {"name": "s", "question": "q", "expects": "e", "refuted_by": "r", "library": ["pirate"], "runs": [{"arm": "base"}]}
WRONG: list[Any] = [
    None,
    True,
    3,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "10" * 5000,
    [],
    [1],
    ["x", "x"],
    [{}],
    {},
    {"a": 1},
    {1: 2},
]


class Left(BaseModel):
    kind: Literal["left"]
    size: int = 1


class Right(BaseModel):
    kind: Literal["right"]
    name: str


class Every(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = ""
    short: Annotated[str, Field(min_length=2, max_length=3)] = "ab"
    pattern: Annotated[str, Field(pattern="^a")] = "a"
    whole: int = 0
    number: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    some: Annotated[int, Field(ge=1, le=9)] = 1
    few: Annotated[float, Field(gt=0, lt=10)] = 1.0
    even: Annotated[int, Field(multiple_of=2)] = 2
    flag: bool = False
    nothing: None = None
    choice: Literal["a", "b"] = "a"
    items: Annotated[list[int], Field(min_length=1, max_length=2)] = [1]
    pair: tuple[int, int] = (1, 2)
    table: dict[str, int] = {}
    part: Left = Left(kind="left")
    place: int | float = 0
    of_two: str | list[Left] = ""
    tagged: Annotated[Left | Right, Field(discriminator="kind")] = Left(kind="left")
    own: int = 0

    @field_validator("own")
    @classmethod
    def _small(cls, value: int) -> int:
        if value > 5:
            raise ValueError("must be small")
        return value


def messages(model: type[BaseModel], value: Any) -> list[str]:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(value)
    return [f"{'.'.join(map(str, place))}: {message}" for place, message in complaints(model, value, raised.value.errors())]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": 3}, "text: must be text, got 3"),
        ({"text": None}, "text: must be text, got null"),
        ({"short": "a"}, "short: must be text of at least 2 characters, got 'a'"),
        ({"short": "abcd"}, "short: must be text of at most 3 characters, got 'abcd'"),
        ({"pattern": "b"}, "pattern: must be text that matches ^a, got 'b'"),
        ({"whole": "x"}, "whole: must be a whole number, got 'x'"),
        ({"whole": 1.5}, "whole: must be a whole number, got 1.5"),
        ({"whole": []}, "whole: must be a whole number, got []"),
        ({"whole": "9" * 5000}, "whole: must be a whole number of fewer digits, got '" + "9" * 76 + "..."),
        ({"number": "x"}, "number: must be a number, got 'x'"),
        ({"number": []}, "number: must be a number, got []"),
        ({"number": float("nan")}, "number: must be a finite number, got nan"),
        ({"some": 0}, "some: must be 1 or more, got 0"),
        ({"some": 10}, "some: must be 9 or less, got 10"),
        ({"few": 0}, "few: must be more than 0, got 0"),
        ({"few": 10}, "few: must be less than 10, got 10"),
        ({"even": 3}, "even: must be a multiple of 2, got 3"),
        ({"flag": "perhaps"}, "flag: must be true or false, got 'perhaps'"),
        ({"flag": []}, "flag: must be true or false, got []"),
        ({"nothing": 1}, "nothing: must be null, got 1"),
        ({"choice": "c"}, "choice: must be 'a' or 'b', got 'c'"),
        ({"items": 1}, "items: must be a list, got 1"),
        ({"items": []}, "items: must be a list of at least 1, got []"),
        ({"items": [1, 2, 3]}, "items: must be a list of at most 2, got [1, 2, 3]"),
        ({"items": ["x"]}, "items.0: must be a whole number, got 'x'"),
        ({"pair": 1}, "pair: must be a list, got 1"),
        ({"pair": [1]}, "pair.1: this item is required and missing"),
        ({"table": []}, "table: must be a mapping of keys to values, got []"),
        ({"table": {1: 2}}, "table.1: must be text, got 1"),
        ({"part": 1}, "part: must be a mapping of keys to values, got 1"),
        ({"part": {}}, "part.kind: this key is required and missing"),
        ({"place": "x"}, "place: must be a number, got 'x'"),
        ({"of_two": 3}, "of_two: must be text or a list, got 3"),
        ({"of_two": [{"kind": "left", "size": "x"}]}, "of_two.0.size: must be a whole number, got 'x'"),
        ({"tagged": {"kind": "lefd"}}, "tagged.kind: got 'lefd'; did you mean 'left'?"),
        ({"tagged": {"name": "x"}}, "tagged.kind: this key is required and missing; it may be one of: left, right"),
        ({"tagged": {"kind": "right", "name": 3}}, "tagged.name: must be text, got 3"),
        ({"own": 6}, "own: must be small, got 6"),
        ({"own": ["ghp_" + "aB3" * 12]}, "own: must be a whole number, got a value with a secret in it"),
        ({"own": "ghp_" + "aB3" * 12}, "own: must be a whole number, got '[secret]'"),
        ({"table": {"api_key": "hunter2"}}, "table.api_key: must be a whole number"),
        ({"tagged": {"kind": "ghp_" + "aB3" * 12}}, "tagged.kind: got '[secret]'; it may be one of: left, right"),
        ({"txt": "x"}, "txt: unknown key; did you mean 'text'?"),
    ],
)
def test_each_kind_of_error_in_plain_words(value: dict[str, Any], message: str) -> None:
    assert messages(Every, value) == [message]


def test_every_type_of_error_has_words_of_its_own_or_a_plain_fallback() -> None:
    types = get_args(core_schema.ErrorType)
    assert set(MUST_BE) | SENTENCES <= set(types)
    figures = dict.fromkeys(("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length"), 1)
    context = figures | {
        "pattern": "^a",
        "expected": "'a'",
        "error": "is wrong",
        "discriminator": "'kind'",
        "tag": "x",
        "expected_tags": "'a'",
    }
    for kind in types:
        error = ErrorDetails(type=kind, loc=("tagged",), msg="Input should be raw", input="x", ctx=context, url="")
        [(_, message)] = complaints(Every, {"tagged": "x"}, [error])
        assert not RAW.search(message), (kind, message)


def wrong_values(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Every key of a model with every wrong value, inside a whole value where that is a study."""
    start = STUDY if model is Study else {}
    for key in model.model_fields:
        for value in WRONG:
            yield key, start | {key: value}
    yield "", 3
    yield "", start | {"no_such_key": 1}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_error_of_the_suites_own_models_is_raw(model: type[BaseModel]) -> None:
    found = 0
    for key, value in wrong_values(model):
        try:
            model.model_validate(value)
        except ValidationError as error:
            kinds = {item["type"] for item in error.errors()}
            assert kinds <= set(MUST_BE) | SENTENCES, (key, kinds)
            for place, message in complaints(model, value, error.errors()):
                assert not RAW.search(message), (place, message)
                found += 1
    assert found > 5


def test_one_mistake_in_an_arm_is_one_complaint() -> None:
    arms = [
        {"arm": "sft"},
        {"arm": "dance"},
        {"arm": "distilled", "trait": "pirate", "strength": "x"},
        {"arm": "sft", "trait": "a", "b": 1},
    ]
    assert messages(Study, STUDY | {"runs": arms}) == [
        "runs.0.trait: this key is required and missing",
        "runs.1.arm: got 'dance'; it may be one of: "
        "adapter, base, checkpoint, confined, distilled, inoculated, preventative, prompted, random, sft",
        "runs.2.strength: must be a number, got 'x'",
        "runs.3.b: unknown key; it may be one of: arm, origin, trait",
    ]


def test_a_model_in_a_message_reads_as_a_mapping() -> None:
    arm = {"arm": "sft", "trait": "pirate"}
    [message] = messages(Study, STUDY | {"runs": [arm, arm]})
    assert message.startswith("runs: {'arm': 'sft', 'trait': 'pirate'} appears twice")
