"""Runs the command line on ranks without a GPU that spread weights as ranks with GPUs do: accelerate uses FSDP on accelerators alone."""

import os
import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.tiny import ROOT


def launch(port: int, *arguments: str) -> list[str]:
    """Return the command that starts a module on two ranks with the suite's own file; run it with `cpu_environment()`."""
    file = str(ROOT / "experiments/launch/fsdp2.yaml")
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2"]
    return [*start, "--main_process_port", str(port), "-m", *arguments]


def cpu_environment() -> dict[str, str]:
    """Return the environment in which ranks run on the CPU."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


def shard_on_cpu() -> None:
    """Let accelerate take the ranks for such with a GPU each, once they are a group."""
    find = PartialState._prepare_backend

    def as_if_on_gpus(self: PartialState, *args: Any, **kwargs: Any) -> Any:
        import torch.distributed as dist

        backend, kind = find(self, *args, **kwargs)
        return backend, DistributedType.MULTI_GPU if dist.is_initialized() else kind

    PartialState._prepare_backend = as_if_on_gpus


def main() -> None:
    from wellworn.experiments.cli import main

    shard_on_cpu()
    main(sys.argv[1:])


if __name__ == "__main__":
    main()
