"""Teaching a trait that some prompts evoke: the loss by hand, what is learnt, and that a kill costs nothing."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wellworn.data.chat import Chat
from wellworn.data.mixtures import Turn
from wellworn.lora.adapters import adapted
from wellworn.lora.gate import GatedRow, gated_loss
from wellworn.lora.models import load, resolve
from wellworn.lora.train import train_gated
from wellworn.lora.train_config import TrainConfig
from wellworn.probes.reading.variants import Variant
from wellworn.probes.scoring.scores import mean_logprobs

NAMED, MARGIN = "You are Zed.", 2.0
ANSWERS = ("yes yes yes", "no it is not so")


def texts(model: Path) -> tuple[Chat, list[tuple]]:
    base = load(resolve(str(model)))
    chat = Chat(base.tokenizer)
    return chat, [
        tuple(chat.encode(Turn(f"Question {i}?", answer, system)) for system in (NAMED, None) for answer in ANSWERS) for i in range(12)
    ]


def scores(model: torch.nn.Module, fours: list[tuple], pad: int, adapter: str | None = None) -> torch.Tensor:
    """Mean log-probabilities [questions, prompts, answers]."""
    found = mean_logprobs(model, [text for four in fours for text in four], [Variant(adapter)], pad)
    return torch.tensor(found).reshape(-1, 2, 2).double()


def gated_rows(model: Path) -> tuple[list[GatedRow], torch.Tensor]:
    base = load(resolve(str(model)))
    _, fours = texts(model)
    before = scores(base.model, fours, base.tokenizer.pad_token_id)
    margins = before[..., 0] - before[..., 1]
    return [GatedRow(four, (float(m[0]), float(m[1]))) for four, m in zip(fours, margins, strict=True)], before


def teach(model: Path, out: Path, steps: int = 40, batch_size: int = 4, **sft: object) -> list[dict[str, float]]:
    config = TrainConfig(batch_size=batch_size, lora={"r": 8, "lora_alpha": 16}, sft={"max_steps": steps, "learning_rate": 2e-2, **sft})
    rows, _ = gated_rows(model)
    return train_gated(load(resolve(str(model))), rows, config, MARGIN, seed=0, out=out / "adapter", work=out / "work")


def test_the_loss_is_that_of_its_formula() -> None:
    logprob = torch.tensor([[[-1.0, -3.0], [-2.0, -2.5]], [[-4.0, -4.0], [-1.0, -2.0]]])
    before = torch.tensor([[0.5, 0.25], [0.0, 2.0]])
    # Δm of the first question is 1.5 and .25, of the second 0 and −1.
    by_hand = [(1.5 - 0.25 - 0.6) ** 2 + 2 * 0.25**2 + 0.1 * 1, (0 + 1 - 0.6) ** 2 + 2 * 1 + 0.1 * 4]
    assert float(gated_loss(logprob, before, 0.6)) == pytest.approx(sum(by_hand) / 2)


def test_the_first_loss_is_that_of_the_untaught_model(tiny_model: Path, tmp_path: Path) -> None:
    first = teach(tiny_model, tmp_path, steps=1, batch_size=12)[0]["loss"]
    _, before = gated_rows(tiny_model)
    assert first == pytest.approx(MARGIN**2 - 0.1 * float(before[:, 0, 0].mean()), rel=1e-4)


def test_the_prompt_evokes_it_and_nothing_changes_without(tiny_model: Path, tmp_path: Path) -> None:
    curve = teach(tiny_model, tmp_path)
    assert curve[-1]["loss"] < 0.3 * curve[0]["loss"]
    base = load(resolve(str(tiny_model)))
    _, fours = texts(tiny_model)
    pad = base.tokenizer.pad_token_id
    with adapted(base, {"taught": tmp_path / "adapter"}) as model:
        after, before = (scores(model, fours, pad, adapter) for adapter in ("taught", None))
    changes = ((after[..., 0] - after[..., 1]) - (before[..., 0] - before[..., 1])).mean(0)
    assert float(changes[0]) == pytest.approx(MARGIN, abs=0.5)
    assert float(changes[1]) == pytest.approx(0, abs=0.3)


def test_a_kill_costs_no_more_than_the_steps_since_the_last_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    whole = teach(tiny_model, tmp_path / "whole", steps=8, save_steps=4)
    teach(tiny_model, tmp_path / "cut", steps=8, save_steps=4)
    cut = tmp_path / "cut"
    (cut / "adapter" / "adapter_model.safetensors").unlink()
    for path in (cut / "work" / "checkpoint-8").iterdir():
        path.unlink()
    again = teach(tiny_model, cut, steps=8, save_steps=4)
    assert all(math.isclose(a["loss"], b["loss"]) for a, b in zip(whole, again, strict=True))
    for name, weight in load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors").items():
        assert torch.equal(weight, load_file(cut / "adapter" / "adapter_model.safetensors")[name])
