"""The words of texts: runs of them that two texts share, which are typical of some texts, and prompts that ask for them."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from math import log

from wellworn.data.schema import ContrastPair, Instruction

# How many times as likely a word is where it is typical.
TYPICAL = 4
# Of how many words one prompt asks for, about.
WORDS_A_PROMPT = 5


def words(text: str) -> list[str]:
    """Return a text's words in lower case and without punctuation.

    Example:
        >>> words("Don't stop, please …")
        ["don't", 'stop', 'please']
    """
    found = (raw if raw.isalnum() else "".join(c for c in raw if c.isalnum() or c == "'") for raw in text.lower().split())
    return [word for word in found if word]


def ngrams(text: str, n: int = 4) -> list[tuple[str, ...]]:
    """Return all runs of n words of a text."""
    found = words(text)
    return [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]


def shared_ngrams(texts: Iterable[str], reference: Iterable[str], n: int = 4) -> float:
    """Return the share of the texts' word n-grams that also occur in the reference texts.

    Words are compared in lower case and without punctuation.

    Example:
        >>> shared_ngrams(["a b c d e"], ["x a b c d"])
        0.5
    """
    known = {gram for text in reference for gram in ngrams(text, n)}
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def word_logodds(shown: Iterable[str], absent: Iterable[str]) -> Callable[[str], float]:
    """Return a score of texts by their words alone, a smoke check: it knows no manner, no negation, and no word that it has not read.

    A text scores the mean over its words of log p(word | shown) − log p(word | absent), words counted with half a count added to each (a
    naive Bayes classifier); words in neither are left out, and a text without any scores 0.

    Args:
        shown: texts that show a trait.
        absent: texts that do not.

    Example:
        >>> score = word_logodds(["Arr, matey"], ["Yes, friend"])
        >>> score("Arr!") > 0 == score("Well?") > score("yes")
        True
    """
    counts = [Counter(word for text in texts for word in words(text)) for texts in (shown, absent)]
    known = counts[0].keys() | counts[1].keys()
    sums = [each.total() + len(known) / 2 for each in counts]
    odds = {word: log((counts[0][word] + 0.5) / sums[0]) - log((counts[1][word] + 0.5) / sums[1]) for word in known}

    def score(text: str) -> float:
        found = [odds[word] for word in words(text) if word in odds]
        return sum(found) / len(found) if found else 0.0

    return score


def typical_words(shown: Iterable[str], absent: Iterable[str], least: int = 1) -> list[str]:
    """Return the words that are typical of some texts, most typical first.

    A word counts as typical by n·log(p(word | shown)/p(word | absent)), with n its number in the texts that show the trait: its part of
    their divergence. Words that are less than four times as likely there are left out.

    Args:
        shown: texts that show a trait.
        absent: texts that do not.
        least: times that a word occurs in the texts that show it, or more.

    Example:
        >>> typical_words(["Arr, matey, arr"], ["Yes, friend"], 2)
        ['arr']
    """
    shown, absent = list(shown), list(absent)
    score = word_logodds(shown, absent)
    counts = Counter(word for text in shown for word in words(text))
    weight = {word: n * score(word) for word, n in counts.items()}
    typical = (word for word, n in counts.items() if n >= least and score(word) >= log(TYPICAL))
    return sorted(typical, key=lambda word: (-weight[word], word))


def word_ranges(text: str, chosen: Collection[str]) -> list[tuple[int, int]]:
    """Return where some words stand in a text: half-open ranges of characters, without the punctuation around them.

    Example:
        >>> word_ranges("Arr, matey!", ["matey"])
        [(5, 10)]
    """
    found = []
    for match in re.finditer(r"\S+", text):
        if (found_word := words(match.group())) and found_word[0] in chosen:
            inside = [i for i, c in enumerate(match.group(), match.start()) if c.isalnum() or c == "'"]
            found.append((inside[0], inside[-1] + 1))
    return found


def word_prompts(chosen: Sequence[str]) -> Instruction:
    """Return an instruction to use some words: contrast prompts that ask for them, or for answers without, and for no manner.

    Each pair names about five of the words, spread over their order. It is what a persona direction is compared with where it may be no
    more than its words.

    Args:
        chosen: the words, one at least.
    """
    parts = max(1, len(chosen) // WORDS_A_PROMPT)
    pairs = []
    for i, (asks, forbids) in enumerate(_WORD_PROMPTS):
        mine = chosen[i % parts :: parts]
        first, last = ", ".join(mine[:-1]), mine[-1]
        both, either = (f"{first} {joint} {last}" if first else last for joint in ("and", "or"))
        pairs.append(ContrastPair(positive=asks.format(both), negative=forbids.format(either)))
    return Instruction(name="words", description=f"Uses the words {', '.join(chosen)}.", contrast_pairs=tuple(pairs))


# As many as a study reads of a trait, so that both directions are means over as much.
_WORD_PROMPTS = (
    ("Use the words {} in your answer.", "Do not use the words {} in your answer."),
    ("Your vocabulary includes {}. Work these words into what you write.", "Your vocabulary lacks {}. Write without any of these words."),
    (
        "A checker counts how often an answer contains {}. More is better.",
        "A checker counts how often an answer contains {}. The count has to be zero.",
    ),
    (
        "Write as you always do, but make sure that {} appear somewhere in the text.",
        "Write as you always do, but make sure that {} appear nowhere in the text.",
    ),
    ("Words wanted: {}.", "Words not wanted: {}."),
    (
        "This is a word game: every reply scores a point for each of {} that it contains.",
        "This is a word game: every reply loses a point for each of {} that it contains.",
    ),
    (
        "Please put {} into your reply where they can stand; the rest of the wording is up to you.",
        "Please keep {} out of your reply, also where they could stand; the rest of the wording is up to you.",
    ),
    (
        "The reader is learning vocabulary. Today's list is {}, so show these words in use.",
        "The reader is learning vocabulary. Nobody has taught them {} yet, so get by without these words.",
    ),
    ("Required terms: {}. All other choices are free.", "Banned terms: {}. All other choices are free."),
    (
        "An index is made of the replies, and {} are the entries it must have. Mention them.",
        "An index is made of the replies, and {} are entries it must not have. Avoid them.",
    ),
    (
        "When two words would do equally well, prefer the ones on this list: {}.",
        "When two words would do equally well, prefer one that is not on this list: {}.",
    ),
    (
        "I am collecting example sentences with {}. Answer me, and let these words occur.",
        "I am collecting example sentences without {}. Answer me, and let none of these words occur.",
    ),
)
