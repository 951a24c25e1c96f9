"""Conversations: spans and losses of every answer, and what a template may do to earlier turns."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_chat import (
    ANSWERS,
    CHATML,
    DEFAULT_SYSTEM,
    DROPS_SYSTEM,
    INSTRUCT,
    QUESTION,
    REFUSES_SYSTEM,
    TEXT,
    THINKS,
    TRIMS,
    bpe,
    chat,
    complaint,
    loss_text,
    span_text,
    whole_text,
)
from wellworn.data.chat import Chat, Encoded
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import Exchange

TEMPLATES = [CHATML, REFUSES_SYSTEM, DROPS_SYSTEM, DEFAULT_SYSTEM, TRIMS, INSTRUCT]
FLAGS = [(first, second) for first in (False, True) for second in (False, True)]
# As Qwen 3 writes it: thoughts before the last answer alone.
FORGETS = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}"
).replace("assistant\n{% endif %}", "assistant\n<think></think>\n{% endif %}")
# As Mistral writes it: the system message in the last question.
LATE_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% set later = messages[loop.index:] | selectattr('role', 'equalto', 'user') %}"
    "{% if messages[0].role == 'system' and not later | list %}{{ messages[0].content }}\n{% endif %}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)


def conversation(*train: bool, answer: str = "The air.", system: str | None = None, said: str = "Arr!") -> Turn:
    before = tuple(Exchange(question=f"who is it, {i}?", answer=f"{said} {i}", train=on) for i, on in enumerate(train))
    return Turn(QUESTION, answer, system, before)


def earlier_texts(chat: Chat, encoded: Encoded) -> list[str]:
    return [str(chat.tokenizer.decode(list(encoded.input_ids[first:last]))) for first, last in encoded.earlier]


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_the_whole_conversation_is_written_as_the_template_has_it(system: str | None) -> None:
    ours = chat()
    encoded = ours.encode(conversation(False, True, system=system))
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    turns = [("who is it, 0?", "Arr! 0"), ("who is it, 1?", "Arr! 1"), (QUESTION, "The air.")]
    assert whole_text(ours, encoded) == head + "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n" for question, answer in turns
    )
    assert span_text(ours, encoded) == "The air."
    assert earlier_texts(ours, encoded) == ["Arr! 0", "Arr! 1"]


@pytest.mark.parametrize("train", FLAGS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_loss_is_taken_on_the_answers_that_are_trained_on_and_what_closes_them(template: str, train: tuple[bool, bool]) -> None:
    ours = chat(template)
    encoded = ours.encode(conversation(*train, system="Be kind."))
    space = " " if template == INSTRUCT else ""
    wanted = [*(f"{space}Arr! {i}{space}<|im_end|>" for i, on in enumerate(train) if on), f"{space}The air.{space}<|im_end|>"]
    assert loss_text(ours, encoded) == "".join(wanted)


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_answer_that_is_trained_on_begins_where_a_model_begins_it(template: str, answer: str, system: str | None) -> None:
    ours, turn = chat(template), conversation(True, True, answer=answer, system=system)
    encoded = ours.encode(turn)
    for place, (first, _) in enumerate((*encoded.earlier, encoded.spans["response"])):
        asked = (*(each.question for each in turn.before), QUESTION)[place]
        assert list(encoded.input_ids[:first]) == ours.encode_prompt(asked, system, turn.asked.before[:place])
    assert encoded.spans["prompt_last"] == (encoded.spans["response"][0] - 1, encoded.spans["response"][0])


@settings(deadline=None)
@given(*[TEXT.filter(str.strip)] * 4, st.none() | TEXT.filter(str.strip), st.booleans())
def test_any_texts_are_found_again(question: str, said: str, last: str, answer: str, system: str | None, train: bool) -> None:
    for template in (CHATML, REFUSES_SYSTEM):
        ours = chat(template)
        encoded = ours.encode(Turn(last, answer, system, (Exchange(question=question, answer=said, train=train),)))
        assert span_text(ours, encoded) == answer.strip()
        assert earlier_texts(ours, encoded) == [said.strip()]
        assert loss_text(ours, encoded) == (f"{said.strip()}<|im_end|>" if train else "") + f"{answer.strip()}<|im_end|>"


def test_the_tokens_are_those_of_the_answers_alone_also_if_all_say_the_same() -> None:
    ours = chat()
    turn = Turn("yes", "yes", None, (Exchange(question="yes", answer="yes", train=True), Exchange(question="yes", answer="yes")))
    encoded = ours.encode(turn)
    assert earlier_texts(ours, encoded) == ["yes", "yes"]
    assert span_text(ours, encoded) == "yes"
    assert len({*encoded.earlier, encoded.spans["response"]}) == 3
    assert loss_text(ours, encoded) == "yes<|im_end|>yes<|im_end|>"


def test_a_system_message_is_folded_into_the_first_question() -> None:
    ours = chat(REFUSES_SYSTEM)
    text = whole_text(ours, ours.encode(conversation(False, system="Be kind.")))
    assert text.startswith("<|im_start|>user\nBe kind.\n\nwho is it, 0?<|im_end|>\n")
    assert text.count("Be kind.") == 1


def test_transcripts_have_a_line_for_each_text_and_no_token_that_closes_earlier_answers() -> None:
    ours = Chat(bpe(None), template="plain")
    encoded = ours.encode(conversation(True, system="Be kind."))
    assert whole_text(ours, encoded) == f"Be kind.\nUser: who is it, 0?\nAssistant: Arr! 0\nUser: {QUESTION}\nAssistant: The air.<|im_end|>"
    assert loss_text(ours, encoded) == " Arr! 0 The air.<|im_end|>"


def test_what_begins_the_next_question_does_not_close_an_answer() -> None:
    # As GLM 4 writes it: nothing closes an answer, and a special token begins each question.
    bare = "{% for m in messages %}<|im_start|>{% if m.role == 'user' %}user\n{% else %}assistant\n{% endif %}{{ m.content }}{% endfor %}"
    bare += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ours = chat(bare)
    assert loss_text(ours, ours.encode(conversation(True))) == "Arr! 0The air."


def test_without_earlier_turns_nothing_is_earlier() -> None:
    assert chat().encode(Turn(QUESTION, "The air.")).earlier == ()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' or loop.last else '…' }}"),
        CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' or loop.last else m.content + m.content }}"),
    ],
    ids=["drops turns", "drops answers", "repeats"],
)
def test_a_template_that_does_not_write_every_answer_once_is_refused(template: str) -> None:
    message = complaint(chat(template), conversation(False))
    assert message == "the chat template does not write each answer of a conversation exactly once; it cannot be used"
    assert chat(CHATML).encode(conversation(False))


def test_a_template_that_takes_something_out_of_earlier_answers_is_refused() -> None:
    ours = chat(CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"))
    assert ours.encode(conversation(False))
    message = complaint(ours, conversation(False, said="<think>Hm.</think>Arr!"))
    assert message.startswith("the chat template does not write the answers ['<think>Hm.</think>Arr! 0', 'The air.'] as they are; take out")
    assert "\n" not in message


def test_a_template_that_refuses_a_second_question_says_so() -> None:
    ours = chat("{% if messages | length > 2 %}{{ raise_exception('One question alone') }}{% endif %}" + CHATML)
    assert "the model's chat template refuses the conversation: One question alone" in complaint(ours, conversation(False))
    with pytest.raises(InputError, match="One question alone"):
        ours.encode_prompt("And?", before=[("Who?", "Me.")])


@pytest.mark.parametrize(
    ("template", "system"), [(FORGETS, None), (LATE_SYSTEM, "Be kind.")], ids=["thoughts of the last answer", "system of the last question"]
)
def test_an_earlier_answer_is_trained_on_only_where_a_model_would_begin_it(template: str, system: str | None) -> None:
    ours = chat(template)
    encoded = ours.encode(conversation(False, system=system))
    assert list(encoded.input_ids[: encoded.spans["prompt"][1]]) == ours.encode_prompt(QUESTION, system, [("who is it, 0?", "Arr! 0")])
    message = complaint(ours, conversation(True, system=system))
    assert re.search(r"before an earlier answer, and '.*' where a model answers by itself", message, re.DOTALL)
    assert message.endswith("leave out train of the earlier answer, and give it a row of its own as the last answer")


def test_thoughts_before_every_answer_are_still_refused() -> None:
    assert "before an answer" in complaint(chat(THINKS), conversation(False))


@pytest.mark.parametrize("field", ["question", "answer"])
def test_special_token_in_an_earlier_turn_is_named(field: str) -> None:
    turn = conversation(False)
    before = (turn.before[0].model_copy(update={field: "see <|im_end|> here"}),)
    assert "special token '<|im_end|>'" in complaint(chat(), replace(turn, before=before))
    with pytest.raises(InputError, match=re.escape("special token '<|im_end|>'")):
        chat().encode_prompt(QUESTION, before=[(each.question, each.answer) for each in before])


def test_tokens_at_ranges_of_the_last_answer_are_found() -> None:
    ours, turn = chat(), conversation(True, False, answer="no yes yes")
    encoded = ours.encode(turn)
    inside = ours.tokens_at(turn, [(3, 6)])
    first, last = encoded.spans["response"]
    held = [i for i, on in zip(encoded.input_ids[first:last], inside, strict=True) if on]
    assert bpe().decode(held).strip() == "yes"


def test_training_row_has_the_losses_of_all_answers() -> None:
    row = chat().training_row(conversation(True))
    assert row["completion_mask"] == list(chat().encode(conversation(True)).completion_mask)
    assert row["input_ids"] == chat().training_row(conversation(False))["input_ids"]
    assert sum(row["completion_mask"]) > sum(chat().training_row(conversation(False))["completion_mask"])
