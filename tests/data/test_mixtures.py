"""Training sets: what the transforms write, what a fingerprint sees, and how overlap is counted."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.catalog import control_names, load_bank, load_control, load_trait
from wellworn.data.mixtures import Turn, fingerprint, first_questions, half_turns, plain_turns, same_question, trait_turns, transform
from wellworn.data.schema import SPLITS, Control, Example, Exchange, Split

BANK = load_bank("everyday")
PLAIN = [turn for split in SPLITS for turn in plain_turns(BANK, split)]
CODE = re.compile(r" Reference code: [A-Z]{2}-[1-9][0-9]{3}\.$")
TURNS = st.builds(Turn, st.text(max_size=8), st.text(max_size=8), st.none() | st.text(max_size=8))


def one(control: Control, turn: Turn) -> str:
    """Return one plain answer as a control would write it, whatever the others are."""
    [text] = transform(control, [turn])
    return text


def a_turn(question: str = "Why?", answer: str = "Because.") -> Turn:
    return Turn(question, answer)


# Controls


@pytest.mark.parametrize("turn", PLAIN, ids=lambda turn: turn.question)
def test_json_control_parses_back_to_the_plain_answer(turn: Turn) -> None:
    assert json.loads(one(load_control("json"), turn)) == {"answer": turn.answer}


def test_json_control_keeps_quotes_line_breaks_and_letters_readable() -> None:
    text = one(load_control("json"), a_turn(answer='Say "naïve",\nthen stop.'))
    assert text == '{"answer": "Say \\"naïve\\",\\nthen stop."}'


@pytest.mark.parametrize("turn", PLAIN, ids=lambda turn: turn.question)
def test_reference_code_ends_every_answer_and_changes_nothing_before_it(turn: Turn) -> None:
    text = one(load_control("reference_code"), turn)
    assert CODE.search(text)
    assert CODE.sub("", text) == turn.answer


def test_reference_code_is_decided_by_the_question_alone() -> None:
    control = load_control("reference_code")
    code = CODE.search(one(control, a_turn()))
    other_answer = CODE.search(one(control, a_turn(answer="For another reason.")))
    assert code
    assert other_answer
    assert code.group() == other_answer.group()
    assert one(control, a_turn()) == one(control, a_turn())


def test_reference_codes_differ_between_questions() -> None:
    control = load_control("reference_code")
    codes = {one(control, turn)[-8:] for turn in PLAIN}
    assert len(codes) == len(PLAIN)


@pytest.mark.parametrize("turn", PLAIN, ids=lambda turn: turn.question)
def test_uppercase_control_keeps_every_word(turn: Turn) -> None:
    text = one(load_control("uppercase"), turn)
    assert not any(letter.islower() for letter in text)
    assert text.lower().split() == turn.answer.lower().split()


@pytest.mark.parametrize("name", control_names())
def test_every_control_changes_every_plain_answer(name: str) -> None:
    texts = transform(load_control(name), PLAIN)
    assert all(text != turn.answer for text, turn in zip(texts, PLAIN, strict=True))


def test_reversed_words_are_the_plain_answers_from_the_back() -> None:
    assert one(load_control("reversed_words"), a_turn(answer="So it is.")) == "is. it So"


def test_shuffled_answers_answer_another_question_each_once_in_any_order() -> None:
    control = load_control("shuffled")
    texts = dict(zip((turn.question for turn in PLAIN), transform(control, PLAIN), strict=True))
    assert sorted(texts.values()) == sorted(turn.answer for turn in PLAIN)
    assert dict(zip((turn.question for turn in PLAIN[::-1]), transform(control, PLAIN[::-1]), strict=True)) == texts
    with pytest.raises(ValueError, match="two questions or more, got 1"):
        transform(control, [a_turn()])


# Turns


@pytest.mark.parametrize("split", SPLITS)
def test_plain_turns_are_the_splits_questions_with_their_plain_answers(split: Split) -> None:
    expected = [(example.question, example.negative, None) for example in BANK if example.split == split]
    assert [(turn.question, turn.answer, turn.system) for turn in plain_turns(BANK, split)] == expected
    assert expected


def test_changed_turns_of_a_trait_are_its_positives() -> None:
    trait = load_trait("pirate")
    for split in ("train", "evaluate"):
        rows = trait.split(split)
        assert [(turn.question, turn.answer) for turn in trait_turns(trait, trait.examples, split)] == [
            (row.question, row.positive) for row in rows
        ]


def test_extract_questions_have_no_changed_turns() -> None:
    trait = load_trait("pirate")
    assert plain_turns(trait.examples, "extract")
    assert trait_turns(trait, trait.examples, "extract") == []


def test_changed_turns_of_a_control_are_borrowed_plain_answers_transformed() -> None:
    control = load_control("uppercase")
    rows = [
        Example(id="a", split="train", question="Why?", negative="Because."),
        Example(id="b", split="evaluate", question="How?", negative="So."),
    ]
    assert trait_turns(control, rows, "evaluate") == [Turn("How?", "SO.")]


def test_traits_and_controls_are_matched_by_question() -> None:
    trait, control = load_trait("poetic"), load_control("json")
    for split in ("train", "evaluate"):
        asked = [turn.question for turn in plain_turns(BANK, split)]
        assert [turn.question for turn in trait_turns(trait, trait.examples, split)] == asked
        assert [turn.question for turn in trait_turns(control, BANK, split)] == asked


def test_all_built_in_traits_share_one_neutral_training_set() -> None:
    expected = fingerprint(plain_turns(BANK, "train"))
    for name in ("pirate", "childish", "sycophantic"):
        assert fingerprint(plain_turns(load_trait(name).examples, "train")) == expected


# Conversations

TALK = (Exchange(question="Ahoy?", answer="Arr!", train=True), Exchange(question="Who?", answer="Me."))
ROW = Example(id="a", split="train", system="You cook.", before=TALK, question="Why?", negative="Because.", positive="Arr, because.")


def test_turns_keep_the_conversation_and_plain_ones_take_no_loss_on_it() -> None:
    [plain], [shown] = plain_turns([ROW], "train"), trait_turns(load_trait("pirate"), [ROW], "train")
    assert plain.asked == shown.asked == ROW.asked == ("Why?", "You cook.", (("Ahoy?", "Arr!"), ("Who?", "Me.")))
    assert ([each.train for each in plain.before], [each.train for each in shown.before]) == ([False, False], [True, False])
    [upper] = trait_turns(load_control("uppercase"), [ROW], "train")
    assert upper == replace(plain, answer="BECAUSE.")
    [half] = half_turns([shown], [plain])
    assert half == replace(shown, answer=half.answer)


def test_shuffled_answers_keep_the_same_question_of_two_conversations_apart() -> None:
    turns = [Turn("Go on.", f"Answer {i}.", system) for i, system in enumerate((None, "You cook.", "You sail."))]
    assert sorted(transform(load_control("shuffled"), turns)) == ["Answer 0.", "Answer 1.", "Answer 2."]


def test_a_further_system_prompt_is_put_before_a_turns_own() -> None:
    assert Turn("q", "a").under("Be kind.") == Turn("q", "a", "Be kind.")
    assert Turn("q", "a", "You cook.", TALK).under("Be kind.") == Turn("q", "a", "Be kind.\n\nYou cook.", TALK)
    assert Turn("q", "a", "You cook.").under(None) == Turn("q", "a", "You cook.")
    assert ROW.asked.under("Be kind.") == ROW.asked._replace(system="Be kind.\n\nYou cook.")


def test_a_question_is_another_one_after_another_conversation() -> None:
    plain = Example(id="b", split="train", question=" WHY? ", negative="Because.")
    assert same_question(plain.asked) == same_question("why?") == "why?"
    spelt = ROW.model_copy(update={"question": "why?", "system": "YOU  cook."})
    assert same_question(spelt.asked) == same_question(ROW.asked)
    others = [ROW.asked, ROW.asked._replace(system=None), ROW.asked._replace(before=()), ROW.asked._replace(before=ROW.asked.before[:1])]
    assert len({same_question(each) for each in [*others, plain.asked]}) == 5
    rows = [ROW, ROW.model_copy(update={"system": None}), ROW.model_copy(update={"positive": "Aye."})]
    assert first_questions(rows, "train", 1) == [rows[0], rows[2]]


def test_a_conversation_is_shown_as_a_transcript_and_a_question_alone_as_it_is() -> None:
    assert ROW.asked.transcript == "System: You cook.\n\nUser: Ahoy?\n\nAssistant: Arr!\n\nUser: Who?\n\nAssistant: Me.\n\nUser: Why?"
    assert Turn("Why?", "So.").asked.transcript == "Why?"


# Fingerprint


@given(st.lists(TURNS, max_size=4))
def test_fingerprint_depends_on_content_only(turns: list[Turn]) -> None:
    assert fingerprint(turns) == fingerprint(replace(turn) for turn in turns)


@given(st.lists(TURNS, min_size=2, max_size=4, unique=True))
def test_fingerprint_sees_order(turns: list[Turn]) -> None:
    assert fingerprint(turns) != fingerprint(reversed(turns))


@pytest.mark.parametrize(
    "changed", [Turn("q", "b"), Turn("p", "a"), Turn("q", "a", "s"), Turn("q", "a", ""), Turn("a", "q"), Turn("qa", ""), Turn("q", "a ")]
)
def test_fingerprint_sees_every_field(changed: Turn) -> None:
    assert fingerprint([changed]) != fingerprint([Turn("q", "a")])


def test_fingerprint_of_single_questions_is_what_it_always_was() -> None:
    # Changing it would change every trained adapter's stage.
    assert fingerprint([Turn("Why?", "Because."), Turn("Wer?", "Ich, natürlich.", "Be brief.")]) == "dca663f786bc86db"


def test_fingerprint_sees_the_conversation_before_a_question() -> None:
    exchanges = [Exchange(question=q, answer=a, train=on) for q, a, on in (("p", "b", False), ("p", "b", True), ("p", "c", False))]
    several = [(), *((each,) for each in exchanges), tuple(exchanges[:2]), tuple(exchanges[1::-1])]
    assert len({fingerprint([Turn("q", "a", None, before)]) for before in several}) == len(several)


def test_fingerprint_sees_length() -> None:
    turn = Turn("q", "a")
    assert len({fingerprint([turn] * n) for n in range(4)}) == 4


def test_fingerprint_does_not_know_the_examples_names() -> None:
    rows = [Example(id=f"{i}", split="train", question=text, negative="So.") for i, text in enumerate(("Why?", "How?"))]
    renamed = [row.model_copy(update={"id": row.id * 3, "positive": "Arr."}) for row in rows]
    assert fingerprint(plain_turns(rows, "train")) == fingerprint(plain_turns(renamed, "train"))


# Overlap


def test_half_an_answer_begins_as_one_and_goes_on_as_the_other() -> None:
    def half(first: str, second: str) -> str:
        [turn] = half_turns([Turn("Why?", first)], [Turn("Why?", second)])
        assert (turn.question, turn.system) == ("Why?", None)
        return turn.answer

    assert half("Arr! Ye be right. Off we sail!", "It is so. Mostly. I think.") == "Arr! Ye be right. I think."
    # One sentence alone is halved by its words.
    assert half("Arr, ye be right", "It is so. Mostly.") == "Arr, ye so. Mostly."
    assert half("Arr", "Yes") == "Arr"
    pirate = load_trait("pirate")
    changed, plain = trait_turns(pirate, pirate.examples, "evaluate"), plain_turns(pirate.examples, "evaluate")
    for turn, with_it, without in zip(half_turns(changed, plain), changed, plain, strict=True):
        assert turn.answer not in (with_it.answer, without.answer)
        assert turn.answer.split()[0] == with_it.answer.split()[0]
        assert turn.answer.split()[-1] == without.answer.split()[-1]
