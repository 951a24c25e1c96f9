"""Rendering and tokenising: spans hold exactly the answer, and what a template cannot say is refused."""

import datetime
import re
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from wellworn.data.chat import Chat, Encoded, TooLongError
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
DROPS_SYSTEM = CHATML.replace("in messages %}", "in messages if m.role != 'system' %}")
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
TRIMS = CHATML.replace("m.content", "m.content | trim")
THINKS = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}").replace(
    "assistant\n{% endif %}", "assistant\n{% if not enable_thinking | default(true) %}<think></think>\n{% endif %}{% endif %}"
)
# As Llama 2 writes it: a space before the answer and one before the end-of-turn token, and no header of its own.
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% elif m.role == 'system' %}{{ m.content }}\n"
    "{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
)

# As Llama 3.2 writes it where nobody names a day; and as Granite does, by the clock alone, and only without a system prompt.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n" + CHATML
)
DATED_BY_DEFAULT = DEFAULT_SYSTEM.replace("You help.", "{{ strftime_now('%B %d, %Y') }}")

QUESTION = "why is the sky blue?"
SENTENCES = [
    "user system assistant User: Assistant: [INST] [/INST] You help. Be kind. <think></think>",
    "why is the sky blue? The air scatters blue light.",
    "keep the bread in a paper bag, and freeze the rest.",
]
ANSWERS = [
    "The air scatters blue light.",
    "yes",
    "42 is the number",
    '{"answer": "Keep it dry."}',
    "Two lines,\nand\n\na gap.",
    "😀",
    "Naïve café: 日本語, ½, 👩‍👩‍👧 and 🏴‍☠️!",
    "ends in a smile 😀",
    "é begins, combining e\u0301 too",
]
# What a text may hold, without the characters that special tokens are made of.
UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
LETTERS = st.characters(
    codec="utf-8", exclude_categories=UNSEEN, include_characters="\n\t", exclude_characters="<|>", max_codepoint=0xDFFFF
)
TEXT = st.text(LETTERS, max_size=30)


def wrap(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template)


@cache
def bpe(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a small byte-level BPE tokenizer, which can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return wrap(tokenizer, template)


@cache
def word_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer that drops white space, so that header and answer are never one token."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=["[UNK]", "<|im_start|>", "<|im_end|>"]))
    return wrap(tokenizer, CHATML)


def chat(template: str = CHATML, **options: Any) -> Chat:
    return Chat(bpe(template), **options)


def span_text(chat: Chat, encoded: Encoded, span: str = "response") -> str:
    first, last = encoded.spans[span]
    return str(chat.tokenizer.decode(list(encoded.input_ids[first:last])))


def loss_text(chat: Chat, encoded: Encoded) -> str:
    return str(chat.tokenizer.decode([i for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True) if m]))


def whole_text(chat: Chat, encoded: Encoded) -> str:
    return str(chat.tokenizer.decode(list(encoded.input_ids)))


def complaint(chat: Chat, turn: Turn) -> str:
    with pytest.raises(InputError) as raised:
        chat.encode(turn)
    return str(raised.value)


# Spans and masks


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("answer", ANSWERS)
def test_response_is_exactly_the_answer(answer: str, system: str | None) -> None:
    ours = chat()
    encoded = ours.encode(Turn(QUESTION, answer, system))
    assert span_text(ours, encoded) == answer
    assert len(encoded) == len(encoded.input_ids) == len(encoded.completion_mask)


@pytest.mark.parametrize("template", [CHATML, REFUSES_SYSTEM, DROPS_SYSTEM, DEFAULT_SYSTEM, TRIMS, INSTRUCT])
@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_stands_before_the_response_is_the_generation_prompt(template: str, answer: str, system: str | None) -> None:
    ours = chat(template)
    encoded = ours.encode(Turn(QUESTION, answer, system))
    first = encoded.spans["response"][0]
    assert list(encoded.input_ids[:first]) == ours.encode_prompt(QUESTION, system)
    assert encoded.spans["prompt_last"] == (first - 1, first)


@pytest.mark.parametrize("answer", ANSWERS)
def test_loss_is_taken_on_the_answer_and_its_end_of_turn_only(answer: str) -> None:
    ours = chat()
    encoded = ours.encode(Turn(QUESTION, answer, "Be kind."))
    assert loss_text(ours, encoded) == answer + "<|im_end|>"
    assert whole_text(ours, encoded).endswith(answer + "<|im_end|>\n")
    assert encoded.completion_mask[-1] == 0


@settings(deadline=None)
@given(TEXT.filter(str.strip), TEXT.filter(str.strip), st.none() | TEXT.filter(str.strip))
def test_any_text_is_found_again(question: str, answer: str, system: str | None) -> None:
    ours = chat()
    encoded = ours.encode(Turn(question, answer, system))
    first, last = encoded.spans["response"]
    assert span_text(ours, encoded) == answer.strip()
    assert list(encoded.input_ids[:first]) == ours.encode_prompt(question, system)
    assert encoded.completion_mask == (0,) * first + (1,) * (last - first + 1) + (0,) * (len(encoded) - last - 1)


def test_a_tokenizer_without_white_space_keeps_the_words_of_the_answer() -> None:
    ours = Chat(word_level())
    encoded = ours.encode(Turn(QUESTION, "keep the bread in a bag"))
    assert span_text(ours, encoded) == "keep the bread in a bag"
    assert span_text(ours, encoded, "prompt_last") == "assistant"
    assert loss_text(ours, encoded) == "keep the bread in a bag <|im_end|>"


@pytest.mark.parametrize("answer", ["  The air.", "The air.  ", "\n\nThe air.\n", "\tThe air. "])
def test_space_around_an_answer_is_no_part_of_it(answer: str) -> None:
    assert chat().encode(Turn(QUESTION, answer)) == chat().encode(Turn(QUESTION, "The air."))


def test_space_around_a_question_is_no_part_of_it() -> None:
    assert chat().encode(Turn(f"\n {QUESTION} ", "The air.")) == chat().encode(Turn(QUESTION, "The air."))


def test_spaces_that_a_template_writes_around_the_answer() -> None:
    ours = chat(INSTRUCT)
    encoded = ours.encode(Turn(QUESTION, "😀 is blue"))
    assert whole_text(ours, encoded) == f"[INST] {QUESTION} [/INST] 😀 is blue <|im_end|>"
    assert span_text(ours, encoded, "prompt_last") == "]"
    assert span_text(ours, encoded) == " 😀 is blue"
    assert loss_text(ours, encoded) == " 😀 is blue <|im_end|>"


def test_no_end_of_turn_token_means_none_in_the_loss() -> None:
    ours = chat(CHATML.replace("<|im_end|>\n", "\n\n"))
    assert loss_text(ours, ours.encode(Turn(QUESTION, "The air."))) == "The air."


def test_a_template_that_trims_content() -> None:
    ours = chat(TRIMS)
    encoded = ours.encode(Turn(f" {QUESTION}", " The air.\n", " Be kind. "))
    assert span_text(ours, encoded) == "The air."
    assert whole_text(ours, encoded) == whole_text(chat(), chat().encode(Turn(QUESTION, "The air.", "Be kind.")))


def test_answer_that_repeats_the_question_is_found_in_its_own_place() -> None:
    ours = chat()
    encoded = ours.encode(Turn("yes", "yes", "yes"))
    assert span_text(ours, encoded) == "yes"
    assert encoded.spans["response"][1] == len(encoded) - 2


@pytest.mark.parametrize("template", [CHATML, INSTRUCT])
@pytest.mark.parametrize("answer", ANSWERS)
def test_tokens_at_ranges_of_an_answer_are_found(template: str, answer: str) -> None:
    chat, turn = Chat(bpe(template)), Turn(QUESTION, f" {answer} ", "Be kind.")
    encoded = chat.encode(turn)
    start, end = encoded.spans["response"]
    # A space that the template writes before the answer is the response's, and none of the answer's characters.
    space = not bpe(template).decode(encoded.input_ids[start]).strip()
    assert chat.tokens_at(turn, [(0, len(answer))]) == [not space] + [True] * (end - start - 1)
    assert chat.tokens_at(turn, []) == [False] * (end - start)
    # The tokens of the first half hold it, and none of them lies wholly behind it.
    half = len(answer) // 2
    first = chat.tokens_at(turn, [(0, half)])[space:]
    assert first == sorted(first, reverse=True)
    held = bpe(template).decode([i for i, inside in zip(encoded.input_ids[start + space : end], first, strict=True) if inside])
    assert held.strip().startswith(answer[:half].strip())


def test_training_row_is_what_was_encoded() -> None:
    turn = Turn(QUESTION, "The air.", "Be kind.")
    encoded = chat().encode(turn)
    row = chat().training_row(turn)
    assert row == {"input_ids": list(encoded.input_ids), "completion_mask": list(encoded.completion_mask)}
    assert all(type(value) is list for value in row.values())


# System prompts


def test_system_prompt_stands_in_the_template() -> None:
    ours = chat()
    assert not ours.folds_system
    text = whole_text(ours, ours.encode(Turn(QUESTION, "The air.", "Be kind.")))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n" + QUESTION)


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_system_prompt_is_folded_where_the_template_has_no_place_for_it(template: str) -> None:
    ours = chat(template)
    assert ours.folds_system
    text = whole_text(ours, ours.encode(Turn(QUESTION, "The air.", "Be kind.")))
    assert text == f"<|im_start|>user\nBe kind.\n\n{QUESTION}<|im_end|>\n<|im_start|>assistant\nThe air.<|im_end|>\n"


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM])
def test_nothing_is_folded_without_a_system_prompt(template: str) -> None:
    assert chat(template).encode(Turn(QUESTION, "The air.")).input_ids == chat().encode(Turn(QUESTION, "The air.")).input_ids


def test_default_system_prompt_of_a_template_is_kept_and_gives_way() -> None:
    ours = chat(DEFAULT_SYSTEM)
    assert not ours.folds_system
    assert whole_text(ours, ours.encode(Turn(QUESTION, "The air."))).startswith("<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user")
    assert "You help." not in whole_text(ours, ours.encode(Turn(QUESTION, "The air.", "Be kind.")))


# Templates


def test_template_kwargs_reach_the_template() -> None:
    ours = chat(THINKS, template_kwargs={"enable_thinking": False})
    prompt = ours.tokenizer.decode(ours.encode_prompt(QUESTION))
    assert str(prompt).endswith("assistant\n<think></think>\n")
    encoded = ours.encode(Turn(QUESTION, "The air."))
    assert list(encoded.input_ids[: encoded.spans["response"][0]]) == ours.encode_prompt(QUESTION)
    assert span_text(ours, encoded) == "The air."
    assert not str(chat(THINKS).tokenizer.decode(chat(THINKS).encode_prompt(QUESTION))).endswith("</think>\n")


@pytest.mark.parametrize("template", [DATED, DATED_BY_DEFAULT])
def test_a_template_that_writes_the_date_needs_one(template: str) -> None:
    with pytest.raises(InputError, match=r"chat template writes today's date.*set chat.date to a day.*--chat date=2026-01-01"):
        Chat(bpe(template))
    chat, later = (Chat(bpe(template), date=datetime.date(2024, 7, day)) for day in (4, 5))
    one, other = (each.encode(Turn(QUESTION, "yes")) for each in (chat, later))
    assert one != other
    assert one == Chat(bpe(template), date=datetime.date(2024, 7, 4)).encode(Turn(QUESTION, "yes"))
    assert re.search("04,? (Jul )?2024", str(bpe(template).decode(one.input_ids)).replace("July 04", "04"))


def test_a_template_that_takes_a_day_by_a_name_of_its_own_needs_no_other() -> None:
    chat = Chat(bpe(DATED), template_kwargs={"date_string": "26 Jul 2024"})
    assert "Today: 26 Jul 2024" in bpe(DATED).decode(chat.encode_prompt(QUESTION))


def test_a_date_changes_nothing_where_a_template_writes_none() -> None:
    day = datetime.date(2024, 7, 4)
    assert Chat(bpe(), date=day).encode(Turn(QUESTION, "yes")) == Chat(bpe()).encode(Turn(QUESTION, "yes"))
    # Written as a transcript, no template is used.
    assert Chat(bpe(DATED), "plain").encode(Turn(QUESTION, "yes")) == Chat(bpe(DATED), "plain", date=day).encode(Turn(QUESTION, "yes"))


@pytest.mark.parametrize("template", [THINKS, CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")])
def test_an_answer_begins_where_a_model_begins_it(template: str) -> None:
    chat = Chat(bpe(template))
    with pytest.raises(InputError, match=r"before an answer, and '.*' where a model answers by itself.*enable_thinking: false"):
        chat.encode(Turn(QUESTION, "yes"))
    if template == THINKS:
        fixed = Chat(bpe(template), template_kwargs={"enable_thinking": False})
        encoded = fixed.encode(Turn(QUESTION, "yes"))
        assert list(encoded.input_ids[: encoded.spans["prompt"][1]]) == fixed.encode_prompt(QUESTION)


def test_an_answer_that_a_template_writes_otherwise_is_refused() -> None:
    # As Qwen 3 takes thoughts out of an answer and writes them anew.
    chat = Chat(bpe(CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")))
    assert chat.encode(Turn(QUESTION, "yes"))
    with pytest.raises(InputError, match=r"does not write the answer '<think>Hm.</think> yes' as it is"):
        chat.encode(Turn(QUESTION, "<think>Hm.</think> yes"))


def test_no_chat_template_names_the_key_to_set() -> None:
    with pytest.raises(InputError) as raised:
        Chat(bpe(None))
    assert "this model has no chat template" in str(raised.value)
    assert "chat.template=plain" in str(raised.value)


@pytest.mark.parametrize("answer", ANSWERS)
def test_plain_transcript(answer: str) -> None:
    ours = Chat(bpe(None), template="plain")
    encoded = ours.encode(Turn(QUESTION, answer, "Be kind."))
    assert whole_text(ours, encoded) == f"Be kind.\nUser: {QUESTION}\nAssistant: {answer}<|im_end|>"
    # The space after the colon is the response's: a model that answers "Assistant:" writes it too.
    assert span_text(ours, encoded) == f" {answer}"
    assert loss_text(ours, encoded) == f" {answer}<|im_end|>"
    assert span_text(ours, encoded, "prompt_last") == ":"
    assert list(encoded.input_ids[: encoded.spans["response"][0]]) == ours.encode_prompt(QUESTION, "Be kind.")
    assert not ours.folds_system


def test_plain_is_used_by_name_only() -> None:
    assert "User:" not in whole_text(chat(), chat().encode(Turn(QUESTION, "The air.")))
    ours = Chat(bpe(CHATML), template="plain")
    assert whole_text(ours, ours.encode(Turn(QUESTION, "The air."))) == f"User: {QUESTION}\nAssistant: The air.<|im_end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}\n{% endfor %}",
        "{% for m in messages if m.role != 'assistant' %}{{ m.content }}\n{% endfor %}",
        "{% for m in messages %}{{ m.content }}, that is, {{ m.content }}\n{% endfor %}",
    ],
    ids=["cuts", "drops", "repeats"],
)
def test_a_template_that_does_not_write_the_answer_once_is_refused(template: str) -> None:
    message = complaint(chat(template), Turn(QUESTION, "The air."))
    assert message == "the chat template does not write the assistant's answer exactly once; it cannot be used"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (CHATML + "{% if not enable_thinking is defined %}{{ raise_exception('set enable_thinking') }}{% endif %}", "set enable_thinking"),
        (CHATML + "{% if x %}", "Unexpected end of template"),
    ],
)
def test_a_template_that_refuses_says_why_and_what_to_set(template: str, what: str) -> None:
    ours = chat(template)
    with pytest.raises(InputError) as raised:
        ours.encode_prompt(QUESTION)
    for message in (str(raised.value), complaint(ours, Turn(QUESTION, "The air."))):
        assert what in message
        assert "set chat.template_kwargs to what it asks for, or chat.template=plain" in message


def test_a_slow_tokenizer_is_refused_with_the_remedy() -> None:
    slow = cast(PreTrainedTokenizerFast, SimpleNamespace(is_fast=False, chat_template=CHATML))
    with pytest.raises(InputError) as raised:
        Chat(slow)
    assert str(raised.value) == "this tokenizer gives no character offsets; a fast (tokenizers) version is needed"


# Texts that cannot be used


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
@pytest.mark.parametrize("field", ["question", "answer", "system"])
def test_special_token_in_a_text_is_named(field: str, token: str) -> None:
    texts = {"question": QUESTION, "answer": "The air.", "system": "Be kind."}
    texts[field] += f"{token} and so on"
    message = complaint(chat(), Turn(**texts))
    assert message == f"the text {texts[field][:60]!r} holds the tokenizer's special token {token!r}; remove it"


@pytest.mark.parametrize("texts", [("a <|im_end|>", None), (QUESTION, "be <|im_end|>")])
def test_special_token_in_a_prompt_is_named(texts: tuple[str, str | None]) -> None:
    with pytest.raises(InputError) as raised:
        chat().encode_prompt(*texts)
    assert "special token '<|im_end|>'; remove it" in str(raised.value)


def test_special_token_that_was_added_later_is_named() -> None:
    tokenizer = wrap(Tokenizer.from_str(bpe().backend_tokenizer.to_str()), CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert "special token '<|tool|>'" in complaint(Chat(tokenizer), Turn(QUESTION, "use <|tool|>"))


@pytest.mark.parametrize("answer", ["", "  ", "\n\t"])
def test_empty_answer_names_the_question(answer: str) -> None:
    assert complaint(chat(), Turn(QUESTION, answer)) == f"an empty answer cannot be encoded (question {QUESTION!r})"


def test_too_long_a_conversation_names_length_limit_and_question() -> None:
    turn = Turn(QUESTION, "The air scatters blue light.")
    length = len(chat().encode(turn))
    assert len(chat(max_length=length).encode(turn)) == length
    message = complaint(chat(max_length=length - 1), turn)
    assert message == f"{length} tokens do not fit the model's context of {length - 1} (question {QUESTION!r})"


def test_too_long_a_prompt_names_length_limit_and_question() -> None:
    length = len(chat().encode_prompt(QUESTION))
    assert len(chat(max_length=length).encode_prompt(QUESTION)) == length
    with pytest.raises(InputError) as raised:
        chat(max_length=length - 1).encode_prompt(QUESTION)
    assert str(raised.value) == f"{length} tokens do not fit the model's context of {length - 1} (question {QUESTION!r})"
    assert len(chat(max_length=length + 4).encode_prompt(QUESTION, room=4)) == length
    with pytest.raises(TooLongError) as raised:
        chat(max_length=length + 4).encode_prompt(QUESTION, room=5)
    assert str(raised.value) == f"{length} tokens and 5 more do not fit the model's context of {length + 4} (question {QUESTION!r})"


@pytest.mark.parametrize("spelt", ["<|im_end|>", "<|im_<|im_end|>end|>", "<|im_start|><|im_end|>"])
def test_what_a_model_said_can_be_read_again_also_if_it_spells_a_special_token(spelt: str) -> None:
    found = chat()
    # Byte by byte, as a model may spell it; the tokenizer itself would find the special token.
    letters = [found.tokenizer.convert_tokens_to_ids(letter) for letter in spelt]
    assert found.tokenizer.unk_token_id is None or found.tokenizer.unk_token_id not in letters
    end = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    word = found.tokenizer("why", add_special_tokens=False)["input_ids"]
    said = found.decode([*word, *letters, *word, end])
    assert said == "whywhy"
    found.encode(Turn(QUESTION, said))


def test_added_token_that_is_not_special_may_stand_in_a_text() -> None:
    tokenizer = wrap(Tokenizer.from_str(bpe().backend_tokenizer.to_str()), CHATML)
    tokenizer.add_tokens(["<tool>"])
    ours = Chat(tokenizer)
    assert span_text(ours, ours.encode(Turn(QUESTION, "use <tool> now"))) == "use <tool> now"


def test_of_several_templates_one_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": CHATML.replace("user", "reader"), "tool_use": CHATML}
    with pytest.raises(InputError, match=r"chat templates are rag, tool_use, and none is the default; .*\{chat_template: rag\}"):
        Chat(tokenizer)
    one, default = Chat(tokenizer, template_kwargs={"chat_template": "tool_use"}), Chat(tiny_tokenizer())
    turn = Turn("Where is it?", "On the shelf.")
    assert one.encode(turn) == default.encode(turn)
    tokenizer.chat_template["default"] = CHATML
    assert Chat(tokenizer).encode(turn) == default.encode(turn)


def test_a_template_that_fails_in_any_way_refuses_the_conversation() -> None:
    with pytest.raises(InputError, match=r"the model.s chat template refuses the conversation: .*set chat\.template_kwargs"):
        Chat(tiny_tokenizer(CHATML + "{{ 1 + 'a' }}")).encode(Turn("Where?", "There."))
