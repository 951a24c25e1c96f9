"""The weighted sum of LoRA adapters, as one adapter that does exactly what they do together.

With ΔWᵢ = sᵢBᵢAᵢ the sum Σ wᵢΔWᵢ is B·A for A = [A₁; A₂; …] and B = [w₁s₁B₁, w₂s₂B₂, …]: nothing is merged into the base's weights, and
nothing is rounded that the adapters themselves would not round. The rank is the sum of theirs, and s = 1.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wellworn.data.errors import InputError
from wellworn.lora.adapters import scale_adapter
from wellworn.lora.addresses import CONFIG, WEIGHTS
from wellworn.lora.fit import put_on, restored
from wellworn.lora.models import Loaded
from wellworn.probes.reading.layers import inner_model

Matrices = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def sum_adapters(base: Loaded, parts: Sequence[tuple[float, Path]], out: Path) -> None:
    """Write the weighted sum of adapters, as an adapter, into an existing folder.

    Args:
        base: their model; it is restored afterwards.
        parts: each adapter's weight and folder.
        out: receives `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        InputError: an adapter does not fit, or its update is more than a product of two matrices.
    """
    from safetensors.torch import save_file

    if len(parts) == 1:
        [(weight, folder)] = parts
        return scale_adapter(folder, out, weight)
    found = [_scaled(base, weight, folder) for weight, folder in parts]
    summed: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in dict.fromkeys(name for matrices in found for name in matrices):
        mine = [matrices[name] for matrices in found if name in matrices]
        summed[name] = torch.cat([down for down, _ in mine]), torch.cat([up for _, up in mine], dim=1)
    tensors = {
        f"base_model.model.{name}.lora_{key}.weight": each.contiguous()
        for name, pair in summed.items()
        for key, each in zip("AB", pair, strict=True)
    }
    save_file(tensors, out / WEIGHTS)
    (out / CONFIG).write_text(json.dumps(_config(base, summed), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return None


def _scaled(base: Loaded, weight: float, folder: Path) -> Matrices:
    """Return module → (A [r, in], w·s·B [out, r]) of an adapter, as PEFT applies it, in float32."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    found = {}
    with restored(base):
        model = put_on(base, {"part": folder})
        for name, module in inner_model(model).named_modules():
            if not isinstance(module, LoraLayer):
                continue
            if more := _more_than_a_product(module, isinstance(module, ParamWrapper)):
                raise InputError(f"{folder}: {name} has {more}, which cannot be summed; only plain LoRA on linear layers can")
            layer: Any = module
            down, up = (each["part"].weight.detach().float().cpu() for each in (layer.lora_A, layer.lora_B))
            found[name] = down.clone(), weight * layer.scaling["part"] * up
    return found


def _more_than_a_product(module: Any, of_tensor: bool) -> str | None:
    """Return what of a layer's update is not s·B·A of a linear layer, in words."""
    if of_tensor:
        return "an update of a tensor"
    if variant := module.lora_variant.get("part"):
        return f"an update of another kind ({type(variant).__name__})"
    if "part" not in module.lora_A:
        return "an update of an embedding"
    return "a bias" if module.lora_B["part"].bias is not None else None


def _config(base: Loaded, summed: Matrices) -> dict[str, Any]:
    ranks = {name: len(down) for name, (down, _) in summed.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # Equal to the rank, so that the factor in front is 1.
    others = {name: each for name, each in ranks.items() if each != rank}
    return {
        "base_model_name_or_path": base.ref.id,
        "bias": "none",
        "fan_in_fan_out": any(type(base.model.get_submodule(name)).__name__ == "Conv1D" for name in summed),
        "lora_alpha": rank,
        "alpha_pattern": others,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "target_modules": sorted(summed),
        "task_type": "CAUSAL_LM",
    }
