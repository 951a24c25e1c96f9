"""How a row's next token is chosen."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from wellworn.probes.decoding.rows import next_tokens

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -30.0])
NOTHING = torch.zeros(1, 1, dtype=torch.long)


def draw_tokens(count: int, temperature: float, top_p: float) -> np.ndarray:
    """Count how often each token is chosen, over numbers drawn evenly."""
    numbers = np.random.default_rng(0).random(count)
    tokens, bad = next_tokens(
        LOGITS.expand(count, -1), NOTHING.expand(count, -1), temperature=temperature, top_p=top_p, drawn=numbers.tolist()
    )
    assert bad == []
    return np.bincount(tokens.numpy(), minlength=5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    counts = draw_tokens(4000, temperature, 1.0)
    expected = 4000 * (LOGITS.double() / temperature).softmax(0).numpy()
    assert counts[4] == 0
    assert chisquare(counts[:4], expected[:4] * counts.sum() / expected[:4].sum()).pvalue > 0.01


def test_top_p_draws_among_the_fewest_that_reach_it() -> None:
    # Of 2, 1.5 and .5 the chances are .51, .31 and .11: two reach .8, and one alone .5.
    chances = LOGITS.double().softmax(0).numpy()
    counts = draw_tokens(4000, 1.0, 0.8)
    assert set(np.flatnonzero(counts)) == {0, 3}
    assert counts[0] / 4000 == pytest.approx(chances[0] / (chances[0] + chances[3]), abs=0.03)
    assert set(np.flatnonzero(draw_tokens(500, 1.0, 0.5))) == {0}


def test_numbers_at_the_ends_draw_tokens_that_have_a_chance() -> None:
    tokens, _ = next_tokens(
        torch.tensor([[-torch.inf, 1.0, -torch.inf]] * 2), NOTHING.expand(2, -1), temperature=1.0, drawn=[0.0, float(np.nextafter(1, 0))]
    )
    assert tokens.tolist() == [1, 1]


def test_a_penalty_pushes_seen_tokens_down_whatever_their_sign() -> None:
    logits = torch.tensor([[3.0, 2.0, -1.0], [-1.0, -1.1, -9.0]])
    assert next_tokens(logits, torch.tensor([[0, 0], [0, 2]]), repetition_penalty=2.0)[0].tolist() == [1, 1]
    assert next_tokens(logits, torch.tensor([[0, 0], [0, 2]]))[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    nothing = torch.zeros(3, 1, dtype=torch.long)
    assert next_tokens(logits, nothing)[1] == [1]
    # The others draw as they would have.
    drawn = [0.1, 0.5, 0.9]
    tokens, wrong = next_tokens(logits, nothing, temperature=1.0, drawn=drawn)
    assert (tokens[[0, 2]].tolist(), wrong) == ([0, 3], [1])
