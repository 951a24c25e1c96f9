"""Other weights in place of a model's own: exactly the other model, and afterwards exactly the base."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.tiny import ARCHITECTURES, make_model
from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.decoding.generate import Decoding, Request, generate
from wellworn.probes.decoding.mixed_adapters import can_mix
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.checkpoints import held, holding
from wellworn.probes.reading.variants import Variant, adapted_layers, applied, first_changed_layer, switching

IDS = torch.tensor([[5, 9, 20, 31, 7, 80]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def other_model(model: nn.Module, *keys: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a copy with other weights where a name holds one of the keys, and what differs."""
    torch.manual_seed(1)
    other = deepcopy(model)
    changed = {}
    for name, weight in other.named_parameters():
        if any(key in name for key in keys):
            weight.data += 0.1 * torch.randn_like(weight)
            changed[name] = weight.data
    assert changed
    return other, changed


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make_model(request.param).requires_grad_(False)


def test_a_variant_is_the_other_model_and_the_base_is_the_base(model: nn.Module) -> None:
    one, changed = other_model(model, "layers.1.")
    two, also = other_model(model, "embed", "layers.0.")
    before, expected = logits(model), {"one": logits(one), "two": logits(two)}
    addresses = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with holding(model, {"one": changed, "two": also}):
        assert torch.equal(logits(model), before)
        for name in ("one", "two", "one"):
            with applied(model, Variant(name)):
                assert torch.equal(logits(model), expected[name])
                with applied(model, Variant()):
                    assert torch.equal(logits(model), before)
                assert torch.equal(logits(model), expected[name])
        with switching(model) as switch:
            for name in ("two", None, "one", "two"):
                switch(Variant(name))
                assert torch.equal(logits(model), before if name is None else expected[name])
            with pytest.raises(InputError, match="the model holds one, two"):
                switch(Variant("three"))
        with pytest.raises(KeyError), applied(model, Variant("two")):
            raise KeyError
        assert torch.equal(logits(model), before)
        assert not can_mix(model, [Variant(), Variant("one")])
    assert torch.equal(logits(model), before)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == addresses
    assert held(model) is None
    with pytest.raises(InputError, match="the model holds no adapters"), applied(model, Variant("one")):
        pass


def test_layers_below_the_first_change_are_known() -> None:
    model = make_model("llama").requires_grad_(False)
    which = {"up": "layers.2.", "head": "lm_head", "down": "embed_tokens", "norm": "model.norm"}
    with holding(model, {name: other_model(model, key)[1] for name, key in which.items()}):
        assert {name: first_changed_layer(model, Variant(name)) for name in which} == {"up": 2, "head": 4, "down": 0, "norm": 0}
        assert adapted_layers(model, ["up", "head"]) == [2, 4]


def test_tensors_that_do_not_fit_are_refused_before_anything_is_changed() -> None:
    model = make_model("llama").requires_grad_(False)
    before = logits(model)
    for wrong in ({"model.norm.weight": torch.zeros(5)}, {"model.nowhere": torch.zeros(5)}):
        with pytest.raises(InputError, match=r"checkpoint 'x': model\..* is \[5\], and the base has"), holding(model, {"x": wrong}):
            pass
    assert torch.equal(logits(model), before)
    assert held(model) is None


def test_readings_answers_and_patching_of_a_checkpoint_are_those_of_the_model_by_itself(model: nn.Module) -> None:
    other, changed = other_model(model, "layers.1.", "layers.2.")
    rows = [Encoded(tuple(range(3, 9 + i)), {"prompt_last": (2, 3), "response": (3, 6 + i)}, (0,) * (6 + i)) for i in range(3)]
    spec = Spec(spans=("response",), logprob=True, pad_id=0)
    [alone] = read_variants(other, rows, [Variant()], spec)
    how = Decoding(6)
    answers = [answer.ids for answer in generate(other, [Request([5, 9, 20]), Request([7, 7])], how)]
    with holding(model, {"other": changed}):
        base, read = read_variants(model, rows, [Variant(), Variant("other")], spec)
        torch.testing.assert_close(read.states, alone.states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(read.logprob, alone.logprob, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(base.states[:, 1], read.states[:, 1], atol=1e-3)
        requests = [Request(prompt, variant) for variant in (Variant(), Variant("other")) for prompt in ([5, 9, 20], [7, 7])]
        assert [answer.ids for answer in generate(model, requests, how)][2:] == answers
