from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from tests.tiny import blocks_of, make_model, tokens_through
from wellworn.probes.reading.hooks import forward, hooked, recorded, resumed


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 101, (2, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@contextmanager
def rewritten(block: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change a block's own forward method: what an edit must equal, made without hooks."""
    plain = block.forward
    block.forward = lambda *args, **kwargs: change(plain(*args, **kwargs))
    try:
        yield
    finally:
        del block.forward


def hooks_left(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_an_edit_is_what_later_blocks_read(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    width = model.get_input_embeddings().embedding_dim
    delta = torch.randn(width, generator=torch.Generator().manual_seed(2))
    last = len(blocks_of(model)) - 1

    def edit(h: torch.Tensor) -> torch.Tensor:
        return h * 0.5 + delta

    plain = model(**inputs).logits
    after: dict[int, torch.Tensor] = {}
    for layer in range(last + 1):
        after.clear()
        readers = {k: (lambda h, k=k: after.update({k: h.clone()})) for k in range(layer + 1, last + 1)}
        edited = forward(model, {layer: edit, **readers}, stop=False, **inputs).logits
        with rewritten(blocks_of(model)[layer], edit):
            truth = model(**inputs, output_hidden_states=True)
        assert torch.equal(edited, truth.logits)
        assert not torch.allclose(edited, plain, atol=1e-2)
        for k in range(layer + 1, last):
            assert torch.equal(after[k], truth.hidden_states[k + 1])
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_two_edits_compose(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    edited = forward(llama, {2: lambda h: h - 1, 0: lambda h: 3 * h}, stop=False, **inputs).logits
    with rewritten(blocks_of(llama)[0], lambda h: 3 * h), rewritten(blocks_of(llama)[2], lambda h: h - 1):
        assert torch.equal(edited, llama(**inputs).logits)


@torch.no_grad()
def test_a_callback_that_returns_nothing_changes_nothing(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    shapes = []
    read = forward(model, {0: lambda h: shapes.append(h.shape)}, stop=False, **inputs).logits
    assert torch.equal(read, model(**inputs).logits)
    assert shapes == [(2, 11, model.get_input_embeddings().embedding_dim)]


@torch.no_grad()
def test_stop_runs_nothing_above_the_deepest_layer(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    watched = [*blocks_of(model), model.get_output_embeddings()]
    ran: list[int] = []
    handles = [module.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, module in enumerate(watched)]
    try:
        assert forward(model, {1: lambda h: None, 0: lambda h: None}, stop=True, **inputs) is None
        assert ran == [0, 1]
        ran.clear()
        # The deepest block of all: the head alone is saved.
        assert forward(model, {len(watched) - 2: lambda h: None}, stop=True, **inputs) is None
        assert ran == list(range(len(watched) - 1))
        ran.clear()
        assert forward(model, {1: lambda h: None}, stop=False, **inputs) is not None
        assert ran == list(range(len(watched)))
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def test_callbacks_come_in_the_order_of_the_blocks(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    order: list[int] = []
    last = model.config.num_hidden_layers - 1
    on_block = {layer: (lambda h, layer=layer: order.append(layer)) for layer in (last, 0, 1)}
    with hooked(model, on_block):
        model(**inputs)
        model(**inputs)
    assert order == [0, 1, last] * 2


def test_hooks_go_when_the_block_ends(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with hooked(llama, {0: lambda h: None, 3: lambda h: None}):
        assert hooks_left(llama) == 2
    assert hooks_left(llama) == 0
    forward(llama, {1: lambda h: None}, stop=True, **inputs)
    assert hooks_left(llama) == 0


def test_hooks_go_when_a_callback_raises(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    def fail(h: torch.Tensor) -> None:
        raise RuntimeError("in the callback")

    with pytest.raises(RuntimeError, match="in the callback"):
        forward(llama, {0: lambda h: None, 1: fail, 2: lambda h: None}, stop=True, **inputs)
    assert hooks_left(llama) == 0


def test_no_hook_is_left_when_a_layer_does_not_exist(llama: PreTrainedModel) -> None:
    with pytest.raises(IndexError), hooked(llama, {0: lambda h: None, 99: lambda h: None}):
        pass
    assert hooks_left(llama) == 0


def test_blocks_that_return_tuples_keep_their_other_outputs() -> None:
    class Block(nn.Module):
        def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, str]:
            return h + 1, "cache"

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = LlamaConfig(num_hidden_layers=2)
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
            others = []
            for block in self.layers:
                h, other = block(h)
                others.append(other)
            return h, others

    h, others = forward(Toy(), {0: lambda h: 10 * h}, stop=False, h=torch.zeros(1, 1, 2))
    assert torch.equal(h, torch.full((1, 1, 2), 11.0))
    assert others == ["cache", "cache"]


def test_an_edit_lets_gradients_through(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    delta = torch.zeros(32, requires_grad=True)
    loss = forward(llama, {1: lambda h: h + delta}, stop=False, **inputs).logits.square().mean()
    (gradient,) = torch.autograd.grad(loss, delta)
    with torch.no_grad():
        step = 1e-2 * gradient / gradient.norm()
        up, down = (forward(llama, {1: lambda h, s=s: h + s * step}, stop=False, **inputs).logits.square().mean() for s in (1, -1))
    assert float(up - down) == pytest.approx(2e-2 * float(gradient.norm()), rel=0.02)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning:transformers")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_callback_runs_once_under_gradient_checkpointing(inputs: dict[str, torch.Tensor], reentrant: bool) -> None:
    gradients, calls = [], list[int]()
    for checkpointed in (False, True):
        model = make_model("llama").train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with hooked(model, {1: lambda h: calls.append(1) or 0.5 * h}):
            model(**inputs, use_cache=False).logits.square().mean().backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert len(calls) == 2
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_resumed_pass_equals_the_full_one(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    blocks = blocks_of(model)
    with recorded(model, range(len(blocks))) as outputs:
        truth = model(**inputs, use_cache=False).logits
    assert sorted(outputs) == list(range(len(blocks)))
    for layer in range(len(blocks)):
        after: dict[int, torch.Tensor] = {}
        readers = {k: (lambda h, k=k, after=after: after.update({k: h.clone()})) for k in range(layer, len(blocks))}
        with tokens_through(blocks[layer].mlp) as below, resumed(model, layer, outputs[layer]):
            resumed_logits = forward(model, readers, stop=False, **inputs, use_cache=False).logits
        assert not below
        assert torch.equal(resumed_logits, truth)
        assert all(torch.equal(after[k], outputs[k]) for k in readers)
        assert not any("forward" in block.__dict__ for block in blocks)
    assert torch.equal(model(**inputs, use_cache=False).logits, truth)


@torch.no_grad()
def test_a_resumed_pass_goes_on_from_what_it_is_given(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with recorded(model, [1]) as outputs:
        model(**inputs, use_cache=False)
    assert list(outputs) == [1]
    with resumed(model, 1, outputs[1] * 0.5):
        resumed_logits = model(**inputs, use_cache=False).logits
    with rewritten(blocks_of(model)[1], lambda h: h * 0.5):
        assert torch.equal(resumed_logits, model(**inputs, use_cache=False).logits)


@torch.no_grad()
def test_the_last_pass_is_what_is_recorded(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    with recorded(llama, [2]) as outputs:
        llama(input_ids=inputs["input_ids"] + 0)
        llama(input_ids=inputs["input_ids"][:1])
    assert outputs[2].shape == (1, 11, 32)
    assert hooks_left(llama) == 0


def test_blocks_compute_again_after_an_error(model: PreTrainedModel) -> None:
    blocks, hooks = blocks_of(model), hooks_left(model)

    def fail() -> None:
        assert ["forward" in block.__dict__ for block in blocks[:3]] == [True, True, False]
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), resumed(model, 1, torch.zeros(1)):
        fail()
    assert not any("forward" in block.__dict__ for block in blocks)
    with pytest.raises(RuntimeError, match="inside"), recorded(model, [0, 1]):
        raise RuntimeError("inside")
    assert hooks_left(model) == hooks


def test_a_forward_that_someone_else_put_there_comes_back(llama: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    block = llama.model.layers[0]
    with rewritten(block, lambda h: h), torch.no_grad():
        theirs = block.forward
        with resumed(llama, 0, torch.zeros(2, 11, 32)):
            llama(**inputs)
        assert block.forward is theirs
