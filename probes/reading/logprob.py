"""Score text: the head at the tokens that matter alone, and the mean log-probability of each row's response."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from wellworn.probes.reading.batch_inputs import BatchInputs
from wellworn.probes.reading.layers import unwrap

# Logits of this many positions at a time are turned into log-probabilities.
LOGIT_ROWS = 256


@contextmanager
def head_at(model: nn.Module, scored: tuple[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """Let the head see the scored positions alone, of all rows in one: logits become [1, N, vocabulary].

    Args:
        model: a causal LM, wrapped or not.
        scored: slots and positions, as in `BatchInputs`.
    """
    head = unwrap(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0][scored][None], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def mean_logprob(logits_NV: torch.Tensor, batch: BatchInputs) -> torch.Tensor:
    """Return the mean log-probability of each row's response tokens [B], float32."""
    pieces = []
    for logits, targets in zip(logits_NV.split(LOGIT_ROWS), batch.targets_N.split(LOGIT_ROWS), strict=True):
        logits = logits.float()
        pieces.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1))
    means = torch.zeros(len(batch.rows), device=logits_NV.device)
    return means.index_add_(0, batch.scored[0], torch.cat(pieces) * batch.shares_N)
