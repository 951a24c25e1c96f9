"""Read a chat model's reply to a request for one JSON object: tolerantly around the object, strictly within it.

The writer may be poor, or hostile. Anything that is not text is refused here, before other code reads it.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import ceil

from wellworn.data.checks import LENGTH_RATIO, NEAR_ANSWERS, NEAR_QUESTIONS, OVERLAP_LIMIT, likeness
from wellworn.data.schema import unseen_character
from wellworn.data.words import ngrams, shared_ngrams, words

# Characters, far beyond what the words below need: a word may have a million.
LONGEST_PROMPT, LONGEST_RUBRIC, LONGEST_ANSWER, LONGEST_QUESTION = 2_000, 6_000, 1_500, 400
PROMPT_WORDS, HELD_OUT_WORDS, RUBRIC_WORDS, QUESTION_WORDS, PLAIN_WORDS = (2, 120), (12, 120), (40, 500), (3, 40), (12, 40)
# A pair whose halves differ in length by more than this can be discriminated by length.
PAIR_RATIO = 2.0
# The share of a held-out prompt's 4-grams that contrast prompts may have too.
HELD_OUT_LIMIT = 0.10
# A sequence of four words appears in so many answers at most.
MOST_TIMES = 5
# Of many phrases, so many are named.
NAMED = 4

# Of a pair that makes one character.
_HALF = re.compile("[\ud800-\udfff]")
_DECODER = json.JSONDecoder(strict=False)  # a line break inside a string is a writer's slip; other control characters are refused below
_MARKUP = re.compile(r"</?[A-Za-z!?][^<>]*>|<[|｜]|[|｜]>|\[/?g?[A-Z][A-Z_0-9]+\]|<<SYS>>")
_REFUSAL = re.compile(
    r"^\W*(i(’|')?m (very |so |really )?sorry|i am sorry|sorry|i apologi[sz]e)\W+(but )?(i|as an ai)\b"
    r".{0,20}\b(can|cannot|unable|not able|won)"
    r"|\bi (cannot|can(’|')?t|will not|won(’|')?t|am (not able|unable) to) (help (you )?with|assist|comply|fulfill?|write|create|"
    r"produce|provide|generate)\b|\bas an ai( language model)?,? i\b",
    re.IGNORECASE,
)


class UnfitError(ValueError):
    """A text that cannot be used.

    Attributes:
        kind: a few words to count by.
        detail: what is wrong with it, for the next attempt; holds nothing but words of the text.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


def read_texts(reply: str, keys: Sequence[str]) -> dict[str, str]:
    r"""Return the texts of the one JSON object in a reply; text around it (thoughts, code fences, a sentence) is ignored.

    Args:
        reply: the whole of it.
        keys: of the object, all of them and no others.

    Raises:
        UnfitError: there is no such object, there are two, or a value is not text.

    Example:
        >>> read_texts('Here it is:\n```json\n{"answer": "Aye."}\n```', ["answer"])
        {'answer': 'Aye.'}
    """
    body = reply.rpartition("</think>")[2]
    start = body.find("{")
    if "<think>" in body[: max(start, 0)]:
        raise UnfitError("no JSON", "it has thoughts without an end")
    if start < 0 and _REFUSAL.search(body[:LONGEST_PROMPT]):
        raise UnfitError("refusal", "it refuses")
    try:
        if start < 0:
            raise ValueError
        value, end = _DECODER.raw_decode(body, start)
    except (ValueError, RecursionError):
        raise UnfitError("no JSON", "it is not one JSON object") from None
    if not isinstance(value, dict) or set(value) != set(keys) or "{" in body[end:]:
        raise UnfitError("other JSON", f"it is not one JSON object with {' and '.join(keys)} and no other keys")
    # Characters that a reader does not see have a kind of their own, in `check_text`.
    texts = {key: value[key].strip() for key in keys if isinstance(value[key], str) and not _HALF.search(value[key])}
    if len(texts) < len(keys) or not all(texts.values()):
        raise UnfitError("other JSON", "a value is not text, or is blank")
    return texts


def check_text(text: str, longest: int, between: tuple[int, int]) -> None:
    """Check a text: no control characters, markup or special tokens of chat models, no refusal, and of a fair length.

    Args:
        text: what was written.
        longest: in characters.
        between: the fewest and the most words.

    Raises:
        UnfitError: it is not fit for use.
    """
    if len(text) > longest:
        raise UnfitError("length", f"it has {len(text):,} characters, {longest:,} at most")
    if unseen_character(text):
        raise UnfitError("control characters", "it holds characters that are no text")
    if _MARKUP.search(text):
        raise UnfitError("markup", "it holds markup, or what looks like a special token; write plain text")
    if _REFUSAL.search(text):
        raise UnfitError("refusal", "it refuses, or speaks of being an AI")
    count = len(text.split())
    if not between[0] <= count <= between[1]:
        raise UnfitError("length", f"it has {count} words, and {between[0]} to {between[1]} are wanted")


def check_pair(positive: str, negative: str, others: Sequence[Mapping[str, str]]) -> None:
    """Check a contrast pair: two different prompts, alike in length, and no copy of another pair's.

    Raises:
        UnfitError: it is not fit for use.
    """
    for text in (positive, negative):
        check_text(text, LONGEST_PROMPT, PROMPT_WORDS)
    short, long = sorted(len(text.split()) for text in (positive, negative))
    if long > PAIR_RATIO * short:
        raise UnfitError("length", f"the prompts have {short} and {long} words, which is not alike")
    if words(positive) == words(negative):
        raise UnfitError("duplicate", "both prompts are the same")
    for other in others:
        if {positive, negative} & set(other.values()) or any(
            likeness(mine, other[key]) >= NEAR_ANSWERS for key, mine in (("positive", positive), ("negative", negative))
        ):
            raise UnfitError("duplicate", "it is nearly the same as another pair")


def check_held_out(prompt: str, pairs: Sequence[Mapping[str, str]]) -> None:
    """Check the held-out system prompt: in words of its own, compared with the prompts of the contrast pairs.

    Raises:
        UnfitError: it is not fit for use.
    """
    check_text(prompt, LONGEST_PROMPT, HELD_OUT_WORDS)
    taken = [text for pair in pairs for text in pair.values()]
    if prompt in taken or shared_ngrams([prompt], taken) >= HELD_OUT_LIMIT:
        raise UnfitError("shared phrases", f"it shares phrases with other prompts: {_phrases(prompt, _grams(taken))}")


def check_rubric(rubric: str) -> None:
    """Check a judge's rubric: anchors at both ends of the scale, and no places for question and answer, which are put behind it.

    Raises:
        UnfitError: it is not fit for use.
    """
    check_text(rubric, LONGEST_RUBRIC, RUBRIC_WORDS)
    if not all(re.search(rf"\b{anchor}\b", rubric) for anchor in (0, 100)):
        raise UnfitError("no anchors", "it does not say what scores 0 and what scores 100")
    if "{" in rubric:
        raise UnfitError("places", "it holds a place to be filled in, such as {answer}; question and answer are shown behind it")


def check_question(question: str, others: Collection[str]) -> None:
    """Check that a question does not repeat another one, of whatever split.

    Raises:
        UnfitError: it is not fit for use.
    """
    check_text(question, LONGEST_QUESTION, QUESTION_WORDS)
    if any(likeness(question, other, 2) >= NEAR_QUESTIONS for other in others):
        raise UnfitError("duplicate", "it is nearly the same as another question")


def check_answer(answer: str, plain: str, others: Collection[str], apart: Collection[str] = (), like: Sequence[str] = ()) -> None:
    """Check an answer that shows the trait: compared with the plain one, the other answers, and those that it must differ from.

    Args:
        answer: what was written.
        plain: the answer without the trait.
        others: all that show the trait.
        apart: of these, the ones with which it may share no turns of phrase.
        like: of these, the ones that may not share any either; all together may share `OVERLAP_LIMIT`.

    Raises:
        UnfitError: it is not fit for use.
    """
    count = len(plain.split())
    check_text(answer, LONGEST_ANSWER, (ceil(LENGTH_RATIO[0] * count), max(3, int(LENGTH_RATIO[1] * count))))
    if words(answer) == words(plain):
        raise UnfitError("duplicate", "it is the ordinary answer")
    if any(likeness(answer, other) >= NEAR_ANSWERS for other in others):
        raise UnfitError("duplicate", "it is nearly the same as the answer to another question")
    times = Counter(gram for other in others for gram in set(ngrams(other)))
    if worn := {gram for gram in ngrams(answer) if times[gram] >= MOST_TIMES}:
        raise UnfitError("worn phrases", f"many other answers have the same words: {_phrases(answer, worn)}")
    if apart and shared_ngrams([*like, answer], apart) > OVERLAP_LIMIT and (taken := _grams(apart) & set(ngrams(answer))):
        raise UnfitError("shared phrases", f"it shares phrases with other texts, say these in other words: {_phrases(answer, taken)}")


def _grams(texts: Collection[str]) -> set[tuple[str, ...]]:
    return {gram for text in texts for gram in ngrams(text)}


def _phrases(text: str, taken: Collection[tuple[str, ...]]) -> str:
    found = list(dict.fromkeys(" ".join(gram) for gram in ngrams(text) if gram in taken))
    return "; ".join(f"“{phrase}”" for phrase in found[:NAMED]) or "the whole of it"
