"""How third-party sources are to be understood, and what of them is left out and counted."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wellworn.data.errors import Complaints, InputError
from wellworn.data.wording import visible

# The fields of a row here that a column of a table may hold.
FIELDS = ("question", "positive", "negative", "system", "split", "id")
# What has no place here → how many rows, messages or documents have it.
LeftOut = dict[str, int]
# How what was left out because of a fault is counted.
UNUSABLE = "unusable: "
LONGEST = 160
_NUMBER_OF_ITEM, _QUOTED = re.compile(r"(?<=\.)\d+(?=[.:])"), re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


@dataclass(frozen=True)
class Options:
    """How sources are to be understood.

    Attributes:
        columns: question, positive, negative, system, split or id → the field that holds it.
        positive: which of two preferred answers shows the trait.
        held_out: questions to evaluate on, of rows without splits; None means 24, or a quarter of a small set.
        skip: leave out rows that cannot be used, and count them, instead of refusing all.
        split: of a data set.
        config: of a data set on the hub.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    positive: Literal["chosen", "rejected"] = "chosen"
    held_out: int | None = None
    skip: bool = False
    split: str | None = None
    config: str | None = None


def parse_columns(text: str) -> dict[str, str]:
    """Return which field of a row is which: `question=prompt,positive=answer` → {question: prompt, positive: answer}.

    Raises:
        InputError: a field that rows do not have, or a mapping without a question.
    """
    columns: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        ours, found, theirs = (piece.strip() for piece in part.partition("="))
        if not found or not theirs or ours in columns:
            raise InputError(f"--columns: a mapping is written question=FIELD,positive=FIELD, each once; got {part!r}")
        if ours not in FIELDS:
            raise InputError(f"--columns: {ours!r} is not a field of a row here; it may be one of: {', '.join(FIELDS)}")
        columns[ours] = theirs
    if columns and "question" not in columns:
        raise InputError(f"--columns: which field holds the question? got {text!r}")
    return columns


class Unusable(Complaints):
    """Problems of rows and documents: reported, or counted where these may be left out."""

    def __init__(self, options: Options, left: LeftOut) -> None:
        super().__init__()
        self.skip, self.left = options.skip, left

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note or count an `InputError` raised within, and go on behind the block."""
        try:
            yield
        except InputError as error:
            if self.skip:
                self.left[f"{UNUSABLE}{_kind(str(error))}"] += 1
            else:
                self.found += str(error).split("\n")


def _kind(complaint: str) -> str:
    """Return a complaint without its place and what it quotes, so that faults of one kind are counted together."""
    said = complaint.splitlines()[0].partition(": ")[2]
    return _one_line(_QUOTED.sub("…", _NUMBER_OF_ITEM.sub("…", said.partition(", got ")[0])))


def _one_line(text: str) -> str:
    """Return a name that may hold anything as a short line of text that can be written and printed."""
    shown = visible(text, harmless=())
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"


class Format(BaseModel):
    """A third-party format, with its own field names; those that it does not have are kept, and counted."""

    model_config = ConfigDict(frozen=True, extra="allow")


def note_extra(model: BaseModel, left: LeftOut, at: str = "") -> None:
    """Count the fields of a document or row that its format does not have, at any depth; null holds nothing."""
    count_fields(model.model_extra or {}, left, at)
    for key, value in model:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BaseModel):
                note_extra(part, left, f"{at}{key}.")


def count_fields(fields: Mapping[str, Any], left: LeftOut, at: str = "") -> None:
    """Count fields that have no place here; null and what is empty hold nothing."""
    for key, value in fields.items():
        if value is not None and value not in ("", [], {}):
            left[_one_line(f"{at}{key}")] += 1
