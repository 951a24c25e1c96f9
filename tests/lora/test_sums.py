"""A weighted sum of adapters does what they do together, by their own numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny
from wellworn.data.errors import InputError
from wellworn.lora.adapters import adapted
from wellworn.lora.addresses import WEIGHTS
from wellworn.lora.fit import put_on, restored
from wellworn.lora.models import Loaded, load, resolve
from wellworn.lora.sums import sum_adapters

IDS = torch.tensor([[5, 9, 200, 31, 7, 80]])
KINDS = {
    "few modules": {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]},
    "all linear": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "rsLoRA": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    "ranks and scales by module": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "o_proj"],
        "rank_pattern": {"q_proj": 6},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 11},
    },
    "some layers": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "layers_to_transform": [1, 2]},
}


@pytest.fixture(scope="module")
def make(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def adapter(name: str, **more: object) -> Path:
        if name not in made:
            torch.manual_seed(len(made))
            base = load(resolve(str(tiny_model)), "float32")
            keys = KINDS.get(name, {"r": 2, "target_modules": ["q_proj"], **more})
            model = get_peft_model(base.model, LoraConfig(**keys, task_type="CAUSAL_LM"))  # type: ignore[arg-type]
            for key, weight in model.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(weight, std=0.2)
            made[name] = tmp_path_factory.mktemp("adapters") / name.replace(" ", "_")
            model.save_pretrained(made[name], save_embedding_layers=False)
        return made[name]

    return adapter


def updates(base: Loaded, folder: Path) -> dict[str, torch.Tensor]:
    """Return module → ΔW as PEFT itself works it out."""
    from peft.tuners.lora import LoraLayer

    with restored(base):
        model = put_on(base, {"one": folder})
        return {
            name: module.get_delta_weight("one").detach().clone()  # type: ignore[operator]
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        }


def logits(base: Loaded, folder: Path) -> torch.Tensor:
    with adapted(base, {"one": folder}) as model, torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("names", [("few modules", "all linear"), ("rsLoRA", "ranks and scales by module", "some layers")])
def test_the_update_of_a_sum_is_the_weighted_sum_of_updates(
    names: tuple[str, ...], base: Loaded, make: Callable[..., Path], tmp_path: Path
) -> None:
    parts = [(weight, make(name)) for weight, name in zip((1.0, -0.5, 2.0), names, strict=False)]
    sum_adapters(base, parts, tmp_path)
    wanted: dict[str, torch.Tensor] = {}
    for weight, folder in parts:
        for name, update in updates(base, folder).items():
            wanted[name] = wanted.get(name, 0) + weight * update
    found = updates(base, tmp_path)
    assert found.keys() == wanted.keys()
    for name, update in found.items():
        torch.testing.assert_close(update, wanted[name], rtol=1e-5, atol=1e-6)


def test_a_sum_speaks_as_peft_with_all_of_its_adapters_active(base: Loaded, make: Callable[..., Path], tmp_path: Path) -> None:
    one, other = make("all linear"), make("rsLoRA")
    sum_adapters(base, [(1.0, one), (1.0, other)], tmp_path)
    with restored(base), torch.no_grad():
        model = put_on(base, {"one": one, "other": other}).eval()
        model.base_model.set_adapter(["one", "other"])  # type: ignore[operator]
        together = model(input_ids=IDS).logits
    torch.testing.assert_close(logits(base, tmp_path), together, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, logits(base, one), atol=1e-2)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_scaled_adapter_has_a_scaled_update(name: str, base: Loaded, make: Callable[..., Path], tmp_path: Path) -> None:
    sum_adapters(base, [(0.25, make(name))], tmp_path)
    whole, part = updates(base, make(name)), updates(base, tmp_path)
    for module, update in part.items():
        torch.testing.assert_close(update, 0.25 * whole[module])


def test_nothing_of_an_adapter_is_left_at_scale_zero(base: Loaded, make: Callable[..., Path], tmp_path: Path) -> None:
    sum_adapters(base, [(0.0, make("all linear"))], tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(base, tmp_path), base.model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("keys", "says"), [({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "a bias"), ({"target_modules": ["embed_tokens"]}, "embedding")]
)
def test_what_is_more_than_a_product_is_refused(
    keys: dict[str, object], says: str, base: Loaded, make: Callable[..., Path], tmp_path: Path
) -> None:
    other = make(says, **keys)
    with pytest.raises(InputError, match=f"(?s){says}.*cannot be summed"):
        sum_adapters(base, [(1.0, make("few modules")), (1.0, other)], tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    assert not hasattr(base.model, "peft_config")


def test_a_bias_is_scaled_with_the_rest(base: Loaded, make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make("a bias", lora_bias=True)
    sum_adapters(base, [(3.0, folder)], tmp_path)
    held, scaled = load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert any(key.endswith("lora_B.bias") for key in held)
    for key, each in held.items():
        torch.testing.assert_close(scaled[key], each * (3.0 if ".lora_B." in key else 1.0))


def test_adapters_of_another_model_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    narrow = load(resolve(str(save_tiny(tmp_path / "narrow", width=16))), "float32")
    with pytest.raises(InputError, match="does not fit"):
        sum_adapters(narrow, [(1.0, make("few modules")), (1.0, make("all linear"))], tmp_path)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.bfloat16, 0.3), (torch.float16, 1e-4), (torch.float16, 1e7)])
def test_a_scaled_adapter_of_16_bits_is_rounded_no_further(
    dtype: torch.dtype, factor: float, base: Loaded, make: Callable[..., Path], tmp_path: Path
) -> None:
    half, scaled = tmp_path / "half", tmp_path / "scaled"
    shutil.copytree(make("few modules"), half)
    save_file({key: each.to(dtype) for key, each in load_file(half / WEIGHTS).items()}, half / WEIGHTS)
    scaled.mkdir()
    sum_adapters(base, [(factor, half)], scaled)
    whole, part = updates(base, half), updates(base, scaled)
    for module, update in part.items():
        expected = factor * whole[module].double()
        assert float((update.double() - expected).norm()) < 1e-6 * float(expected.norm())
