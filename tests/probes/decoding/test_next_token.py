"""Next-token log-probabilities, compared with the log-softmax of full forward passes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.tiny import blocks_of, tokens_through
from wellworn.data.errors import InputError
from wellworn.probes.decoding import prefill as reading
from wellworn.probes.decoding.next_token import next_logprobs
from wellworn.probes.reading.prefix_cache import PrefixCache

TOKENS = [5, 50, 7]
# Out of order, some with beginnings that are not asked for, and of several depths.
AFTER = [(), (9, 4, 6), (9,), (12, 30), (9, 4), (8,), (12, 31, 9), (60,)]


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(2)
    system = [int(i) for i in rng.integers(3, 101, 20)]
    return [system + [int(i) for i in rng.integers(3, 101, length)] for length in (9, 1, 4, 4, 30)] + [[7], [7, 8, 9]]


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, prompts: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> np.ndarray:
    def one(ids: Sequence[int]) -> np.ndarray:
        found: np.ndarray = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[TOKENS].numpy()
        return found

    return np.array([[one([*prompt, *way]) for way in after] for prompt in prompts])


@pytest.mark.parametrize("share", [True, False], ids=["read once", "anew for each way"])
def test_every_way_to_go_on_is_the_models_own_log_softmax(
    model: PreTrainedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    monkeypatch.setattr(reading, "LEAST_SAVED_TOKENS", 1)
    # A model that keeps more than keys and values cannot go back.
    monkeypatch.setattr(PrefixCache, "supports", staticmethod(lambda config: share))
    seen: list[int] = []
    found = next_logprobs(model, prompts, TOKENS, AFTER, rows=3, progress=seen.append)
    assert (found.shape, found.dtype) == ((7, len(AFTER), 3), np.float32)
    assert found == pytest.approx(reference_logprobs(model, prompts, AFTER), abs=1e-4)
    assert seen == [3, 3, 1]
    assert next_logprobs(model, prompts, TOKENS) == pytest.approx(reference_logprobs(model, prompts, [()]), abs=1e-4)


def test_prompts_are_read_once_whatever_follows_them(
    model: PreTrainedModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LEAST_SAVED_TOKENS", 1)
    alike = prompts[:5]
    with tokens_through(blocks_of(model)[0]) as passes:
        next_logprobs(model, alike, TOKENS, AFTER)
    # What all begin with, less a token; what follows, padded, without the last token; that token; and the ways to go on,
    # each but for what it has in common with the one before it: 8, 9, 9 4, 9 4 6, 12 30, 12 31 9, 60.
    assert passes[0] == 19
    assert passes[2:] == [5 * tokens for tokens in (1, 1, 1, 1, 1, 2, 2, 1)]
    assert len(passes) == 10


def test_a_way_to_go_on_that_does_not_fit_is_refused(llama: PreTrainedModel) -> None:
    assert next_logprobs(llama, [[5] * 126], TOKENS, [(1, 2)]).shape == (1, 1, 3)
    with pytest.raises(InputError, match="row 1: 127 tokens and 2 more do not fit the model's context of 128"):
        next_logprobs(llama, [[5], [5] * 127], TOKENS, [(), (1, 2)])
