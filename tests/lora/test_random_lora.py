"""The control of random weights: as large as a real adapter, and of another direction."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.lora.adapters import adapted
from wellworn.lora.models import Loaded, load, resolve
from wellworn.lora.random_lora import random_lora
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.variants import Variant


@pytest.fixture
def real(tiny_model: Path, base: Loaded, tmp_path: Path) -> Path:
    """Folder of an adapter that changes something."""
    model = get_peft_model(load(resolve(str(tiny_model)), "float32").model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1, generator=generator)
    model.save_pretrained(tmp_path / "real")
    return tmp_path / "real"


def test_a_random_lora_shifts_as_far(base: Loaded, rows: list[Encoded], real: Path, tmp_path: Path) -> None:
    norms = [random_lora(base, real, rows, 2, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    with adapted(base, {"real": real, "one": tmp_path / "a", "other": tmp_path / "c"}) as model:
        readings = read_variants(
            model, rows, [Variant(name) for name in (None, "real", "one", "other")], Spec(layers=[2], spans=["response"])
        )
    before, *after = (reading.states[:, 0, 0].double().mean(0) for reading in readings)
    shifts = torch.stack(after) - before
    sizes = shifts.norm(dim=1)
    assert sizes[1:].tolist() == pytest.approx([norms[0], norms[2]], rel=1e-3)
    assert norms == pytest.approx([float(sizes[0])] * 3, rel=0.01)
    cosines = torch.corrcoef(shifts)[0, 1:]
    assert cosines.abs().max() < 0.6
    a, b, c = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.allclose(a[key], c[key]) for key in a)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert str(tmp_path) not in (tmp_path / "a" / "adapter_config.json").read_text()


def test_a_random_lora_needs_something_to_match(base: Loaded, rows: list[Encoded], real: Path, tmp_path: Path) -> None:
    weights = load_file(real / "adapter_model.safetensors")
    for key, weight in weights.items():
        if "lora_B" in key:
            weight.zero_()
    save_file(weights, real / "adapter_model.safetensors")
    with pytest.raises(InputError, match="shifts nothing at layer 2"):
        random_lora(base, real, rows, 2, tmp_path / "a", 0)
