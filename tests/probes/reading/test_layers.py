import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from tests.tiny import blocks_of, make_model
from wellworn.data.errors import InputError
from wellworn.probes.limits import DEFAULT_FRACTION
from wellworn.probes.reading.layers import decoder_blocks, depth, resolve_layer
from wellworn.probes.reading.variants import adapted_layers


def test_finds_the_blocks(model: PreTrainedModel) -> None:
    assert decoder_blocks(model) is blocks_of(model)
    assert depth(model) == model.config.num_hidden_layers


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt_neox"])
def test_finds_the_blocks_under_peft(architecture: str) -> None:
    model = make_model(architecture)
    modules = ["query_key_value"] if architecture == "gpt_neox" else ["q_proj", "v_proj"]
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=modules))
    assert decoder_blocks(wrapped) is blocks_of(model)


def test_finds_the_blocks_under_a_launchers_wrapper(llama: PreTrainedModel) -> None:
    for wrapped in (nn.DataParallel(llama), torch.compile(llama)):
        assert decoder_blocks(wrapped) is blocks_of(llama)


def test_a_vision_tower_of_equal_depth_is_passed_over() -> None:
    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = LlamaConfig(num_hidden_layers=2)
            self.vision_layers = nn.ModuleList([nn.Identity(), nn.Identity()])
            self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    towers = TwoTowers()
    assert decoder_blocks(towers) is towers.layers


def test_a_model_without_blocks_is_refused_by_name() -> None:
    class Blockless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = LlamaConfig(num_hidden_layers=3)
            self.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    with pytest.raises(InputError, match="Blockless: no list of 3 decoder blocks"):
        decoder_blocks(Blockless())


def test_a_module_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(InputError, match="Linear"):
        decoder_blocks(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("layer", "blocks", "index"),
    [(0.0, 30, 0), (1.0, 30, 29), (DEFAULT_FRACTION, 30, 22), (0.5, 3, 1), (0.25, 1, 0), (0, 4, 0), (3, 4, 3), (1, 4, 1)],
)
def test_resolves_indices_and_fractions(layer: int | float, blocks: int, index: int) -> None:
    assert resolve_layer(layer, blocks) == index


@given(st.floats(0, 1), st.integers(1, 200))
def test_a_fraction_is_the_nearest_index(fraction: float, blocks: int) -> None:
    index = resolve_layer(fraction, blocks)
    assert 0 <= index < blocks
    assert abs(index - fraction * (blocks - 1)) <= 0.5


@pytest.mark.parametrize("layer", [-1, 4, 30])
def test_an_index_out_of_range_names_the_range(layer: int) -> None:
    with pytest.raises(InputError, match=f"layers 0 to 3, got {layer}"):
        resolve_layer(layer, 4)


@pytest.mark.parametrize("layer", [-0.1, 1.01, 22.0, float("nan")])
def test_a_fraction_out_of_range_names_the_range(layer: float) -> None:
    with pytest.raises(InputError, match=f"between 0.0 and 1.0, got {layer}"):
        resolve_layer(layer, 30)


def test_finds_where_adapters_have_weights() -> None:
    model = make_model("llama")
    last = model.config.num_hidden_layers
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1]), adapter_name="one")
    wrapped.add_adapter("two", LoraConfig(r=2, target_modules=["down_proj"], layers_to_transform=[0, 2], use_dora=True))
    wrapped.add_adapter("ends", LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"]))
    assert adapted_layers(wrapped, ["one"]) == [1]
    assert adapted_layers(wrapped, ["one", "two"]) == [0, 1, 2]
    # What reads the last block's output lies above every layer.
    assert adapted_layers(wrapped, ["ends"]) == [0, last]
    assert adapted_layers(wrapped, []) == []
