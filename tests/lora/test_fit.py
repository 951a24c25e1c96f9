"""Adapters whose configuration, file and base disagree are refused, and the base is what it was; accepted ones act as their file says."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.architectures import build
from tests.tiny import save_tiny, tiny_tokenizer
from wellworn.data.errors import InputError
from wellworn.lora.adapters import adapted, merge_adapter
from wellworn.lora.addresses import CONFIG, WEIGHTS
from wellworn.lora.fit import check_adapter, restored
from wellworn.lora.models import Loaded, ModelRef, load, resolve

MODULES = ["q_proj", "up_proj"]
IDS = torch.arange(20)[None]
Weights = dict[str, torch.Tensor]


def save_adapter(base: Loaded, folder: Path, seed: int = 1, **changes: Any) -> Path:
    """Save an adapter that changes the model."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": MODULES, "task_type": "CAUSAL_LM"}
    with restored(base):
        model = get_peft_model(base.model, LoraConfig(**settings | changes))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder)
    return folder


def edit(folder: Path, config: Mapping[str, Any] | None = None, weights: Callable[[Weights], Weights] | None = None) -> Path:
    """Change keys of an adapter's configuration, and its weights."""
    if config:
        keys = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | config
        (folder / CONFIG).write_text(json.dumps(keys), encoding="utf-8")
    if weights:
        save_file(weights(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.fixture
def base(tiny_model: Path) -> Loaded:
    return load(resolve(str(tiny_model)))


def half(weights: Weights) -> Weights:
    return {key: each for key, each in weights.items() if "up_proj" in key}


def longer(weights: Weights) -> Weights:
    """Rank 3 in one module, and 2 in all others."""
    found = dict(weights)
    for key in weights:
        if "layers.1.self_attn.q_proj" in key:
            axis = 0 if "lora_A" in key else 1
            found[key] = torch.cat([weights[key], weights[key].narrow(axis, 0, 1)], axis)
    return found


DISAGREE: dict[str, tuple[dict[str, Any], Callable[[Weights], Weights] | None, str]] = {
    "names one module of two": ({"target_modules": ["q_proj"]}, None, r"holds weights of modules that adapter_config.json does not name"),
    "lacks half of the file": ({}, half, r"names modules whose weights adapter_model.safetensors does not hold \(.*q_proj"),
    "not even drawn anew": ({"init_lora_weights": False}, half, "names modules whose weights"),
    "fewer layers": ({"layers_to_transform": [0, 1]}, None, "does not name"),
    "whole numbers": ({}, lambda w: {k: (10 * v).to(torch.int8) for k, v in w.items()}, "as I8; weights may be F32, F16 or BF16"),
    "keys with a name": ({}, lambda w: {k.replace(".weight", ".default.weight"): v for k, v in w.items()}, "does not hold"),
    "another rank": ({"r": 4}, None, "has rank 2 in adapter_model.safetensors, and 4 in adapter_config.json"),
    "one module's rank": ({}, longer, r"layers.1.self_attn.q_proj has rank 3 in adapter_model.safetensors, and 2"),
    "a pattern of ranks": ({"rank_pattern": {"q_proj": 3}}, None, "q_proj has rank 2 in adapter_model.safetensors, and 3"),
    "A without B": ({}, lambda w: {k: v for k, v in w.items() if "lora_B" not in k}, "does not hold"),
    "a vector": ({}, lambda w: {k: v.flatten() for k, v in w.items()}, "does not fit"),
    "no weights": ({}, lambda w: {}, "holds no weights"),
    "magnitudes asked for": ({"use_dora": True}, None, "lora_magnitude_vector"),
    "another model's blocks": ({"layer_replication": [[0, 4], [2, 4]]}, None, "makes another model of the base's blocks"),
    "some tokens only": ({"alora_invocation_tokens": [5]}, None, "act on some tokens only"),
    "a changed base": ({"init_lora_weights": "pissa"}, None, "changes weights of the base itself"),
    "noise": ({"monteclora_config": {"sample_scaler": 0.1}}, None, "adds noise to every pass"),
    "parameters and no modules": ({"target_parameters": ["q_proj.weight"]}, None, "cannot be put on .*not a valid target"),
    "no expression": ({"rank_pattern": {"(": 3}}, None, "is not a regular expression"),
    "a key of tomorrow": ({"use_miracle": True}, None, "use_miracle=True is not known to leave the base as it is"),
}


@pytest.mark.parametrize("kind", DISAGREE)
def test_what_disagrees_is_refused_and_the_base_is_what_it_was(kind: str, base: Loaded, adapter: Path, tmp_path: Path) -> None:
    config, weights, message = DISAGREE[kind]
    other = save_adapter(base, tmp_path / "other", seed=2)
    edit(adapter, config, weights)
    before = logits(base.model)
    for adapters in ({"one": adapter}, {"fine": other, "one": adapter}):
        with pytest.raises(InputError, match=message), adapted(base, adapters):
            pass
        assert torch.equal(logits(base.model), before)
        assert not any("lora" in name for name, _ in base.model.named_modules())
    with pytest.raises(InputError, match=message):
        merge_adapter(base, adapter)
    assert torch.equal(logits(base.model), before)


def by_hand(base: Loaded, adapter: Path) -> torch.Tensor:
    """The logits with W + scale·BA written into the base's own weights for a while, from the two files alone."""
    config, weights = json.loads((adapter / CONFIG).read_text(encoding="utf-8")), load_file(adapter / WEIGHTS)
    kept: Weights = {}
    for key in (key for key in weights if "lora_A" in key):
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        module = base.model.get_submodule(name)
        leaf = name.rpartition(".")[2]
        rank = config["rank_pattern"].get(leaf, config["r"])
        alpha = config["alpha_pattern"].get(leaf, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config["use_rslora"] else rank)
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        kept[name] = weight.detach().clone()
        update = scale * weights[key.replace("lora_A", "lora_B")].double() @ weights[key].double()
        weight.copy_((kept[name].double() + update).to(weight.dtype))
    found = logits(base.model)
    for name, each in kept.items():
        base.model.get_submodule(name).weight.copy_(each)  # type: ignore[operator, union-attr]
    return found


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "some layers": {"layers_to_transform": [1, 3]},
    "ranks and scales by pattern": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 16}},
    "scaled by the root": {"use_rslora": True},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "a regular expression": {"target_modules": r".*\.(0|2)\.mlp\.(up|down)_proj"},
    "all but some": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_accepted_acts_as_its_file_says(kind: str, base: Loaded, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **KINDS[kind])
    # Its own beginning does not matter any more: all weights come from the file.
    for begins in (json.loads((adapter / CONFIG).read_text(encoding="utf-8"))["init_lora_weights"], "eva", "mica", False):
        edit(adapter, {"init_lora_weights": begins})
        with adapted(base, {"one": adapter}) as model:
            assert torch.allclose(logits(model), by_hand(load(base.ref), adapter), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_it_was_saved(dtype: torch.dtype, base: Loaded, adapter: Path) -> None:
    edit(adapter, weights=lambda w: {key: each.to(dtype) for key, each in w.items()})
    with adapted(base, {"one": adapter}) as model:
        assert torch.allclose(logits(model), by_hand(load(base.ref), adapter), atol=2e-5)


def test_magnitudes_count_and_their_old_names_too(base: Loaded, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", use_dora=True)
    with adapted(base, {"one": adapter}) as model:
        found = logits(model)
    assert not torch.allclose(found, logits(base.model), atol=1e-3)
    edit(adapter, weights=lambda w: {key.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): each for key, each in w.items()})
    with adapted(base, {"one": adapter}) as model:
        assert torch.equal(logits(model), found)


def write_old(folder: Path, shapes: Mapping[str, tuple[int, int]], targets: list[str]) -> Weights:
    """Write an adapter as older releases would have named its modules; return its weights."""
    generator = torch.Generator().manual_seed(1)
    weights: Weights = {}
    for name, (out, into) in shapes.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = 0.3 * torch.randn(2, into, generator=generator)
        weights[f"base_model.model.{name}.lora_B.weight"] = 0.3 * torch.randn(out, 2, generator=generator)
    folder.mkdir()
    save_file(weights, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": targets}
    (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
    return weights


def test_updates_of_single_experts_are_those_of_the_one_tensor_of_today(tmp_path: Path) -> None:
    """Releases before transformers 5 held each expert of Mixtral as three layers of its own."""
    base, other = (Loaded(ModelRef("mixtral@1", "mixtral"), build("mixtral"), tiny_tokenizer()) for _ in range(2))
    of_expert = {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)}
    shapes = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}": shape
        for layer in range(4)
        for expert in range(4)
        for part, shape in of_expert.items()
    }
    weights = write_old(tmp_path / "old", shapes, list(of_expert))
    for layer in range(4):
        experts = other.model.model.layers[layer].mlp.experts
        for expert in range(4):
            key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}."
            w1, w3, w2 = (2 * weights[f"{key}{part}.lora_B.weight"] @ weights[f"{key}{part}.lora_A.weight"] for part in ("w1", "w3", "w2"))
            experts.gate_up_proj[expert] += torch.cat([w1, w3])
            experts.down_proj[expert] += w2
    before = logits(base.model)
    with adapted(base, {"one": tmp_path / "old"}) as model:
        assert torch.allclose(logits(model), logits(other.model), atol=2e-5)
    assert torch.equal(logits(base.model), before)
    assert not torch.allclose(logits(other.model), before, atol=1)
    edit(tmp_path / "old", weights=lambda w: {key: each for key, each in w.items() if ".layers.2." not in key})
    with pytest.raises(InputError, match="names modules whose weights"), adapted(base, {"one": tmp_path / "old"}):
        pass
    assert torch.equal(logits(base.model), before)


def test_old_names_of_a_text_model_inside_another_are_known(tmp_path: Path) -> None:
    base = Loaded(ModelRef("gemma3@1", "gemma3"), build("gemma3"), tiny_tokenizer())
    old = {f"language_model.model.layers.{layer}.self_attn.q_proj": (32, 32) for layer in range(4)}
    weights = write_old(tmp_path / "old", old, ["q_proj"])
    edit(tmp_path / "old", {"exclude_modules": ".*vision.*"})
    with adapted(base, {"one": tmp_path / "old"}) as model:
        found = logits(model)
    for layer in range(4):
        key = f"base_model.model.language_model.model.layers.{layer}.self_attn.q_proj"
        module = base.model.get_submodule(f"model.language_model.layers.{layer}.self_attn.q_proj")
        module.weight += 2 * weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]  # type: ignore[operator]
    assert torch.allclose(found, logits(base.model), atol=2e-5)


def test_biases_of_an_adapter_count(base: Loaded, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora_bias=True)
    biased = {key: torch.ones_like(each) if key.endswith("lora_B.bias") else each for key, each in load_file(adapter / WEIGHTS).items()}
    save_file(biased, adapter / WEIGHTS)
    with adapted(base, {"one": adapter}) as model:
        found = logits(model)
    assert torch.equal(found, logits(PeftModel.from_pretrained(load(base.ref).model, str(adapter)).eval()))
    assert not torch.allclose(found, by_hand(base, edit(adapter, weights=lambda w: {k: v for k, v in w.items() if "bias" not in k})))


def test_keys_that_were_not_set_are_no_reason(base: Loaded, adapter: Path) -> None:
    edit(adapter, {"modules_to_save": [], "layer_replication": [], "megatron_config": {}, "use_miracle": False, "miracles": {}})
    with adapted(base, {"one": adapter}) as model:
        assert torch.allclose(logits(model), by_hand(load(base.ref), adapter), atol=2e-5)


def test_what_a_model_does_to_itself_when_it_reads_is_no_damage(base: Loaded, adapter: Path) -> None:
    base.model.config.pretraining_tp = 2
    with adapted(base, {"one": adapter}):
        # As position embeddings that stretch with the text do.
        base.model.model.rotary_emb.inv_freq.mul_(1.0)
        base.model._something_to_remember = 1  # type: ignore[assignment]
    assert base.model.config.pretraining_tp == 2


def test_a_base_that_was_written_to_is_an_error_and_not_a_reading(base: Loaded, adapter: Path) -> None:
    with pytest.raises(RuntimeError, match="is not what it was before adapters were put on it"), adapted(base, {"one": adapter}):
        base.model.get_input_embeddings().weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"\(config\)"), adapted(base, {"one": adapter}):
        base.model.config.rope_theta = 1.0


def test_a_model_next_to_an_adapter_is_refused(tmp_path: Path, adapter: Path) -> None:
    folder = save_tiny(tmp_path / "both")
    (folder / CONFIG).write_bytes((adapter / CONFIG).read_bytes())
    (folder / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=r"holds adapter_config.json next to a model.*would be put on the base whenever it is loaded"):
        resolve(str(folder))
    with pytest.raises(InputError, match=r"is an adapter, and not a model; give it as --adapter"):
        resolve(str(adapter))


def mutate(rng: np.random.Generator, folder: Path) -> None:
    """Change one to three things of an adapter's configuration and file, at random."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    weights = load_file(folder / WEIGHTS)
    keys = sorted(weights)
    values: list[Any] = [None, True, False, 0, 1, 2, 3, -1, 0.5, "q_proj", "gaussian", [], ["q_proj"], [0], {}, {"q_proj": 3}, "nonsense"]
    for _ in range(rng.integers(1, 4)):
        key = keys[rng.integers(len(keys))]
        match rng.integers(10):
            case 0 | 1 | 2:
                config[sorted(config)[rng.integers(len(config))]] = values[rng.integers(len(values))]
            case 3:
                weights.pop(key, None)
            case 4:
                weights[key.replace("layers.1", "layers.7")] = torch.ones(2, 2)
            case 5:
                weights[key] = torch.ones(tuple(int(x) for x in rng.integers(1, 40, size=rng.integers(0, 4))))
            case 6:
                dtypes = (torch.int8, torch.bool, torch.float64, torch.bfloat16, torch.float16)
                weights = {name: each.to(dtypes[rng.integers(len(dtypes))]) for name, each in weights.items()}
            case 7:
                parts = (("lora_A", "lora_B"), (".weight", ""), ("base_model.model.", ""), ("q_proj", "v_proj"), ("layers.0", "layers.1"))
                old, new = parts[rng.integers(len(parts))]
                weights = {name.replace(old, new): each.clone() for name, each in weights.items()}
            case 8:
                # What an adapter may say.
                config |= {"lora_alpha": int(rng.integers(1, 9)), "use_rslora": bool(rng.integers(2)), "lora_dropout": 0.5}
            case _:
                config["target_modules"] = sorted({MODULES[rng.integers(2)], ("v_proj", "down_proj", "lm_head")[rng.integers(3)]})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file({name: each.contiguous() for name, each in weights.items()}, folder / WEIGHTS)


def fuzz(base: Loaded, folder: Path, cases: int, seed: int) -> int:
    """Put mutated adapters on a base; return how many were accepted, each of which has to act as its file says."""
    rng, before, accepted = np.random.default_rng(seed), logits(base.model), 0
    whole = save_adapter(base, folder / "adapter")
    kept = {name: (whole / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for _ in range(cases):
        for name, content in kept.items():
            (whole / name).write_bytes(content)
        mutate(rng, whole)
        try:
            with adapted(base, {"one": whole}) as model:
                found = logits(model)
        except InputError:
            pass
        else:
            accepted += 1
            if not check_adapter(whole)["use_dora"]:
                assert torch.allclose(found, by_hand(base, whole), atol=1e-4), (whole / CONFIG).read_text(encoding="utf-8")
        assert torch.equal(logits(base.model), before)
    return accepted


def test_no_mutated_adapter_breaks_the_invariant(base: Loaded, tmp_path: Path) -> None:
    assert 10 < fuzz(base, tmp_path, cases=300, seed=0) < 290


@pytest.mark.slow
def test_no_mutated_adapter_of_ten_thousand_breaks_the_invariant(base: Loaded, tmp_path: Path) -> None:
    assert fuzz(base, tmp_path, cases=10_000, seed=1) > 300
