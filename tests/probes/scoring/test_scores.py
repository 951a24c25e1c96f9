"""Contrast scores: which rows are read, what is made of their log-probabilities, and how well a score of known quality is said to tell."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_tokenizer
from wellworn.data.catalog import load_trait
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.data.schema import ContrastPair
from wellworn.probes.scoring.scores import (
    choice_logodds,
    choice_rows,
    contrast_logprobs,
    contrast_rows,
    in_order,
    roc_auc,
    roc_auc_interval,
)

PAIRS = load_trait("pirate").contrast_pairs[:2]
TURNS = [Turn("Where is the harbour?", "Arr, past the old fort."), Turn("What is two and two?", "It is four.")]


def test_every_answer_is_read_under_both_sides_of_every_pair() -> None:
    chat = Chat(tiny_tokenizer())
    rows = contrast_rows(chat, TURNS, PAIRS)
    sides = [side for pair in PAIRS for side in (pair.positive, pair.negative)]
    assert [chat.tokenizer.decode(row.input_ids) for row in rows] == [
        f"<|im_start|>system\n{side}<|im_end|>\n<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n{turn.answer}<|im_end|>\n"
        for side in sides
        for turn in TURNS
    ]


def test_a_score_is_the_mean_ratio_of_likelihoods_by_a_models_own_forward_pass(tiny_model: str) -> None:
    chat = Chat(tiny_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    per_token = []
    for row in contrast_rows(chat, TURNS, PAIRS):
        first, last = row.spans["response"]
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0]
        per_token.append(float(np.mean([logprobs[t - 1, row.input_ids[t]].item() for t in range(first, last)])))
    (plus0, plus1), (minus0, minus1), (further_plus0, further_plus1), (further_minus0, further_minus1) = np.reshape(per_token, (4, 2))
    positive, negative = contrast_logprobs(np.array(per_token), 2)
    assert positive == pytest.approx([(plus0 + further_plus0) / 2, (plus1 + further_plus1) / 2])
    assert negative == pytest.approx([(minus0 + further_minus0) / 2, (minus1 + further_minus1) / 2])
    assert abs(positive - negative).max() > 1e-3


def test_an_answer_that_is_no_row_is_refused() -> None:
    with pytest.raises(InputError, match="special token"):
        contrast_rows(Chat(tiny_tokenizer()), [Turn("Where is the harbour?", "<|im_end|>")], PAIRS)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_told_apart_counts_pairs(shown: list[int], absent: list[int]) -> None:
    above = [(a > b) + (a == b) / 2 for a in shown for b in absent]
    assert roc_auc(np.array(shown, float), np.array(absent, float)) == pytest.approx(np.mean(above))


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_told_apart_of_normal_scores_is_the_one_of_theory(distance: float) -> None:
    rng = np.random.default_rng(4)
    found = roc_auc(rng.standard_normal(4000) + distance, rng.standard_normal(4000))
    assert found == pytest.approx(special.ndtr(distance / np.sqrt(2)), abs=0.02)


def test_the_interval_of_told_apart_covers_and_draws_questions() -> None:
    rng = np.random.default_rng(5)
    truth, held = special.ndtr(1 / np.sqrt(2)), 0
    for _ in range(200):
        # Both answers to a question share what the question does.
        question = rng.standard_normal(30)
        shown, absent = question + rng.standard_normal(30) + np.sqrt(2), question + rng.standard_normal(30)
        found = roc_auc_interval(shown, absent, rng, draws=400)
        held += found.low <= truth <= found.high
        assert found.value == pytest.approx(roc_auc(shown, absent))
    assert 0.9 <= held / 200 <= 0.995


def test_scores_that_are_missing_are_left_out_of_either_side() -> None:
    shown, absent = np.array([3.0, np.nan, 2.0]), np.array([1.0, 2.0, np.nan])
    found = roc_auc_interval(shown, absent, np.random.default_rng(0))
    assert found.value == roc_auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == 0.875
    assert in_order(shown, absent).tolist()[0] == 1.0
    assert np.isnan(in_order(shown, absent)[1:]).all()
    assert in_order(np.array([1.0, 0.0]), np.array([1.0, 2.0])).tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match="a score on either side"):
        roc_auc_interval(shown, np.full(3, np.nan), np.random.default_rng(0))
    with pytest.raises(ValueError, match="both answers to each question"):
        roc_auc_interval(shown, absent[:2], np.random.default_rng(0))


def test_sides_that_say_the_same_tell_nothing() -> None:
    chat = Chat(tiny_tokenizer())
    plus, minus = np.array_split(contrast_rows(chat, TURNS, [ContrastPair.model_construct(positive="Be kind.", negative="Be kind.")]), 2)
    assert [row.input_ids for row in plus] == [row.input_ids for row in minus]


def test_a_choice_is_the_log_odds_of_the_letter_in_both_orders_by_a_models_own_forward_pass(tiny_model: str) -> None:
    chat = Chat(tiny_tokenizer())
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    changed, plain = TURNS, [Turn(turn.question, f"Plainly: {k}.") for k, turn in enumerate(TURNS)]
    rows = choice_rows(chat, changed, plain)
    letters = [chat.tokenizer(letter)["input_ids"][0] for letter in "AB"]
    logprob, expected = [], []
    for row in rows:
        first, last = row.spans["response"]
        assert last == first + 1
        with torch.no_grad():
            logprobs = model(torch.tensor([row.input_ids])).logits.log_softmax(-1)[0, first - 1]
        logprob.append(logprobs[row.input_ids[first]].item())
        expected.append((logprobs[letters[0]] - logprobs[letters[1]]).item())
    # In the first order A is the changed answer, in the second B.
    first, second = np.reshape(expected, (2, 2, 2))[:, 0]
    assert choice_logodds(np.array(logprob)) == pytest.approx((first - second) / 2, abs=1e-5)
    texts = [chat.tokenizer.decode(row.input_ids) for row in rows]
    assert f"(A) {changed[0].answer}\n\n(B) {plain[0].answer}" in texts[0]
    assert f"(A) {plain[0].answer}\n\n(B) {changed[0].answer}" in texts[4]


def test_a_letter_that_is_liked_whatever_it_stands_for_chooses_nothing() -> None:
    liking_a = np.array([-0.1, -0.1, -2.4, -2.4, -2.4, -2.4, -0.1, -0.1])
    assert choice_logodds(liking_a) == pytest.approx([0, 0])
    assert choice_logodds(np.array([-0.1, -2.4, -2.4, -0.1, -0.1, -2.4, -2.4, -0.1])) == pytest.approx([2.3, -2.3])
