from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from probes.generate import answers


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(i) for i in rng.integers(3, 101, length)] for length in (5, 17, 2, 9, 9, 13, 3)]


@torch.no_grad()
def naive(model: PreTrainedModel, prompt: Sequence[int], ends: set[int], max_new_tokens: int, penalty: float = 1.0) -> list[int]:
    """One row, no padding, no cache."""
    new: list[int] = []
    while len(new) < max_new_tokens:
        logits = model(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1]
        for seen in {*prompt, *new}:
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        token = int(logits.argmax())
        if token in ends:
            break
        new.append(token)
    return new


@pytest.fixture
def ending(model: PreTrainedModel) -> Iterator[Callable[[int | list[int] | None], None]]:
    """Set a shared model's end-of-turn token, and put it back."""
    before = model.generation_config.eos_token_id

    def set_end(token: int | list[int] | None) -> None:
        model.generation_config.eos_token_id = token

    yield set_end
    model.generation_config.eos_token_id = before


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_equals_an_argmax_loop_in_the_order_given(model: PreTrainedModel, prompts: list[list[int]], batch_size: int) -> None:
    expected = [naive(model, prompt, {2}, 8) for prompt in prompts]
    assert len({tuple(answer) for answer in expected}) > len(prompts) // 2
    assert answers(model, prompts, pad_id=0, max_new_tokens=8, batch_size=batch_size) == expected


def test_a_repetition_penalty_is_the_same_in_any_batch(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    expected = [naive(model, prompt, {2}, 8, penalty=1.5) for prompt in prompts]
    assert expected != [naive(model, prompt, {2}, 8) for prompt in prompts]
    for batch_size in (1, 32):
        assert answers(model, prompts, pad_id=0, max_new_tokens=8, batch_size=batch_size, repetition_penalty=1.5) == expected


def test_stops_before_the_end_of_turn(
    model: PreTrainedModel, prompts: list[list[int]], ending: Callable[[int | list[int] | None], None]
) -> None:
    ending(None)
    free = [naive(model, prompt, set(), 8) for prompt in prompts]
    assert answers(model, prompts, pad_id=0, max_new_tokens=8) == free
    # Tokens that some answers reach midway: these answers end there and the others go on.
    ends = [free[0][3], free[1][5]]
    for end in (ends[0], ends):
        ending(end)
        expected = [naive(model, prompt, set(np.atleast_1d(end).tolist()), 8) for prompt in prompts]
        assert any(len(answer) < 8 for answer in expected)
        assert answers(model, prompts, pad_id=0, max_new_tokens=8) == expected


def test_progress_counts_prompts(llama: PreTrainedModel, prompts: list[list[int]]) -> None:
    seen: list[int] = []
    answers(llama, prompts, pad_id=0, max_new_tokens=1, batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]


def test_no_prompts_no_answers(llama: PreTrainedModel) -> None:
    assert answers(llama, [], pad_id=0, max_new_tokens=4) == []
