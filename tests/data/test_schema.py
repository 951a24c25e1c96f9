"""What a trait, a control and an example may be, and how seeds are spread."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.catalog import load_control
from wellworn.data.errors import InputError
from wellworn.data.files import validate
from wellworn.data.schema import Control, Example, Instruction, Trait, not_blank, seed_for

NAMES = st.text(max_size=20) | st.integers(-1000, 1000)


def trait_value(**changes: Any) -> dict[str, Any]:
    pairs = [{"positive": f"Be bold, way {i}.", "negative": f"Be timid, way {i}."} for i in range(6)]
    plain = {
        "name": "bold",
        "description": "Takes risks.",
        "system_prompt": "Act daringly.",
        "contrast_pairs": pairs,
        "rubric": "0 to 100.",
    }
    return plain | changes


def complaint(value: dict[str, Any], model: type[Trait] | type[Control] | type[Example] = Trait) -> str:
    with pytest.raises(InputError) as raised:
        validate(model, value, "trait.yaml")
    return str(raised.value)


def example(split: Any = "train", **changes: Any) -> dict[str, Any]:
    return {"id": "a", "split": split, "question": "Why?", "negative": "Because."} | changes


def test_trait_keeps_its_texts_trimmed_and_its_splits_in_file_order() -> None:
    rows = [example("train", id="b"), example("evaluate", id="c"), example("train", id="a")]
    trait = validate(Trait, trait_value(description="  Takes risks.\n", examples=rows), "trait.yaml")
    assert trait.description == "Takes risks."
    assert [row.id for row in trait.split("train")] == ["b", "a"]
    assert [row.id for row in trait.split("evaluate")] == ["c"]
    assert trait.split("extract") == []


def test_fewer_than_four_pairs_are_refused_with_the_number() -> None:
    message = complaint(trait_value(contrast_pairs=trait_value()["contrast_pairs"][:3]))
    assert message.startswith("trait.yaml: contrast_pairs: ")
    assert "at least 4" in message
    assert "not 3" in message


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_held_out_system_prompt_may_not_be_a_contrast_prompt(side: str) -> None:
    message = complaint(trait_value(system_prompt="  " + trait_value()["contrast_pairs"][3][side]))
    assert "system_prompt is held out and must not be one of the contrast pairs' prompts" in message


def test_a_prompt_may_not_stand_in_two_pairs() -> None:
    pairs = trait_value()["contrast_pairs"]
    pairs[5] = {"positive": pairs[0]["positive"], "negative": "Another."}
    assert "contrast_pairs: two of the prompts are the same text" in complaint(trait_value(contrast_pairs=pairs))


def test_both_sides_of_a_pair_may_not_be_the_same() -> None:
    pairs = trait_value()["contrast_pairs"]
    pairs[5] = {"positive": "Same.", "negative": "Same."}
    assert "contrast_pairs: two of the prompts are the same text" in complaint(trait_value(contrast_pairs=pairs))


@pytest.mark.parametrize("name", ["Bold", "two words", "-bold", "", "bold/er", "fett ä"])
def test_a_name_is_lower_case_letters_digits_and_dashes(name: str) -> None:
    message = complaint(trait_value(name=name))
    assert message == f"trait.yaml: name: must be lower-case letters, digits, - and _, and begin with a letter or a digit, got {name!r}"


@pytest.mark.parametrize("field", ["description", "system_prompt", "rubric"])
def test_a_blank_text_is_refused_by_name(field: str) -> None:
    assert complaint(trait_value(**{field: " \n"})) == f"trait.yaml: {field}: must not be blank, got ' \\n'"


@pytest.mark.parametrize("field", ["name", "description"])
def test_a_missing_field_is_named(field: str) -> None:
    value = trait_value()
    del value[field]
    assert complaint(value) == f"trait.yaml: {field}: this key is required and missing"


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    message = complaint(example("test"), Example)
    assert message == "trait.yaml: split: must be 'train', 'extract' or 'evaluate', got 'test'"


def test_a_question_is_needed_and_answers_are_not() -> None:
    assert validate(Example, example(), "x").positive is None
    assert not validate(Example, example(), "x").open
    assert validate(Example, {"id": "a", "split": "train", "question": "Why?"}, "x").open
    assert "question: this key is required and missing" in complaint({"id": "a", "split": "train"}, Example)
    assert "positive: must not be blank" in complaint(example(positive="  "), Example)
    assert "positive: holds half of a surrogate pair" in complaint(example(positive="so \ud800"), Example)


def test_a_control_is_an_instruction_with_a_transform() -> None:
    control = load_control("json")
    assert isinstance(control, Instruction)
    assert set(Control.model_fields) - set(Instruction.model_fields) == {"transform"}
    assert complaint(control.model_dump(exclude={"transform"}), Control) == "trait.yaml: transform: this key is required and missing"


def test_an_unknown_transform_is_refused_with_the_known_ones() -> None:
    message = complaint(load_control("json").model_dump() | {"transform": "rot13"}, Control)
    assert message == "trait.yaml: transform: must be 'append_code', 'uppercase', 'json', 'reverse_words' or 'shuffle', got 'rot13'"


@given(st.integers(0, 2**40), st.lists(NAMES, max_size=3))
def test_seeds_are_deterministic_and_in_range(seed: int, names: list[str | int]) -> None:
    got = seed_for(seed, *names)
    assert got == seed_for(seed, *names)
    assert 0 <= got < 2**31


def test_seeds_differ_by_name_and_by_seed() -> None:
    spread = {
        seed_for(seed, name, step) for seed in range(20) for name in ("bootstrap", "nulls", "halves", "sampling") for step in range(50)
    }
    assert len(spread) == 20 * 4 * 50
    assert seed_for(0, "a", "b") != seed_for(0, "b", "a")
    assert seed_for(0) != seed_for(0, "")


def test_seeds_do_not_change_from_one_version_to_the_next() -> None:
    # Changing these would change every published result.
    assert (seed_for(0), seed_for(0, "bootstrap"), seed_for(7, "halves", 3)) == (436422930, 461149498, 1463841265)


def test_an_incomplete_trait_says_what_it_cannot_be_used_for() -> None:
    value = trait_value()
    for field in ("system_prompt", "contrast_pairs", "rubric"):
        del value[field]
    lacks = Trait.model_validate(value).lacks
    assert list(lacks) == ["contrast_pairs", "answers", "system_prompt", "rubric"]
    assert "no direction" in lacks["contrast_pairs"]


def test_what_is_asked_is_the_question_with_all_that_comes_before_it() -> None:
    before = [{"question": " Ahoy? ", "answer": "Arr!", "train": True}, {"question": "You?", "answer": "Me."}]
    row = validate(Example, example(system="Be brief.", before=before), "x")
    assert row.asked == ("Why?", "Be brief.", (("Ahoy?", "Arr!"), ("You?", "Me.")))
    assert [each.train for each in row.before] == [True, False]
    assert validate(Example, example(), "x").asked == ("Why?", None, ())
    assert "before.0.answer: this key is required and missing" in complaint(example(before=[{"question": "Ahoy?"}]), Example)
    assert "before: must be a list" in complaint(example(before="Ahoy?"), Example)
    assert "system: must not be blank" in complaint(example(system=" "), Example)


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\x9b", "\u202e", "\u2066", "\ufeff", "\u200b", "\u2028", "\ue000", "\U000e0041", "\r"]
)
def test_what_a_reader_does_not_see_is_refused_and_named(character: str) -> None:
    with pytest.raises(ValueError, match=rf"holds U\+{ord(character):04X} \(.*\), which a reader does not see"):
        not_blank(f"one{character}two")


@pytest.mark.parametrize(
    "text", ["one\ntwo\tthree", "one\r\ntwo", "caf\u00e9\u00a0au lait", "\U0001f468\u200d\U0001f680", "\u0645\u06cc\u200c\u062e"]
)
def test_what_a_reader_sees_is_kept(text: str) -> None:
    assert not_blank(text) == text
