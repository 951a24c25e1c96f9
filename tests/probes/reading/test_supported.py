"""Models whose blocks cannot be read or set are refused when they are loaded."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from tests.tiny import VOCAB, make_model
from wellworn.data.errors import InputError
from wellworn.probes.reading.supported import check_blocks


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt_neox"])
def test_usual_models_are_read(architecture: str) -> None:
    check_blocks(make_model(architecture))
    check_blocks(make_model(architecture).to(torch.bfloat16))


def test_a_model_that_looks_ahead_is_refused() -> None:
    config = BertConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    with pytest.raises(InputError, match="depends on later ones, so it is not a causal language model"):
        check_blocks(BertLMHeadModel(config).eval())


def test_weights_that_are_no_numbers_are_said_to_be() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the state after its last block is not finite"):
        check_blocks(model)


def test_a_model_that_passes_on_more_than_the_stream_is_refused() -> None:
    """Its last block also reads what the first one has returned."""
    model = make_model("llama")
    first: list[torch.Tensor] = []
    model.model.layers[0].register_forward_hook(lambda _module, _args, output: first.append(output))
    model.model.layers[3].register_forward_hook(lambda _module, _args, output: output + first[-1])
    with pytest.raises(InputError, match="its blocks pass on more than the residual stream"):
        check_blocks(model)


def test_blocks_that_run_twice_are_refused() -> None:
    model = make_model("llama")
    layers = model.model.layers
    layers[1].register_forward_hook(lambda _module, _args, output: layers[0](output, position_embeddings=rotary(model, output)))
    with pytest.raises(InputError, match="do not run once each and in order"):
        check_blocks(model)


def rotary(model: torch.nn.Module, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = model.model.rotary_emb(state, torch.arange(state.shape[1])[None])  # type: ignore[union-attr, operator]
    return found
