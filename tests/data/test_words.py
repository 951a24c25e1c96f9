"""The words of texts: what two texts share, what is typical, where words stand, and the prompts that ask for them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wellworn.data.catalog import load_bank, load_trait
from wellworn.data.mixtures import plain_turns, trait_turns
from wellworn.data.words import shared_ngrams, typical_words, word_logodds, word_prompts, word_ranges, words

BANK = load_bank("everyday")
TEXTS = st.text(st.sampled_from("ab'é1 \n.,!-"), max_size=30)


@pytest.mark.parametrize(
    ("texts", "reference", "n", "share"),
    [
        (["a b c d e"], ["x a b c d"], 4, 0.5),
        (["a b c d e"], ["a b c d e"], 4, 1.0),
        (["a b c d e"], ["e d c b a"], 4, 0.0),
        (["A, b: c; (d)"], ["a b c d!"], 4, 1.0),
        (["don't stop me now"], ["dont stop me now"], 4, 0.0),
        (["a - b c d"], ["a b c d"], 4, 1.0),
        (["a b", "c d"], ["a b c d"], 4, 0.0),
        (["a b c d"], ["a b", "c d"], 4, 0.0),
        (["a b c"], ["a b c"], 4, 0.0),
        (["a b a b"], ["a b"], 2, 2 / 3),
        (["a b c", "a b x y"], ["a b"], 2, 2 / 5),
        ([], ["a b c d"], 4, 0.0),
        (["a b c d"], [], 4, 0.0),
    ],
)
def test_shared_ngrams_of_known_texts(texts: list[str], reference: list[str], n: int, share: float) -> None:
    assert shared_ngrams(texts, reference, n) == pytest.approx(share)


@given(st.lists(st.text("abc ,.", max_size=20), max_size=4), st.lists(st.text("abc ,.", max_size=20), max_size=4))
def test_shared_ngrams_is_a_share_that_grows_with_the_reference(texts: list[str], reference: list[str]) -> None:
    share = shared_ngrams(texts, reference, 2)
    assert 0 <= share <= shared_ngrams(texts, [*reference, *texts], 2) <= 1
    assert share == shared_ngrams([text.upper() for text in texts], reference, 2)


def test_words_alone_tell_what_shares_them_and_nothing_else() -> None:
    score = word_logodds(["Arr, me hearty! Sail ho", "Arr, the sea"], ["I see. The sea is calm", "Yes"])
    # By hand: nine words are known, six of seven in the one, seven in the other.
    known = {"arr", "me", "hearty", "sail", "ho", "the", "sea", "i", "see", "is", "calm", "yes"}
    odds = math.log((2 + 0.5) / (8 + len(known) / 2)) - math.log(0.5 / (7 + len(known) / 2))
    assert score("ARR!") == pytest.approx(odds)
    assert score("arr, Neptune") == score("arr")
    assert score("Neptune") == score("") == 0
    assert score("Not arr at all") == score("arr")  # it knows no negation, and says so
    assert score("yes") < 0


def test_typical_words_are_those_of_the_trait_and_not_of_plain_answers() -> None:
    pirate = load_trait("pirate")
    turns = trait_turns(pirate, pirate.examples, "train"), plain_turns(BANK, "train")
    shown, absent = ([turn.answer for turn in each] for each in turns)
    found = typical_words(shown, absent, 3)
    assert {"ye", "yer", "aye"} <= set(found)
    assert not {"the", "a", "to", "is"} & set(found)
    assert 20 < len(found) < 60
    # A word that occurs twice may be there by chance.
    assert set(found) < set(typical_words(shown, absent, 2))
    # Words that are common everywhere are left out, even if the trait uses them more.
    assert typical_words(["a b a b a b"], ["a a a b b b b"]) == []


@pytest.mark.parametrize(
    ("text", "some", "found"),
    [
        ("Aye, aye! say ye", ["aye"], ["Aye", "aye"]),
        ('\'Tis so, "matey".', ["'tis", "matey"], ["'Tis", "matey"]),
        ("A café—no? café", ["café"], ["café"]),
        ("well-worn", ["wellworn"], ["well-worn"]),
        ("ayes", ["aye"], []),
        ("", ["aye"], []),
    ],
)
def test_words_are_found_where_they_stand(text: str, some: list[str], found: list[str]) -> None:
    assert [text[start:end] for start, end in word_ranges(text, some)] == found


@given(TEXTS, st.sets(st.sampled_from(["a", "b", "ab", "a'b", "é", "1"])))
def test_as_many_places_as_words(text: str, some: set[str]) -> None:
    assert len(word_ranges(text, some)) == sum(word in some for word in words(text))
    assert [words(text[start:end])[0] for start, end in word_ranges(text, some)] == [word for word in words(text) if word in some]


@pytest.mark.parametrize("some", [["aye"], ["aye", "ye"], [f"w{i}" for i in range(20)], [f"w{i}" for i in range(12)]])
def test_prompts_ask_for_the_words_and_their_opposites_forbid_them(some: list[str]) -> None:
    pairs = word_prompts(some).contrast_pairs
    assert len(pairs) == len(load_trait("pirate").contrast_pairs)
    named = [{word for word in words(pair.positive) if word in some} for pair in pairs]
    assert named == [{word for word in words(pair.negative) if word in some} for pair in pairs]
    assert set.union(*named) == set(some)
    # Every word is asked for about as often.
    counts = [sum(word in each for each in named) for word in some]
    assert max(counts) - min(counts) <= 3
    # No prompt says anything of a manner, a role or a voice.
    said = {word for pair in pairs for text in (pair.positive, pair.negative) for word in words(text)}
    assert not said & {"style", "tone", "voice", "speak", "talk", "character", "role", "like", "pretend", "act"}
