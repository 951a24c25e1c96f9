"""`wellworn bench generate`: many answers at a time compared with the usual loop, and adapters in one batch compared with in turn."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from wellworn.experiments.bench.shift import random_adapters
from wellworn.experiments.bench.timing import Case, Contender, race
from wellworn.experiments.bench.workload import chat_of, facts, prompts
from wellworn.lora.adapters import adapted
from wellworn.lora.models import Loaded
from wellworn.probes.decoding.generate import Answer, Decoding, Request, end_tokens, generate
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.variants import Variant
from wellworn.probes.statistics.intervals import FloatArray

TOKENS = 48
LOOP_BATCH = 20
ADAPTERS = 4

Ids = list[list[int]]


def cases(base: Loaded, count: int, repeats: int, tick: Callable[[str], None], tokens: int = TOKENS) -> Iterator[Case]:
    """Run the benchmark of generation, with greedy answers; all contenders must give the same tokens.

    Args:
        base: the model, in float32.
        count: answers; a quarter as many prompts are answered by the base and by each of four adapters.
        repeats: timed rounds.
        tick: called with what runs next.
        tokens: longest answer.
    """
    asked = prompts(chat_of(base), count)
    yield _many(base, asked, repeats, tick, tokens)
    with tempfile.TemporaryDirectory() as folder:
        paths = random_adapters(base, Path(folder), ADAPTERS, lower=0)
        with adapted(base, paths) as model:
            yield _mixed_adapters(model, asked[: max(1, count // 4)], [None, *paths], repeats, tick, tokens)


def _many(base: Loaded, asked: Ids, repeats: int, tick: Callable[[str], None], tokens: int) -> Case:
    def ours() -> Ids:
        return _ids(generate(base.model, [Request(prompt) for prompt in asked], Decoding(tokens)))

    def loop(rows: int) -> Ids:
        return [answer for start in range(0, len(asked), rows) for answer in _plain(base, asked[start : start + rows], tokens)]

    # The second loop shows how much of the difference is due to the number of rows.
    many = Decoding(tokens).rows
    contenders = [
        Contender("generate", ours, _token_vectors(tokens)),
        Contender("loop", lambda: loop(LOOP_BATCH), _token_vectors(tokens)),
        Contender(f"loop, {many} rows at a time", lambda: loop(many), _token_vectors(tokens)),
    ]
    return race(f"{len(asked)} answers of {tokens} tokens at most", contenders, repeats, facts(asked, "prompts"), {"loop": 1.5}, tick)


def _mixed_adapters(
    model: torch.nn.Module, asked: Ids, names: Sequence[str | None], repeats: int, tick: Callable[[str], None], tokens: int
) -> Case:
    how = Decoding(tokens, rows=len(names) * len(asked))

    def together() -> Ids:
        return _ids(generate(model, [Request(prompt, Variant(name)) for name in names for prompt in asked], how))

    def in_turn() -> Ids:
        return [ids for name in names for ids in _ids(generate(model, [Request(prompt, Variant(name)) for prompt in asked], how))]

    contenders = [
        Contender("rows of one batch", together, _token_vectors(tokens)),
        Contender("one after another", in_turn, _token_vectors(tokens)),
    ]
    title = f"{len(asked)} prompts, base and {len(names) - 1} adapters on all layers"
    return race(title, contenders, repeats, facts(asked, "prompts"), {"one after another": 1.3}, tick)


@torch.no_grad()
def _plain(base: Loaded, asked: Ids, tokens: int) -> Ids:
    """Answer one batch as `generate` of transformers does."""
    pad = int(base.tokenizer.pad_token_id)
    ids, mask = pad_rows(asked, pad, "left")
    device = base.model.device
    new = base.model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=tokens,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=pad,
    )
    ends = end_tokens(base.model)
    answers = new[:, ids.shape[1] :].tolist()
    return [answer[: next((k for k, token in enumerate(answer) if token in ends), tokens)] for answer in answers]


def _ids(answers: Sequence[Answer]) -> Ids:
    return [list(answer.ids) for answer in answers]


def _token_vectors(tokens: int) -> Callable[[Ids], FloatArray]:
    """Return a function that turns answers into vectors, which agree where all tokens agree."""
    return lambda answers: np.array([[*(token + 1 for token in ids), *[1] * (tokens + 1 - len(ids))] for ids in answers], dtype=np.float64)
