"""`wellworn bench mediate`: interventions that enter above a layer, compared with the cost of their blocks and with full forwards."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from wellworn.data.chat import Encoded
from wellworn.experiments.bench.shift import random_adapters
from wellworn.experiments.bench.timing import Case, Contender, Timed, race
from wellworn.experiments.bench.workload import chat_of, facts, rollouts
from wellworn.lora.adapters import adapted
from wellworn.lora.models import Loaded
from wellworn.probes.mediation.interventions import Intervention, Swap
from wellworn.probes.mediation.paired_states import Batching, Texts
from wellworn.probes.mediation.patching import patched_logprobs
from wellworn.probes.reading.batching import by_length
from wellworn.probes.reading.capture import DEFAULT_TOKEN_BUDGET, Spec, read_variants
from wellworn.probes.reading.layers import depth, resolve_layer
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray

INTERVENTIONS = 8
RANK = 6
LAYER = 0.75


def cases(base: Loaded, count: int, repeats: int, tick: Callable[[str], None], lengths: tuple[int, int] = (40, 100)) -> Iterator[Case]:
    """Run the mediation benchmark: eight interventions at three quarters of the depth, an adapter on all layers.

    Args:
        base: the model, in float32.
        count: rollouts.
        repeats: timed rounds.
        tick: called with what runs next.
        lengths: tokens of the shortest and of the longest rollout.
    """
    rows = rollouts(chat_of(base), count, *lengths)
    with tempfile.TemporaryDirectory() as folder:
        paths = random_adapters(base, Path(folder), 1, lower=0)
        with adapted(base, paths) as model:
            yield _case(model, rows, int(base.tokenizer.pad_token_id), repeats, tick)


def _case(model: torch.nn.Module, rows: list[Encoded], pad: int, repeats: int, tick: Callable[[str], None]) -> Case:
    total, layer = depth(model), resolve_layer(LAYER, depth(model))
    between, texts, run = (Variant(), Variant("a0")), Texts.same(rows), Batching(pad)
    generator = torch.Generator().manual_seed(0)
    width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    swaps = [Swap(torch.linalg.qr(torch.randn(width, RANK, generator=generator))[0]) for _ in range(INTERVENTIONS)]
    interventions = [Intervention(1, {layer: swap}) for swap in swaps]
    spec = Spec(layers=[total - 1], spans=("response",), pad_id=pad, share_prefixes=False)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def ours() -> Timed:
        # Both models' states are computed once; the cost of an intervention is the time that each further one adds.
        one = seconds(lambda: patched_logprobs(model, texts, between, interventions[:1], run))
        start = time.perf_counter()
        found = patched_logprobs(model, texts, between, [*interventions, interventions[0]], run)
        return Timed(time.perf_counter() - start - one, found[:INTERVENTIONS])

    def floor() -> Timed:
        blocks = seconds(lambda: read_variants(model, rows, [between[1]], spec))
        scored = sum(row.spans["response"][1] - row.spans["response"][0] for row in rows)
        states = torch.randn(scored, width)
        head = model.get_output_embeddings()  # type: ignore[operator]

        def score() -> None:
            with torch.no_grad(), fast_matmul():
                for part in states.split(DEFAULT_TOKEN_BUDGET // 2):
                    head(part).logsumexp(-1)

        return Timed(INTERVENTIONS * (blocks * (total - layer - 1) / total + seconds(score)), None)

    def full() -> torch.Tensor:
        """Run each intervention through all blocks, with a hook at the layer; the other model's states are read once."""
        scores = torch.zeros(INTERVENTIONS, len(rows))
        for members in by_length([len(row) for row in rows], DEFAULT_TOKEN_BUDGET):
            some = [rows[i] for i in members]
            scores[:, torch.tensor(members)] = patched_logprobs(model, Texts.same(some), between, _from_below(interventions), Batching(pad))
        return scores

    def compare(scores: object) -> FloatArray | None:
        found = scores.result if isinstance(scores, Timed) else scores
        return None if found is None else np.asarray(found, dtype=np.float64)

    known = facts(rows) | {"arms": INTERVENTIONS, "layer": layer, "blocks above": total - layer - 1}
    contenders = [
        Contender("arm above the layer", ours, compare),
        Contender("floor", floor, compare),
        Contender("all blocks", full, compare),
    ]
    return race(f"{INTERVENTIONS} arms at layer {layer} of {total}", contenders, repeats, known, {"floor": 0.91}, tick)


def _from_below(interventions: list[Intervention]) -> list[Intervention]:
    """Return the same interventions, entered at the lowest block, so that every block runs."""
    nothing = Swap(scale=0.0)
    return [Intervention(each.reader, {0: nothing, **each.swaps}) for each in interventions]
