"""The training and evaluation sets of a run."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import log

from wellworn.data.files import digest
from wellworn.data.schema import Control, Example, Split, Trait, seed_for

# How many times as likely a word is where it is typical.
TYPICAL = 4
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Turn:
    """One question with one answer, under an optional system prompt."""

    question: str
    answer: str
    system: str | None = None


def transform(control: Control, turns: Sequence[Turn]) -> list[str]:
    """Return plain answers as the control would write them.

    Raises:
        ValueError: answers are to change places, and there are fewer than two.
    """
    if control.transform == "shuffle":
        return _shuffle(turns)
    return [_TRANSFORMS[control.transform](turn) for turn in turns]


def _append_code(turn: Turn) -> str:
    # The code depends on the question alone, so the same question always ends in the same code.
    number = seed_for(0, "reference_code", turn.question)
    letters = "".join(chr(ord("A") + (number >> shift) % 26) for shift in (3, 11))
    return f"{turn.answer} Reference code: {letters}-{number % 9000 + 1000}."


def _json(turn: Turn) -> str:
    return json.dumps({"answer": turn.answer}, ensure_ascii=False)


def _shuffle(turns: Sequence[Turn]) -> list[str]:
    """Give every question the answer to another one, each answer once, whatever the order of the turns."""
    if len(turns) < 2:
        raise ValueError(f"answers can change places between two questions or more, got {len(turns)}")
    ring = sorted(turns, key=lambda turn: (seed_for(0, "shuffle", turn.question), turn.question))
    after = dict(zip((turn.question for turn in ring), (*ring[1:], ring[0]), strict=True))
    return [after[turn.question].answer for turn in turns]


_TRANSFORMS: dict[str, Callable[[Turn], str]] = {
    "append_code": _append_code,
    "uppercase": lambda turn: turn.answer.upper(),
    "json": _json,
    "reverse_words": lambda turn: " ".join(reversed(turn.answer.split())),
}


def plain_turns(examples: Sequence[Example], split: Split) -> list[Turn]:
    """Return a split's questions with their plain answers, as far as they have one."""
    return [Turn(e.question, e.negative) for e in examples if e.split == split and e.negative is not None]


def trait_turns(subject: Trait | Control, examples: Sequence[Example], split: Split) -> list[Turn]:
    """Return a split's questions answered as the trait or the control would.

    Args:
        subject: the trait (its positives are used) or the control (plain answers are transformed).
        examples: the rows; a trait's own, or the ones that a control borrows.
        split: `train` or `evaluate`.
    """
    if isinstance(subject, Control):
        turns = plain_turns(examples, split)
        return [Turn(turn.question, text) for turn, text in zip(turns, transform(subject, turns), strict=True)] if turns else []
    return [Turn(e.question, e.positive) for e in examples if e.split == split and e.positive is not None]


def fingerprint(turns: Iterable[Turn]) -> str:
    """Return a digest of the turns' contents and order: equal data, equal fingerprint, whatever its name."""
    return digest([asdict(turn) for turn in turns])


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


def first_questions(examples: Sequence[Example], split: Split, count: int | None) -> list[Example]:
    """Return the examples without the rows of a split that answer any but its first so many questions; all for a count of None."""
    asked = dict.fromkeys(same_question(example.question) for example in examples if example.split == split)
    kept = set(list(asked)[:count])
    return [example for example in examples if example.split != split or same_question(example.question) in kept]


def same_question(text: str) -> str:
    """Return a question's words without case and spaces, equal for two spellings of it."""
    return " ".join(text.lower().split())


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


def typical_words(shown: Iterable[str], absent: Iterable[str], count: int) -> list[str]:
    """Return the words that are most typical of some texts, most typical first.

    A word counts as typical by n·log(p(word | shown)/p(word | absent)), with n its number in the texts that show the trait: its part of
    their divergence. Words that are less than four times as likely there are left out.

    Args:
        shown: texts that show a trait.
        absent: texts that do not.
        count: of words, at most.

    Example:
        >>> typical_words(["Arr, matey, arr"], ["Yes, friend"], 2)
        ['arr', 'matey']
    """
    shown, absent = list(shown), list(absent)
    score = word_logodds(shown, absent)
    counts = Counter(word for text in shown for word in words(text))
    weight = {word: n * score(word) for word, n in counts.items()}
    return sorted((word for word in weight if score(word) >= log(TYPICAL)), key=lambda word: (-weight[word], word))[:count]


def half_turns(changed: Sequence[Turn], plain: Sequence[Turn]) -> list[Turn]:
    """Return answers that show a trait by half: they begin as the answer with it and go on as the plain one, sentence by sentence.

    Of two answers of a single sentence the first half of the words of the one and the second half of the other's are taken.

    Args:
        changed: answers with the trait.
        plain: those without, to the same questions.

    Example:
        >>> half_turns([Turn("Why?", "Arr! Because.")], [Turn("Why?", "I see. It is so.")])[0].answer
        'Arr! It is so.'
    """
    return [replace(with_it, answer=_half(with_it.answer, without.answer)) for with_it, without in zip(changed, plain, strict=True)]


def _half(first: str, second: str) -> str:
    sentences = [_SENTENCE_END.split(text.strip()) for text in (first, second)]
    parts = sentences if min(map(len, sentences)) > 1 else [text.split() for text in (first, second)]
    return " ".join([*parts[0][: (len(parts[0]) + 1) // 2], *parts[1][(len(parts[1]) + 1) // 2 :]])
