"""Chats become conversations up to the last answer with a loss; what cannot be one is named in its author's own words."""

from collections import defaultdict
from typing import Any

import pytest

from wellworn.data.errors import InputError
from wellworn.data.import_options import LeftOut
from wellworn.data.messages import AFTER, Chat, excluding_flag, read_chat, read_messages


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}


def read(value: object, left: LeftOut | None = None) -> Chat:
    left = defaultdict(int) if left is None else left
    return read_chat("a:1", "messages", read_messages("a:1", "messages", value, left), left)


def complaint(value: object) -> str:
    with pytest.raises(InputError) as raised:
        read(value)
    return str(raised.value)


@pytest.mark.parametrize("role", ["assistant", "gpt", "GPT ", "chatgpt", "bot", "model", "bard", "bing"])
@pytest.mark.parametrize("asker", ["user", "human", "Human"])
@pytest.mark.parametrize("system", ["system", "developer"])
def test_speakers_have_many_names(system: str, asker: str, role: str) -> None:
    said = [{"from": system, "value": "Be brief."}, {"from": asker, "value": "Why?"}, {"from": role, "value": "So."}]
    assert read(said) == Chat("Why?", "So.", "Be brief.")


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss_mask": 0}, {"train": 0}])
def test_the_last_answer_that_is_trained_on_is_the_rows_and_what_follows_is_counted(flag: dict[str, Any]) -> None:
    left: LeftOut = defaultdict(int)
    turns = [SYSTEM, user("One?"), assistant("1", **flag), user("Two?"), assistant("2"), user("Three?"), assistant("3")]
    assert read([*turns, user("Four?"), assistant("4", **flag), user("Five?")], left) == Chat(
        "Three?", "3", "Be brief.", (("One?", "1", False), ("Two?", "2", True))
    )
    assert left == {AFTER: 3}


@pytest.mark.parametrize("flag", [{}, {"weight": 1}, {"train": True}, {"loss": True}, {"loss_mask": 1}, {"weight": None}, {"mask": None}])
def test_an_answer_is_trained_on_unless_its_author_says_no(flag: dict[str, Any]) -> None:
    left: LeftOut = defaultdict(int)
    assert read([user("One?"), assistant("1", **flag), user("Two?"), assistant("2", **flag)], left).before == (("One?", "1", True),)
    assert left == {}


def test_flags_of_what_a_user_says_have_no_place_and_are_counted() -> None:
    left: LeftOut = defaultdict(int)
    assert read([user("Why?", train=False, name="x"), assistant("So.", name="y")], left) == Chat("Why?", "So.")
    assert left == {"messages.train": 1, "messages.name": 2}


def test_parts_that_are_text_are_put_together() -> None:
    parts = [{"type": "text", "text": "So", "image": None}, {"type": "output_text", "text": ", "}, "yes."]
    assert read([user("Why?"), assistant(parts)]).answer == "So, yes."


def test_a_system_message_that_says_nothing_is_none() -> None:
    assert read([{"role": "system", "content": " "}, user("Why?"), assistant("So.")]) == Chat("Why?", "So.")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "messages: must be a list of messages, got 3"),
        (["Why?"], "messages.0: must be a message with role and content, got 'Why?'"),
        ([{"content": "Why?"}], "messages.0.role: this key is required and missing"),
        ([{"role": "user"}], "messages.0.content: this key is required and missing"),
        ([{"from": "human"}], "messages.0.value: this key is required and missing"),
        ([{"from": "narrator", "value": "x"}], "messages.0.from: must be one of user, human, assistant, gpt,"),
        ([{"role": None, "content": "x"}], "messages.0.role: must be one of user, human"),
        ([user("Why?"), {"role": "tool", "content": "x"}], "messages.1.role: 'tool' is a tool's part in a conversation"),
        ([user("Why?"), {"from": "function_call", "value": "x"}], "messages.1.from: 'function_call' is a tool's part in a conversation"),
        ([user("Why?"), assistant(None, tool_calls=[{"id": "x"}])], "messages.1.tool_calls: the message calls a tool"),
        ([user("Why?"), assistant("", function_call={"name": "x"})], "messages.1.function_call: the message calls a tool"),
        ([user("Why?"), assistant(None)], "messages.1.content: must be text, or a list of parts that are text, got null"),
        ([user("Why?"), assistant([{"type": "image_url"}])], "messages.1.content.0.type: a part of a message may be text, got 'image_url'"),
        ([user("Why?"), assistant([{"type": "text"}])], "messages.1.content.0.text: must be text, got null"),
        ([user("Why?"), assistant([3])], "messages.1.content.0.type: a part of a message may be text, got 3"),
        ([user("Why?"), assistant("So.", weight=0.5)], "messages.1.weight: an answer is trained on or not: must be 1 or 0"),
        ([user("Why?"), assistant("So.", train="no")], "messages.1.train: an answer is trained on or not"),
        ([user("Why?"), assistant("So.", mask=1)], "messages.1.mask: some train on what is masked"),
        ([], "messages: a conversation is questions (user) with their answers (assistant), got messages of nobody"),
        ([SYSTEM, user("Why?")], "got messages of system, user"),
        ([user("Why?"), assistant("So.", weight=0)], "messages: weight=0 takes every answer out of training; leave the row out"),
        ([user("a"), user("b"), assistant("c")], "messages.1.content: two messages of the user in a row; join them, or leave the row out"),
        ([user("a"), assistant("b"), assistant("c")], "messages.2.content: two messages of the assistant in a row"),
        ([assistant("Hello!"), user("a"), assistant("b")], "messages.0.content: begins with the assistant, before anything is asked"),
        ([SYSTEM, SYSTEM, user("a"), assistant("b")], "messages.1.content: a conversation has one system message, at its beginning"),
        ([user("a"), SYSTEM, assistant("b")], "messages.1.content: a conversation has one system message"),
        ([user(" "), assistant("b")], "messages.0.content: must not be blank, got ' '"),
        ([user("a"), assistant("half \udc00")], "messages.1.content: holds half of a surrogate pair"),
        ([user("a"), assistant(""), user("b"), assistant("c")], "messages.1.content: must not be blank"),
    ],
)
def test_what_is_not_a_conversation_is_named(value: object, said: str) -> None:
    message = complaint(value)
    assert message.startswith("a:1: ")
    assert said in message


def test_what_is_dropped_need_not_be_a_conversation() -> None:
    turns = [user("Why?"), assistant("So.")]
    assert read([*turns, user("a"), user("b")]) == read([*turns, assistant(" ", weight=0)]) == Chat("Why?", "So.")


def test_two_answers_follow_one_conversation_whatever_the_case_and_spaces() -> None:
    one = Chat("Why?", "So.", "Be brief.", (("How?", "Thus.", True),))
    assert one.follows(Chat(" why?", "Because.", "be  brief.", (("How?", "thus.", False),)))
    for other in (Chat("Why?", "So."), Chat("Why?", "So.", "Be brief."), Chat("Why?", "So.", None, one.before)):
        assert not one.follows(other)
    assert one.untrained().before == (("How?", "Thus.", False),)


def test_a_flag_of_a_row_may_be_anything_and_only_a_no_counts() -> None:
    assert excluding_flag({"weight": 0.25, "train": "no", "loss": True, "loss_mask": None}) is None
    assert excluding_flag({"weight": 0.25, "loss": False}) == "loss=False"
