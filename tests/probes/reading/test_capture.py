import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from tests.tiny import blocks_of, make_families, make_model, make_rows, tokens_through
from wellworn.data.chat import SPANS, Encoded
from wellworn.data.errors import InputError
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import by_length
from wellworn.probes.reading.capture import Spec, chunks_by_rank, read, read_variants
from wellworn.probes.reading.forward_passes import Passes, _Mail
from wellworn.probes.reading.variants import Variant

VOCAB = 101


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
def test_equals_reading_one_row_at_a_time(model: PreTrainedModel, side: str) -> None:
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


def test_batches_and_padding_change_nothing(model: PreTrainedModel) -> None:
    rows = make_rows(13, seed=5)
    alone = read(model, rows, Spec(logprob=True, token_budget=1, share_prefixes=False))
    for side in ("left", "right"):
        for budget, pad in ((60, 0), (10_000, 17)):
            other = read(model, rows, Spec(logprob=True, token_budget=budget, side=side, pad_id=pad))
            assert relative_error(other.states, alone.states) <= 1e-5
            torch.testing.assert_close(other.logprob, alone.logprob, rtol=1e-5, atol=0)


def test_the_last_layer_is_read_before_the_final_norm(model: PreTrainedModel) -> None:
    row = make_rows(1, seed=8)[0]
    last = read(model, [row], Spec(spans=["prompt_last"])).states[0, -1, 0]
    with torch.no_grad():
        normed = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[-1]
    assert relative_error(last, normed[0, row.spans["prompt_last"][0]]) > 0.1


def test_a_subset_of_layers_in_the_order_asked_for(model: PreTrainedModel) -> None:
    rows = make_rows(5, seed=2)
    every = read(model, rows).states
    some = read(model, rows, Spec(layers=[2, 0], spans=["response"])).states
    assert torch.equal(some, every[:, [2, 0]][:, :, [SPANS.index("response")]])


def test_nothing_above_the_deepest_layer_is_computed(model: PreTrainedModel) -> None:
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


def test_the_head_runs_at_scored_positions_only(model: PreTrainedModel) -> None:
    rows = make_rows(5, seed=9)
    shapes: list[tuple[int, ...]] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))
    try:
        read(model, rows, Spec(logprob=True))
    finally:
        handle.remove()
    assert shapes == [(1, sum(end - start for start, end in (row.spans["response"] for row in rows)), VOCAB)]


def test_pools_in_float32_whatever_the_models_dtype() -> None:
    rows = make_rows(6, seed=6)
    exact = read(make_model("llama"), rows, Spec(layers=[0])).states
    half = read(make_model("llama").bfloat16(), rows, Spec(layers=[0], logprob=True))
    assert half.states.dtype == torch.float32
    assert half.logprob is not None
    assert half.logprob.dtype == torch.float32
    # Means taken in bfloat16 would themselves be bfloat16 numbers.
    assert not torch.equal(half.states.bfloat16().float(), half.states)
    assert relative_error(half.states, exact) < 0.05


def test_a_state_that_is_not_finite_names_row_and_layer() -> None:
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
def test_a_layer_out_of_range_is_refused(llama: PreTrainedModel, layer: int) -> None:
    with pytest.raises(InputError, match=f"layers 0 to 3, got {layer}"):
        read(llama, make_rows(2, seed=0), Spec(layers=[0, layer]))


def test_no_rows_are_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="no rows"):
        read(llama, [])


def test_progress_adds_up_to_the_tokens(llama: PreTrainedModel) -> None:
    rows, seen = make_rows(8, seed=3), list[int]()
    read(llama, rows, Spec(layers=[0], token_budget=50, progress=seen.append))
    assert sum(seen) == sum(len(row) for row in rows)
    assert len(seen) > 1


def test_ranks_share_the_rows(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
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


def with_span(row: Encoded, name: str, where: tuple[int, int]) -> Encoded:
    return replace(row, spans=row.spans | {name: where})


def long_row(length: int) -> Encoded:
    return Encoded((5,) * length, {"prompt": (0, 4), "prompt_last": (3, 4), "response": (4, length)}, (0,) * length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: long_row(129), "row 3: 129 tokens do not fit the model's context of 128"),
        (lambda row: replace(row, input_ids=(*row.input_ids[:-1], VOCAB)), f"row 3: holds token {VOCAB}, and .* 0 to {VOCAB - 1}"),
        (lambda row: replace(row, input_ids=(-1, *row.input_ids[1:])), "row 3: holds token -1"),
        (lambda row: replace(row, input_ids=()), "row 3: is empty"),
        (lambda row: with_span(row, "response", (4, 4)), "row 3: the span 'response' is empty"),
        (lambda row: with_span(row, "prompt_last", (2, 1)), "row 3: the span 'prompt_last' is empty"),
        (lambda row: with_span(row, "response", (3, len(row) + 1)), "row 3: the span 'response' is empty or out of range"),
        (lambda row: with_span(row, "prompt", (-1, 2)), "row 3: the span 'prompt' is empty or out of range"),
        (lambda row: with_span(row, "response", (0, 3)), "row 3: the response has no prompt before it"),
        (lambda row: replace(row, spans={"response": row.spans["response"]}), "row 3: has no span 'prompt'; it has response"),
        (lambda row: replace(row, spans={k: v for k, v in row.spans.items() if k != "response"}), "row 3: has no span 'response'"),
    ],
    ids=[
        "too long",
        "token too large",
        "token too small",
        "empty",
        "empty response",
        "span turned round",
        "span too long",
        "span before the row",
        "no prompt",
        "missing span",
        "missing response",
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_computed(
    llama: PreTrainedModel, change: Callable[[Encoded], Encoded], message: str
) -> None:
    rows = make_rows(5, seed=4)
    rows[3] = change(rows[3])
    with tokens_through(llama.model.layers[0]) as ran, pytest.raises(InputError, match=message):
        read(llama, rows, Spec(token_budget=30))
    assert not ran


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(layers=[1, 0, 1]), "layers: 1 is given more than once"),
        (Spec(layers=[]), "layers: there is none to read"),
        (Spec(side="middle"), "padding side: may be 'left' or 'right', got 'middle'"),
        (Spec(spans=["response", "thought"]), "row 0: has no span 'thought'"),
    ],
    ids=["repeated layer", "no layers", "side", "span"],
)
def test_a_spec_that_makes_no_sense_is_refused(llama: PreTrainedModel, spec: Spec, message: str) -> None:
    with tokens_through(llama.model.layers[0]) as ran, pytest.raises(InputError, match=message):
        read(llama, make_rows(5, seed=4), spec)
    assert not ran


def test_a_row_as_long_as_the_context_is_read(llama: PreTrainedModel) -> None:
    assert torch.isfinite(read(llama, [long_row(128)]).states).all()


class _Waits(TorchFunctionMode):
    """Notes calls that wait for the device, or copy from it."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits_in_passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    seen: list[str] = []

    def watch(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Passes, *args: Any) -> Any:
            with _Waits(seen):
                return plain(self, *args)

        return call

    with monkeypatch.context() as patch:
        for name in ("_read", "_read_prefixes"):
            patch.setattr(Passes, name, watch(getattr(Passes, name)))
        yield seen


@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("logprob", [True, False], ids=["logprob", "states"])
def test_one_copy_back_a_batch_and_no_waiting_in_a_pass(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, logprob: bool) -> None:
    # Prefixes of one length: for others Hugging Face's mask code looks at the padding itself.
    rows = [*make_families(prompts=1, answers=12, seed=5), *make_rows(9, seed=5)]
    spec = Spec(token_budget=60, logprob=logprob)
    (chunks,) = chunks_by_rank(model, rows, spec)
    batches = sum(len(chunk.batches) for chunk in chunks)
    assert batches > 4
    assert chunks[0].prefixes
    sent: list[int] = []
    send = _Mail.send
    monkeypatch.setattr(_Mail, "send", lambda self, result: (sent.append(result.numel()), send(self, result)))
    with waits_in_passes(monkeypatch) as seen:
        states = read(model, rows, spec).states
    assert not seen
    assert len(sent) == batches
    assert sum(sent) == states.numel() + logprob * len(rows)
    sent.clear()
    with waits_in_passes(monkeypatch) as seen:
        read_variants(model, rows, [Variant(), Variant(edits={1: lambda h: h / float(h.abs().max())})], spec)
    assert len(sent) == 2 * batches
    # What does wait is seen.
    assert seen == ["__float__"] * (batches + sum(bool(chunk.prefixes) for chunk in chunks))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("default")
def test_a_gpu_is_waited_for_no_more_than_by_a_bare_pass() -> None:
    model, rows = make_model("llama").cuda(), make_rows(24, seed=5)
    batches = by_length([len(row) for row in rows], 60)
    assert len(batches) > 4

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                ids, _ = pad_rows([rows[i].input_ids for i in batch], 0)
                model.model(input_ids=ids.to("cuda", non_blocking=True), use_cache=False)

    def waits(run: Callable[[], object]) -> int:
        run()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert waits(lambda: torch.ones(1, device="cuda").item()) == 1
    for logprob in (False, True):
        spec = Spec(token_budget=60, logprob=logprob, share_prefixes=False)
        assert waits(lambda spec=spec: read(model, rows, spec)) <= waits(bare)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.usefixtures("share_all")
def test_a_gpu_reads_what_a_cpu_reads() -> None:
    rows = make_families(prompts=5, answers=4, seed=5)
    spec = Spec(token_budget=60, logprob=True)
    here = read(make_model("gemma3"), rows, spec)
    there = read(make_model("gemma3").cuda(), rows, spec)
    assert there.states.device.type == "cpu"
    assert relative_error(there.states, here.states) <= 1e-4
    torch.testing.assert_close(there.logprob, here.logprob, rtol=1e-4, atol=1e-4)
