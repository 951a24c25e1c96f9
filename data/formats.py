"""Third-party formats of rows, with their own field names, and how each row becomes a question with its answers.

A format is a pydantic model, so that a complaint names the field that its author wrote, in the author's file and line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from wellworn.data.errors import InputError
from wellworn.data.files import validate
from wellworn.data.import_options import FIELDS, Format, LeftOut, Options, count_fields, note_extra
from wellworn.data.messages import Message, Speaker, excluding_flag, read_chat, read_messages
from wellworn.data.mixtures import same_question
from wellworn.data.wording import shortly

CHATS = ("messages", "conversations", "conversation")
# Whether an answer is wanted, as TRL and LLaMA-Factory name it.
LABELS = ("label", "kto_tag")
# Other names of our fields in tables of questions and answers.
_OTHER_NAMES = {"positive": ("answer", "response"), "system": ("system_prompt",)}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Conversation(Format):
    """A chat, as fine-tuning sets hold it, without its messages; the system message may be a field of its own."""

    system: str | None = None


class Preference(Format):
    """Two answers to one prompt; each as text, or as a chat."""

    prompt: Any = None
    question: str | None = None
    instruction: str | None = None
    input: str | None = None
    conversations: Any = None
    system: str | None = None
    chosen: Any
    rejected: Any


class PreferenceInput(Format):
    """What is answered in a preference of OpenAI."""

    messages: Any


class OutputPreference(Format):
    """Two answers to one conversation, as OpenAI writes them."""

    input: PreferenceInput
    preferred_output: Any
    non_preferred_output: Any


class Completion(Format):
    """A prompt and its completion; each as text, or as a chat."""

    prompt: Any
    completion: Any


class Instruction(Format):
    """An instruction as Alpaca writes it, with what it is about, and its answer."""

    instruction: str
    input: str | None = None
    output: str
    system: str | None = None
    history: list[tuple[str, str]] | None = None


def fields_of(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    """Return the contents of a row, by `FIELDS`, and the turns `before` its question.

    Args:
        where: the place of the row.
        row: with the fields of its format.
        options: how to understand it.
        left: counts the fields that have no place here.

    Raises:
        InputError: a row of no known format, one that is malformed, or one that its author excluded from training.
    """
    if flag := excluding_flag(row):
        raise InputError(f"{where}: {flag} takes the row out of training; leave the row out")
    if options.columns:
        _refuse_lost(where, row, options)
        return _rename_fields(where, row, options.columns, left)
    # A table may have a column for each of two formats, one of them empty.
    for there in ({key for key in row if row[key] is not None}, row.keys()):
        for keys, read in _KINDS:
            if there >= set(keys):
                return read(where, row, options, left)
    named = ", ".join(map(repr, row)) or "none"
    raise InputError(
        f"{where}: cannot tell what this row holds by its fields ({named}); rows have messages or conversations, chosen and rejected, "
        "preferred_output and non_preferred_output, prompt and completion, instruction and output, or question, "
        "or --columns question=FIELD,positive=FIELD,negative=FIELD says which is which"
    )


def _refuse_lost(where: str, row: Mapping[str, Any], options: Options) -> None:
    """Refuse rows of a known format of which `--columns` would lose what changes their meaning."""
    taken = options.columns.values()
    if "completion" in taken:
        _check_label(where, row, options, "; without --columns rows of prompt, completion and label are understood")
    parts = ("input", "context", "system", "history") if "instruction" in taken else ()
    for part in parts:
        if part not in taken and str(row.get(part) or "").strip():
            raise InputError(
                f"{where}: {part} is a part of what is asked, and --columns leaves it out; without --columns rows of instruction, input, "
                "system, history and output are understood"
            )


def _check_label(where: str, row: Mapping[str, Any], options: Options, remedy: str = "", kinds: type | tuple[type, ...] = object) -> None:
    """Check that a label, if there is one, marks an answer that is to be trained on.

    Args:
        where: the place of the row.
        row: with its fields.
        options: whether answers that are wanted are those that show the trait.
        remedy: ends the complaint.
        kinds: types that a label has in this format; others are something else.

    Raises:
        InputError: it marks an answer of the other side, or says neither yes nor no.
    """
    for key in LABELS:
        label = row.get(key)
        if label is None or not isinstance(label, kinds):
            continue
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            raise InputError(f"{where}: {key}: says whether the answer is wanted: must be true or false, 1 or 0, got {shortly(label)}")
        if bool(label) is not (options.positive == "chosen"):
            what, other = ("wanted", "chosen") if label else ("not wanted", "rejected")
            raise InputError(
                f"{where}: {key}={bool(label)} marks an answer that is {what}, and it would be trained on; see --positive {other}{remedy}"
            )


def _rename_fields(where: str, row: Mapping[str, Any], columns: Mapping[str, str], left: LeftOut) -> dict[str, Any]:
    for ours, theirs in columns.items():
        if theirs not in row:
            raise InputError(f"{where}: --columns {ours}={theirs}: the row has no such field; it has {', '.join(map(repr, row)) or 'none'}")
    count_fields({key: value for key, value in row.items() if key not in columns.values()}, left)
    values = {ours: row[theirs] for ours, theirs in columns.items()}
    # An empty system message says nothing.
    nothing = {key for key, value in values.items() if value is None or (key == "system" and isinstance(value, str) and not value.strip())}
    return {key: str(value) if key == "id" else value for key, value in values.items() if key not in nothing}


def _conversation(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    key = next((key for key in CHATS if row.get(key) is not None), next(key for key in CHATS if key in row))
    found = validate(Conversation, _rest(where, row, options, {key}), where)
    note_extra(found, left)
    chat = read_chat(where, key, _under(where, found.system, read_messages(where, key, row[key], left)), left)
    return chat.values | {"positive": chat.answer}


def _rest(where: str, row: Mapping[str, Any], options: Options, read: set[str]) -> dict[str, Any]:
    """Return the fields of a row that are still to be read; whether its answer is wanted is settled here.

    In a format without labels of its own only true and false are such a label; a number may be a class of something.
    """
    _check_label(where, row, options, kinds=bool)
    return {key: value for key, value in row.items() if key not in read and not (key in LABELS and isinstance(value, bool))}


def _under(where: str, system: str | None, messages: list[Message]) -> list[Message]:
    """Put the system message of a row before its messages."""
    if not (system or "").strip():
        return messages
    if any(each.speaker == "system" and each.text.strip() for each in messages):
        raise InputError(f"{where}: system: the messages have a system message of their own; leave one of the two out")
    return [Message("system", "system", system or ""), *messages]


def _preference(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Preference, row, where)
    note_extra(found, left)
    if found.conversations is not None:
        prompt = read_messages(where, "conversations", found.conversations, left)
    elif found.prompt is None and found.instruction is not None:
        prompt = [Message("instruction", "user", _asked(found.instruction, found.input))]
    elif found.prompt is None and found.question is not None:
        prompt = [Message("question", "user", found.question)]
    else:
        prompt = _said(where, "prompt", "user", found.prompt, left)
    return _two_answers(where, options, left, found.system, prompt, ("chosen", found.chosen), ("rejected", found.rejected))


def _output_preference(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(OutputPreference, row, where)
    note_extra(found, left)
    prompt = read_messages(where, "input.messages", found.input.messages, left)
    sides = ("preferred_output", found.preferred_output), ("non_preferred_output", found.non_preferred_output)
    return _two_answers(where, options, left, None, prompt, *sides)


def _two_answers(
    where: str,
    options: Options,
    left: LeftOut,
    system: str | None,
    prompt: list[Message],
    wanted: tuple[str, object],
    other: tuple[str, object],
) -> dict[str, Any]:
    """Return two answers to one conversation; there is a loss on them alone."""
    prompt = [replace(each, trained=False) for each in prompt]
    chats = []
    for key, value in (wanted, other):
        messages = _said(where, key, "assistant", value, left) if prompt or not isinstance(value, str) else _transcript(where, key, value)
        if prompt and messages[:1] and messages[0].speaker != "assistant":
            _check_held(where, key, prompt, messages)
        else:
            messages = [*prompt, *messages]
        chats.append(read_chat(where, key, _under(where, system, messages), left).untrained())
    first, second = chats
    if not first.follows(second):
        what = (
            f"answer different questions: {first.question!r} / {second.question!r}"
            if same_question(first.question) != same_question(second.question)
            else "follow different earlier turns or system messages"
        )
        raise InputError(f"{where}: {wanted[0]} and {other[0]} {what}; they have to be two answers to one conversation")
    shown, plain = (first, second) if options.positive == "chosen" else (second, first)
    return first.values | {"positive": shown.answer, "negative": plain.answer}


def _said(where: str, key: str, speaker: Speaker, value: object, left: LeftOut) -> list[Message]:
    """Return what a field holds: one text, or messages."""
    if value is None and speaker == "user":
        return []
    return [Message(key, speaker, value, speaker == "assistant")] if isinstance(value, str) else read_messages(where, key, value, left)


def _check_held(where: str, key: str, prompt: list[Message], messages: list[Message]) -> None:
    """Check that a chat which holds the prompt once more holds this prompt."""
    there = {same_question(each.text) for each in messages}
    for each in prompt:
        if each.text.strip() and same_question(each.text) not in there:
            raise InputError(f"{where}: {key}: holds a whole chat, and {each.at} is not a part of it: {shortly(each.text)}")


def _transcript(where: str, key: str, text: str) -> list[Message]:
    """Return the messages of a text in which each begins with `Human:` or `Assistant:`, as in Anthropic's HH."""
    head, *parts = _TURN.split(text)
    if head.strip() or not parts:
        raise InputError(
            f"{where}: prompt: this key is required and missing: {key} is a text that does not say what it answers, got {shortly(text)}"
        )
    said = zip(parts[::2], parts[1::2], strict=True)
    return [
        Message(f"{key} (turn {i})", "user" if who == "Human" else "assistant", what, who == "Assistant")
        for i, (who, what) in enumerate(said, start=1)
    ]


def _completion(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    _check_label(where, row, options)
    found = validate(Completion, {key: value for key, value in row.items() if key not in LABELS}, where)
    note_extra(found, left)
    prompt = [replace(each, trained=False) for each in _said(where, "prompt", "user", found.prompt, left)]
    messages = [*prompt, *_said(where, "completion", "assistant", found.completion, left)]
    chat = read_chat(where, "completion", messages, left)
    return chat.values | {"positive": chat.answer}


def _instruction(where: str, row: Mapping[str, Any], options: Options, left: LeftOut) -> dict[str, Any]:
    found = validate(Instruction, _rest(where, row, options, set()), where)
    note_extra(found, left)
    messages = [
        Message(f"history.{i}.{k}", "assistant" if k else "user", text, bool(k))
        for i, turn in enumerate(found.history or ())
        for k, text in enumerate(turn)
    ]
    messages.append(Message("instruction", "user", _asked(found.instruction, found.input)))
    messages.append(Message("output", "assistant", found.output, True))
    chat = read_chat(where, "output", _under(where, found.system, messages), left)
    return chat.values | {"positive": chat.answer}


def _asked(instruction: str, about: str | None) -> str:
    return f"{instruction}\n\n{about.strip()}" if about and about.strip() else instruction


def _own(where: str, row: Mapping[str, Any], _options: Options, left: LeftOut) -> dict[str, Any]:
    columns = {key: key for key in (*FIELDS, "before") if key in row}
    for ours, names in _OTHER_NAMES.items():
        if ours not in columns and (theirs := next((name for name in names if name in row), None)):
            columns[ours] = theirs
    return _rename_fields(where, row, columns, left)


# The first that fits: a row with two preferred answers often has a chat next to them, which is one of them.
_KINDS: list[tuple[tuple[str, ...], Callable[[str, Mapping[str, Any], Options, LeftOut], dict[str, Any]]]] = [
    (("preferred_output",), _output_preference),
    (("chosen",), _preference),
    *(((key,), _conversation) for key in CHATS),
    (("question",), _own),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _instruction),
]
