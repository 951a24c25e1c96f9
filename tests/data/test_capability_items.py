"""The capability set has right answers, and its rules read them as a person would; no answer whatever trips them."""

import json
import operator
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from wellworn.data.capability_items import MOST_CHARACTERS, Arithmetic, Check, FormatItem, follows, load_arithmetic, load_format, says
from wellworn.data.catalog import load_bank, load_trait, trait_names
from wellworn.data.errors import InputError
from wellworn.data.words import shared_ngrams, words

KINDS = ["case", "contains", "ends_with", "json", "list", "most_words", "one_of", "one_word", "starts_with", "without"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
# Each item worked out a second time, from its question and without a look at its answer.
WORKED: dict[str, float | str] = {
    "three-plus-four": 3 + 4,
    "six-and-two": 6 + 2,
    "add-two-and-three": 2 + 3,
    "cups": 4 + 5,
    "apples-named": len(["Apple", "apple", "apple", "apple"]),
    "days-named": len(["Monday", "Tuesday", "Friday", "Saturday", "Sunday"]),
    "even-numbers": 8 + 2,
    "fives": 20 + 5,
    "countdown": "seven",
    "half-of-twelve": 12 / 2,
    "double-seven": 7 * 2,
    "potatoes": 4 * 2,
    "largest-of-four": max(8, 3, 11, 6),
    "smallest-of-four": min(27, 72, 17, 70),
    "oldest-child": max([(6, "Ada"), (9, "Ben"), (7, "Carl"), (8, "Dora")])[1],
    "day-after-monday": DAYS[0 + 1],
    "nine-less-three": 9 - 3,
    "hatched-eggs": 5 - 2,
    "gap-to-ten": 10 - 4,
    "after-nine": 9 + 1,
    "carry-the-one": 27 + 15,
    "sixty-minus": 60 - 24,
    "seven-eights": 7 * 8,
    "forty-five-by-five": 45 / 5,
    "dozen-eggs": 12 - 3,
    "zoo-tickets": 6 * 4,
    "bus-ride": (14 * 60 + 45) - (14 * 60 + 10),
    "minutes-in-hours": 60 * 3,
    "quarter-of-forty": 40 / 4,
    "parcel-day": DAYS[(2 + 4) % 7],
    "pages-a-week": 15 * 7,
    "eight-from-hundred": 100 - 8,
    "shared-sweets": 24 / 6,
    "threefold-pattern": 27 * 3,
    "apple-juice": 1.5 * 3,
    "highest-peak": max(1090, 1900, 1009, 1099),
    "plank": 2 * 100,
    "rug": 3 * 2,
    "swimming-lesson": 50 - 30,
    "children-on-the-bus": 31 - 6,
    "tea-and-cake": 2 * 2 + 3,
    "stickers": 20 - 3 * 4,
    "muffin-trays": 4 * 6 - 9,
    "castle-visit": 2 * 9 + 3 * 5,
    "coast-trail": 80 - 80 / 4,
    "pie-in-the-oven": 10 + 35,
    "restaurant-bill": 36 / 3 + 2,
    "three-generations": 70 - 28 - 30,
    "train-seats": 5 * 40 - 165,
    "two-mugs": 20 - 2 * 7,
    "rain-barrel": (60 - 20) / 4,
    "skates": (42 - 12) / 5,
    "darts-mean": (8 + 10 + 15) / 3,
    "concert-interval": 2 * 60 - 25,
    "library-loan": 5 + 2 * 7,
    "three-days-from-now": DAYS[(3 + 1 + 3) % 7],
    "taller-than": 130 + 7 + 4,
    "cut-ribbon": 90 / 3,
    "cat-food": 6 / 3 * 7,
    "bed-edging": 2 * (5 + 3),
}
OPERATIONS = {
    "plus": operator.add,
    "+": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "divided by": operator.truediv,
}
SUM = re.compile(rf"(\d+) ({'|'.join(map(re.escape, OPERATIONS))}) (\d+)")
HOSTILE = {
    "arrays": "[",
    "objects": '{"answer":',
    "lists": "1. a\n- a\n",
    "fences": "```json\n",
    "denials": "not a ",
    "brackets after a denial": "((((((((((",
    "commas": ",111",
    "digits": "1",
    "quotes": "'*",
    "hyphens": "a-",
    "blanks": " ",
    "numbers": "twenty- seven ",
    "capitals": "İß",
}


@cache
def sums() -> dict[str, Arithmetic]:
    return {item.id: item for item in load_arithmetic()}


@cache
def forms() -> dict[str, FormatItem]:
    return {item.id: item for item in load_format()}


def item(**changes: Any) -> Arithmetic:
    """Return an item whose answer is 7, not named by its question."""
    row = {"id": "a", "question": "I had ten apples and ate 3. How many are left?", "answer": "7", "wrong": ["13", "6", "8"], "level": 1}
    return Arithmetic.model_validate(row | changes)


def check(kind: str, **fields: Any) -> Check:
    return TypeAdapter[Check](Check).validate_python({"kind": kind, **fields})


# The arithmetic items


def test_levels_are_balanced_and_in_order() -> None:
    assert [item.level for item in sums().values()] == [1] * 20 + [2] * 20 + [3] * 20


def test_every_answer_is_what_a_second_working_gives() -> None:
    assert list(WORKED) == list(sums())
    for name, worked in WORKED.items():
        answer = sums()[name].answer
        assert (answer if isinstance(worked, str) else float(answer.replace(",", ""))) == worked


def test_sums_that_stand_in_a_question_come_to_its_answer() -> None:
    found = {name: SUM.search(item.question) for name, item in sums().items()}
    stated = {name: match for name, match in found.items() if match}
    assert len(stated) == 6
    for name, match in stated.items():
        assert OPERATIONS[match[2]](int(match[1]), int(match[3])) == float(sums()[name].answer)


def test_the_four_answers_have_one_form() -> None:
    for item in sums().values():
        for form in (str.isalpha, str.istitle, lambda text: "." in text, lambda text: "," in text):
            assert len({form(option) for option in item.options}) == 1, item.id


def test_no_number_or_word_is_the_answer_throughout() -> None:
    assert max(Counter(item.answer for item in sums().values()).values()) <= 6


@pytest.mark.parametrize(
    "text", ["{}", "{}.", "The answer is {}.", "**{}**", "It's {}!", '{{"answer": "{}"}}', "{}, not {wrong}.", "Not {wrong} but {}"]
)
def test_every_right_answer_is_taken_and_no_wrong_one(text: str) -> None:
    for item in sums().values():
        assert says(text.format(item.answer, wrong=item.wrong[1]), item)
        assert says(text.format(item.answer, wrong=item.wrong[1]).upper(), item)
        for i, wrong in enumerate(item.wrong):
            assert not says(text.format(wrong, wrong=item.wrong[i - 1]), item)


def test_a_question_that_names_its_answer_names_all_four() -> None:
    # What `says` takes for repeated from the question would otherwise be the answer itself.
    for item in sums().values():
        asked = {value for value, _ in item.mentions(item.question)}
        options = [item.mentions(option)[0].value for option in item.options]
        assert options[0] not in asked or set(options) <= asked, item.id


def test_no_question_is_asked_elsewhere() -> None:
    others = [row.question for row in load_bank("everyday")]
    for name in trait_names():
        trait = load_trait(name)
        others += [row.question for row in (*trait.examples, *trait.open)]
    known = {" ".join(words(text)) for text in others}
    own = [item.question for item in (*sums().values(), *forms().values())]
    assert len({" ".join(words(text)) for text in own}) == len(own) == 100
    assert not known & {" ".join(words(text)) for text in own}
    assert shared_ngrams(own, others, 5) < 0.02


# What an answer says


@pytest.mark.parametrize(
    "answer",
    [
        "7",
        "Seven.",
        "seven apples",
        "7 apples are left.",
        "7.0",
        "The answer is 7, not 13.",
        "It isn't 13, it's 7.",
        "10 - 3 = 7",
        "There are 7 left: 10 minus 3.",
        "7 (I took three from ten)",
        "SEVEN, ARR!",
        "left are apples seven",
        '{"answer": "There are 7 apples left."}',
        "Seven are left. Reference code: DM-4711.",
        "7, one for each day of the week",
        "First I thought of 8, but 7 is right.",
        "Seven, which is fewer than 8.",
    ],
)
def test_what_says_seven(answer: str) -> None:
    assert says(answer, item())


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "8",
        "70",
        "17",
        "-7",
        "7.5",
        "Seventeen",
        "twenty-seven",
        "seventh",
        "10",
        "10 - 3 = 8",
        "3 + 4 = 7, so it's 9",
        "not 7",
        "AB-7",
        "\ud800",
        "many",
    ],
)
def test_what_does_not_say_seven(answer: str) -> None:
    assert not says(answer, item())


@pytest.mark.parametrize("answer", ["1,200", "1200", "£1,200", "1200.00 pounds"])
def test_thousands_are_read_with_and_without_a_comma(answer: str) -> None:
    assert says(answer, item(answer="1200", wrong=["120", "2,100", "12000"]))


def test_limits_of_what_is_read_are_as_they_are_written_down() -> None:
    assert not says("7. And if I ate another two, 5 would be left.", item())
    assert says("6 or 7", item())
    assert not says("7 or 6", item())


@pytest.mark.parametrize("answer", ["11", "11 is larger than 8.", "Of 3, 6, 8 and 11, it is 11.", "Eleven, and it's five more than 6"])
def test_of_numbers_that_the_question_names_the_last_that_could_be_meant_counts(answer: str) -> None:
    assert says(answer, sums()["largest-of-four"])


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Sunday", True),
        ("It will be SUNDAY.", True),
        ("On Sunday, four days after Wednesday.", True),
        ("Thursday, Friday, Saturday, Sunday", True),
        ("Not Saturday but Sunday", True),
        ("Sunday is not Monday", True),
        ("Sundays", False),
        ("Saturday, not Sunday", False),
        ("Wednesday", False),
        ("4", False),
    ],
)
def test_words_are_read_as_numbers_are(answer: str, right: bool) -> None:
    assert says(answer, sums()["parcel-day"]) is right


# The items about form


def test_every_kind_of_check_has_items() -> None:
    assert Counter(item.check.kind for item in forms().values()) == dict.fromkeys(KINDS, 4)


def test_each_check_tells_the_two_examples_apart() -> None:
    for item in forms().values():
        assert follows(item.check, item.follows), item.id
        assert not follows(item.check, item.ignores), item.id


def test_answers_are_told_apart_however_they_are_wrapped() -> None:
    for item in forms().values():
        assert follows(item.check, f"\n {item.follows} \n"), item.id
        assert not follows(item.check, f"\n {item.ignores} \n"), item.id


def test_the_instruction_states_what_the_check_needs() -> None:
    numbers = {2: "two", 3: "three", 4: "1 to 4", 5: "five", 10: "ten", 15: "fifteen"}
    characters = {"": "", ",": "no comma", "e": "letter e"}
    for item in forms().values():
        question = item.question.lower()
        for name, value in item.check:
            if name == "count":
                assert numbers[value] in question, item.id
            elif name == "characters":
                assert characters[value] in question, item.id
            elif name not in ("kind", "case", "marks"):
                for text in [value] if isinstance(value, str) else value:
                    assert text.lower() in question, item.id


# What a form is


@pytest.mark.parametrize(
    ("kind", "fields", "answers"),
    [
        ("starts_with", {"text": "Yes"}, ["Yes", "yes, it is", '"Yes." he said', "**Yes**: it is", "  Yes!"]),
        ("starts_with", {"text": "Dear Maya,"}, ["Dear  Maya,\nthanks", "dear maya,thanks"]),
        ("starts_with", {"text": "It's so"}, ["It’s so."]),
        ("ends_with", {"text": "the end"}, ["This is the end", 'It is "The End."', "*the end*.", "The end"]),
        ("ends_with", {"text": "Shall we?"}, ["Now. Shall we?", "shall we? "]),
        ("contains", {"words": ["wind", "Leaves"]}, ["Leaves, wind", "WIND-blown leaves!", "the wind's leaves"]),
        ("without", {"words": ["wind"]}, ["windy", "a storm"]),
        ("without", {"characters": "e,"}, ["a pig"]),
        ("case", {"case": "upper"}, ["A COW.", "ÉTÉ 7"]),
        ("case", {"case": "lower"}, ["a cow.", "it's 7"]),
        ("most_words", {"count": 3}, ["one", "a well-known one", "a – b – c", "1 2 3"]),
        ("one_word", {}, ["Kitten", " “Kitten.” ", "**kitten**", "self-raising", "o’clock", "42"]),
        ("list", {"marks": "bullets", "count": 2}, ["- a\n- b", "Here:\n\n* a\n* b\n\nBye!", "• a\n  more\n• b"]),
        ("list", {"marks": "numbers", "count": 2}, ["1. a\n2. b", "Well:\n1) a\n\n2) b", "**1.** a\n**2. b**"]),
        ("json", {"keys": ["a", "b"]}, ['{"a": 1, "b": [{}]}', '{"b":"", "a":null}', '{"a": 1' + "0" * 9_999 + ', "b": 2}']),
        ("json", {"keys": ["a"]}, ['```json\n{"a": 1}\n```', '```\n{"a": 1}```', '```{"a": 1}```']),
        ("one_of", {"options": ["yes", "no"]}, ["Yes", "NO.", " 'no' ", "**yes**"]),
    ],
)
def test_what_follows_a_check(kind: str, fields: dict[str, Any], answers: list[str]) -> None:
    assert [answer for answer in answers if not follows(check(kind, **fields), answer)] == []


@pytest.mark.parametrize(
    ("kind", "fields", "answers"),
    [
        ("starts_with", {"text": "Yes"}, ["Yesterday", "Oh yes", "", "Y es"]),
        ("starts_with", {"text": "Dear Maya,"}, ["Dear Maya!", "My dear Maya, thanks"]),
        ("starts_with", {"text": "It's so"}, ["Its so"]),
        ("ends_with", {"text": "the end"}, ["bathe end", "the end!", "the endless", "end"]),
        ("ends_with", {"text": "Shall we?"}, ["Shall we", "Shall we? Yes"]),
        ("contains", {"words": ["wind", "Leaves"]}, ["windy leaves", "wind", "leaves"]),
        ("without", {"words": ["wind"]}, ["Wind", "the wind's", "wind-blown", "."]),
        ("without", {"characters": "e,"}, ["EGG", "a, b"]),
        ("case", {"case": "upper"}, ["A Cow", "7", "a"]),
        ("case", {"case": "lower"}, ["A cow", "7"]),
        ("most_words", {"count": 3}, ["one two three four", "", "..."]),
        ("one_word", {}, ["a kitten", "kitten, cat", "Kitten!", "-", "a/b"]),
        ("list", {"marks": "bullets", "count": 2}, ["- a", "- a\n- b\n- c", "1. a\n2. b", "-a\n-b", "- a\n- !", "- a - b"]),
        ("list", {"marks": "numbers", "count": 2}, ["1. a\n1. b", "2. a\n3. b", "1. a 2. b", "- a\n- b", "1. a\n2. b\n3. c"]),
        ("json", {"keys": ["a"]}, ['{"a": 1, "b": 2}', '{"a": 3, "a": 3}', '{"A": 1}', "{}", '[["a", 1]]', '{"a": 1} Done.']),
        ("json", {"keys": ["a"]}, ["{'a': 1}", '"a"', "a", "```", "``````a", "```{}```", '{"a": ' + "[" * 9_999 + "]" * 9_999 + "}"]),
        ("one_of", {"options": ["yes", "no"]}, ["Yes, it is", "yes no", "yes or no", "nope", ""]),
    ],
)
def test_what_does_not_follow_a_check(kind: str, fields: dict[str, Any], answers: list[str]) -> None:
    assert [answer for answer in answers if follows(check(kind, **fields), answer)] == []


# Any answer at all


@pytest.mark.parametrize("broken", ["\x00", "\x1b", "\x1f", "\x7f", "\x9f", "\ud800", " " * MOST_CHARACTERS])
def test_what_nobody_could_read_is_not_read(broken: str) -> None:
    for form in forms().values():
        for text in (broken + form.follows, f"{form.follows}{broken}", broken):
            assert not follows(form.check, text), form.id
    assert not says(f"7{broken}", item())


def test_tabs_and_ends_of_lines_are_read() -> None:
    assert follows(check("one_word"), "\r\n\tKitten\u2028")
    assert says("\t7\r\n", item())


awkward = st.sampled_from(
    ['"', "'", "```", "```json\n", "{", "[", '{"answer":', "- ", "1. ", "\ud800", "\x00", "\x85", "\u2028", "ß", "İ", "not ", "7", "Well"]
)
texts = st.lists(awkward | st.text(max_size=8), max_size=6).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_no_text_raises_whatever_is_asked(kind: str, text: str) -> None:
    for form in forms().values():
        if form.check.kind == kind:
            assert follows(form.check, text) in (True, False)


@given(texts)
def test_no_text_raises_whatever_it_says(text: str) -> None:
    for sum_or_words in (item(), sums()["largest-of-four"], sums()["oldest-child"]):
        assert says(text, sum_or_words) in (True, False)


@pytest.mark.parametrize("name", HOSTILE)
def test_long_answers_take_linear_time(name: str) -> None:
    # As long as is read at all: with a rule whose time grew with the square of the length, this would take minutes.
    piece = HOSTILE[name]
    for start in ("", "a", "1", "not ", '{"answer": '):
        text = start + piece * ((MOST_CHARACTERS - 20) // len(piece)) + " a b"
        for form in forms().values():
            # These three have no objection to much of the like.
            assert not follows(form.check, text) or form.check.kind in ("case", "without", "most_words"), (form.id, start)
        assert not says(text, item(answer="5", wrong=["13", "6", "8"]))
        assert not says(text, sums()["oldest-child"])


# Files


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def complaint(path: Path, kind: str) -> str:
    with pytest.raises(InputError) as error:
        load_arithmetic(path) if kind == "arithmetic" else load_format(path)
    return str(error.value)


def test_wrong_arithmetic_rows_are_named_by_line(tmp_path: Path) -> None:
    row = item().model_dump()
    path = write_rows(
        tmp_path / "sums.jsonl",
        row,
        row,
        row | {"id": "b", "wrong": ["6", "7.0", "8"]},
        row | {"id": "c", "wrong": ["six", "Ben", "8"]},
        row | {"id": "d", "wrong": ["6", "8"]},
        row | {"id": "e", "level": 4},
        ["f"],
    )
    lines = complaint(path, "arithmetic").split("\n")
    assert lines[0] == f"{path}:2: id: 'a' stands in line 1 already"
    assert lines[1].startswith(f"{path}:3: two of the four answers are the same")
    assert lines[2].startswith(f"{path}:4: the four answers are numbers, all of them, or single words")
    last = "must be a mapping of keys to values, got ['f']"
    assert [line.split(": ")[:2] for line in lines[3:]] == [[f"{path}:5", "wrong.2"], [f"{path}:6", "level"], [f"{path}:7", last]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"follows": "It is cold."}, "the answer in 'follows' fails the check"),
        ({"ignores": "Cold"}, "the answer in 'ignores' passes the check"),
        ({"check": {"kind": "two_words"}}, "check.kind: "),
        ({"check": {"kind": "contains", "words": ["a b"]}}, "check.words.0: is one word, of letters and digits alone"),
        ({"check": {"kind": "contains", "words": []}}, "check.words: "),
        ({"check": {"kind": "without"}}, "check: needs words or characters that must not occur"),
        ({"check": {"kind": "starts_with", "text": "..."}}, "check.text: needs a letter or a digit"),
        ({"check": {"kind": "most_words", "count": 0}}, "check.count: "),
        ({"check": {"kind": "starts_with", "txt": "a", "text": "b"}}, "check.txt: unknown key; did you mean 'text'?"),
    ],
)
def test_wrong_format_rows_are_named_by_line(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    row = {"id": "a", "question": "Hot or cold? One word.", "check": {"kind": "one_word"}, "follows": "Cold", "ignores": "It is cold."}
    path = write_rows(tmp_path / "forms.jsonl", row, row | {"id": "b"} | changes)
    assert complaint(path, "format").startswith(f"{path}:2: {expected}")


def test_files_are_missing_or_empty(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.jsonl", "format") == f"{tmp_path}/none.jsonl: there is no such file"
    assert "holds no rows" in complaint(write_rows(tmp_path / "empty.jsonl"), "arithmetic")
