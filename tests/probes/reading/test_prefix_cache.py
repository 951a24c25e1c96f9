from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import MambaConfig, PreTrainedModel, Qwen3NextConfig

from tests.tiny import blocks_of, make_families, make_rows, tokens_through
from wellworn.data.chat import SPANS, Encoded
from wellworn.probes.reading.batching import Chunk, plan
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.reading.prefix_cache import PrefixCache

BUDGET = 120
FAMILIES = {
    "one prompt": {"prompts": 1, "answers": 40},
    "prompts of different lengths": {"prompts": 5, "answers": 4},
    "prompts longer than the window": {"prompts": 3, "answers": 5, "shortest": 14, "longest": 22},
    "a prompt shorter than the window": {"prompts": 3, "answers": 6, "shortest": 2, "longest": 5},
    "a system prompt": {"prompts": 9, "answers": 1, "system": 13},
    "a system prompt and answers": {"prompts": 3, "answers": 4, "system": 9},
}


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((got - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


def plan_chunks(rows: Sequence[Encoded], budget: int = BUDGET) -> list[Chunk]:
    (chunks,) = plan([row.input_ids for row in rows], [row.spans["response"][0] - 1 for row in rows], budget)
    return chunks


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("kind", FAMILIES)
def test_sharing_changes_no_result(model: PreTrainedModel, kind: str) -> None:
    # Some rows share nothing.
    rows = [*make_families(**FAMILIES[kind], seed=4), *make_rows(3, seed=7)]
    with tokens_through(blocks_of(model)[0]) as apart:
        truth = read(model, rows, Spec(logprob=True, token_budget=BUDGET, share_prefixes=False))
    for layers, logprob in ((None, True), (None, False), ([0], False), ([0], True), ([1], False), ([2, 0], False)):
        with tokens_through(blocks_of(model)[0]) as shared:
            reading = read(model, rows, Spec(layers=layers, logprob=logprob, token_budget=BUDGET))
        assert sum(shared) < sum(apart)
        assert relative_error(reading.states, truth.states if layers is None else truth.states[:, layers]) <= 1e-5
        if logprob:
            torch.testing.assert_close(reading.logprob, truth.logprob, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("share_all")
def test_the_rows_of_these_tests_are_what_they_say() -> None:
    chunks = {kind: plan_chunks(make_families(**FAMILIES[kind], seed=4)) for kind in FAMILIES}
    assert all(chunk.prefixes for some in chunks.values() for chunk in some[:1])
    padded = [len({chunk.prefix_length[row] for row in chunk.prefixes}) > 1 for chunk in chunks["prompts of different lengths"]]
    assert any(padded)
    assert any(len(chunk.batches) > 2 for some in chunks.values() for chunk in some)
    assert len(chunks["prompts of different lengths"]) > 1
    assert min(chunks["prompts longer than the window"][0].prefix_length.values()) > 6
    assert max(chunks["a prompt shorter than the window"][0].prefix_length.values()) < 6
    assert set(chunks["a system prompt"][0].prefix_length.values()) == {13}


@pytest.mark.usefixtures("share_all")
def test_spans_may_lie_anywhere_in_a_prefix(model: PreTrainedModel) -> None:
    rng = np.random.default_rng(5)
    rows = []
    for row in make_families(prompts=5, answers=4, seed=6, shortest=6):
        start = int(rng.integers(0, len(row) - 1))
        spans = row.spans | {"early": (1, 3), "some": (start, int(rng.integers(start + 1, len(row) + 1)))}
        rows.append(Encoded(row.input_ids, spans, row.completion_mask))
    # Rows of one prefix have spans of their own in it, inside, across its end and behind it.
    where = {
        (row.spans["some"][0] < length) + 2 * (row.spans["some"][1] > length)
        for chunk in plan_chunks(rows)
        for i, length in chunk.prefix_length.items()
        for row in [rows[i]]
    }
    assert where == {1, 2, 3}
    spans = ["some", *SPANS, "early"]
    truth = read(model, rows, Spec(spans=spans, token_budget=1, share_prefixes=False))
    assert relative_error(read(model, rows, Spec(spans=spans, token_budget=BUDGET)).states, truth.states) <= 1e-5


def test_little_is_not_shared(llama: PreTrainedModel) -> None:
    rows = make_families(prompts=1, answers=3, seed=1)
    with tokens_through(llama.model.layers[0]) as apart:
        read(llama, rows, Spec(share_prefixes=False))
    with tokens_through(llama.model.layers[0]) as shared:
        read(llama, rows)
    assert shared == apart


@torch.no_grad()
def test_rows_leave_the_cache_as_it_was(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    prefixes = torch.randint(3, 101, (3, 9), generator=generator)
    cache = PrefixCache(model.config)
    with cache.filled():
        model(input_ids=prefixes, past_key_values=cache, use_cache=False)
    before = [(layer.keys.clone(), layer.values.clone(), layer.get_seq_length()) for layer in cache.layers]
    assert all(length == 9 for _, _, length in before)
    for rows in ([2, 0, 0, 1], [1]):
        suffixes = torch.randint(3, 101, (len(rows), 8), generator=generator)
        positions = torch.arange(9, 17).expand(len(rows), -1)
        logits = model(
            input_ids=suffixes, position_ids=positions, past_key_values=cache.for_rows(torch.tensor(rows)), use_cache=False
        ).logits
        whole = model(input_ids=torch.cat([prefixes[rows], suffixes], dim=1), use_cache=False).logits[:, 9:]
        assert relative_error(logits, whole) <= 1e-5
        for layer, (keys, values, length) in zip(cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
            assert layer.get_seq_length() == length


@torch.no_grad()
def test_a_cache_that_was_never_filled_holds_nothing(model: PreTrainedModel) -> None:
    ids = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(3))
    cache = PrefixCache(model.config)
    for _ in range(2):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=False).logits
        assert torch.equal(logits, model(input_ids=ids, use_cache=False).logits)
    assert cache.get_seq_length() == 0


def test_knows_which_models_keep_plain_keys_and_values(model: PreTrainedModel) -> None:
    assert PrefixCache.supports(model.config)
    assert not PrefixCache.supports(Qwen3NextConfig(num_hidden_layers=4))
    assert not PrefixCache.supports(MambaConfig(num_hidden_layers=2))
