"""Training goes on from a checkpoint that is whole, and from no other."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from wellworn.lora.resume import SIZES, MarkWhole, newest_checkpoint


def save(work: Path, step: int, marked: bool = True) -> Path:
    folder = work / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "trainer_state.json", "deep/optimizer.pt"):
        (folder / name).write_bytes(b"0123456789")
    if marked:
        MarkWhole().on_save(SimpleNamespace(output_dir=work), SimpleNamespace(global_step=step), None)
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
