"""Third-party formats of rows and documents, with their own field names, and how each row becomes a question with its answers.

A format is a pydantic model, so that a complaint names the field that its author wrote, in the author's file and line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wellworn.data.errors import InputError
from wellworn.data.files import validate
from wellworn.data.mixtures import same_question
from wellworn.data.schema import Text

_SYSTEM = {"system", "developer"}
FIELDS = ("question", "positive", "negative", "split", "id")
# Closes the prompt of a judge where the rubric of a trait has no places for question and answer.
JUDGED = "\n\nQuestion:\n{question}\n\nAnswer:\n{answer}"
# Field that has no place here → how many rows or documents have it.
LeftOut = dict[str, int]


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class _Document(_Format):
    questions: list[Text] = []
    eval_prompt: Text | None = None


class PosNeg(_Format):
    """Two system prompts of persona-vectors."""

    pos: Text
    neg: Text


class TraitDocument(_Document):
    """A trait of persona-vectors (Chen et al. 2025): contrast pairs, questions without answers, and the prompt of a judge."""

    instruction: Annotated[list[PosNeg], Field(min_length=1)]


class Pos(BaseModel):
    """A system prompt of assistant-axis; any further key would make it another format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pos: Text


class RoleDocument(_Document):
    """A role of assistant-axis (Lu et al. 2026): system prompts, questions without answers, and the prompt of a judge."""

    instruction: Annotated[list[Pos], Field(min_length=1)]


class TextPart(_Format):
    """A part of a message that is text; others cannot be read."""

    type: Literal["text"]
    text: str


class Message(_Format):
    """One turn of a chat."""

    role: str
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content, its parts put together."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Conversation(_Format):
    """A chat of one question and one answer, as fine-tuning sets hold it."""

    messages: list[Message]


class Preference(_Format):
    """Two answers to one prompt; each as text, or as a chat."""

    prompt: str | list[Message] | None = None
    chosen: str | list[Message]
    rejected: str | list[Message]


class Completion(_Format):
    """A prompt and its completion; each as text, or as a chat. `label` says whether the completion is wanted (KTO)."""

    prompt: str | list[Message]
    completion: str | list[Message]
    label: bool | None = None


class Instruction(_Format):
    """An instruction as Alpaca writes it, with what it is about, and its answer."""

    instruction: str
    input: str | None = None
    output: str
    system: str | None = None
    history: list[Any] | None = None


@dataclass(frozen=True)
class Options:
    """How sources are to be understood.

    Attributes:
        columns: question, positive, negative, split or id → the field that holds it.
        positive: which of two preferred answers shows the trait.
        held_out: questions to evaluate on, of rows without splits; None means 24, or a quarter of a small set.
        skip: leave out rows that cannot be used, and count them, instead of refusing all.
        split: of a data set on the hub.
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
            raise InputError(f"--columns: {ours!r} is no field of a row here; it may be one of: {', '.join(FIELDS)}")
        columns[ours] = theirs
    if columns and "question" not in columns:
        raise InputError(f"--columns: which field holds the question? got {text!r}")
    return columns


def fields_of(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    """Return the contents of a row, by `FIELDS`.

    Args:
        where: the place of the row.
        row: with the fields of its format.
        options: how to understand it.
        left: counts the fields that have no place here.

    Raises:
        InputError: a row of no known format, one that is malformed, or one that its author excluded from training.
    """
    _refuse_excluded(where, row)
    if options.columns:
        _refuse_lost(where, row, options)
        return _rename_fields(where, row, options.columns, left)
    for keys, read in _KINDS.items():
        if all(key in row for key in keys):
            return read(where, row, options, left)
    there = ", ".join(map(repr, row)) or "none"
    raise InputError(
        f"{where}: cannot tell what this row holds by its fields ({there}); rows have messages, chosen and rejected, prompt and "
        "completion, instruction and output, or question, or --columns question=FIELD,positive=FIELD,negative=FIELD says which is which"
    )


# By these fields, of a row or of a message, the author of a set takes it out of training.
_EXCLUDED = {"weight": 0, "train": False, "loss": False, "loss_mask": 0}


def _refuse_excluded(where: str, row: Mapping[str, Any]) -> None:
    said = [each for value in row.values() if isinstance(value, list) for each in value if isinstance(each, dict)]
    for each in (row, *(message for message in said if message.get("role") == "assistant")):
        for key, value in _EXCLUDED.items():
            if key in each and each[key] == value and isinstance(each[key], (bool, int, float)):
                what = "the row" if each is row else "the answer"
                raise InputError(f"{where}: {key}={each[key]!r} takes {what} out of training; leave the row out")


def _refuse_lost(where: str, row: Mapping[str, Any], options: Options) -> None:
    """Refuse rows of a known format of which `--columns` would lose what changes their meaning."""
    taken = options.columns.values()
    label = row.get("label")
    if label in (0, 1) and bool(label) is (options.positive != "chosen") and "completion" in taken:
        raise InputError(f"{where}: {_unwanted(bool(label))}; without --columns rows of prompt, completion and label are understood")
    if "instruction" in taken and "input" not in taken and str(row.get("input") or "").strip():
        raise InputError(
            f"{where}: input is a part of the question, and --columns leaves it out; "
            "without --columns rows of instruction, input and output are understood"
        )


def _unwanted(label: bool) -> str:
    other = "--positive rejected" if not label else "--positive chosen"
    return f"label={label!r} marks an answer that is {'wanted' if label else 'not wanted'}, and it would be trained on; see {other}"


def _rename_fields(where: str, row: Mapping[str, Any], columns: Mapping[str, str], left: LeftOut) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in row:
            raise InputError(f"{where}: --columns {ours}={theirs}: the row has no such field; it has {', '.join(map(repr, row)) or 'none'}")
    for key in row.keys() - set(columns.values()):
        left[key] += 1
    values = {ours: row[theirs] for ours, theirs in columns.items()}
    return {key: str(value) if key == "id" else value for key, value in values.items() if value is not None}


def _conversation(where: str, row: Mapping[str, Any], _options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Conversation, row, where)
    note_extra(found, left)
    question, answer = _exchange(where, "messages", found.messages)
    return {"question": question, "positive": answer}


def _preference(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Preference, row, where)
    note_extra(found, left)
    asked: list[str] = []
    answers: dict[str, str] = {}
    for key, said in (("chosen", found.chosen), ("rejected", found.rejected)):
        before = [Message(role="user", content=found.prompt)] if isinstance(found.prompt, str) else found.prompt or []
        turns = [Message(role="assistant", content=said)] if isinstance(said, str) else said
        # A chat may hold the prompt once more.
        turns = turns if len(turns) > 1 else [*before, *turns]
        question, answers[key] = _exchange(where, key, turns)
        asked.append(question)
    if isinstance(found.prompt, str):
        asked.append(found.prompt)
    if len(different := {same_question(question): question for question in asked}) > 1:
        raise InputError(f"{where}: prompt, chosen and rejected are of different questions: {' / '.join(map(repr, different.values()))}")
    shown = options.positive
    return {"question": asked[0], "positive": answers[shown], "negative": answers["rejected" if shown == "chosen" else "chosen"]}


def _completion(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Completion, row, where)
    note_extra(found, left)
    if found.label is not None and found.label is not (options.positive == "chosen"):
        raise InputError(f"{where}: {_unwanted(found.label)}")
    turns = [
        Message(role=role, content=said) if isinstance(said, str) else said
        for role, said in (("user", found.prompt), ("assistant", found.completion))
    ]
    question, answer = _exchange(where, "prompt", [each for turn in turns for each in (turn if isinstance(turn, list) else [turn])])
    return {"question": question, "positive": answer}


def _instruction(where: str, row: Mapping[str, Any], _options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Instruction, row, where)
    note_extra(found, left)
    if (found.system or "").strip() or found.history:
        raise InputError(f"{where}: a row is one question and its answer, under the model's own default; system and history are more")
    about = (found.input or "").strip()
    return {"question": f"{found.instruction}\n\n{about}" if about else found.instruction, "positive": found.output}


def _own(where: str, row: Mapping[str, Any], _options: Options, left: LeftOut) -> dict[str, Any]:
    # Tables of questions and answers use no other names.
    answer = {"positive": "answer"} if "answer" in row and "positive" not in row else {}
    return _rename_fields(where, row, {key: key for key in FIELDS if key in row} | answer, left)


# A row with two preferred answers often has a chat next to them, which is one of them.
_KINDS: dict[tuple[str, ...], Callable[[str, Mapping[str, Any], Options, LeftOut], dict[str, Any]]] = {
    ("chosen",): _preference,
    ("messages",): _conversation,
    ("question",): _own,
    ("prompt", "completion"): _completion,
    ("instruction", "output"): _instruction,
}


def _exchange(where: str, key: str, messages: Sequence[Message]) -> tuple[str, str]:
    # An empty system message says nothing.
    messages = [message for message in messages if message.role not in _SYSTEM or message.text.strip()]
    roles = [message.role for message in messages]
    if roles == ["user", "assistant"]:
        return messages[0].text, messages[1].text
    if set(roles) & _SYSTEM:
        raise InputError(
            f"{where}: {key}: holds a system message; a row is a question and its answer, under the model's own default. Take it out, "
            "or put it at the head of the question"
        )
    raise InputError(
        f"{where}: {key}: a row is one question (user) and one answer (assistant), got turns of {', '.join(roles) or 'nobody'}"
    )


def note_extra(model: BaseModel, left: LeftOut, at: str = "") -> None:
    """Count the fields of a document or row that its format does not have, at any depth."""
    for key in model.model_extra or {}:
        left[f"{at}{key}"] += 1
    for key, value in model:
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BaseModel):
                note_extra(part, left, f"{at}{key}.")
