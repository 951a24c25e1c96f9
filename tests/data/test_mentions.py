"""The numbers and words that a text names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.mentions import is_number, numbers_named, words_named


def numbers(text: str) -> list[str]:
    return [value for value, denied in numbers_named(text) if not denied]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("7", ["7"]),
        ("7.", ["7"]),
        ("7.0", ["7"]),
        ("007", ["7"]),
        ("0.50", ["0.5"]),
        ("1,200", ["1200"]),
        ("1,200.50 and 3,4,5", ["1200.5", "3", "4", "5"]),
        ("1,2000", ["1", "2000"]),
        ("£7, 7kg, 7% and the 7th", ["7"] * 4),
        ("**7**", ["7"]),
        (r"\boxed{7}", ["7"]),
        ("3+4=7", ["3", "4", "7"]),
        ("10-3", ["10", "3"]),
        ("10 - 3", ["10", "3"]),
        ("-3 or −3", ["-3", "-3"]),
        ("7/8", ["7", "8"]),
        ("Reference code: AB-1234, platform B7", []),
        ("SEVEN", ["7"]),
        ("twenty-one, forty five, ninety, fourteen, zero", ["21", "45", "90", "14", "0"]),
        ("a sevenfold, tender, tenth, weighty attention", []),
        ("one", ["1"]),
        ("The first one is 8.", ["8"]),
        ("One, two", ["2"]),
        ("twenty-one of them", ["21"]),
        ("٧", []),
        ("", []),
    ],
)
def test_numbers_are_read_by_value(text: str, named: list[str]) -> None:
    assert numbers(text) == named


@pytest.mark.parametrize(
    "text",
    ["7, not 13", "not £13 but 7", "It isn't 13. It's 7", "it isn’t 13 but 7", "7 rather than 13", "7 instead of 13", "fewer than a 13: 7"],
)
def test_denied_numbers_are_told_apart(text: str) -> None:
    assert numbers(text) == ["7"]
    assert sorted(value for value, _ in numbers_named(text)) == ["13", "7"]


@pytest.mark.parametrize("text", ["not only 7", "I think not. 7", "nothing but 7", "a knot 7"])
def test_a_number_with_something_between_is_not_denied(text: str) -> None:
    assert numbers(text) == ["7"]


def test_words_are_read_in_lower_case_and_may_be_denied() -> None:
    assert words_named("BEN, not Ada's") == [("ben", False), ("ada", True), ("s", False)]


@given(st.integers(-(10**15), 10**15))
def test_any_whole_number_reads_as_itself(number: int) -> None:
    assert numbers(f"It is {number}.") == numbers(f"It is {number:,}.") == [str(number)]
    assert is_number(str(number))


@given(st.text() | st.text(alphabet="not than1,.-seven' "))
def test_any_text_can_be_read(text: str) -> None:
    assert all(is_number(value) for value, _ in numbers_named(text))
    words_named(text)


@pytest.mark.parametrize(
    ("text", "number"), [("7", True), ("twenty-one", True), ("1,200", True), ("7 8", False), ("Ben", False), ("", False)]
)
def test_what_is_a_number(text: str, number: bool) -> None:
    assert is_number(text) is number
