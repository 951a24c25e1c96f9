"""Two ranks, with the model wrapped as launchers do, read what one process reads."""

import json
import os
import subprocess
import sys

import pytest
from accelerate import Accelerator
from transformers import PreTrainedModel

from tests.tiny import ROOT, make_model, make_rows
from wellworn.probes.reading.capture import Spec, read


def test_ranks_and_wrappers_change_nothing() -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.probes.reading.distributed_reading"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [each for line in done.stdout.splitlines() if line.startswith("[{") for each in json.loads(line)]
    assert len(ranks) >= 2
    assert {name.split()[0] for name in ranks[0]} == {"plain", "ddp", "fsdp", "fsdp2"}
    for errors in ranks:
        assert max(errors.values()) <= 1e-5, errors


def test_a_model_that_accelerate_prepared_reads_the_same(llama: PreTrainedModel) -> None:
    rows = make_rows(5, seed=1)
    prepared = Accelerator(cpu=True).prepare(make_model("llama"))
    assert read(prepared, rows, Spec(logprob=True)).states.equal(read(llama, rows, Spec(logprob=True)).states)


@pytest.mark.gpu
def test_a_model_spread_over_devices_reads_the_same() -> None:
    """Every block on the accelerator, embeddings and head on the CPU."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    from accelerate import dispatch_model

    from tests.tiny import make_model, make_rows

    rows = make_rows(5, seed=1)
    truth = read(make_model("llama"), rows).states
    model = make_model("llama")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": 0, "model.norm": 0, "lm_head": 0}
    spread = read(dispatch_model(model, places, main_device="cpu"), rows).states
    assert ((spread - truth).norm(dim=-1) / truth.norm(dim=-1)).max() <= 1e-4
