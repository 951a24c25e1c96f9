"""Exact log-probabilities of the next token after prompts, and after each of several continuations."""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import numpy as np
import torch
from torch import nn

from wellworn.probes.decoding.kept import together
from wellworn.probes.decoding.prefill import Prompts, prefill, rows_that_fit
from wellworn.probes.decoding.rows import Rows
from wellworn.probes.reading.capture import check_tokens
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.statistics.intervals import FloatArray


@torch.no_grad()
def next_logprobs(
    model: nn.Module,
    prompts: Prompts,
    tokens: Sequence[int],
    after: Prompts = ((),),
    rows: int = 256,
    progress: Callable[[int], None] | None = None,
) -> FloatArray:
    """Return the log-probability of each of some tokens as the next one, float32 [prompts, continuations, tokens].

    A prompt is read once for all continuations, and a beginning that many prompts share is read once for all.

    Args:
        model: a causal LM in eval mode.
        prompts: what the model reads.
        tokens: of its vocabulary.
        after: continuations of every prompt, before the next token, all different; the empty one is the prompt itself.
        rows: most prompts at a time; fewer where memory is short.
        progress: called with the number of prompts just read.

    Raises:
        InputError: a prompt that does not fit the model with the longest continuation.
    """
    deepest = max(map(len, after))
    check_tokens(model, prompts, room=deepest)
    places = min(rows, rows_that_fit(model, max(map(len, prompts)) + deepest))
    wanted = torch.tensor(list(tokens), device=next(model.parameters()).device)
    found: FloatArray = np.empty((len(prompts), len(after), len(tokens)), np.float32)
    with fast_matmul():
        for group in together(model, map(len, prompts)):
            for start in range(0, len(group), places):
                some = group[start : start + places]
                for way, logits_BV in _ways(model, [prompts[i] for i in some], after):
                    found[some, way] = logits_BV.float().log_softmax(1)[:, wanted].cpu().numpy()
                if progress:
                    progress(len(some))
    return found


def _ways(model: nn.Module, prompts: Prompts, after: Prompts) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each continuation, by index, and the logits after it [B, V]."""
    rows = prefill(model, prompts, [(0, len(prompts))], lambda runs: None)
    share, here = rows.kept.joins, list[int]()
    # In this order each has most in common with the one before it: the rest of that is forgotten.
    for way in sorted(range(len(after)), key=lambda k: list(after[k])):
        if share:
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(here, after[way], strict=False)))
            rows.go_back(len(here) - common)
            for token in after[way][common:]:
                rows.go_on(torch.full((len(prompts),), token, device=rows.tokens_BT.device))
            here = list(after[way])
        else:
            rows = Rows.start(model, [[*prompt, *after[way]] for prompt in prompts])
        logits_BV = rows.read()
        assert logits_BV is not None  # nothing ends the pass early
        yield way, logits_BV
