"""The numbers and words that a text names, each in one spelling, and whether the text denies them."""

import re
from typing import NamedTuple

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_SMALL = ["zero", *_ONES, *_TEENS]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: number for number, word in enumerate(_SMALL)} | {word: number for number, word in enumerate(_TENS, start=2)}

# Groups repeat within bounds, and nothing that repeats without them can be split in two ways: time is linear in the text.
_DENIED = r"(?P<denied>(?:\bnot|n't|\bthan|\binstead\sof)\s(?:an?\s|the\s)?[\"'£$€(*]*)?"
# The 1234 of the reference code "AB-1234" is not a number, and the minus of "10-3" is not a sign.
_DIGITS = r"(?<!\w)(?<![^\W\d_]-)(?P<sign>[-−]?)(?P<digits>[0-9]{1,3}(?:,[0-9]{3}){1,6}(?![0-9])|[0-9]+)(?P<part>\.[0-9]+)?"
_IN_WORDS = rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[-\s](?P<ones>{'|'.join(_ONES)}))?|(?P<small>{'|'.join(_SMALL)}))\b"
_NUMBER = re.compile(f"{_DENIED}(?:{_DIGITS}|{_IN_WORDS})")
_WORD = re.compile(rf"{_DENIED}\b(?P<word>[^\W_]+)")
STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")


class Mention(NamedTuple):
    """A number (in digits, without commas or idle zeros) or a word (in lower case), and whether "not", "than" or the like precedes it."""

    value: str
    denied: bool


def is_number(text: str) -> bool:
    """Whether a text is one number, in digits or in words up to ninety-nine, and nothing else."""
    return _NUMBER.fullmatch(text.casefold()) is not None


def numbers_named(text: str) -> list[Mention]:
    """Return the numbers of a text in order; "one" only where there is no other, since it is mostly a pronoun.

    Example:
        >>> numbers_named("Twelve, not 13.")
        [Mention(value='12', denied=False), Mention(value='13', denied=True)]
    """
    found = list(_NUMBER.finditer(_plain(text)))
    others = [each for each in found if each["small"] != "one"]
    return [Mention(_in_digits(each), each["denied"] is not None) for each in others or found]


def words_named(text: str) -> list[Mention]:
    """Return the words of a text in order."""
    return [Mention(each["word"], each["denied"] is not None) for each in _WORD.finditer(_plain(text))]


def _plain(text: str) -> str:
    return text.translate(STRAIGHT_QUOTES).casefold()


def _in_digits(found: re.Match[str]) -> str:
    # As text: converting a million digits takes time that grows with their square.
    if found["digits"]:
        whole = found["digits"].replace(",", "").lstrip("0") or "0"
        return ("-" if found["sign"] else "") + whole + (found["part"] or "").rstrip("0").rstrip(".")
    if found["tens"]:
        return str(10 * _VALUES[found["tens"]] + (_VALUES[found["ones"]] if found["ones"] else 0))
    return str(_VALUES[found["small"]])
