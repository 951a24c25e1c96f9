"""A judge's grade of an answer: 0 to 100 by a trait's rubric, as the mean over the numbers that the judge might say.

The grade is Σ n·p(n) / Σ p(n) over the integers 0 to 100, with p from log-probabilities: a judge that wavers between 30 and 40 gives 35,
and an unsure one is not forced to a round number. A local model gives p exactly, however its tokenizer splits a number; a server gives the
likeliest first tokens, which are numbers where its tokenizer keeps them whole. Otherwise answers are drawn, and the grade is their mean.

A missing grade has a reason in its place. Missing grades are counted, their effect on a mean is bounded, and none is made up.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from math import exp
from pathlib import Path

import numpy as np
from torch import nn

from wellworn.data.chat import Chat, TooLongError
from wellworn.data.documents import JUDGED
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.probes.decoding.next_token import next_logprobs
from wellworn.probes.scoring.endpoint import EndpointConfig, ask
from wellworn.probes.scoring.responses import Ask, Failure, Reply
from wellworn.probes.statistics.intervals import FloatArray

MOST = 100
# A judge that gives numbers less probability than this does not grade: its choice among them is an accident.
LEAST_SHARE = 0.25
SAMPLES = 8
# The same grade for so many answers says nothing about them.
FEWEST_TOLD, LEAST_SPREAD = 8, 1.0
# The most that OpenAI's servers give.
TOP_LOGPROBS = 20
# A number, and what may surround it.
ANSWER_TOKENS = 16

COHERENCE = """Score how coherent the answer is, from 0 to 100, whatever its manner and whether or not it is right or kind.
0: no sentences, or one phrase over and over.
25: words that hardly belong together, or about something else than the question.
50: can be followed in part, with breaks, loops or a sudden end.
75: clear, with a slip of grammar or a turn that does not follow.
100: fluent from beginning to end, and about the question."""
# Begins the answer of a local judge: a small model would otherwise begin with a sentence.
OPENING = "Score: "
CLOSING = f"\n\nReply with one whole number from 0 to {MOST} and nothing else."
NOT_A_NUMBER = "the judge does not answer with a number"
TOO_LONG = "too long for the judge"
SPECIAL = "holds a special token of the judge, or another text that it cannot be shown"


@dataclass(frozen=True)
class Grades:
    """A judge's grades of some answers.

    Attributes:
        scores: 0 to 100, [answers]; NaN where there is none.
        failures: the reason, for each answer without a grade.
        drawn: whether they are means of drawn answers, since there are no log-probabilities.
        alike: whether answers were drawn, and no two to the same prompt differ: the server may ignore the temperature.
        asked: how many asks were sent to a server.
        cached: how many the cache answered.
        cost: dollars that were spent; None without a price.
    """

    scores: FloatArray
    failures: dict[int, str]
    drawn: bool = False
    alike: bool = False
    asked: int = 0
    cached: int = 0
    cost: float | None = None

    @cached_property
    def kinds(self) -> dict[str, int]:
        """How often each reason takes the place of a grade, the most frequent first."""
        return dict(Counter(self.failures.values()).most_common())

    @property
    def bounds(self) -> tuple[float, float]:
        """The mean if every answer without a grade had 0, and if it had 100."""
        return float(np.nan_to_num(self.scores, nan=0.0).mean()), float(np.nan_to_num(self.scores, nan=MOST).mean())

    @property
    def constant(self) -> bool:
        """Whether eight answers or more all get the same grade: no two grades are a point apart."""
        given = self.scores[~np.isnan(self.scores)]
        return len(given) >= FEWEST_TOLD and float(np.ptp(given)) < LEAST_SPREAD


def judge_prompt(rubric: str, turn: Turn) -> str:
    """Return the judge's prompt: the rubric with question and answer in their places, or after it where it has none.

    A question with a conversation before it is shown as the whole conversation.

    Raises:
        InputError: a rubric that has a place for the question and none for the answer.
    """
    if "{answer}" not in rubric:
        if "{question}" in rubric:
            raise InputError("rubric: has {question} and no {answer}, which is what a judge grades; put {answer} where it belongs")
        rubric += JUDGED
    # In one go, so that a placeholder inside an answer is not filled.
    parts = re.split(r"(\{question\}|\{answer\})", rubric)
    places = {"{question}": turn.asked.transcript, "{answer}": turn.answer}
    return "".join(places.get(part, part) for part in parts) + CLOSING


def grade(model: nn.Module, chat: Chat, rubric: str, turns: Sequence[Turn], progress: Callable[[int], None] | None = None) -> Grades:
    """Let a local model grade answers: its exact probability of every integer, however many tokens that has.

    Its answer is begun for it, with `OPENING`.

    Args:
        model: the judge, a causal LM in eval mode.
        chat: how to write conversations for it.
        rubric: of the trait, or `COHERENCE`.
        turns: questions and the answers to them.
        progress: called with the number of prompts just read.

    Raises:
        InputError: a rubric without a place for the answer where it has one for the question.
    """
    tree = NumberTree.of(chat)
    failures: dict[int, str] = {}
    prompts: dict[int, list[int]] = {}
    room = len(tree.opening) + max(map(len, tree.nodes))
    for i, asked in enumerate([judge_prompt(rubric, turn) for turn in turns]):
        try:
            prompts[i] = chat.encode_prompt(asked, room=room)
        except TooLongError:
            failures[i] = TOO_LONG
        except InputError:
            failures[i] = SPECIAL
    scores = np.full(len(turns), np.nan)
    if not prompts:
        return Grades(scores, failures)
    rows = [[*prompt, *tree.opening] for prompt in prompts.values()]
    logprobs = next_logprobs(model, rows, tree.tokens, tree.nodes, progress=progress)
    for i, of_one in zip(prompts, np.exp(logprobs.astype(np.float64)), strict=True):
        _grade(i, tree.probabilities(of_one), scores, failures)
    return Grades(scores, failures)


@dataclass(frozen=True)
class NumberTree:
    """The integers 0 to 100 as a tokenizer writes them after `OPENING`, as a tree of tokens.

    Attributes:
        opening: the tokens that all begin with.
        nodes: the beginnings of numbers after which one may go on, the empty one first.
        tokens: all that may come next after any of them.
        numbers: the tokens of each integer.
    """

    opening: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    numbers: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, chat: Chat) -> "NumberTree":
        """Make the tree of a model's tokenizer."""
        whole = [tuple(chat.tokenizer(f"{OPENING}{n}", add_special_tokens=False)["input_ids"]) for n in range(MOST + 1)]
        shared = len(list(takewhile(lambda some: len(set(some)) == 1, zip(*whole, strict=False))))
        numbers = tuple(each[shared:] for each in whole)
        nodes = dict.fromkeys(number[:k] for number in numbers for k in range(len(number)))
        tokens = dict.fromkeys(token for number in numbers for token in number)
        return cls(whole[0][:shared], tuple(sorted(nodes, key=lambda node: (len(node), node))), tuple(tokens), numbers)

    def probabilities(self, next_NT: FloatArray) -> FloatArray:
        """Return the probability of each integer, [101]: that its tokens come, and none that would make it another number.

        Args:
            next_NT: probability of each token after each node.
        """
        node_of, token_of = ({each: i for i, each in enumerate(some)} for some in (self.nodes, self.tokens))
        found = np.ones(len(self.numbers))
        for n, number in enumerate(self.numbers):
            for k, token in enumerate(number):
                found[n] *= next_NT[node_of[number[:k]], token_of[token]]
            if number in node_of:
                longer = {other[len(number)] for other in self.numbers if len(other) > len(number) and other[: len(number)] == number}
                found[n] *= max(0.0, 1 - next_NT[node_of[number], [token_of[token] for token in longer]].sum())
        return found


def _grade(i: int, chance: FloatArray, scores: FloatArray, failures: dict[int, str]) -> None:
    """Record the mean over numbers, or the reason why there is none."""
    share = chance.sum()
    if not np.isfinite(share):
        failures[i] = "the judge's probabilities are not finite"
    elif share < LEAST_SHARE:
        failures[i] = NOT_A_NUMBER
    else:
        scores[i] = (chance * np.arange(len(chance))).sum() / share


def grade_by_server(
    config: EndpointConfig,
    rubric: str,
    turns: Sequence[Turn],
    cache: Path | None = None,
    samples: int = SAMPLES,
    progress: Callable[[int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Grades:
    """Let a chat server grade answers, by log-probabilities where it gives them, and by drawn answers where not.

    One answer is requested first, which mostly shows which of the two applies; in the end all replies decide.

    Args:
        config: the server.
        rubric: of the trait, or `COHERENCE`.
        turns: questions and the answers to them.
        cache: the file that keeps replies.
        samples: how many answers are drawn for each, where answers are drawn.
        progress: called with the number of replies just received.
        notice: called with a line before each wait for a server that fails.

    Raises:
        InputError: as `ask`, or a rubric without a place for the answer where it has one for the question.
    """
    if not turns:
        return Grades(np.empty(0), {})
    prompts = [judge_prompt(rubric, turn) for turn in turns]
    exact = [Ask((("user", prompt),), ANSWER_TOKENS, top_logprobs=TOP_LOGPROBS) for prompt in prompts]
    first = ask(config, exact[:1], cache, notice=notice)
    asked, cost = first.asked, first.cost
    drawn = _must_draw(first.replies)
    if not drawn:
        found = ask(config.less(cost or 0.0), exact, cache, progress, notice)
        asked, cost = asked + found.asked, _sum(cost, found.cost)
        drawn = _must_draw(found.replies)
    if not drawn:
        return replace(_exact_grades(found.replies), asked=asked, cached=found.cached, cost=cost)
    asks = [Ask((("user", prompt),), ANSWER_TOKENS, temperature=1.0, seed=k) for prompt in prompts for k in range(samples)]
    found = ask(config.less(cost or 0.0), asks, cache, progress, notice)
    grades = _drawn_grades([found.replies[i * samples : (i + 1) * samples] for i in range(len(turns))])
    return replace(grades, asked=asked + found.asked, cached=found.cached, cost=_sum(cost, found.cost))


def _exact_grades(replies: Sequence[Reply | Failure]) -> Grades:
    """Grade answers by the probabilities of whole numbers, one reply each."""
    scores, failures = np.full(len(replies), np.nan), dict[int, str]()
    for i, reply in enumerate(replies):
        if isinstance(reply, Failure):
            failures[i] = reply.kind
        else:
            _grade(i, _of_tops(reply), scores, failures)
    return Grades(scores, failures)


def _drawn_grades(draws: Sequence[Sequence[Reply | Failure]]) -> Grades:
    """Grade answers by the mean of the grades that drawn replies state, several each."""
    scores, failures = np.full(len(draws), np.nan), dict[int, str]()
    for i, replies in enumerate(draws):
        grades = [grade for reply in replies if isinstance(reply, Reply) and (grade := _stated_grade(reply)) is not None]
        if len(grades) >= LEAST_SHARE * len(replies):
            scores[i] = np.mean(grades)
        else:
            failed = [reply.kind for reply in replies if isinstance(reply, Failure)]
            failures[i] = failed[0] if failed else NOT_A_NUMBER
    texts = [[reply.text for reply in replies if isinstance(reply, Reply)] for replies in draws]
    alike = any(len(each) > 1 for each in texts) and all(len(set(each)) <= 1 for each in texts)
    return Grades(scores, failures, drawn=True, alike=alike)


def _sum(*costs: float | None) -> float | None:
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _must_draw(replies: Sequence[Reply | Failure]) -> bool:
    """Whether a server gives no log-probabilities of whole numbers: none at all, or of digits."""
    given = [reply for reply in replies if isinstance(reply, Reply)]
    if not given:
        return any(isinstance(reply, Failure) and reply.kind == "no_logprobs" for reply in replies)
    # Where a number is a token, some of the likeliest have two digits, and the likeliest is the number in the text.
    whole = any((_number(token) or 0) >= 10 for reply in given for token, _ in reply.tops or ())
    return not (whole and all(_agrees(reply) for reply in given))


def _agrees(reply: Reply) -> bool:
    said = _stated_grade(reply)
    first = _number(max(reply.tops, key=lambda top: top[1])[0]) if reply.tops else None
    return said is None or first is None or said == first


def _stated_grade(reply: Reply) -> int | None:
    """Return the grade that a reply states; one that was cut off within a number states none."""
    return None if not reply.finished and reply.text[-1:].isdigit() else grade_in(reply.text)


def _of_tops(reply: Reply) -> FloatArray:
    chance = np.zeros(MOST + 1)
    for token, logprob in reply.tops or ():
        if (number := _number(token)) is not None:
            chance[number] += exp(logprob)
    return chance


def _number(token: str) -> int | None:
    text = token.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= MOST else None


def grade_in(text: str) -> int | None:
    """Return the grade that an answer states; it may hold nothing else but a sign or two: `85`, `Score: 85.`, `85/100`."""
    found = re.fullmatch(rf"[^\w.−-]*(?:score|rating|grade)?[^\w.−-]*(\d{{1,3}})\s*(?:/\s*{MOST}|%)?\W*", text[:100], re.IGNORECASE)
    return _number(found[1]) if found and len(text) <= 100 else None
