"""Small tests of capability: sums whose answer is known, and instructions about the form of an answer that a program can check."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from wellworn.data.errors import Complaints, InputError
from wellworn.data.files import Model, read_jsonl, validate
from wellworn.data.mentions import STRAIGHT_QUOTES, Mention, is_number, numbers_named, words_named
from wellworn.data.schema import Name, Text

FOLDER = Path(__file__).parent / "capability"
_WORD = re.compile(r"[^\W_]+")
# Characters that may surround an answer without changing its form: blanks, quotes, and the emphasis of Markdown.
_AROUND = " \"'*_`"
# Control characters but for blanks and ends of lines, and halves of surrogate pairs: not part of readable text.
_UNREADABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
MOST_CHARACTERS = 100_000
_BULLETS = ("-", "*", "+", "•", "–")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arithmetic(_Frozen):
    """A question with one right answer and three wrong ones, from sums of single digits (level 1) to two-step problems (level 3).

    All answers are numbers, or all are single words.
    """

    id: Name
    question: Text
    answer: Text
    wrong: tuple[Text, Text, Text]
    level: Literal[1, 2, 3]

    @property
    def options(self) -> tuple[str, ...]:
        """The right answer and the wrong ones."""
        return (self.answer, *self.wrong)

    @property
    def numeric(self) -> bool:
        """Whether the answers are numbers."""
        return all(is_number(option) for option in self.options)

    def mentions(self, text: str) -> list[Mention]:
        """Return the numbers or words of a text that could be an answer."""
        return numbers_named(text) if self.numeric else words_named(text)

    @model_validator(mode="after")
    def _comparable(self) -> "Arithmetic":
        if not self.numeric and any(is_number(option) or not option.isalnum() for option in self.options):
            raise ValueError("the four answers are numbers, all of them, or single words")
        if len({self.mentions(option)[0].value for option in self.options}) < len(self.options):
            raise ValueError("two of the four answers are the same")
        return self


def _holds_a_word(text: str) -> str:
    if not _WORD.search(text):
        raise ValueError("needs a letter or a digit")
    return text


def _is_a_word(text: str) -> str:
    if not text.isalnum():
        raise ValueError("is one word, of letters and digits alone")
    return text


Phrase = Annotated[Text, AfterValidator(_holds_a_word)]
Word = Annotated[str, AfterValidator(_is_a_word)]
Count = Annotated[int, Field(ge=1)]


class StartsWith(_Frozen):
    """The answer begins with a text."""

    kind: Literal["starts_with"]
    text: Phrase


class EndsWith(_Frozen):
    """The answer ends with a text."""

    kind: Literal["ends_with"]
    text: Phrase


class Contains(_Frozen):
    """All the words occur, as words of their own."""

    kind: Literal["contains"]
    words: Annotated[tuple[Word, ...], Field(min_length=1)]


class Without(_Frozen):
    """None of the words occurs as a word of its own, and none of the characters anywhere."""

    kind: Literal["without"]
    words: tuple[Word, ...] = ()
    characters: str = ""

    @model_validator(mode="after")
    def _forbids_something(self) -> "Without":
        if not self.words and not self.characters:
            raise ValueError("needs words or characters that must not occur")
        return self


class Case(_Frozen):
    """All letters are capitals, or none is."""

    kind: Literal["case"]
    case: Literal["upper", "lower"]


class MostWords(_Frozen):
    """The answer has so many words or fewer; words are separated by blanks."""

    kind: Literal["most_words"]
    count: Count


class OneWord(_Frozen):
    """The answer is a single word, which may have a hyphen or an apostrophe."""

    kind: Literal["one_word"]


class Listed(_Frozen):
    """Exactly so many lines are bullets, or are numbered from 1; other lines may surround them."""

    kind: Literal["list"]
    marks: Literal["bullets", "numbers"]
    count: Count


class JsonObject(_Frozen):
    """The answer is a JSON object with exactly these keys, each once; a code fence may surround it."""

    kind: Literal["json"]
    keys: Annotated[tuple[Phrase, ...], Field(min_length=1)]


class OneOf(_Frozen):
    """The answer is one of the options and nothing else."""

    kind: Literal["one_of"]
    options: Annotated[tuple[Phrase, ...], Field(min_length=2)]


Check = Annotated[
    StartsWith | EndsWith | Contains | Without | Case | MostWords | OneWord | Listed | JsonObject | OneOf, Field(discriminator="kind")
]


class FormatItem(_Frozen):
    """A question that says what form its answer must have, an answer that follows this, and a good one that ignores it."""

    id: Name
    question: Text
    check: Check
    follows: Text
    ignores: Text

    @model_validator(mode="after")
    def _check_answers(self) -> "FormatItem":
        if not follows(self.check, self.follows):
            raise ValueError("the answer in 'follows' fails the check")
        if follows(self.check, self.ignores):
            raise ValueError("the answer in 'ignores' passes the check")
        return self


def load_arithmetic(path: Path = FOLDER / "arithmetic.jsonl") -> list[Arithmetic]:
    """Load the arithmetic items, or others from a file of the same form.

    Raises:
        InputError: rows are malformed, or an id appears twice (names file and line of each).
    """
    return _load(Arithmetic, path)


def load_format(path: Path = FOLDER / "format.jsonl") -> list[FormatItem]:
    """Load the items about the form of an answer, or others from a file of the same form.

    Raises:
        InputError: as `load_arithmetic`, or a check does not discriminate a row's two example answers.
    """
    return _load(FormatItem, path)


def _load(model: type[Model], path: Path) -> list[Model]:
    rows: list[Model] = []
    first: dict[object, int] = {}
    wrong = Complaints()
    for line, value in read_jsonl(path):
        with wrong.noted():
            rows.append(validate(model, value, f"{path}:{line}"))
            if first.setdefault(value["id"], line) != line:
                raise InputError(f"{path}:{line}: id: {value['id']!r} stands in line {first[value['id']]} already")
    wrong.settle()
    return rows


def says(answer: str, item: Arithmetic) -> bool:
    """Whether the answer that a text states is the right one. Never raises; takes time linear in the text.

    Nothing is read that `follows` would not read.

    The stated answer is the last number of the text (for items whose answers are words: the last of their four words), except for

    - numbers that it denies or compares with: after "not", "n't", "than", "instead of";
    - numbers that the question names, since they are repeated in reasons ("7 are left: 10 minus 3"). Where the question names
      the right answer ("which is larger, 5 or 8?"), only the four answers count instead.

    Numbers are compared by value: 7, 7.0, £7, "7kg" and "Seven" are one, and so are 1,200 and 1200. Words are understood up to ninety-nine,
    and "one" only where there is no other number. Limits: a right answer with an intermediate result or another sum after it counts as
    wrong; of "6 or 7" the second counts; fractions (1/2), clock times, ordinals in words and hundreds in words are not understood.
    """
    if not _readable(answer):
        return False
    right, *wrong = (item.mentions(option)[0].value for option in item.options)
    asked = {value for value, _ in item.mentions(item.question)}
    named = [value for value, denied in item.mentions(answer) if not denied]
    if right in asked or not item.numeric:
        named = [value for value in named if value in (right, *wrong)]
    if right not in asked:
        named = [value for value in named if value not in asked]
    return named[-1:] == [right]


def follows(check: Check, answer: str) -> bool:
    """Whether an answer has the form that was asked for. Never raises; takes time linear in the text.

    It reads form alone: a wrong or foolish answer may pass. Nothing passes without a letter or a digit, with control characters or halves
    of surrogate pairs in it, or with more than `MOST_CHARACTERS`. Case matters to `case` and to the keys of `json` only; blanks, quotes,
    emphasis and a closing full stop around an answer do not matter to `starts_with`, `ends_with`, `one_word` and `one_of`.
    """
    if not _readable(answer):
        return False
    match check:
        case StartsWith(text=text):
            whole, text = _bare(answer), _bare(text)
            return whole.startswith(text) and not (text[-1].isalnum() and whole[len(text) : len(text) + 1].isalnum())
        case EndsWith(text=text):
            whole, text = _bare(answer), _bare(text)
            return whole.endswith(text) and not (text[0].isalnum() and whole[: -len(text)][-1:].isalnum())
        case Contains(words=words):
            return {word.casefold() for word in words} <= _words(answer)
        case Without(words=words, characters=characters):
            return not {word.casefold() for word in words} & _words(answer) and not set(characters.casefold()) & set(answer.casefold())
        case Case(case=case):
            return answer.isupper() if case == "upper" else answer.islower()
        case MostWords(count=count):
            return sum(1 for token in answer.split() if _WORD.search(token)) <= count
        case OneWord():
            return _bare(answer).replace("-", "").replace("'", "").isalnum()
        case Listed(marks=marks, count=count):
            return _is_list(answer, marks, count)
        case JsonObject(keys=keys):
            return _has_keys(answer, keys)
        case OneOf(options=options):
            return _bare(answer) in {_bare(option) for option in options}


def _readable(answer: str) -> bool:
    return len(answer) <= MOST_CHARACTERS and _WORD.search(answer) is not None and not _UNREADABLE.search(answer)


def _bare(text: str) -> str:
    """Return a text in lower case, with single blanks, without surrounding characters and without its closing full stop."""
    text = " ".join(text.translate(STRAIGHT_QUOTES).casefold().split())
    return text.lstrip(_AROUND).rstrip(_AROUND + ".")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _is_list(answer: str, kind: Literal["bullets", "numbers"], count: int) -> bool:
    lines = (line.split(maxsplit=1) for line in answer.splitlines())
    marks = [line[0] for line in lines if len(line) == 2 and _WORD.search(line[1])]
    if kind == "bullets":
        return sum(mark in _BULLETS for mark in marks) == count
    numbered = (re.fullmatch(r"\**([0-9]+)[.)]\**", mark) for mark in marks)
    return [found[1] for found in numbered if found] == [str(number) for number in range(1, count + 1)]


def _has_keys(answer: str, keys: tuple[str, ...]) -> bool:
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].strip().removeprefix("json")
    try:
        # An object as a tuple of its pairs differs from a list, and shows a repeated key; long numbers are slow to convert.
        pairs = json.loads(text, object_pairs_hook=tuple, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(pairs, tuple) and sorted(key for key, _ in pairs) == sorted(keys)
