"""Score text: the head at the tokens that matter alone, and the mean log-probability of each row's response, or of parts of it."""

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

    def choose(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        h_BTD, *rest = args
        slots, positions = (each.to(h_BTD.device) for each in scored)
        return (h_BTD[slots, positions][None], *rest)

    handle = unwrap(model).get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_at_one(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the head see one position, where its result is not needed.

    `logits_to_keep` would do for most models; those whose upper blocks share keys then compute these at the positions kept alone.
    """
    zero = torch.zeros(1, dtype=torch.long, device=device)
    with head_at(model, (zero, zero)):
        yield


def mean_logprob(logits_NV: torch.Tensor, batch: BatchInputs) -> torch.Tensor:
    """Return the mean log-probability of each row's response tokens [B], float32."""
    return part_logprobs(logits_NV, batch, torch.zeros_like(batch.targets_N), 1)[:, 0]


def part_logprobs(logits_NV: torch.Tensor, batch: BatchInputs, parts_N: torch.Tensor, count: int) -> torch.Tensor:
    """Return what each of several parts of a row's response adds to its mean log-probability a token; the sum over parts is that mean.

    Args:
        logits_NV: at the scored positions.
        batch: the rows.
        parts_N: the part of each scored token, 0 to count − 1.
        count: of parts.

    Returns:
        [B, count], float32.
    """
    pieces = []
    for logits, targets in zip(logits_NV.split(LOGIT_ROWS), batch.targets_N.split(LOGIT_ROWS), strict=True):
        logits = logits.float()
        pieces.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1))
    sums = torch.zeros(len(batch.rows) * count, device=logits_NV.device)
    return sums.index_add_(0, batch.scored[0] * count + parts_N, torch.cat(pieces) * batch.shares_N).view(-1, count)
