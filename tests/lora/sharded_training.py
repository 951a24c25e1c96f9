"""Started on two ranks by test_sharded.py, or called in one process: adapters trained in every way, each into a folder of its name."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.fsdp_on_cpu import shard_on_cpu
from tests.lora.test_gate import MARGIN, gated_rows
from wellworn.data.chat import Chat
from wellworn.data.errors import InputError
from wellworn.data.mixtures import Turn
from wellworn.lora.confine import Confinement
from wellworn.lora.models import load, resolve
from wellworn.lora.train import train_gated, train_sft
from wellworn.lora.train_config import TrainConfig

# Answers of unlike lengths, so that a mean over ranks would be another one than over rows.
TURNS = [Turn(f"Question {i}?", "yes " * (1 + i % 5)) for i in range(16)]
STEPS = 6


class KilledError(Exception):
    """Stands for the end of a process."""


def config(**lora: Any) -> TrainConfig:
    return TrainConfig(batch_size=8, lora={"r": 4, **lora}, sft={"max_steps": STEPS, "save_steps": 2, "learning_rate": 1e-3})


def sft(
    model: Path,
    out: Path,
    confined: dict[int, Confinement] | None = None,
    kill_at: int | None = None,
    turns: Sequence[Turn] = TURNS,
    **lora: Any,
) -> list[int]:
    """Train an adapter; return the steps that it took."""
    base, steps = load(resolve(str(model))), []

    def progress(step: int, _steps: int, _loss: float | None) -> None:
        steps.append(step)
        if step == kill_at:
            raise KilledError

    rows = [Chat(base.tokenizer).training_row(turn) for turn in turns]
    train_sft(base, rows, config(**lora), seed=0, out=out / "adapter", work=out / "work", progress=progress, confined=confined)
    return steps


def resumed(model: Path, out: Path, turns: Sequence[Turn] = TURNS) -> list[int]:
    try:
        sft(model, out, kill_at=3, turns=turns)
    except KilledError:
        return sft(model, out, turns=turns)
    raise AssertionError("nothing was killed")


def confinement(reset: bool = False) -> dict[int, Confinement]:
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(32, 5, generator=generator))[0] for _ in range(4)]
    return {layer: Confinement(basis, outside=reset, reset=reset) for layer, basis in enumerate(bases)}


def gated(model: Path, out: Path) -> list[int]:
    # The last of its batches is half full.
    rows = gated_rows(model)[0]
    curve = train_gated(load(resolve(str(model))), rows, config(), MARGIN, seed=0, out=out / "adapter", work=out / "work")
    return [int(point["step"]) for point in curve]


WAYS: dict[str, Callable[[Path, Path], list[int]]] = {
    "sft": sft,
    "dora": lambda model, out: sft(model, out, use_dora=True),
    "resumed": resumed,
    # The last batch holds rows for one rank alone, and for both.
    "few left": lambda model, out: sft(model, out, turns=TURNS[:10]),
    "some left": lambda model, out: resumed(model, out, turns=TURNS[:14]),
    "confined": lambda model, out: sft(model, out, confinement(), target_modules=["down_proj"]),
    "gated": gated,
}


def main() -> None:
    from wellworn.experiments.engine.ranks import Ranks

    shard_on_cpu()
    ranks = Ranks()
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, Any] = {}
    for name, train in WAYS.items():
        found[name] = train(model, out / name)
    try:
        sft(model, out / "reset", confinement(reset=True), target_modules=["down_proj"])
    except InputError as error:
        found["reset"] = str(error)
    if ranks.main:
        sys.stdout.write(json.dumps(found) + "\n")
    ranks.close()
    sys.stdout.flush()
    # All is written; gloo's own threads may abort when the interpreter takes them down.
    os._exit(0)


if __name__ == "__main__":
    main()
