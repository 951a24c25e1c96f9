from collections.abc import Callable, Sequence

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from data.chat import SPANS, Encoded
from data.errors import InputError
from probes.capture import Spec, read

VOCAB = 101
BlocksOf = Callable[[PreTrainedModel], Sequence[nn.Module]]
MakeRows = Callable[..., list[Encoded]]


def relative_error(got: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error of any one vector over that vector's norm."""
    return float(((got - truth).norm(dim=-1) / truth.norm(dim=-1)).max())


@torch.no_grad()
def oracle(model: PreTrainedModel, rows: Sequence[Encoded], blocks: Sequence[nn.Module]) -> tuple[torch.Tensor, torch.Tensor]:
    """Read one row at a time, without padding, from Hugging Face's own hidden states and full logits."""
    states, scores = [], []
    for row in rows:
        last: list[torch.Tensor] = []
        handle = blocks[-1].register_forward_hook(lambda _m, _a, out, last=last: last.append(out if torch.is_tensor(out) else out[0]))
        out = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        handle.remove()
        layers = [*out.hidden_states[1:-1], last[0]]
        assert len(layers) == len(blocks)
        states.append(torch.stack([torch.stack([h[0, slice(*row.spans[span])].mean(0) for span in SPANS]) for h in layers]))
        logp = out.logits[0].float().log_softmax(-1)
        start, end = row.spans["response"]
        scores.append(torch.stack([logp[t - 1, row.input_ids[t]] for t in range(start, end)]).mean())
    return torch.stack(states), torch.stack(scores)


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_reading_one_row_at_a_time(model: PreTrainedModel, blocks_of: BlocksOf, make_rows: MakeRows, side: str) -> None:
    rows = make_rows(9, seed=11)
    truth, logprob = oracle(model, rows, blocks_of(model))
    for wanted in (False, True):
        reading = read(model, rows, Spec(logprob=wanted, side=side, token_budget=90))
        assert reading.states.shape == truth.shape
        assert reading.states.dtype == torch.float32
        assert relative_error(reading.states, truth) <= 1e-5
        if wanted:
            assert reading.logprob is not None
            torch.testing.assert_close(reading.logprob, logprob, rtol=1e-5, atol=0)
        else:
            assert reading.logprob is None


def test_batches_and_padding_change_nothing(model: PreTrainedModel, make_rows: MakeRows) -> None:
    rows = make_rows(13, seed=5)
    alone = read(model, rows, Spec(logprob=True, token_budget=1, share_prefixes=False))
    for side in ("left", "right"):
        for budget, pad in ((60, 0), (10_000, 17)):
            other = read(model, rows, Spec(logprob=True, token_budget=budget, side=side, pad_id=pad))
            assert relative_error(other.states, alone.states) <= 1e-5
            torch.testing.assert_close(other.logprob, alone.logprob, rtol=1e-5, atol=0)


def test_the_last_layer_is_read_before_the_final_norm(model: PreTrainedModel, make_rows: MakeRows) -> None:
    row = make_rows(1, seed=8)[0]
    last = read(model, [row], Spec(spans=["prompt_last"])).states[0, -1, 0]
    with torch.no_grad():
        normed = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[-1]
    assert relative_error(last, normed[0, row.spans["prompt_last"][0]]) > 0.1


def test_a_subset_of_layers_in_the_order_asked_for(model: PreTrainedModel, make_rows: MakeRows) -> None:
    rows = make_rows(5, seed=2)
    every = read(model, rows).states
    some = read(model, rows, Spec(layers=[2, 0], spans=["response"])).states
    assert torch.equal(some, every[:, [2, 0]][:, :, [SPANS.index("response")]])


def test_nothing_above_the_deepest_layer_is_computed(model: PreTrainedModel, blocks_of: BlocksOf, make_rows: MakeRows) -> None:
    ran: list[str] = []
    handles = [
        blocks_of(model)[1].register_forward_pre_hook(lambda *_: ran.append("deepest")),
        blocks_of(model)[2].register_forward_pre_hook(lambda *_: ran.append("later")),
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: ran.append("head")),
    ]
    try:
        read(model, make_rows(6, seed=4), Spec(layers=[0, 1], token_budget=10_000))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["deepest"]


def test_the_head_runs_at_scored_positions_only(model: PreTrainedModel, make_rows: MakeRows) -> None:
    rows = make_rows(5, seed=9)
    shapes: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))
    try:
        read(model, rows, Spec(logprob=True))
    finally:
        handle.remove()
    assert shapes == [(1, sum(end - start for start, end in (row.spans["response"] for row in rows)), VOCAB)]


def test_pools_in_float32_whatever_the_models_dtype(make_model: Callable[[str], PreTrainedModel], make_rows: MakeRows) -> None:
    rows = make_rows(6, seed=6)
    exact = read(make_model("llama"), rows, Spec(layers=[0])).states
    half = read(make_model("llama").bfloat16(), rows, Spec(layers=[0], logprob=True))
    assert half.states.dtype == torch.float32
    assert half.logprob is not None
    assert half.logprob.dtype == torch.float32
    # Means taken in bfloat16 would themselves be bfloat16 numbers.
    assert not torch.equal(half.states.bfloat16().float(), half.states)
    assert relative_error(half.states, exact) < 0.05


def test_a_state_that_is_not_finite_names_row_and_layer(make_model: Callable[[str], PreTrainedModel], make_rows: MakeRows) -> None:
    model, rows = make_model("llama"), make_rows(4, seed=1)
    rows[2] = Encoded((100, *rows[2].input_ids[1:]), rows[2].spans, rows[2].completion_mask)
    assert all(100 not in row.input_ids for i, row in enumerate(rows) if i != 2)
    blocks = model.model.layers

    def poison(_module: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        bad = (ids[-1] == 100).any(1)
        return torch.where(bad[:, None, None], torch.nan, out)

    ids: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _m, args: ids.append(args[0]))
    blocks[1].register_forward_hook(poison)
    with pytest.raises(InputError, match="row 2: the hidden state at layer 1 is not finite"):
        read(model, rows)
    with pytest.raises(InputError, match="row 2: the hidden state at layer 3 is not finite"):
        read(model, rows, Spec(layers=[3, 0]))
    assert torch.isfinite(read(model, rows, Spec(layers=[0])).states).all()


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_out_of_range_is_refused(llama: PreTrainedModel, make_rows: MakeRows, layer: int) -> None:
    with pytest.raises(InputError, match=f"layers 0 to 3, got {layer}"):
        read(llama, make_rows(2, seed=0), Spec(layers=[0, layer]))


def test_no_rows_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="no rows"):
        read(llama, [])


def test_progress_adds_up_to_the_tokens(llama: PreTrainedModel, make_rows: MakeRows) -> None:
    rows, seen = make_rows(8, seed=3), list[int]()
    read(llama, rows, Spec(layers=[0], token_budget=50, progress=seen.append))
    assert sum(seen) == sum(len(row) for row in rows)
    assert len(seen) > 1


def test_ranks_share_the_rows(llama: PreTrainedModel, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(8, seed=3)
    whole = read(llama, rows, Spec(logprob=True, token_budget=50))
    parts, tokens = [], []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        tokens.append(0)

        def count(n: int) -> None:
            tokens[-1] += n

        parts.append(read(llama, rows, Spec(logprob=True, token_budget=50, progress=count)))
    # Without the reduction each rank holds its own rows and zeros elsewhere; the sum is what the reduction gives.
    assert relative_error(parts[0].states + parts[1].states, whole.states) <= 1e-5
    torch.testing.assert_close(parts[0].logprob + parts[1].logprob, whole.logprob, rtol=1e-5, atol=0)
    assert not ((parts[0].states != 0) & (parts[1].states != 0)).any()
    assert min(tokens) > 0.8 * max(tokens)
    assert sum(tokens) == sum(len(row) for row in rows)
