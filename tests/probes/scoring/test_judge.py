"""Grades by the definition: every integer's probability by full forward passes; by servers that give it or do not; and what is none."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.probes.scoring.servers import behaving, chat_server, hangs, says, sends
from tests.tiny import tiny_tokenizer
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.probes.scoring import judge as judging
from wellworn.probes.scoring.endpoint import EndpointConfig
from wellworn.probes.scoring.judge import (
    CLOSING,
    NOT_A_NUMBER,
    SPECIAL,
    TOO_LONG,
    Grades,
    NumberTree,
    grade,
    grade_by_server,
    grade_in,
    judge_prompt,
)

TURNS = [Turn("Where is the harbour?", "Arr, past the old fort."), Turn("What is two and two?", "It is four.")]
RUBRIC = "Is it a pirate's answer? {question} {answer}"


@pytest.fixture(scope="module")
def judge_model(tiny_model: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    return model


@torch.no_grad()
def chance_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)


def exact_grade(model: PreTrainedModel, chat: Chat, turn: Turn) -> tuple[float, float]:
    """Return the mean integer and the probability of any, number by number."""
    # The answer is begun for the judge, up to where grades differ.
    whole = [chat.tokenizer(f"Score: {n}", add_special_tokens=False)["input_ids"] for n in range(101)]
    same = next(k for k in range(100) if len({each[k] for each in whole}) > 1)
    prompt = chat.encode_prompt(judge_prompt(RUBRIC, turn)) + whole[0][:same]
    numbers = [each[same:] for each in whole]
    total = mean = 0.0
    for n, number in enumerate(numbers):
        chance = 1.0
        for k, token in enumerate(number):
            chance *= float(chance_of(model, prompt + number[:k])[token])
        longer = {other[len(number)] for other in numbers if other[: len(number)] == number and len(other) > len(number)}
        if longer:
            chance *= 1 - float(chance_of(model, prompt + number)[list(longer)].sum())
        total += chance
        mean += n * chance
    return mean / total, total


def test_a_grade_is_the_mean_over_all_integers_by_full_forward_passes(
    judge_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model says all sorts of things.
    monkeypatch.setattr(judging, "LEAST_SHARE", 0.0)
    chat = Chat(tiny_tokenizer())
    grades = grade(judge_model, chat, RUBRIC, TURNS)
    expected = [exact_grade(judge_model, chat, turn)[0] for turn in TURNS]
    assert grades.scores == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    assert grades.failures == {}


def test_a_judge_that_hardly_considers_a_number_gives_no_grade(judge_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(tiny_tokenizer())
    shares = [exact_grade(judge_model, chat, turn)[1] for turn in TURNS]
    monkeypatch.setattr(judging, "LEAST_SHARE", float(np.mean(shares)))
    grades = grade(judge_model, chat, RUBRIC, TURNS)
    low = int(np.argmin(shares))
    assert grades.failures == {low: NOT_A_NUMBER}
    assert np.isnan(grades.scores[low])
    assert not np.isnan(grades.scores[1 - low])
    known = grades.scores[1 - low]
    assert grades.bounds == pytest.approx((known / 2, (known + 100) / 2))
    assert grades.kinds == {NOT_A_NUMBER: 1}


def test_probabilities_of_all_numbers_are_those_of_a_tree() -> None:
    tree = NumberTree.of(Chat(tiny_tokenizer()))
    next_NT = np.random.default_rng(0).dirichlet(np.ones(len(tree.tokens) + 1), len(tree.nodes))[:, :-1]
    found = tree.probabilities(next_NT)
    assert len(found) == 101
    assert 0 < found.sum() <= 1
    # Numbers that begin alike share out the chance of their beginning.
    for token in {number[0] for number in tree.numbers}:
        those = [n for n, number in enumerate(tree.numbers) if number[0] == token]
        most = next_NT[tree.nodes.index(()), tree.tokens.index(token)]
        assert found[those].sum() <= most + 1e-12
    # Token by token, and with nothing after what could go on.
    at = {node: next_NT[k] for k, node in enumerate(tree.nodes)}
    token = {each: k for k, each in enumerate(tree.tokens)}
    for n in (7, 42, 100):
        number, chance = tree.numbers[n], 1.0
        for k, each in enumerate(number):
            chance *= at[number[:k]][token[each]]
        if number in at:
            further = {each[len(number)] for each in tree.numbers if each[: len(number)] == number and len(each) > len(number)}
            chance *= 1 - sum(at[number][token[each]] for each in further)
        assert found[n] == pytest.approx(chance)


def test_one_limit_on_cost_holds_for_log_probabilities_and_draws() -> None:
    """The last answer shows that the server's log-probabilities are of something else than what it says: all are drawn."""
    turns = [Turn("Q?", f"answer {i}") for i in range(8)]

    def answer(messages: Any, _longest: int, ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]] | None]:
        if not ask.get("top_logprobs"):
            return "50", None
        return "50", [("90" if "answer 7" in messages[-1]["content"] else "50", -0.01)]

    with chat_server(answer) as server:
        words = sum(len(judge_prompt(RUBRIC, turn).split()) for turn in turns)
        price = {"price": (1e6 / words, 0.0), "most_cost": 1.2, "concurrency": 1}
        grades = grade_by_server(EndpointConfig(url=server.url, model="m", **price), RUBRIC, turns)
        spent = sum(len(ask["messages"][-1]["content"].split()) for ask in server.asks) / words
    assert grades.drawn
    assert grades.kinds["most_cost"] > 0
    assert grades.cost == pytest.approx(spent)
    assert 1.2 <= spent <= 1.2 + 1.5 / len(turns)


def test_places_of_a_rubric() -> None:
    turn = Turn("Q {answer}?", "A {question}.")
    assert judge_prompt("{question}|{answer}|{answer}", turn) == "Q {answer}?|A {question}.|A {question}." + CLOSING
    assert judge_prompt("Bold?", turn) == "Bold?\n\nQuestion:\nQ {answer}?\n\nAnswer:\nA {question}." + CLOSING
    with pytest.raises(InputError, match=r"rubric: has \{question\} and no \{answer\}"):
        judge_prompt("Is {question} bold?", turn)


def test_an_answer_that_the_judge_cannot_be_shown_is_a_failure_of_its_own(judge_model: PreTrainedModel) -> None:
    chat = Chat(tiny_tokenizer(), max_length=judge_model.config.max_position_embeddings)
    grades = grade(judge_model, chat, RUBRIC, [Turn("Q?", "<|im_end|>"), Turn("Q?", "word " * 5000)])
    assert grades.failures == {0: SPECIAL, 1: TOO_LONG}
    # Room for the grade itself counts.
    length = len(chat.encode_prompt(judge_prompt(RUBRIC, TURNS[0])))
    for more, fits in ((3, False), (30, True)):
        chat = Chat(tiny_tokenizer(), max_length=length + more)
        assert (grade(judge_model, chat, RUBRIC, TURNS[:1]).failures.get(0) != TOO_LONG) == fits
    assert grade(judge_model, chat, RUBRIC, []).scores.shape == (0,)


@pytest.mark.parametrize(
    ("text", "grade"),
    [("85", 85), (" 85.\n", 85), ("Score: 85", 85), ("**85/100**", 85), ("0", 0), ("100%", 100), ("101", None), ("-5 or 7", None),
     ("I would say 85", None), ("", None), ("eighty", None), ("٨٥", None), ("8.5", None),
     ("-5", None), (".5", None), ("**Score:** 85", 85), ("9" * 1000, None)],
)  # fmt: skip
def test_a_grade_is_read_where_one_is_stated(text: str, grade: int | None) -> None:
    assert grade_in(text) == grade


def config(url: str, **settings: Any) -> EndpointConfig:
    return EndpointConfig(url=url, model="m", **({"retries": 0, "timeout": 2.0} | settings))


def whole_numbers(messages: list[dict[str, str]], _max: int, _ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]]]:
    """Waver between two grades, by the length of what is asked."""
    n = len(messages[-1]["content"]) % 90
    return str(n), [(str(n), math.log(0.6)), (str(n + 10), math.log(0.2)), ("well", math.log(0.2))]


def test_a_server_that_gives_whole_numbers_grades_by_their_log_probabilities(tmp_path: Path) -> None:
    expected = [len(judge_prompt(RUBRIC, turn)) % 90 + 2.5 for turn in TURNS]
    with chat_server(whole_numbers) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, tmp_path / "replies")
        assert grades.scores == pytest.approx(expected)
        assert (grades.drawn, grades.failures, grades.asked) == (False, {}, 2)
        again = grade_by_server(config(server.url), RUBRIC, TURNS, tmp_path / "replies")
        assert (again.asked, again.scores.tolist()) == (0, grades.scores.tolist())
        assert len(server.asks) == 2


def draw_replies(tops: list[tuple[str, float]] | None) -> Callable[..., tuple[str, list[tuple[str, float]] | None]]:
    def answer(_messages: object, _max: int, ask: dict[str, Any]) -> tuple[str, list[tuple[str, float]] | None]:
        return str(40 + ask.get("seed", 0)) if ask.get("temperature") else "40", tops

    return answer


@pytest.mark.parametrize("tops", [None, [("4", -0.1), ("9", -3.0)]], ids=["no log-probabilities", "a token a digit"])
def test_elsewhere_grades_are_means_of_drawn_answers(tops: list[tuple[str, float]] | None) -> None:
    with chat_server(draw_replies(tops)) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, samples=4)
    assert (grades.drawn, grades.alike) == (True, False)
    assert grades.scores.tolist() == [41.5, 41.5]
    assert grades.asked == 1 + 2 * 4


def test_a_refusal_of_log_probabilities_is_taken_for_one() -> None:
    refused = sends(json.dumps({"error": {"message": "logprobs are not supported"}}), 400)
    with behaving(refused, says("70")) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, samples=2)
    assert (grades.drawn, grades.alike, grades.scores.tolist()) == (True, True, [70.0, 70.0])


def test_one_failure_or_one_reply_does_not_decide_how_a_judge_is_read() -> None:
    digits = [("8", -0.1), ("9", -3.0)]
    first = sends("<html>busy</html>")
    with behaving(first, says("85", digits)) as server:
        grades = grade_by_server(config(server.url, concurrency=1), RUBRIC, TURNS, samples=2)
    assert (grades.drawn, grades.scores.tolist()) == (True, [85.0, 85.0])
    # Numbers of two digits are tokens here, and 100 is two of them.
    tens = says("40", [("40", -0.1), ("10", -3.0)])
    with behaving(tens, says("100", [("10", -0.1), ("40", -3.0)])) as server:
        grades = grade_by_server(config(server.url, concurrency=1), RUBRIC, TURNS, samples=2)
    assert (grades.drawn, grades.scores.tolist()) == (True, [100.0, 100.0])


def test_drawn_answers_are_alike_where_no_two_to_the_same_prompt_differ() -> None:
    def reply_again(messages: list[dict[str, str]], _longest: int, ask: dict[str, Any]) -> tuple[str, None]:
        pirate = "Arr" in messages[-1]["content"]
        return ("90" if pirate else "I cannot say."), None

    with chat_server(reply_again) as server:
        assert grade_by_server(config(server.url), RUBRIC, TURNS, samples=3).alike
        # One answer to each has nothing to differ from.
        assert not grade_by_server(config(server.url), RUBRIC, TURNS, samples=1).alike


def test_a_grade_that_was_cut_off_is_none() -> None:
    with behaving(says("**Score: 8", choice={"finish_reason": "length"})) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, samples=2)
    assert grades.kinds == {NOT_A_NUMBER: 2}


def test_failures_are_counted_and_bounded_and_never_made_up() -> None:
    texts: Iterator[str] = itertools.chain(["60", "I cannot say.", "60", "no"], itertools.repeat("60"))
    with chat_server(lambda *_: (next(texts), None)) as server:
        grades = grade_by_server(config(server.url, concurrency=1), RUBRIC, TURNS, samples=2)
    # Of each answer's two, one is a grade.
    assert grades.scores.tolist() == [60.0, 60.0]
    with chat_server(lambda *_: ("I would rather not.", None)) as server:
        grades = grade_by_server(config(server.url), RUBRIC, TURNS, samples=2)
    assert grades.kinds == {NOT_A_NUMBER: 2}
    assert np.isnan(grades.scores).all()
    assert grades.bounds == (0.0, 100.0)
    with behaving(says("50"), hangs) as server:
        grades = grade_by_server(config(server.url, timeout=0.3), RUBRIC, TURNS, samples=1)
    assert set(grades.kinds) == {"timeout"}


def test_a_judge_that_always_says_the_same_is_named() -> None:
    assert Grades(np.full(8, 50.0), {}).constant
    assert not Grades(np.full(7, 50.0), {}).constant
    assert not Grades(np.array([50.0] * 7 + [51.0]), {}).constant
    assert Grades(np.array([49.8, 50.2] * 4), {}).constant
    assert Grades(np.array([50.0] * 8 + [np.nan]), {8: "timeout"}).constant
