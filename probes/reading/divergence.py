"""How far a changed model's predictions are from another's on fixed text, token by token."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from wellworn.data.chat import Encoded
from wellworn.probes.reading.batch_inputs import batch_inputs
from wellworn.probes.reading.batching import Chunk, by_length
from wellworn.probes.reading.capture import check_rows
from wellworn.probes.reading.hooks import hooked
from wellworn.probes.reading.logprob import head_at
from wellworn.probes.reading.onednn import fast_matmul
from wellworn.probes.reading.variants import Variant, applied
from wellworn.probes.statistics.intervals import FloatArray

# The whole vocabulary is held for every scored token, twice.
TOKENS = 512


@torch.no_grad()
def kl_divergence(model: nn.Module, rows: Sequence[Encoded], changed: Variant, reference: Variant, pad_id: int) -> FloatArray:
    """Return KL(changed ‖ reference) of the next token, in nats, mean over each row's response tokens: [rows].

    Exact, over the whole vocabulary. Only response tokens count, each predicted from the true text before it.

    Args:
        model: a causal LM in eval mode that holds the adapters.
        rows: encoded conversations.
        changed: how the changed model is run.
        reference: the other.
        pad_id: any valid token id.

    Raises:
        InputError: a row that does not fit the model, or an unknown adapter.
    """
    check_rows(model, rows, ("response",))
    device = next(model.parameters()).device
    found = np.zeros(len(rows))
    for members in by_length([len(row) for row in rows], TOKENS):
        # Padding on the right needs no mask: no token looks ahead.
        batch = batch_inputs(rows, members, Chunk([members]), None, (), pad_id, "right", device)
        logprobs = []
        for variant in (changed, reference):
            with applied(model, variant), hooked(model, variant.edits), head_at(model, batch.scored), fast_matmul():
                logprobs.append(model(use_cache=False, **batch.inputs).logits[0].float().log_softmax(-1))
        mine_NV, theirs_NV = logprobs
        kl_N = (mine_NV.exp() * (mine_NV - theirs_NV)).sum(-1)
        found[members] = torch.zeros(len(members), device=device).index_add_(0, batch.scored[0], kl_N * batch.shares_N).cpu().numpy()
    return found
