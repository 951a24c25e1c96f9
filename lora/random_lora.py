"""A LoRA of random weights that changes a model as much as a real one does: a control for the effect of any change of that size."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from scipy import optimize
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.lora.adapters import adapted, copy_adapter_config
from wellworn.lora.models import Loaded
from wellworn.probes.reading.capture import Spec, read, read_variants
from wellworn.probes.reading.variants import Variant

# How far the norm of the shift may be from the real one's.
TOLERANCE = 0.01


def random_lora(base: Loaded, like: Path, rows: Sequence[Encoded], layer: int, out: Path, seed: int, span: str = "response") -> float:
    """Write a LoRA with random weights that shifts states at a layer as far as a real one does.

    Each A and B is Gaussian, with the Frobenius norm of the real adapter's matrix of that name; then all B are scaled
    together, until the mean shift of the given text has the norm of the real adapter's.

    Args:
        base: the model.
        like: folder of the real adapter.
        rows: the text, one a prompt.
        layer: where shifts are taken.
        out: a folder, which receives `adapter_model.safetensors` and `adapter_config.json`.
        seed: of the weights.
        span: over which states are averaged.

    Returns:
        The norm of the mean shift, within `TOLERANCE` of the real adapter's.

    Raises:
        InputError: as `lora.adapters.adapted`; the real adapter holds something other than LoRA matrices, or shifts nothing; no scale gives
            its norm.
    """
    from peft.helpers import rescale_adapter_scale

    spec = Spec(layers=[layer], spans=[span])
    before = read(base.model, rows, spec).states.double()

    def norm(model: nn.Module, name: str) -> float:
        [after] = read_variants(model, rows, [Variant(name)], spec)
        return float((after.states.double() - before).mean(0).norm())

    with adapted(base, {"real": like}) as model:
        wanted = norm(model, "real")
    weights = load_file(like / "adapter_model.safetensors")
    if other := [key for key in weights if ".lora_A." not in key and ".lora_B." not in key]:
        raise InputError(f"{like}: a random LoRA is made of A and B alone; this adapter also holds {other[0]!r}")
    if wanted == 0:
        raise InputError(f"{like}: this adapter shifts nothing at layer {layer}, so that there is no norm to match")
    generator = torch.Generator().manual_seed(seed)
    for key in sorted(weights):
        drawn = torch.randn(weights[key].shape, generator=generator)
        weights[key] = (drawn * weights[key].float().norm() / drawn.norm()).to(weights[key].dtype)
    out.mkdir(parents=True, exist_ok=True)
    copy_adapter_config(like, out)
    save_file(weights, out / "adapter_model.safetensors")

    with adapted(base, {"random": out}) as model:

        def beyond(log_scale: float) -> float:
            with rescale_adapter_scale(model, math.exp(log_scale)):
                return math.log(norm(model, "random") / wanted)

        # The shift grows about in proportion to the scale, so a secant in logarithms converges almost at once.
        found = optimize.root_scalar(beyond, x0=0.0, x1=-beyond(0.0), xtol=1e-3, maxiter=20)
        off = beyond(found.root)
    if abs(off) > TOLERANCE:
        raise InputError(f"{like}: no scale was found at which random weights shift layer {layer} by {wanted:.3g}")
    for key in weights:
        if ".lora_B." in key:
            weights[key] = (weights[key].float() * math.exp(found.root)).to(weights[key].dtype)
    save_file(weights, out / "adapter_model.safetensors")
    return wanted * math.exp(off)
