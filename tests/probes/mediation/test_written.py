"""Confined writes against blocks called one by one, and where the answer is known: adapters that can write along some directions alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.probes.mediation.patched_by_hand import basis
from tests.tiny import blocks_of, make_model, make_rows
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.mediation.interventions import Swap
from wellworn.probes.mediation.paired_states import Batching
from wellworn.probes.mediation.written import confined_logprobs
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs

BASE, LOW, HIGH = Variant(), Variant("low"), Variant("high")


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    return make_rows(5, seed=4)


def set_to(peft: PeftModel, name: str | None) -> None:
    if name is None:
        peft.base_model.disable_adapter_layers()
    else:
        peft.base_model.enable_adapter_layers()
        peft.base_model.set_adapter(name)


@torch.no_grad()
def by_hand(peft: PeftModel, row: Encoded, names: tuple[str | None, str | None], part: dict[int, Swap]) -> float:
    """Call every block under both adapters from the same state, and score the last state by the model's own head."""
    blocks: Sequence[nn.Module] = blocks_of(peft.get_base_model())
    calls: dict[int, tuple[Any, Any]] = {}
    handles = [
        block.register_forward_pre_hook(lambda _m, args, kwargs, at=at: calls.__setitem__(at, (args, kwargs)), with_kwargs=True)
        for at, block in enumerate(blocks)
    ]
    set_to(peft, names[0])
    ids = torch.tensor([row.input_ids])
    peft(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    # The first block's input is M0's embedding.
    state = calls[0][0][0] if calls[0][0] else calls[0][1]["hidden_states"]
    for at, block in enumerate(blocks):
        rest, kwargs = calls[at][0][1:], {key: value for key, value in calls[at][1].items() if key != "hidden_states"}
        outputs = []
        for name in names:
            set_to(peft, name)
            output = block(state, *rest, **kwargs)
            outputs.append(output if isinstance(output, torch.Tensor) else output[0])
        change = outputs[1] - outputs[0]
        state = outputs[0] + (part[at].part(change) if at in part else 0)
    set_to(peft, names[0])
    handle = blocks[-1].register_forward_hook(lambda _m, _args, output: state if isinstance(output, torch.Tensor) else (state, *output[1:]))
    logits = peft(input_ids=ids, use_cache=False).logits[0]
    handle.remove()
    set_to(peft, "low")
    start, end = row.spans["response"]
    return float(torch.stack([logits.log_softmax(-1)[t - 1, row.input_ids[t]] for t in range(start, end)]).mean())


@pytest.mark.parametrize("names", [(None, "low"), ("high", "low")])
@pytest.mark.parametrize("budget", [30, 400])
def test_confined_writes_equal_blocks_called_by_hand(
    peft: PeftModel, rows: list[Encoded], names: tuple[str | None, str | None], budget: int
) -> None:
    u, v = basis(peft), basis(peft, k=2, seed=1)
    parts = [{0: Swap(u), 2: Swap(u)}, {0: Swap(v)}, {1: Swap(u, outside=True), 2: Swap(v)}, {0: Swap(), 1: Swap(), 2: Swap()}, {}]
    between = (Variant(names[0]), Variant(names[1]))
    got = confined_logprobs(peft, rows, between, parts, Batching(token_budget=budget))
    truth = torch.tensor([[by_hand(peft, row, names, part) for row in rows] for part in parts])
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
    # The parts differ, or equality would say nothing.
    assert all((got[i] - got[j]).abs().max() > 1e-3 for i in range(len(parts)) for j in range(i))


def test_all_writes_at_all_layers_are_the_other_model_and_none_are_its_own(peft: PeftModel, rows: list[Encoded]) -> None:
    layers = range(len(blocks_of(peft.get_base_model())))
    whole, nothing = confined_logprobs(peft, rows, (HIGH, LOW), [{layer: Swap() for layer in layers}, {}])
    after, before = (torch.tensor(each) for each in mean_logprobs(peft, rows, [LOW, HIGH], 0))
    torch.testing.assert_close(whole.double(), after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nothing.double(), before, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_writes_along_some_directions_alone_is_written_there() -> None:
    model = make_model("llama")
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["down_proj"], layers_to_transform=[1, 2]), adapter_name="low").eval()
    u, other = basis(peft, k=4, seed=3).split(2, dim=1)
    generator = torch.Generator().manual_seed(5)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.5, generator=generator)
            weight.data = u @ (u.T @ weight.data)
    rows = make_rows(6, seed=9)
    parts = [{1: Swap(each, outside=out), 2: Swap(each, outside=out)} for each in (u, other) for out in (False, True)]
    inside, outside, elsewhere, not_elsewhere = confined_logprobs(peft, rows, (BASE, LOW), parts)
    after, before = (torch.tensor(each).float() for each in mean_logprobs(peft, rows, [LOW, BASE], 0))
    torch.testing.assert_close(inside, after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outside, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(elsewhere, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(not_elsewhere, after, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-2


def test_the_model_is_as_before(peft: PeftModel, rows: list[Encoded]) -> None:
    before = mean_logprobs(peft, rows, [LOW, HIGH, BASE], 0)
    confined_logprobs(peft, rows, (BASE, LOW), [{1: Swap()}])
    assert (mean_logprobs(peft, rows, [LOW, HIGH, BASE], 0) == before).all()


def test_a_layer_that_the_model_lacks_is_refused(peft: PeftModel, rows: list[Encoded]) -> None:
    with pytest.raises(InputError, match="layer: this model has layers 0 to"):
        confined_logprobs(peft, rows, (BASE, LOW), [{99: Swap()}])


def test_an_outcome_that_is_not_finite_names_its_row(peft: PeftModel, rows: list[Encoded]) -> None:
    bad = Swap(torch.full((peft.get_base_model().config.hidden_size, 1), float("nan")))
    with pytest.raises(InputError, match="row 0: the log-probability under confined writes is not finite"):
        confined_logprobs(peft, rows, (BASE, LOW), [{0: bad}])
