"""What models keep of what they have read, and which prompts they read together."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.architectures import ARCHITECTURES, build
from tests.tiny import make_tuned
from wellworn.lora.fit import _structure
from wellworn.probes.decoding.kept import NOTHING, Kept, kept_by, together

PLAIN, ATTENTION = Kept("past_key_values", pads=True, joins=True), Kept("past_key_values", pads=True, joins=False)
RECURRENT = Kept("past_key_values", pads=False, joins=False)


def of_width(architecture: str, width: float, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model with initial weights of a standard deviation."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(ARCHITECTURES[architecture] | {"initializer_range": width}))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False).to(dtype)
    return model


@pytest.mark.parametrize(
    ("architecture", "kept"),
    [
        ("llama", PLAIN),
        ("gemma4_text", ATTENTION),
        ("qwen3_5_text", RECURRENT),
        ("falcon_h1", RECURRENT),
        ("mamba", Kept("cache_params", pads=False, joins=False)),
        ("recurrent_gemma", NOTHING),
        ("minimax", NOTHING),
        ("rwkv", NOTHING),
        ("bamba", NOTHING),
    ],
)
def test_what_each_kind_of_model_keeps(architecture: str, kept: Kept) -> None:
    assert kept_by(build(architecture)) == kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [0.02, 0.1])
def test_steps_are_tried_in_float32_and_the_model_is_what_it_was(width: float, dtype: torch.dtype) -> None:
    """In 16 bits the fault of Bamba's step, a few thousandths, would not show."""
    for architecture, right in (("bamba", False), ("granitemoehybrid", True)):
        model = of_width(architecture, width, dtype)
        before = _structure(model)
        assert (kept_by(model).argument is not None) == right
        assert _structure(model) == before


def test_a_step_that_fails_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3_5_text")
    forward = type(model).forward

    def fails(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            raise NotImplementedError("not for one token")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", fails)
    assert kept_by(model) == NOTHING


def test_without_room_to_try_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    assert kept_by(of_width("qwen3_5_text", 0.1, torch.bfloat16)) == NOTHING
    assert kept_by(of_width("qwen3_5_text", 0.1, torch.float32)) == RECURRENT


def test_prompts_of_one_length_are_read_together_where_padding_counts() -> None:
    lengths = [3, 5, 3, 4, 5]
    assert together(build("mamba"), lengths) == [[0, 2], [1, 4], [3]]
    assert together(make_tuned("llama"), lengths) == [[0, 1, 2, 3, 4]]
