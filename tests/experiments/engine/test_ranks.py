"""Two processes over gloo give one process's directions and shifts."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fsdp_on_cpu import cpu_environment, launch
from tests.tiny import ROOT, free_port
from wellworn.data.files import read_json


def compare_stages(one: Path, two: Path, near: float) -> None:
    """Make sure that two runs folders hold the same stages, with equal tensors."""
    paths = sorted((one / "stages").rglob("*.safetensors"))
    assert paths
    for path in paths:
        other = load_file(two / path.relative_to(one))
        for name, array in load_file(path).items():
            assert other[name].shape == array.shape, (path, name)
            # Where there is no space no arm is run, and there is nothing to compare.
            if array.size:
                assert np.abs(other[name] - array).max() <= near * np.abs(array).max(), (path, name)


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "accelerate"])
def test_two_ranks_equal_one(tiny_study: Callable[..., Path], tmp_path: Path, launcher: str) -> None:
    # Without training the comparison is exact up to the order of sums.
    study = tiny_study(runs=[{"arm": "prompted", "trait": "pirate"}])
    arguments = ["-m", "wellworn", "run", str(study), "--runs-dir"]
    alone = subprocess.run([sys.executable, *arguments, str(tmp_path / "one")], capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stderr
    starts = {
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": [
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(ROOT / "experiments/launch/cpu2.yaml"),
            "--main_process_port",
            str(free_port()),
        ],
    }
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [sys.executable, *starts[launcher], *arguments, str(tmp_path / "two")],
        capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert "2 process(es)" in both.stdout
    compare_stages(tmp_path / "one", tmp_path / "two", near=1e-5)


@pytest.mark.slow
def test_one_process_under_accelerate_is_the_same_as_without(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    study = tiny_study(runs=[{"arm": "sft", "trait": "pirate"}])
    for name, start in (
        ("plain", []),
        ("launched", ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_config.yaml")]),
    ):
        done = subprocess.run(
            [sys.executable, *start, "-m", "wellworn", "run", str(study), "--runs-dir", str(tmp_path / name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    plain, launched = (tmp_path / name / "tiny" / "summary.json" for name in ("plain", "launched"))
    assert plain.read_bytes() == launched.read_bytes()


def test_training_on_two_ranks_runs_and_splits_the_batch(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    study = tiny_study(runs=[{"arm": "sft", "trait": "uppercase"}])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = subprocess.run(
        [*start, "-m", "wellworn", "run", str(study), "--runs-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=600,
    )
    assert both.returncode == 0, both.stderr
    run = read_json(tmp_path / "tiny" / "summary.json")["runs"][0]
    assert run["effect"]["value"] != 0


@pytest.mark.slow
def test_ranks_that_spread_weights_in_training_find_what_one_process_finds(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    train = {"batch_size": 8, "lora": {"r": 2}, "sft": {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}}
    study = tiny_study(runs=[{"arm": "sft", "trait": "pirate"}], train=train)
    arguments = ["run", str(study), "--runs-dir"]
    alone = subprocess.run(
        [sys.executable, "-m", "wellworn", *arguments, str(tmp_path / "one")], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    both = subprocess.run(
        launch(free_port(), "tests.fsdp_on_cpu", *arguments, str(tmp_path / "two")),
        capture_output=True, text=True, check=False, cwd=ROOT, env=cpu_environment(), timeout=600,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    compare_stages(tmp_path / "one", tmp_path / "two", near=1e-4)


def test_an_error_on_one_rank_is_raised_on_all(tiny_study: Callable[..., Path], tmp_path: Path) -> None:
    study = tiny_study(train={"batch_size": 3, "sft": {"max_steps": 1}})
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = subprocess.run(
        [*start, "-m", "wellworn", "run", str(study), "--runs-dir", str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment, timeout=120,
    )  # fmt: skip
    assert both.returncode != 0
    assert "train.batch_size: 3 is not divisible by the 2 processes" in " ".join(both.stderr.split())


ONE_RANK_RUNS_OUT = """
import sys
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist
from rich.console import Console

from wellworn.data.files import read_json
from wellworn.data.files import read_json
from wellworn.data.errors import InputError
from wellworn.experiments.engine.ranks import Ranks
from wellworn.experiments.engine.run import run
from wellworn.experiments.engine.stage import Kind, Stage
from wellworn.experiments.engine.store import Store

ranks, store = Ranks(), Store(Path(sys.argv[1]))
ranks.from_main(store.create)


def compute_all(_context, folders, *_):
    if ranks.rank == 1:
        raise MemoryError
    dist.barrier()
    return [{"a.json": 1} for _ in folders]


rows = [
    Stage.joint(kind=Kind("read", 1), config={"row": i}, inputs={}, title=f"read {i}", shared="rows", compute_all=compute_all)
    for i in range(2)
]
try:
    run(rows, store, SimpleNamespace(dtype="float32"), ranks, Console(quiet=True), quiet=True)
except InputError as error:
    sys.stderr.write(f"rank {ranks.rank}: {error}\\n")
    sys.exit(2)
"""


def test_memory_that_runs_out_on_one_rank_ends_all(tmp_path: Path) -> None:
    """The others are inside a collective, and would wait for it."""
    script = tmp_path / "script.py"
    script.write_text(ONE_RANK_RUNS_OUT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    both = subprocess.run(
        [*start, str(script), str(tmp_path / "runs")], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert both.returncode != 0
    assert "rank 1: read 0 and 1 more: out of memory; finished stages are kept" in both.stderr
