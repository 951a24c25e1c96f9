"""`wellworn bench capture`: the reading engine against a bare forward pass, a plain loop, and other libraries."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from wellworn.data.chat import SPANS, Encoded
from wellworn.experiments.bench.memory import measure
from wellworn.experiments.bench.peers import peers
from wellworn.experiments.bench.rivals import floor, one_at_a_time
from wellworn.experiments.bench.timing import Case, Contender, Facts, race
from wellworn.experiments.bench.workload import answers_to_one_prompt, chat_of, contrasts, facts, rollouts
from wellworn.lora.models import Loaded, load
from wellworn.probes.reading.capture import Spec, read
from wellworn.probes.reading.layers import depth
from wellworn.probes.reading.onednn import plain_matmul
from wellworn.probes.statistics.intervals import FloatArray

Tick = Callable[[str], None]


def cases(base: Loaded, count: int, repeats: int, with_peers: bool, tick: Tick, console: Console) -> Iterator[Case]:
    """Run the capture benchmark, case by case.

    Args:
        base: the model, in float32.
        count: rollouts.
        repeats: timed rounds.
        with_peers: whether to run other libraries too.
        tick: called with what runs next.
        console: for messages about environments that are being created.
    """
    chat, pad = chat_of(base), int(base.tokenizer.pad_token_id)
    rows = rollouts(chat, count - count % 2, 40, 100)
    with ExitStack() as stack:
        others = []
        if with_peers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            workers = stack.enter_context(peers(base, torch.__version__.split("+")[0], console))
            others = [_peer_contender(base, worker, rows, folder / f"{worker.name}.npy") for worker in workers]
        yield _every_layer(base, rows, pad, repeats, tick, others)
    yield _long(base, rollouts(chat, count // 2, 64, 256), pad, repeats, tick)
    yield _shared_prefixes(base, answers_to_one_prompt(chat, max(1, count // 10)), pad, repeats, tick)
    yield from _bfloat16(base, contrasts(chat, "pirate", 4, max(1, count // 8)), pad, repeats, tick)


def memory(model: str, tick: Tick) -> list[Facts]:
    """Return the peak memory beyond the weights, of the floor and of capture, for growing amounts of work."""
    # Fewer rollouts would make two or three batches, and the peak would depend on how they divide.
    works = [
        ("floor", "floor", 96, 40, 100, 30),
        ("capture", "capture", 96, 40, 100, 30),
        ("floor, 4 × prompts", "floor", 384, 40, 100, 30),
        ("capture, 4 × prompts", "capture", 384, 40, 100, 30),
        ("capture, half the layers", "capture", 96, 40, 100, 15),
        ("floor, 2.5 × length", "floor", 96, 100, 250, 30),
        ("capture, 2.5 × length", "capture", 96, 100, 250, 30),
    ]
    rows: list[Facts] = []
    for title, work, *numbers in works:
        tick(f"memory: {title}")
        rows.append({"title": title, "bytes": measure(work, model, *numbers)})
    return rows


def _every_layer(base: Loaded, rows: list[Encoded], pad: int, repeats: int, tick: Tick, others: list[Contender]) -> Case:
    total, ids = depth(base.model), [row.input_ids for row in rows]
    spec = Spec(pad_id=pad)
    upper = round(total * 2 / 3)
    below = range(upper + 1)
    contenders = [
        Contender("capture", lambda: read(base.model, rows, spec).states, _all_but_last),
        Contender(f"capture, layers ≤ {upper}", lambda: read(base.model, rows, replace(spec, layers=below)).states, lambda _: None),
        Contender("capture, bare", _plainly(lambda: read(base.model, rows, replace(spec, share_prefixes=False)).states), _all_but_last),
        Contender("floor", lambda: floor(base.model, ids, spec.token_budget, pad), lambda _: None),
        Contender("loop", lambda: one_at_a_time(base.model, rows, range(total), SPANS), _all_but_last),
        *others,
    ]
    targets = {"floor": 1 / 1.05, "loop": 1.8, "repeng": 1.25, "steering-vectors": 1.5}
    return race("rollouts of 40–100 tokens, all layers, 3 spans", contenders, repeats, facts(rows), targets, tick)


def _long(base: Loaded, rows: list[Encoded], pad: int, repeats: int, tick: Tick) -> Case:
    spec, ids = Spec(pad_id=pad), [row.input_ids for row in rows]
    contenders = [
        Contender("capture", lambda: read(base.model, rows, spec).states, _all_but_last),
        Contender("floor", lambda: floor(base.model, ids, spec.token_budget, pad), lambda _: None),
        Contender("loop", lambda: one_at_a_time(base.model, rows, range(depth(base.model)), SPANS), _all_but_last),
    ]
    return race("rollouts of 64–256 tokens", contenders, repeats, facts(rows), {"floor": 1 / 1.05, "loop": 1.35}, tick)


def _shared_prefixes(base: Loaded, rows: list[Encoded], pad: int, repeats: int, tick: Tick) -> Case:
    spec = Spec(pad_id=pad)
    contenders = [
        Contender("capture", lambda: read(base.model, rows, spec).states, _as_float),
        Contender("without shared prefixes", lambda: read(base.model, rows, replace(spec, share_prefixes=False)).states, _as_float),
    ]
    prompt = sum(row.spans["response"][0] for row in rows) / sum(len(row) for row in rows)
    known = facts(rows) | {"tokens in prompts": round(prompt, 3)}
    return race("ten answers to each prompt", contenders, repeats, known, {"without shared prefixes": 1.2}, tick)


def _bfloat16(base: Loaded, rows: list[Encoded], pad: int, repeats: int, tick: Tick) -> Iterator[Case]:
    """Yield the case of bfloat16, on the rows that make a direction, so that directions can be compared."""
    half = load(base.ref, "bfloat16")
    spec = Spec(pad_id=pad, spans=("response",))

    def direction(states: torch.Tensor) -> FloatArray:
        pairs = states[:, :, 0].unflatten(0, (4, 2, -1))
        return _as_float((pairs[:, 0] - pairs[:, 1]).mean((0, 1)))

    def contender(name: str, work: Callable[[], Any]) -> Contender:
        return Contender(name, work, direction, exact=False, least_cosine=0.999)

    contenders = [
        contender("capture, bfloat16", lambda: read(half.model, rows, spec).states),
        contender("capture, float32", lambda: read(base.model, rows, spec).states),
        contender("capture, float32, torch's own products", _plainly(lambda: read(base.model, rows, spec).states)),
    ]
    targets = {"capture, float32": 1.8}
    yield race("bfloat16 (agreement of the pirate direction)", contenders, repeats, facts(rows), targets, tick)


def _peer_contender(base: Loaded, worker: Any, rows: list[Encoded], out: Path) -> Contender:
    """Let a worker read the rows' strings; its states of the last token are compared with ours once."""
    strings = [str(base.tokenizer.decode(list(row.input_ids))) for row in rows]
    layers = list(range(depth(base.model)))
    last = [Encoded(row.input_ids, row.spans | {"last": (len(row) - 1, len(row))}, row.completion_mask) for row in rows]
    checked = False

    def work() -> Any:
        nonlocal checked
        if checked:
            return worker.read(strings, layers)
        checked = True
        return worker.read(strings, layers, out)

    def ours() -> FloatArray:
        return _all_but_last(read(base.model, last, Spec(pad_id=int(base.tokenizer.pad_token_id), spans=("last",))).states)

    return Contender(worker.name, work, lambda timed: np.asarray(timed.result[:, :-1, None], dtype=np.float64), against=ours)


def _plainly(work: Callable[[], Any]) -> Callable[[], Any]:
    def plain() -> Any:
        with plain_matmul():
            return work()

    return plain


def _as_float(states: torch.Tensor) -> FloatArray:
    return np.asarray(states.numpy(), dtype=np.float64)


def _all_but_last(states: torch.Tensor) -> FloatArray:
    # Hugging Face's last hidden state is taken after the final norm, ours before it.
    return _as_float(states[:, :-1])
