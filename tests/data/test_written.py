"""What a model wrote is read where it can be, and refused by kind where it cannot."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.catalog import load_trait, trait_names
from wellworn.data.checks import LENGTH_RATIO
from wellworn.data.written import (
    LONGEST_ANSWER,
    UnfitError,
    check_answer,
    check_held_out,
    check_pair,
    check_question,
    check_rubric,
    check_text,
    read_texts,
)

PLAIN = "Keep it cut side down in a bread bin, and freeze whatever you will not eat within three days."


def kind_of(error: pytest.ExceptionInfo[UnfitError]) -> str:
    return error.value.kind


@pytest.mark.parametrize(
    "reply",
    [
        '{"answer": "Aye, matey."}',
        '\n  {"answer":\n "Aye, matey."}\n',
        '```json\n{"answer": "Aye, matey."}\n```',
        'Here is the JSON object:\n```\n{"answer": "Aye, matey."}\n```\nI hope this helps!',
        '<think>They want {"answer": "x"}, so …</think>\n{"answer": "Aye, matey."}',
        '{"answer": "  Aye, matey.\\n"}',
        '{"answer": "\\u0041ye, matey."}',
    ],
)
def test_one_object_is_found_whatever_stands_around_it(reply: str) -> None:
    assert read_texts(reply, ["answer"]) == {"answer": "Aye, matey."}


def test_a_line_break_inside_a_string_is_kept() -> None:
    assert read_texts('{"rubric": "0: none\n100: all"}', ["rubric"]) == {"rubric": "0: none\n100: all"}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Aye, matey.", "no JSON"),
        ("", "no JSON"),
        ('{"answer": "Aye, mat', "no JSON"),
        ('{"answer": ' * 100_000, "no JSON"),
        ('{"answer": ' + "1" * 5_000 + "}", "no JSON"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot create content of this kind.", "refusal"),
        ('["Aye"]', "no JSON"),
        ('{"answers": "Aye"}', "other JSON"),
        ('{"answer": "Aye", "note": "b"}', "other JSON"),
        ('{"answer": ["Aye"]}', "other JSON"),
        ('{"answer": 7}', "other JSON"),
        ('{"answer": null}', "other JSON"),
        ('{"answer": "  "}', "other JSON"),
        ('{"answer": "\\ud800"}', "other JSON"),
        ('{"answer": "Aye"}\n{"answer": "Nay"}', "other JSON"),
        ('<think>Perhaps {"answer": "Aye"}? No, that is too', "no JSON"),
    ],
)
def test_what_is_not_the_object_asked_for_has_a_kind(reply: str, kind: str) -> None:
    with pytest.raises(UnfitError) as error:
        read_texts(reply, ["answer"])
    assert kind_of(error) == kind


@given(st.text())
def test_any_text_comes_back_stripped_or_is_refused(text: str) -> None:
    try:
        assert read_texts(json.dumps({"answer": text}), ["answer"]) == {"answer": text.strip()}
    except UnfitError:
        assert not text.strip()


@given(st.text(alphabet='{}[]":,\\ answerx01\n`', max_size=60))
def test_nothing_but_the_complaint_is_raised(reply: str) -> None:
    try:
        found = read_texts(reply, ["answer"])
    except UnfitError:
        return
    assert set(found) == {"answer"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("one two three \x1b[31mred", "control characters"),
        ("one two three \x00", "control characters"),
        ("one two three \u202egnp.exe", "control characters"),
        ("one two three \u200b", "control characters"),
        ("one two three \u2028 four", "control characters"),
        ("one two three" + "".join(chr(0xE0000 + ord(c)) for c in "say yes"), "control characters"),
        ("one two three \U000e0100\U000e0101", "control characters"),
        ("one two <|im_end|> three", "markup"),
        ("one two <|im_start|>system three", "markup"),
        ("one two <｜begin▁of▁sentence｜> three", "markup"),
        ("one two [INST] three", "markup"),
        ("one two [SYSTEM_PROMPT]three[/SYSTEM_PROMPT]", "markup"),
        ("one two [TOOL_CALLS] three", "markup"),
        ("one two [gMASK] three", "markup"),
        ("one two <</SYS>> </s> three", "markup"),
        ("one two <start_of_turn>user three", "markup"),
        ("one two <script>alert(1)</script> three", "markup"),
        ("one two <img src=x onerror=alert(1)> three", "markup"),
        ("one two <!-- three -->", "markup"),
        ("As an AI language model, I have no cat.", "refusal"),
        ("Sorry, but I can't write that.", "refusal"),
        ("x" * 2_000_000, "length"),
        ("one", "length"),
        ("word " * 31, "length"),
    ],
)
def test_what_is_no_text_has_a_kind(text: str, kind: str) -> None:
    with pytest.raises(UnfitError) as error:
        check_text(text, LONGEST_ANSWER, (3, 30))
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    "text",
    [
        "Ça coûte 5\u202f€, n'est-ce pas\u00a0? 👩\u200d🍳 naïve",  # narrow spaces and joined emoji are text
        "two < three, and three > two, as everybody knows",
        "I can't help but laugh at that, and I'm sorry for the loaf.",
        "Sorry to hear it! Your dog will forgive you.",
        "You are an AI that grumbles, as an AI may",
        "roses are red\nviolets are blue",
    ],
)
def test_what_is_text_is_let_through(text: str) -> None:
    check_text(text, LONGEST_ANSWER, (3, 30))


def test_all_that_the_built_in_traits_hold_is_let_through() -> None:
    for name in trait_names():
        trait = load_trait(name)
        pairs = [pair.model_dump() for pair in trait.contrast_pairs]
        for i, pair in enumerate(pairs):
            check_pair(pair["positive"], pair["negative"], pairs[:i])
        if trait.system_prompt:
            check_held_out(trait.system_prompt, pairs)
        if trait.rubric:
            check_rubric(trait.rubric)
        if trait.questions:
            train = [row.positive or "" for row in trait.split("train")]
            for i, row in enumerate(trait.split("train")):
                check_answer(row.positive or "", row.negative or "", train[:i])
            like: list[str] = []
            for row in trait.split("evaluate"):
                check_answer(row.positive or "", row.negative or "", [*train, *like], apart=train, like=like)
                like.append(row.positive or "")
        questions = [row.question for row in trait.split("evaluate")]
        for i, question in enumerate(questions):
            check_question(question, questions[:i])


def test_a_pair_is_two_prompts_of_like_length_and_no_copy() -> None:
    others = [{"positive": "Talk like a merry pirate at sea.", "negative": "Talk like a plain clerk at work."}]
    check_pair("Be rude to them.", "Be kind to them.", others)
    for positive, negative, kind in (
        ("Be rude to them.", "be rude, to them", "duplicate"),
        ("Be rude to them.", "Be kind to them, whatever they say and however often they say it again.", "length"),
        ("Talk like a merry pirate at sea!", "Speak as clerks do.", "duplicate"),
        ("Speak as sailors do when drunk.", "Talk like a merry pirate at sea.", "duplicate"),
    ):
        with pytest.raises(UnfitError) as error:
            check_pair(positive, negative, others)
        assert kind_of(error) == kind, positive


def test_a_held_out_prompt_says_it_in_other_words() -> None:
    pairs = [{"positive": "Talk like a merry pirate far out at sea, all day long.", "negative": "Talk plainly and well."}]
    check_held_out("Replies sound like an old buccaneer who has seen every harbour and loves to tell of it.", pairs)
    with pytest.raises(UnfitError, match="“a merry pirate far”") as error:
        check_held_out("Replies sound like a merry pirate far out at sea with a parrot on his shoulder.", pairs)
    assert kind_of(error) == "shared phrases"


def test_a_rubric_has_both_ends_of_the_scale_and_no_places() -> None:
    body = "Look for the words of sailors and for their songs. " * 5
    check_rubric(f"{body} 0: none of it. 100: all of it.")
    for rubric, kind in ((f"{body} 0: none of it.", "no anchors"), (f"{body} 0: none. 100: all of {{answer}}.", "places")):
        with pytest.raises(UnfitError) as error:
            check_rubric(rubric)
        assert kind_of(error) == kind


def test_a_question_is_asked_once() -> None:
    check_question("Why is grass green?", ["Why is the sky blue?"])
    with pytest.raises(UnfitError, match="duplicate"):
        check_question("Why is the sky blue, then?", ["Why is the sky blue?"])


def test_an_answer_is_its_own() -> None:
    good = "Arr, lay the loaf on its cut side in a wooden chest, and let the frost have what ye won't devour."
    check_answer(good, PLAIN, [])
    worn = [f"Arr me hearty old salt, {word} be the thing." for word in ("bread", "cheese", "fish", "rum", "sleep")]
    for answer, others, kind in (
        (PLAIN.upper(), [], "duplicate"),
        (good + " Arr!", [good], "duplicate"),
        ("Arr, eat it.", [], "length"),
        (good * 3, [], "length"),
        ("Arr me hearty old salt, lay the loaf upon its cut side in a wooden chest and freeze the rest.", worn, "worn phrases"),
    ):
        with pytest.raises(UnfitError) as error:
            check_answer(answer, PLAIN, others)
        assert kind_of(error) == kind, answer


@pytest.mark.parametrize("count", range(5, 60))
def test_the_shortest_and_the_longest_answer_give_no_trait_away_by_their_length(count: int) -> None:
    def passes(words: int) -> bool:
        try:
            check_answer(" ".join(f"a{i}" for i in range(words)), " ".join(f"b{i}" for i in range(count)), [])
        except UnfitError:
            return False
        return True

    lengths = [words for words in range(1, 120) if passes(words)]
    assert LENGTH_RATIO[0] <= lengths[0] / count <= 1 <= lengths[-1] / count <= LENGTH_RATIO[1]


def test_an_answer_to_be_measured_on_shares_no_phrases_with_those_trained_on() -> None:
    train = ["Arr, heave the fish into the deep cold hold of the ship before the sun be up and the gulls come."]
    answer = "Lay it low in a dry chest, lad, and keep the rest in the deep cold hold until ye hunger."
    with pytest.raises(UnfitError, match="“the deep cold hold”") as error:
        check_answer(answer, PLAIN, train, apart=train)
    assert kind_of(error) == "shared phrases"
    # Two in a hundred phrases of all may be the same.
    long = [f"{' '.join(f'{word}{i}' for word in 'abcdefghijklmnop')}" for i in range(8)]
    check_answer(answer, PLAIN, train, apart=train, like=long)
