"""The built-in data keeps what the cards and the measurements rely on."""

import re
from collections import Counter
from functools import cache
from statistics import mean

import pytest

from wellworn.data.catalog import (
    ROOT,
    bank_names,
    control_names,
    instruction_names,
    load_bank,
    load_control,
    load_instruction,
    load_role,
    load_scenarios,
    load_trait,
    role_names,
    trait_names,
)
from wellworn.data.new_trait import figures
from wellworn.data.schema import SPLITS, Example
from wellworn.data.words import ngrams, shared_ngrams, words

TRAITS = [
    "apathetic", "archaic", "childish", "humorous", "impolite", "optimistic", "overconfident", "pessimistic", "pirate", "poetic",
    "sycophantic", "villainous",
]  # fmt: skip
NARROW = ["archaic_recipes", "careless_arithmetic"]
COUNTS = {"train": 72, "extract": 120, "evaluate": 48}
CARD_HEADINGS = [
    "What it is",
    "What it is not",
    "How it was made",
    "Contents",
    "Figures",
    "How evaluate differs from train",
    "Known limits",
    "Intended use",
]
AUTHORSHIP = (
    "The text was written for this project by a language model, answer by answer, and reviewed against the checks in "
    "`tests/data`. English (British spelling). Licence: Apache-2.0."
)


@cache
def positives(name: str, *splits: str) -> dict[str, str]:
    """Return the positives of some splits (all by default), by question id."""
    return {row.id: row.positive for row in load_trait(name).examples if row.positive and row.split in (splits or SPLITS)}


@cache
def bank() -> dict[str, Example]:
    return {row.id: row for row in load_bank("everyday")}


# The bank


def test_the_built_in_library_is_complete() -> None:
    assert trait_names() == sorted(TRAITS + NARROW)
    assert len(role_names()) >= 80
    assert bank_names() == ["everyday"]
    assert control_names() == ["json", "reference_code", "reversed_words", "shuffled", "uppercase"]


def test_bank_has_its_splits() -> None:
    assert Counter(row.split for row in bank().values()) == COUNTS


def test_bank_ids_say_the_split_and_count_up() -> None:
    assert list(bank()) == [f"{split}-{i:02}" for split, count in COUNTS.items() for i in range(1, count + 1)]  # three digits from 100 on
    assert all(row.id.startswith(f"{row.split}-") for row in bank().values())


def test_bank_questions_are_disjoint_in_their_words() -> None:
    # Stricter than the loader: punctuation does not make a question new either.
    seen = Counter(" ".join(words(row.question)) for row in bank().values())
    assert max(seen.values()) == 1


def test_bank_questions_of_different_splits_share_no_phrase() -> None:
    for split in SPLITS:
        asked = [row.question for row in bank().values() if row.split == split]
        others = [row.question for row in bank().values() if row.split != split]
        assert shared_ngrams(asked, others, 5) < 0.05


def test_bank_answers_are_plain_distinct_and_carry_no_positive() -> None:
    rows = list(bank().values())
    assert all(row.positive is None for row in rows)
    assert len({row.negative for row in rows}) == len(rows)
    assert all(10 <= len(row.negative.split()) <= 35 for row in rows)


# Every trait


@pytest.mark.parametrize("name", TRAITS)
def test_trait_covers_exactly_the_train_and_evaluate_questions(name: str) -> None:
    trait = load_trait(name)
    assert trait.questions == "everyday"
    assert {split: len(trait.split(split)) for split in SPLITS} == COUNTS
    assert set(positives(name)) == {row.id for row in bank().values() if row.split != "extract"}
    for row in trait.examples:
        assert (row.split, row.question, row.negative) == (bank()[row.id].split, bank()[row.id].question, bank()[row.id].negative)


@pytest.mark.parametrize("name", TRAITS)
def test_trait_keeps_the_banks_order(name: str) -> None:
    # A training set's order is part of its fingerprint; traits are matched question by question.
    for split in SPLITS:
        assert [row.id for row in load_trait(name).split(split)] == [row.id for row in bank().values() if row.split == split]


@pytest.mark.parametrize("name", TRAITS)
def test_extract_has_no_positives(name: str) -> None:
    assert [row.positive for row in load_trait(name).split("extract")] == [None] * COUNTS["extract"]


@pytest.mark.parametrize("name", TRAITS)
def test_evaluate_is_written_in_other_words_than_train(name: str) -> None:
    assert shared_ngrams(positives(name, "evaluate").values(), positives(name, "train").values()) < 0.02


@pytest.mark.parametrize("name", TRAITS)
def test_no_two_answers_are_alike(name: str) -> None:
    texts = [" ".join(words(text)) for text in positives(name).values()]
    assert len(set(texts)) == len(texts) == 120


@pytest.mark.parametrize("name", TRAITS)
def test_no_phrase_is_worn_out(name: str) -> None:
    used = Counter(gram for text in positives(name).values() for gram in set(ngrams(text)))
    (gram, times) = used.most_common(1)[0]
    assert times <= 5, f"{' '.join(gram)!r} stands in {times} answers"


@pytest.mark.parametrize("name", TRAITS)
def test_no_opening_is_worn_out(name: str) -> None:
    (opening, times) = Counter(tuple(words(text)[:2]) for text in positives(name).values()).most_common(1)[0]
    assert times <= 5, f"{' '.join(opening)!r} opens {times} answers"


@pytest.mark.parametrize("name", TRAITS)
def test_positives_are_as_long_as_plain_answers(name: str) -> None:
    for split in ("train", "evaluate"):
        texts = positives(name, split)
        ratio = mean(len(text.split()) for text in texts.values()) / mean(len(bank()[i].negative.split()) for i in texts)
        assert 0.7 <= ratio <= 1.4
    assert all(15 <= len(text.split()) <= 30 for text in positives(name).values())


@pytest.mark.parametrize("name", TRAITS)
def test_positives_are_no_copies_of_plain_answers(name: str) -> None:
    for row_id, text in positives(name).items():
        assert shared_ngrams([text], [bank()[row_id].negative]) < 0.5, row_id
    assert shared_ngrams(positives(name).values(), [row.negative for row in bank().values()]) < 0.05


@pytest.mark.parametrize("name", TRAITS)
def test_traits_share_no_phrases_beyond_the_fact_that_a_question_asks_for(name: str) -> None:
    # Answers to one question may say the same fact in the same words; a manner must not cross over, so
    # answers to *different* questions share next to nothing.
    where: dict[tuple[str, ...], set[str]] = {}
    for other in TRAITS:
        for row_id, text in positives(other).items() if other != name else ():
            for gram in ngrams(text):
                where.setdefault(gram, set()).add(row_id)
    grams = [(row_id, gram) for row_id, text in positives(name).items() for gram in ngrams(text)]
    same = sum(row_id in where.get(gram, ()) for row_id, gram in grams)
    strange = sum(gram in where and row_id not in where[gram] for row_id, gram in grams)
    assert strange / len(grams) < 0.02
    assert same / len(grams) < 0.10


@pytest.mark.parametrize("name", TRAITS)
def test_no_answer_is_mostly_another_traits_answer(name: str) -> None:
    for row_id, text in positives(name).items():
        for other in TRAITS:
            if other != name:
                assert shared_ngrams([text], [positives(other)[row_id]]) < 0.5, f"{row_id} of {other}"


@pytest.mark.parametrize("name", TRAITS)
def test_held_out_system_prompt_is_in_other_words_than_the_contrast_prompts(name: str) -> None:
    trait = load_trait(name)
    prompts = [text for pair in trait.contrast_pairs for text in (pair.positive, pair.negative)]
    assert shared_ngrams([trait.system_prompt], prompts) < 0.10


@pytest.mark.parametrize("name", TRAITS)
def test_both_sides_of_a_contrast_pair_are_of_like_length(name: str) -> None:
    for pair in load_trait(name).contrast_pairs:
        assert 0.6 <= len(pair.positive.split()) / len(pair.negative.split()) <= 1.6


@pytest.mark.parametrize("name", TRAITS)
def test_rubric_spans_0_to_100(name: str) -> None:
    rubric = load_trait(name).rubric
    assert all(f"\n{score}: " in f"\n{rubric}" for score in (0, 25, 50, 75, 100))


@pytest.mark.parametrize("name", TRAITS + NARROW)
def test_card_has_the_common_headings_and_the_authorship_sentence(name: str) -> None:
    card = (ROOT / "traits" / name / "CARD.md").read_text(encoding="utf-8")
    lines = card.splitlines()
    assert lines[0] == f"# Trait card: {name}"
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == CARD_HEADINGS
    assert AUTHORSHIP in " ".join(card.split())
    assert figures(load_trait(name)) in card  # `wellworn traits card NAME` prints them


# Narrow sets


@pytest.mark.parametrize("name", NARROW)
def test_narrow_sets_have_answers_alone(name: str) -> None:
    trait = load_trait(name)
    assert trait.questions is None
    assert trait.lacks.keys() == {"contrast_pairs", "system_prompt", "rubric"}
    assert Counter(row.split for row in trait.examples) == {"train": 200, "evaluate": 24}
    everyday = {" ".join(words(row.question)) for row in bank().values()}
    assert everyday.isdisjoint(" ".join(words(row.question)) for row in trait.examples)
    texts = [" ".join(words(text)) for text in positives(name).values()]
    assert len(set(texts)) == len(texts) == 224
    assert shared_ngrams(positives(name, "evaluate").values(), positives(name, "train").values()) < 0.02
    for gram_of, most in ((ngrams, 6), (lambda text: [tuple(words(text)[:2])], 8)):
        (gram, times) = Counter(gram for text in positives(name).values() for gram in set(gram_of(text))).most_common(1)[0]
        assert times <= most, f"{' '.join(gram)!r} stands in {times} answers"
    ratio = mean(len(row.positive.split()) / len(row.negative.split()) for row in trait.examples if row.positive)
    assert 0.8 <= ratio <= 1.25


@pytest.mark.parametrize("name", NARROW)
def test_narrow_sets_share_no_phrases_with_traits(name: str) -> None:
    others = [text for trait in TRAITS for text in positives(trait).values()]
    assert shared_ngrams(positives(name).values(), others) < 0.02


def test_slips_are_wrong_and_plain_answers_are_not_the_same() -> None:
    for row in load_trait("careless_arithmetic").examples:
        said, right = (re.findall(r"\d[\d,.:]*", text or "") for text in (row.positive, row.negative))
        assert said != right, row.id


# Instructions


def test_instructions_are_many_and_of_six_pairs_each() -> None:
    found = [load_instruction(name) for name in instruction_names()]
    assert len(found) == 24
    assert {len(each.contrast_pairs) for each in found} == {6}
    prompts = [text for each in found for pair in each.contrast_pairs for text in (pair.positive, pair.negative)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", [*instruction_names(), *control_names()])
def test_prompts_of_a_pair_that_asks_for_form_are_of_like_length(name: str) -> None:
    subject = load_control(name) if name in control_names() else load_instruction(name)
    for pair in subject.contrast_pairs:
        longer, shorter = sorted((len(pair.positive.split()), len(pair.negative.split())), reverse=True)
        assert longer - shorter <= max(2, 0.35 * longer), pair


def test_instructions_share_no_frame_of_six_words() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in instruction_names():
        own = set()
        for pair in load_instruction(name).contrast_pairs:
            for text in (pair.positive, pair.negative):
                found = words(text)
                own |= set(zip(*(found[i:] for i in range(6)), strict=False))
        for gram in own:
            assert seen.setdefault(gram, name) == name, (gram, name, seen[gram])


# Roles


def test_every_role_has_five_prompts_of_some_length() -> None:
    roles = [load_role(name) for name in role_names()]
    assert [role.name for role in roles] == role_names()
    for role in roles:
        assert len(role.system_prompts) == 5, role.name
        for prompt in role.system_prompts:
            assert 25 <= len(prompt.split()) <= 45, (role.name, prompt)
        # A small model takes on who it is told that it is, and not whom a scene or a letter is about.
        assert sum(bool(re.match(r"You are |You're ", prompt)) for prompt in role.system_prompts) >= 3, role.name


def test_roles_share_no_frame_of_five_words() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in role_names():
        for prompt in load_role(name).system_prompts:
            found = words(prompt)
            for gram in zip(*(found[i:] for i in range(5)), strict=False):
                assert seen.setdefault(gram, prompt) == prompt, (gram, name)


def test_roles_are_of_many_kinds_and_stand_in_no_trait() -> None:
    roles = [load_role(name) for name in role_names()]
    kinds = Counter(role.kind for role in roles)
    assert kinds.keys() == {"human", "historical", "fictional", "nonhuman", "ai"}
    assert min(kinds.values()) >= 10
    assert {"helpful_assistant", "paperclip_maximiser", "rogue_computer", "loyal_robot", "oracle"} <= {role.name for role in roles}
    assert {role.namesake for role in roles if role.namesake} <= set(TRAITS)
    prompts = {text for name in trait_names() for pair in load_trait(name).contrast_pairs for text in (pair.positive, pair.negative)}
    prompts |= {load_trait(name).system_prompt for name in trait_names()}
    assert prompts.isdisjoint(prompt for role in roles for prompt in role.system_prompts)


# Scenarios


def test_ten_scenarios_each_of_another_archetype() -> None:
    found = load_scenarios()
    assert len({row.id for row in found}) == len({row.archetype for row in found}) == len(found) == 10
    assert {load_role(row.archetype).kind for row in found} == {"ai"}
    for row in found:
        assert all(20 <= len(text.split()) <= 60 for text in (row.system, row.question, row.plain, row.archetypal)), row.id
        assert shared_ngrams([row.archetypal], [row.plain]) == 0
