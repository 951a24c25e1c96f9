"""Training goes on from a checkpoint that is whole, and from no other."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from wellworn.data.chat import Chat
from wellworn.data.mixtures import Turn
from wellworn.lora.models import load, resolve
from wellworn.lora.resume import SIZES, MarkWhole, newest_checkpoint
from wellworn.lora.train import train_sft
from wellworn.lora.train_config import TrainConfig


def save(work: Path, step: int, marked: bool = True) -> Path:
    folder = work / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "trainer_state.json", "deep/optimizer.pt"):
        (folder / name).write_bytes(b"0123456789")
    if marked:
        MarkWhole().on_save(SimpleNamespace(output_dir=work), SimpleNamespace(global_step=step, max_steps=99), None)
    return folder


def test_the_newest_one_is_taken_by_number(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    assert newest_checkpoint(tmp_path, sharded=False) == str(tmp_path / "checkpoint-10")
    assert newest_checkpoint(tmp_path / "none", sharded=False) is None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trainer_state.json", "deep/optimizer.pt", SIZES])
def test_one_that_was_cut_short_is_removed(tmp_path: Path, name: str) -> None:
    save(tmp_path, 2)
    os.truncate(save(tmp_path, 4) / name, 4)
    assert newest_checkpoint(tmp_path, sharded=False) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_one_with_a_file_missing_or_not_marked_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 2, marked=False)
    (save(tmp_path, 4) / "deep" / "optimizer.pt").unlink()
    assert newest_checkpoint(tmp_path, sharded=False) is None
    assert not list(tmp_path.iterdir())


def test_a_training_that_was_stopped_after_its_last_step_takes_no_further_one(tiny_model: Path, tmp_path: Path) -> None:
    def train(name: str) -> tuple[list[dict[str, float]], bytes]:
        base = load(resolve(str(tiny_model)))
        rows = [Chat(base.tokenizer).training_row(Turn(f"Question {i}?", "yes yes")) for i in range(16)]
        sft = {"max_steps": 3, "save_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
        config = TrainConfig(batch_size=8, lora={"r": 2}, sft=sft)
        curve = train_sft(base, rows, config, seed=0, out=tmp_path / name, work=tmp_path / "work")
        return curve, (tmp_path / name / "adapter_model.safetensors").read_bytes()

    once = train("once")
    assert [point["step"] for point in once[0]] == [1, 2, 3]
    assert (tmp_path / "work").is_dir()
    assert train("again") == once
