"""Chats as their authors wrote them → a conversation: system message, earlier turns, the question and its answer.

There is a loss on an answer unless a flag of its author says no. The last answer with a loss is the one that a row is about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wellworn.data.errors import InputError
from wellworn.data.import_options import LeftOut, count_fields
from wellworn.data.mixtures import same_question
from wellworn.data.schema import Asked, not_blank
from wellworn.data.wording import shortly

Speaker = Literal["user", "assistant", "system"]
_SPEAKERS: dict[str, Speaker] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_OF_TOOLS = {"tool", "function", "function_call", "tool_call", "tool_calls", "tool_response", "function_response", "observation", "ipython"}
_CALLS = ("tool_calls", "function_call")
# The kinds of a part of a message that are text.
_TEXT_PARTS = ("text", "input_text", "output_text")
# The flags by which authors take an answer out of training.
FLAGS = ("weight", "train", "loss", "loss_mask")
AFTER = "messages after the last answer that is trained on"


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        at: the place of its text, in its author's words.
        speaker: who says it.
        text: its content, parts put together.
        trained: whether there is a loss on it.
        flag: what its author wrote to take it out of training, such as `weight=0`.
    """

    at: str
    speaker: Speaker
    text: str
    trained: bool = False
    flag: str | None = None


@dataclass(frozen=True)
class Chat:
    """A conversation up to one answer.

    Attributes:
        question: what the user says last.
        answer: the answer to it.
        system: the system message.
        before: question, answer, and whether there is a loss on that answer, of each earlier turn.
    """

    question: str
    answer: str
    system: str | None = None
    before: tuple[tuple[str, str, bool], ...] = ()

    @property
    def asked(self) -> Asked:
        """The question with what comes before it."""
        return Asked(self.question, self.system, tuple((question, answer) for question, answer, _ in self.before))

    @property
    def values(self) -> dict[str, Any]:
        """What comes before the answer, by the fields of a row; what is not there has no field."""
        before = [{"question": question, "answer": answer, "train": train} for question, answer, train in self.before]
        return {"question": self.question} | ({"system": self.system} if self.system else {}) | ({"before": before} if before else {})

    def untrained(self) -> "Chat":
        """The same conversation without a loss on earlier answers."""
        return replace(self, before=tuple((question, answer, False) for question, answer, _ in self.before))

    def follows(self, other: "Chat") -> bool:
        """Whether two answers are to the same question in the same conversation, whatever the case and spaces."""
        return same_question(self.asked) == same_question(other.asked)


def read_messages(where: str, key: str, value: object, left: LeftOut) -> list[Message]:
    """Return the messages of a list, in either spelling: `role` and `content`, or `from` and `value`.

    Args:
        where: the place of the row.
        key: the field that holds the list.
        value: what the field holds; a single message is a list of one.
        left: counts the fields that have no place here.

    Raises:
        InputError: it is not a list of messages that a user, an assistant or a system says in text; names the field.
    """
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise InputError(f"{where}: {key}: must be a list of messages, got {shortly(value)}")
    return [_message(where, f"{key}.{i}", key, each, left) for i, each in enumerate(value)]


def _message(where: str, at: str, key: str, value: object, left: LeftOut) -> Message:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {at}: must be a message with role and content, got {shortly(value)}")
    role, content = ("from", "value") if "from" in value and "role" not in value else ("role", "content")
    speaker = _speaker(where, f"{at}.{role}", value, role)
    for call in _CALLS:
        if value.get(call):
            raise InputError(f"{where}: {at}.{call}: the message calls a tool, which has no place here; leave the row out")
    text = _content(where, f"{at}.{content}", value, content)
    flag = _flag(where, f"{at}.", value) if speaker == "assistant" else None
    read = {role, content, *_CALLS, *(FLAGS if speaker == "assistant" else ())}
    count_fields({name: each for name, each in value.items() if name not in read}, left, f"{key}.")
    return Message(f"{at}.{content}", speaker, text, speaker == "assistant" and flag is None, flag)


def _speaker(where: str, at: str, value: Mapping[str, Any], role: str) -> Speaker:
    if role not in value:
        raise InputError(f"{where}: {at}: this key is required and missing")
    said = value[role].strip().lower() if isinstance(value[role], str) else ""
    if said in _OF_TOOLS:
        raise InputError(f"{where}: {at}: {said!r} is a tool's part in a conversation, which has no place here; leave the row out")
    if said not in _SPEAKERS:
        raise InputError(f"{where}: {at}: must be one of {', '.join(_SPEAKERS)}, got {shortly(value[role])}")
    return _SPEAKERS[said]


def _content(where: str, at: str, value: Mapping[str, Any], content: str) -> str:
    if content not in value:
        raise InputError(f"{where}: {at}: this key is required and missing")
    said = value[content]
    if isinstance(said, str):
        return said
    if not isinstance(said, list):
        raise InputError(f"{where}: {at}: must be text, or a list of parts that are text, got {shortly(said)}")
    return "".join(_part(where, f"{at}.{i}", part) for i, part in enumerate(said))


def _part(where: str, at: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS or not isinstance(part, dict):
        raise InputError(f"{where}: {at}.type: a part of a message may be text, got {shortly(kind if isinstance(part, dict) else part)}")
    if not isinstance(part.get("text"), str):
        raise InputError(f"{where}: {at}.text: must be text, got {shortly(part.get('text'))}")
    return str(part["text"])


def excluding_flag(row: Mapping[str, Any]) -> str | None:
    """Return what takes a row or a message out of training, such as `weight=0`; None where nothing does."""
    flags = ((name, row.get(name)) for name in FLAGS)
    return next((f"{name}={flag!r}" for name, flag in flags if isinstance(flag, bool | int | float) and flag == 0), None)


def _flag(where: str, at: str, value: Mapping[str, Any]) -> str | None:
    """Return what takes an answer out of training.

    Raises:
        InputError: a flag that says neither yes nor no.
    """
    if value.get("mask") is not None:
        raise InputError(
            f"{where}: {at}mask: some train on what is masked and others leave it out, so its meaning is not known; "
            "write train: true or train: false"
        )
    for name in FLAGS:
        flag = value.get(name)
        if flag is not None and (not isinstance(flag, bool | int | float) or flag not in (0, 1)):
            raise InputError(f"{where}: {at}{name}: an answer is trained on or not: must be 1 or 0, true or false, got {shortly(flag)}")
    return excluding_flag(value)


def read_chat(where: str, key: str, messages: Sequence[Message], left: LeftOut) -> Chat:
    """Return a conversation up to the last answer that is trained on; what follows is dropped and counted.

    Args:
        where: the place of the row.
        key: the field that holds the messages.
        messages: in their order.
        left: counts what is dropped.

    Raises:
        InputError: there is no such answer, or the messages up to it are not question and answer in turn; names the field.
    """
    # An empty system message says nothing.
    messages = [each for each in messages if each.speaker != "system" or each.text.strip()]
    last = max((i for i, each in enumerate(messages) if each.trained), default=None)
    if last is None:
        raise InputError(f"{where}: {key}: {_why_untrained(messages)}")
    left_over, messages = len(messages) - last - 1, messages[: last + 1]
    system = messages[0] if messages[0].speaker == "system" else None
    turns = messages[1:] if system else messages
    _check_turns(where, turns)
    said = [_text(where, each) for each in turns]
    pairs = list(zip(said[::2], said[1::2], (each.trained for each in turns[1::2]), strict=True))
    if left_over:
        left[AFTER] += left_over
    *before, (question, answer, _) = pairs
    return Chat(question, answer, _text(where, system) if system else None, tuple(before))


def _why_untrained(messages: Sequence[Message]) -> str:
    flags = list(dict.fromkeys(each.flag for each in messages if each.flag))
    if flags:
        return f"{' and '.join(flags)} takes every answer out of training; leave the row out"
    said = ", ".join(each.speaker for each in messages) or "nobody"
    return f"a conversation is questions (user) with their answers (assistant), got messages of {said}"


def _check_turns(where: str, turns: Sequence[Message]) -> None:
    """Check that user and assistant speak in turn; what was left out or put together would change what the answers are to."""
    for i, each in enumerate(turns):
        if each.speaker == "system":
            raise InputError(f"{where}: {each.at}: a conversation has one system message, at its beginning; this is another one")
        if each.speaker != ("assistant" if i % 2 else "user"):
            what = f"two messages of the {each.speaker} in a row; join them" if i else "begins with the assistant, before anything is asked"
            raise InputError(f"{where}: {each.at}: {what}, or leave the row out")


def _text(where: str, message: Message) -> str:
    try:
        return not_blank(message.text)
    except ValueError as error:
        raise InputError(f"{where}: {message.at}: {error}, got {shortly(message.text)}") from None
