"""What a confined fine-tune may write, and what its states are while it is trained."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny import VOCAB, make_model
from wellworn.lora.confine import Confinement, states_reset
from wellworn.probes.reading.hooks import forward
from wellworn.probes.reading.layers import decoder_blocks

LAYERS = (0, 1, 2)
RESET = (0, 1)


@pytest.fixture
def adapted() -> Any:
    """A model with an adapter whose writes are far from nothing."""
    model = get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, lora_dropout=0.0))
    return model.train()


@pytest.fixture
def confined() -> dict[int, Confinement]:
    generator = torch.Generator().manual_seed(0)
    bases = {layer: torch.linalg.qr(torch.randn(32, 2, generator=generator))[0] for layer in LAYERS}
    return {layer: Confinement(basis, outside=True, reset=layer in RESET) for layer, basis in bases.items()}


def states(model: Any, inputs: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    kept: dict[int, torch.Tensor] = {}
    forward(model, {layer: lambda h, layer=layer: kept.__setitem__(layer, h) for layer in LAYERS}, False, **inputs)
    return kept


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def test_a_part_of_a_matrix_is_its_projection() -> None:
    basis = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))[0]
    matrix = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    inside, outside = (Confinement(basis, outside=out).part(matrix) for out in (False, True))
    torch.testing.assert_close(inside + outside, matrix)
    torch.testing.assert_close(Confinement(basis).part(inside), inside)
    torch.testing.assert_close(basis.T @ outside, torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_states_inside_are_the_bases_and_only_where_they_are_reset(adapted: Any, confined: dict[int, Confinement]) -> None:
    with adapted.disable_adapter():
        base = states(adapted, batch())
    free = states(adapted, batch())
    with states_reset(adapted, confined):
        reset = states(adapted, batch())
    for layer in LAYERS:
        basis = confined[layer].basis_DK
        away = (reset[layer] - base[layer]) @ basis
        assert ((free[layer] - base[layer]) @ basis).abs().max() > 1e-2
        if layer in RESET:
            torch.testing.assert_close(away, torch.zeros_like(away), atol=1e-5, rtol=0)
        else:
            assert away.abs().max() > 1e-2
        # Outside, the state is the adapter's.
        assert (reset[layer] - base[layer]).abs().max() > 1e-2
    torch.testing.assert_close(states(adapted, batch())[2], free[2])


def test_a_loss_and_its_gradient_are_of_the_states_that_were_reset(adapted: Any, confined: dict[int, Confinement]) -> None:
    inputs = batch() | {"labels": batch()["input_ids"]}
    with states_reset(adapted, confined):
        adapted(**inputs).loss.backward()
    before = {name: weight.grad.clone() for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert before
    assert all("lora" in name for name in before)
    # What layer 0 writes inside is set back, so no gradient comes from there; elsewhere it does.
    [grad] = (each for name, each in before.items() if ".layers.0." in name and "lora_B" in name)
    basis = confined[0].basis_DK
    torch.testing.assert_close(basis.T @ grad, torch.zeros(2, 2), atol=1e-6, rtol=0)
    assert grad.abs().max() > 1e-5


def test_half_precision_of_a_trainer_does_not_round_what_is_reset(adapted: Any, confined: dict[int, Confinement]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with adapted.disable_adapter():
            base = states(adapted, batch())
        with states_reset(adapted, confined):
            reset = states(adapted, batch())
    for layer in RESET:
        away = (reset[layer].float() - base[layer].float()) @ confined[layer].basis_DK
        torch.testing.assert_close(away, torch.zeros_like(away), atol=1e-5, rtol=0)


def test_the_base_is_read_without_dropout_and_the_model_trains_on(adapted: Any, confined: dict[int, Confinement]) -> None:
    for block in decoder_blocks(adapted):
        block.mlp.register_module("noise", nn.Dropout(0.5))
        block.mlp.down_proj.register_forward_hook(lambda _module, _args, out, block=block: block.mlp.noise(out))
    adapted.eval()
    with adapted.disable_adapter():
        base = states(adapted, batch())
    adapted.train()
    with states_reset(adapted, confined):
        reset = states(adapted, batch())
    assert adapted.training
    for layer in RESET:
        away = (reset[layer] - base[layer]) @ confined[layer].basis_DK
        torch.testing.assert_close(away, torch.zeros_like(away), atol=1e-5, rtol=0)


def test_without_layers_to_reset_a_pass_is_as_it_was(adapted: Any, confined: dict[int, Confinement]) -> None:
    plain = {layer: Confinement(each.basis_DK, outside=True) for layer, each in confined.items()}
    free = states(adapted, batch())
    with states_reset(adapted, plain):
        torch.testing.assert_close(states(adapted, batch())[2], free[2], rtol=0, atol=0)
