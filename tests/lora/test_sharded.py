"""Training with weights spread over two ranks: adapters are those of one process, plain PEFT, and resume from checkpoints."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.fsdp_on_cpu import cpu_environment, launch
from tests.lora.sharded_training import STEPS, WAYS
from tests.tiny import ROOT, free_port
from wellworn.lora.adapters import adapted
from wellworn.lora.fit import check_adapter, check_fit
from wellworn.lora.models import load, resolve
from wellworn.lora.resume import MarkWhole, newest_checkpoint


@pytest.fixture(scope="module")
def two_ranks(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder with adapters of two ranks, and what the training said."""
    out = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        launch(free_port(), "tests.lora.sharded_training", str(tiny_model), str(out)),
        capture_output=True, text=True, check=False, cwd=ROOT, env=cpu_environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [said] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return out, json.loads(said)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_the_adapter_of_one(way: str, two_ranks: tuple[Path, dict[str, Any]], tiny_model: Path, tmp_path: Path) -> None:
    both, said = two_ranks
    steps = WAYS[way](tiny_model, tmp_path)
    assert said[way] == steps
    # Weights were spread indeed: checkpoints are in parts.
    assert [*(both / way / "work").glob(f"checkpoint-{STEPS}/pytorch_model_fsdp_0/*.distcp")]
    alone, found = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (tmp_path, both / way))
    assert found.keys() == alone.keys()
    for name, weight in alone.items():
        assert found[name].dtype == weight.dtype
        assert (found[name] - weight).norm() <= 1e-5 * weight.norm(), name


def test_a_killed_training_goes_on_from_its_checkpoint(two_ranks: tuple[Path, dict[str, Any]]) -> None:
    both, said = two_ranks
    assert said["resumed"] == [3, 4, 5, 6]
    straight, resumed = (load_file(both / name / "adapter" / "adapter_model.safetensors") for name in ("sft", "resumed"))
    assert all((resumed[name] - weight).norm() <= 1e-5 * weight.norm() for name, weight in straight.items())


@pytest.mark.parametrize("way", ["sft", "dora"])
def test_the_adapter_is_a_plain_one(way: str, two_ranks: tuple[Path, dict[str, Any]], tiny_model: Path) -> None:
    folder = two_ranks[0] / way / "adapter"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    base = load(resolve(str(tiny_model)))
    assert check_adapter(folder)["base_model_name_or_path"] == base.ref.id
    check_fit(base, folder)
    # Compares every tensor of the file with the layers that it is in.
    with adapted(base, {"trained": folder}):
        pass


def test_what_needs_whole_blocks_is_refused(two_ranks: tuple[Path, dict[str, Any]]) -> None:
    assert two_ranks[1]["reset"].startswith("a confined arm with reset needs the whole model on each GPU; start it without FSDP")


@pytest.mark.parametrize(("sharded", "taken"), [(True, "checkpoint-4"), (False, "checkpoint-2")])
def test_only_checkpoints_of_the_same_kind_of_launch_are_gone_on_from(sharded: bool, taken: str, tmp_path: Path) -> None:
    for step, weights in ((2, "adapter_model.safetensors"), (4, "pytorch_model_fsdp_0"), (6, "pytorch_model_fsdp_0")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / weights).write_bytes(b"weights")
    for step in (2, 4):
        MarkWhole().on_save(SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=step, max_steps=99), None)
    assert newest_checkpoint(tmp_path, sharded) == str(tmp_path / taken)
    assert [path.name for path in tmp_path.iterdir()] == [taken]
