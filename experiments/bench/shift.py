"""`wellworn bench shift`: base and K adapters in one process, compared with running each in turn."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from wellworn.data.chat import Encoded
from wellworn.experiments.bench.rivals import one_at_a_time, per_row_adapters
from wellworn.experiments.bench.timing import Case, Contender, race
from wellworn.experiments.bench.workload import chat_of, facts, rollouts
from wellworn.lora.models import Loaded, load
from wellworn.probes.reading.capture import Spec, read_variants
from wellworn.probes.reading.layers import depth
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray

RANK = 8
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPAN = "response"


def cases(base: Loaded, count: int, repeats: int, tick: Callable[[str], None], lengths: tuple[int, int] = (40, 100)) -> Iterator[Case]:
    """Run the shift benchmark with one adapter and with eight, on the upper half of the layers.

    Args:
        base: the model, in float32. The adapters stay in it.
        count: rollouts.
        repeats: timed rounds.
        tick: called with what runs next.
        lengths: tokens of the shortest and of the longest rollout.
    """
    rows = rollouts(chat_of(base), count, *lengths)
    lower = depth(base.model) // 2
    with tempfile.TemporaryDirectory() as folder:
        paths = random_adapters(base, Path(folder), 8, lower)
        model, loading = _load_adapters(base, paths)
        for k, targets in ((1, {"loop": 2.4}), (8, {"loop": 3.2})):
            yield _case(model, rows, list(paths)[:k], lower, int(base.tokenizer.pad_token_id), repeats, loading, targets, tick)


def _case(
    model: PeftModel, rows: list[Encoded], names: list[str], lower: int, pad: int, repeats: int, loading: float,
    targets: dict[str, float], tick: Callable[[str], None],
) -> Case:  # fmt: skip
    layers = list(range(depth(model)))
    spec = Spec(pad_id=pad, spans=(SPAN,))
    variants = [Variant(), *(Variant(name) for name in names)]

    def together() -> torch.Tensor:
        states = torch.stack([reading.states[:, :, 0] for reading in read_variants(model, rows, variants, spec)])
        return states[1:] - states[:1]

    def in_turn() -> torch.Tensor:
        with model.disable_adapter():
            before = one_at_a_time(model, rows, layers, [SPAN])[:, :, 0]
        shifts = []
        for name in names:
            model.set_adapter(name)
            shifts.append(one_at_a_time(model, rows, layers, [SPAN])[:, :, 0] - before)
        return torch.stack(shifts)

    def per_row() -> torch.Tensor:
        states = per_row_adapters(model, rows, names, spec.token_budget, pad, layers, SPAN)
        return states[1:] - states[:1]

    def compare(shifts: torch.Tensor) -> FloatArray:
        # Below the first adapted layer the shift is zero and has no direction; the loop's last layer is normalised.
        return np.asarray(shifts[:, :, lower:-1].mean(1).numpy(), dtype=np.float64)

    contenders = [
        Contender("shift", together, compare),
        Contender("loop", in_turn, compare),
        Contender("per-row adapters (PEFT)", per_row, compare),
    ]
    known: dict[str, Any] = facts(rows) | {"adapters": len(names), "rank": RANK, "layers from": lower, "loading 8, s": round(loading, 3)}
    return race(f"shift of {len(names)} adapter(s) on layers ≥ {lower} against base", contenders, repeats, known, targets, tick)


def random_adapters(base: Loaded, folder: Path, count: int, lower: int) -> dict[str, Path]:
    """Write adapters with random weights of the size of trained ones, the same each time."""
    generator = torch.Generator().manual_seed(0)
    paths = {}
    spare = load(base.ref, "float32").model
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(MODULES), layers_to_transform=list(range(lower, depth(spare))))
    model = get_peft_model(spare, config)
    for k in range(count):
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)
            elif "lora_B" in name:
                parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(folder / f"a{k}"))
        paths[f"a{k}"] = folder / f"a{k}"
    return paths


def _load_adapters(base: Loaded, paths: dict[str, Path]) -> tuple[PeftModel, float]:
    start = time.perf_counter()
    first, *rest = paths
    model = PeftModel.from_pretrained(base.model, str(paths[first]), adapter_name=first)
    for name in rest:
        model.load_adapter(str(paths[name]), adapter_name=name)
    return model.eval(), time.perf_counter() - start
