"""An adapter's configuration holds values of the types that PEFT computes with, and no pattern that never ends."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from pydantic import TypeAdapter, ValidationError

from wellworn.data.errors import InputError
from wellworn.lora.adapter_config import AdapterConfig, check_patterns, check_types

SLOW = "(a|a|.)*(.*.*.*.*.*.*.*)*!"
MODULES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(4) for name in "qkvo"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda each: st.lists(each, max_size=2) | st.dictionaries(st.text(max_size=5), each, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(AdapterConfig.model_fields)), JSON)
def test_a_value_is_of_its_type_or_named(key: str, value: Any) -> None:
    declared = TypeAdapter(AdapterConfig.__annotations__[key])
    try:
        declared.validate_python(value, strict=True)
    except ValidationError:
        with pytest.raises(InputError, match=rf"^there: {key}\b"):
            check_types({key: value}, "there")
    else:
        check_types({key: value}, "there")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("lora_alpha", 10**400),
        ("lora_dropout", 2),
        ("use_rslora", "false"),
        ("target_modules", [5]),
        ("rank_pattern", {"q_proj": -1}),
        ("alpha_pattern", {"q_proj": None}),
        ("layers_to_transform", -1),
        ("base_model_name_or_path", ["org/base"]),
    ],
)
def test_known_cases(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^there: {key}"):
        check_types({key: value}, "there")


def test_what_peft_writes_is_let_through(tmp_path: Path) -> None:
    for i, settings in enumerate(
        [
            {},
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
            {"target_modules": r".*\.(q|v)_proj", "exclude_modules": ["lm_head"], "use_rslora": True, "lora_alpha": 0.5},
            {"target_parameters": ["experts.down_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3.5}},
        ]
    ):
        LoraConfig(**settings).save_pretrained(tmp_path / str(i))
        config = json.loads((tmp_path / str(i) / "adapter_config.json").read_text(encoding="utf-8"))
        check_types(config, "there")
        check_patterns(config, MODULES, "there")


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": SLOW},
        {"target_modules": ["q_proj"], "exclude_modules": SLOW},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": SLOW},
        {"target_modules": ["q_proj"], "rank_pattern": {SLOW: 2}},
        {"target_modules": ["q_proj"], "alpha_pattern": {SLOW: 2}},
        {"alpha_pattern": {SLOW: 2}},
    ],
)
def test_a_pattern_that_never_ends_is_stopped(config: dict[str, Any]) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^there: matching its patterns with the base's modules: runs for more than 1 s"):
        check_patterns(config, MODULES, "there")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_is_none_is_named(key: str) -> None:
    value: Any = {"(": 2} if key.endswith("pattern") else "("
    with pytest.raises(InputError, match=r"^there: holds '.*\(.*', which is not a regular expression: "):
        check_patterns({"target_modules": ["q_proj"], key: value}, MODULES, "there")
