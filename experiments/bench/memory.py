"""Peak memory beyond the weights, for one piece of work in a fresh process.

python -m wellworn.experiments.bench.memory WORK MODEL ROWS SHORTEST LONGEST LAYERS
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from wellworn.data.chat import SPANS
from wellworn.data.errors import InputError


def measure(work: str, model: str, rows: int, shortest: int, longest: int, layers: int) -> int:
    """Return the peak in bytes of `floor` or `capture` (states summed as they come), measured in its own process.

    Raises:
        InputError: the process failed.
    """
    arguments = [work, model, str(rows), str(shortest), str(longest), str(layers)]
    # The C allocator keeps freed memory for a while; returned at once, the peak is the memory that the work needs.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-m", "wellworn.experiments.bench.memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"memory of {work}: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _peak(reset: bool = False) -> int:
    """Return the peak so far: of the device if there is one, else of this process's resident memory."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.max_memory_allocated())
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def _main() -> None:
    from wellworn.experiments.bench.rivals import floor
    from wellworn.experiments.bench.workload import chat_of, rollouts
    from wellworn.lora.models import load, resolve
    from wellworn.probes.reading.capture import Spec, stream
    from wellworn.probes.reading.layers import depth

    work, name, *numbers = sys.argv[1:]
    count, shortest, longest, layers = map(int, numbers)
    base = load(resolve(name), "float32")
    rows = rollouts(chat_of(base), count, shortest, longest)
    total = depth(base.model)
    spec = Spec(layers=range(total - layers, total), pad_id=base.tokenizer.pad_token_id)

    def run(some: int) -> None:
        if work == "floor":
            floor(base.model, [row.input_ids for row in rows[:some]], spec.token_budget, spec.pad_id)
            return
        sums = torch.zeros(layers, len(SPANS), base.model.config.get_text_config().hidden_size)
        for part in stream(base.model, rows[:some], None, spec):
            sums += part.states.sum(0)
            del part

    # Libraries allocate memory at first use, and weights are read from disk at first access: more text reads more
    # embeddings. Neither is part of the work.
    for weight in base.model.parameters():
        weight.sum()
    run(2)
    gc.collect()
    before = _peak(reset=True)
    run(count)
    sys.stdout.write(json.dumps({"bytes": _peak() - before}) + "\n")


if __name__ == "__main__":
    _main()
