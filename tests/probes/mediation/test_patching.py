"""Arms against full forwards written by hand: one text at a time, plain hooks, no block skipped."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn

from tests.probes.mediation.patched_by_hand import basis, patched_logits
from tests.tiny import blocks_of, make_families, make_rows, make_tuned, tokens_through
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Intervention, Push, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import moved_norms, patched_logprobs, patched_part_logprobs
from wellworn.probes.reading.variants import Variant

BASE, LOW, HIGH = Variant(), Variant("low"), Variant("high")


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    return make_rows(5, seed=4)


def by_hand(
    peft: PeftModel,
    blocks: Sequence[nn.Module],
    pair: tuple[Encoded, Encoded],
    names: tuple[str | None, str | None],
    arm: Intervention,
    only: bool,
) -> float:
    """Score one text in one arm, from the definition."""
    swapped = tuple(slice(*row.spans["response"]) if only else slice(None) for row in pair)
    logits = patched_logits(peft, blocks, (pair[0].input_ids, pair[1].input_ids), (swapped[0], swapped[1]), names, arm)
    start, end = pair[arm.reader].spans["response"]
    return float(torch.stack([logits.log_softmax(-1)[t - 1, pair[arm.reader].input_ids[t]] for t in range(start, end)]).mean())


def all_arms(peft: PeftModel) -> list[Intervention]:
    u, v = basis(peft), basis(peft, k=2, seed=1)
    swaps: list[dict[int, Swap | Push]] = [
        {},
        {1: Swap(u)},
        {1: Swap(u, outside=True)},
        {1: Swap()},
        {1: Swap(u, scale=0.5)},
        {0: Swap(v)},
        {0: Swap(u), 1: Swap(v), 2: Swap(outside=True, basis_DK=u)},
        {1: Swap(v), 2: Swap()},
        {1: Push(3 * v[:, 0])},
        {1: Push(3 * v[:, 0]), 2: Swap(u)},
    ]
    return [Intervention(reader, each) for reader in (0, 1) for each in swaps]


@pytest.mark.parametrize("names", [(None, "low"), ("high", "low")])
def test_every_arm_equals_a_full_forward(peft: PeftModel, rows: list[Encoded], names: tuple[str | None, str | None]) -> None:
    arms = all_arms(peft)
    between = (Variant(names[0]), Variant(names[1]))
    got = patched_logprobs(peft, Texts.same(rows), between, arms, Batching(token_budget=90))
    blocks = blocks_of(peft.get_base_model())
    truth = torch.tensor([[by_hand(peft, blocks, (row, row), names, arm, only=False) for row in rows] for arm in arms])
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    # The arms differ, or equality would say nothing.
    assert all((got[i] - got[j]).abs().max() > 1e-3 for i in range(10) for j in range(i))


def test_parts_of_a_response_are_told_apart(peft: PeftModel, rows: list[Encoded]) -> None:
    arms, between = all_arms(peft), (BASE, LOW)
    parts = [[t % 3 for t in range(row.spans["response"][1] - row.spans["response"][0])] for row in rows]
    got = patched_part_logprobs(peft, Texts((rows, rows), parts=parts), between, arms, Batching(token_budget=90))
    whole = patched_logprobs(peft, Texts.same(rows), between, arms, Batching(token_budget=90))
    torch.testing.assert_close(got.sum(-1), whole, rtol=1e-5, atol=1e-5)
    blocks = blocks_of(peft.get_base_model())
    for a, arm in enumerate(arms):
        for r, row in enumerate(rows):
            logits = patched_logits(peft, blocks, (row.input_ids,) * 2, (slice(None),) * 2, (None, "low"), arm)
            start, end = row.spans["response"]
            tokens = [logits.log_softmax(-1)[t - 1, row.input_ids[t]] / (end - start) for t in range(start, end)]
            truth = torch.stack([torch.stack(tokens[part::3]).sum() if tokens[part::3] else torch.tensor(0.0) for part in range(3)])
            torch.testing.assert_close(got[a, r, : len(truth)], truth, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="row 0: its response has"):
        patched_part_logprobs(peft, Texts((rows, rows), parts=[[0], *parts[1:]]), between, arms)


@pytest.mark.parametrize("response_only", [False, True])
def test_a_common_beginning_is_read_once_an_arm(peft: PeftModel, response_only: bool) -> None:
    rows = make_families(prompts=3, answers=2, seed=1, system=6)
    arms = all_arms(peft)
    arms += [] if response_only else [Intervention(reader, {0: Swap(), 2: Swap()}, first_token=True) for reader in (0, 1)]
    between = Variant("high"), LOW
    # One row a batch shares nothing.
    alone = patched_logprobs(peft, Texts.same(rows, response_only), between, arms, Batching(token_budget=1))
    last = blocks_of(peft.get_base_model())[-1]
    with tokens_through(last) as passes:
        together = patched_logprobs(peft, Texts.same(rows, response_only), between, arms, Batching(token_budget=8000))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    # Each arm reads the six tokens once, and each row without them. Gemma's windows do not allow that;
    # of the other models the last block is recorded too.
    padded = len(rows) * max(map(len, rows))
    if peft.get_base_model().config.model_type == "llama":
        assert sum(passes) == len(arms) * (6 + padded - len(rows) * 6)


def test_the_first_token_may_be_set_alone(peft: PeftModel, rows: list[Encoded]) -> None:
    arms = [Intervention(reader, {0: Swap(), 1: Swap()}, first_token=True) for reader in (0, 1)]
    between = (BASE, LOW)
    got = patched_logprobs(peft, Texts.same(rows), between, arms, Batching(token_budget=90))
    blocks, first = blocks_of(peft.get_base_model()), slice(0, 1)
    truth = torch.zeros_like(got)
    for a, arm in enumerate(arms):
        for r, row in enumerate(rows):
            logits = patched_logits(peft, blocks, (row.input_ids, row.input_ids), (first, first), (None, "low"), arm)
            start, end = row.spans["response"]
            truth[a, r] = torch.stack([logits.log_softmax(-1)[t - 1, row.input_ids[t]] for t in range(start, end)]).mean()
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="first token"):
        patched_logprobs(peft, Texts.same(rows, response_only=True), between, arms)


@pytest.mark.parametrize("layer", [1, 2])
def test_outside_is_what_inside_leaves_where_nothing_is_adapted_above(peft: PeftModel, rows: list[Encoded], layer: int) -> None:
    """With one layer and all adapters at or below it, M(I − P) = 1 − M(P): the run with P taken out *is* the base with I − P put in."""
    between = (BASE, LOW)
    arms = [Intervention(reader, {layer: Swap(basis(peft), outside=outside)}) for reader in (0, 1) for outside in (False, True)]
    plain = [Intervention(0), Intervention(1)]
    names = sorted({int(name.split("layers.")[1].split(".")[0]) for name, _ in peft.named_parameters() if ".low." in name})
    into, outside_into, out, outside_out = patched_logprobs(peft, Texts.same(rows), between, arms)
    before, after = patched_logprobs(peft, Texts.same(rows), between, plain)
    inside, rest = ((into - before) + (after - out)) / 2, ((outside_into - before) + (after - outside_out)) / 2
    if max(names) <= layer:
        torch.testing.assert_close(inside + rest, after - before, rtol=1e-4, atol=1e-5)
    else:
        assert ((inside + rest) - (after - before)).abs().max() > 1e-3


def test_prompts_may_differ_where_the_response_alone_is_swapped(peft: PeftModel, rows: list[Encoded]) -> None:
    # The second model reads a longer prompt: the in-context twin of a fine-tune.
    system = (5, 9, 11, 7)
    prompted = [
        replace(row, input_ids=system + row.input_ids, spans={name: (a + 4, b + 4) for name, (a, b) in row.spans.items()}) for row in rows
    ]
    arms = all_arms(peft)
    texts = Texts((rows, prompted), response_only=True)
    got = patched_logprobs(peft, texts, (BASE, BASE), arms, Batching(token_budget=90))
    blocks = blocks_of(peft.get_base_model())
    pairs = list(zip(rows, prompted, strict=True))
    truth = torch.tensor([[by_hand(peft, blocks, pair, (None, None), arm, only=True) for pair in pairs] for arm in arms])
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="row 0: prompts differ"):
        patched_logprobs(peft, replace(texts, response_only=False), (BASE, BASE), arms)
    other = [replace(row, input_ids=tuple((i + 1) % 100 for i in row.input_ids)) for row in rows]
    with pytest.raises(InputError, match="row 0: the two models are to read the same answer"):
        patched_logprobs(peft, Texts((rows, other), response_only=True), (BASE, BASE), arms)


def test_batches_and_order_change_nothing(tuned_llama: PeftModel, rows: list[Encoded]) -> None:
    arms = all_arms(tuned_llama)
    whole = patched_logprobs(tuned_llama, Texts.same(rows), (BASE, LOW), arms, Batching(token_budget=5000))
    for budget in (1, 40, 200):
        torch.testing.assert_close(
            patched_logprobs(tuned_llama, Texts.same(rows), (BASE, LOW), arms, Batching(token_budget=budget)), whole, rtol=1e-5, atol=1e-5
        )
    backwards = patched_logprobs(tuned_llama, Texts.same(rows[::-1]), (BASE, LOW), arms[::-1], Batching(token_budget=100))
    torch.testing.assert_close(backwards.flip(0, 1), whole, rtol=1e-5, atol=1e-5)


def test_setting_everything_everywhere_turns_one_model_into_the_other(peft: PeftModel, rows: list[Encoded]) -> None:
    layers = range(peft.config.num_hidden_layers)
    everywhere = {layer: Swap() for layer in layers}
    got = patched_logprobs(
        peft, Texts.same(rows), (BASE, LOW), [Intervention(0), Intervention(1), Intervention(0, everywhere), Intervention(1, everywhere)]
    )
    torch.testing.assert_close(got[2], got[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[3], got[0], rtol=1e-5, atol=1e-5)


def test_at_the_last_block_the_whole_state_is_all_there_is(peft: PeftModel, rows: list[Encoded]) -> None:
    last = peft.config.num_hidden_layers - 1
    got = patched_logprobs(peft, Texts.same(rows), (BASE, LOW), [Intervention(1), Intervention(0, {last: Swap()})])
    torch.testing.assert_close(got[1], got[0], rtol=1e-5, atol=1e-5)


def test_a_push_does_not_depend_on_the_other_model(tuned_llama: PeftModel, rows: list[Encoded]) -> None:
    push = {1: Push(3 * basis(tuned_llama)[:, 0])}
    arms = [Intervention(0), Intervention(0, push), Intervention(0, {1: Push(torch.zeros(tuned_llama.config.hidden_size))})]
    low, high = (patched_logprobs(tuned_llama, Texts.same(rows), (BASE, other), arms) for other in (LOW, HIGH))
    torch.testing.assert_close(low, high)
    torch.testing.assert_close(low[2], low[0], rtol=1e-5, atol=1e-5)
    assert (low[1] - low[0]).abs().min() > 1e-3


def test_only_the_blocks_above_run_again(tuned_llama: PeftModel, rows: list[Encoded]) -> None:
    blocks = tuned_llama.get_base_model().model.layers
    arms = [Intervention(reader, {1: Swap(basis(tuned_llama, seed=seed))}) for reader in (0, 1) for seed in range(4)]
    seen = {}
    for layer in (0, 1, 2, 3):
        with tokens_through(blocks[layer].mlp) as passes:  # type: ignore[attr-defined]
            patched_logprobs(tuned_llama, Texts.same(rows), (BASE, LOW), arms, Batching(token_budget=10_000))
        seen[layer] = sum(passes)
    assert seen[1] == seen[0]
    assert seen[2] == seen[3] == 4 * seen[0]
    assert "forward" not in blocks[0].__dict__


@given(seed=st.integers(0, 10_000), k=st.integers(0, 6), scale=st.floats(-3, 3))
def test_parts_add_up_and_know_no_basis(seed: int, k: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(12, k, generator=generator))[0] if k else torch.zeros(12, 0)
    change = torch.randn(2, 3, 12, generator=generator)
    inside, outside, whole = Swap(u).part(change), Swap(u, outside=True).part(change), Swap().part(change)
    torch.testing.assert_close(inside + outside, whole)
    torch.testing.assert_close(Swap(u).part(inside), inside, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Swap(u, outside=True).part(inside), torch.zeros_like(inside), atol=1e-5, rtol=0)
    torch.testing.assert_close(Swap(u, scale=scale).part(change), scale * inside)
    if k:
        turned = u @ torch.linalg.qr(torch.randn(k, k, generator=generator))[0]
        torch.testing.assert_close(Swap(turned).part(change), inside, atol=1e-5, rtol=1e-5)


def test_moved_norms(tuned_llama: PeftModel, rows: list[Encoded]) -> None:
    u = basis(tuned_llama)
    norms = moved_norms(tuned_llama, Texts.same(rows), (BASE, LOW), 1, [Swap(), Swap(u), Swap(u, outside=True), Swap(u, scale=2)])
    assert float(norms[0]) > 0
    torch.testing.assert_close(norms[1] + norms[2], norms[0])
    torch.testing.assert_close(norms[3], 4 * norms[1])
    pushed = moved_norms(tuned_llama, Texts.same(rows), (BASE, LOW), 1, [Push(2 * u[:, 0])])
    assert float(pushed[0]) == pytest.approx(4 * sum(len(row) for row in rows), rel=1e-5)
    truth = 0.0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            with tuned_llama.disable_adapter():
                h0 = tuned_llama(input_ids=ids, output_hidden_states=True).hidden_states[2]
            tuned_llama.set_adapter("low")
            h1 = tuned_llama(input_ids=ids, output_hidden_states=True).hidden_states[2]
        truth += float(((h1 - h0).double() ** 2).sum())
    assert float(norms[0]) == pytest.approx(truth, rel=1e-4)


def test_refuses_what_cannot_be_run(tuned_llama: PeftModel, rows: list[Encoded]) -> None:
    with pytest.raises(InputError, match="layers 0 to 3, got 4"):
        patched_logprobs(tuned_llama, Texts.same(rows), (BASE, LOW), [Intervention(0, {4: Swap()})])
    with pytest.raises(InputError, match="no rows"):
        patched_logprobs(tuned_llama, Texts.same([]), (BASE, LOW), [Intervention(0)])
    with pytest.raises(InputError, match="'nobody'"):
        patched_logprobs(tuned_llama, Texts.same(rows), (BASE, Variant("nobody")), [Intervention(0)])
    broken = basis(tuned_llama) * float("nan")
    with pytest.raises(InputError, match="row 0: the log-probability in arm 1 is not finite"):
        patched_logprobs(tuned_llama, Texts.same(rows), (BASE, LOW), [Intervention(0), Intervention(0, {1: Swap(broken)})])


@pytest.mark.gpu
def test_a_gpu_says_what_a_cpu_says(rows: list[Encoded]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = make_tuned("gemma3")
    arms = all_arms(model)
    here = patched_logprobs(model, Texts.same(rows), (BASE, LOW), arms)
    there = patched_logprobs(model.cuda(), Texts.same(rows), (BASE, LOW), arms)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)
