"""Started on two ranks by test_distributed.py: every way to wrap a model, against the plain model on one rank."""

import json
import os
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.tiny import make_model, make_rows
from wellworn.data.chat import Encoded
from wellworn.probes.mediation.interventions import Intervention, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.reading import across_ranks
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.reading.variants import Variant

SPECS = {"all": Spec(token_budget=40), "scored": Spec(token_budget=40, logprob=True), "lower": Spec(token_budget=40, layers=[1])}


def wrap_model(kind: str) -> torch.nn.Module:
    model = make_model("llama")
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def patch_outcomes(model: torch.nn.Module, rows: list[Encoded]) -> torch.Tensor:
    """Swap at one layer and at two, between the rows and the same under a longer prompt."""
    longer = [
        replace(row, input_ids=(5, 9, *row.input_ids), spans={name: (start + 2, end + 2) for name, (start, end) in row.spans.items()})
        for row in rows
    ]
    arms = [Intervention(reader, swaps) for reader in (0, 1) for swaps in ({}, {1: Swap()}, {0: Swap(scale=0.5), 2: Swap()})]
    return patched_logprobs(model, Texts((rows, longer), response_only=True), (Variant(), Variant()), arms, Batching(token_budget=60))


def main() -> None:
    torch.set_num_threads(1)
    rows = make_rows(11, seed=3)
    alone = {name: read(make_model("llama"), rows, spec) for name, spec in SPECS.items()}
    swapped = patch_outcomes(make_model("llama"), rows)
    dist.init_process_group("gloo")
    errors = {}
    for kind in ("plain", "ddp", "fsdp", "fsdp2"):
        model = wrap_model(kind)
        for name, spec in SPECS.items():
            # One row leaves the second rank with nothing of its own to read.
            for some in (rows, rows[:1]):
                reading, truth = read(model, some, spec), alone[name].states[: len(some)]
                errors[f"{kind} {name} {len(some)}"] = float(((reading.states - truth).norm(dim=-1) / truth.norm(dim=-1)).max())
                if reading.logprob is not None:
                    errors[f"{kind} {name} {len(some)} log-probability"] = float(
                        (reading.logprob - alone[name].logprob[: len(some)]).abs().max()
                    )
        for some in (rows, rows[:1]):
            errors[f"{kind} patched {len(some)}"] = float((patch_outcomes(model, some) - swapped[:, : len(some)]).abs().max())
    # One reads by itself, while the other does something else.
    if dist.get_rank() == 0:
        with across_ranks.alone():
            by_itself = read(make_model("llama"), rows, SPECS["scored"])
            errors["plain alone"] = float((by_itself.states - alone["scored"].states).abs().max())
            errors["plain alone patched"] = float((patch_outcomes(make_model("llama"), rows) - swapped).abs().max())
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, errors)
    dist.destroy_process_group()
    if everyone[0] is not None and errors:
        sys.stdout.write(json.dumps(everyone) + "\n")
    sys.stdout.flush()
    # All is checked and written; gloo's own threads may abort when the interpreter takes them down.
    os._exit(0)


if __name__ == "__main__":
    main()
