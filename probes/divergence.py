"""How far a changed model's predictions are from another's on fixed text, token by token."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from data.chat import Encoded
from probes.batching import by_length
from probes.capture import check_rows
from probes.hooks import hooked
from probes.inputs import padded
from probes.logprob import head_at
from probes.matmul import fast_matmul
from probes.stats import FloatArray
from probes.variants import Variant, applied

# Of every scored token the whole vocabulary is held, twice.
TOKENS = 512


@torch.no_grad()
def kl_divergence(model: nn.Module, rows: Sequence[Encoded], changed: Variant, reference: Variant, pad_id: int) -> FloatArray:
    """Return KL(changed ‖ reference) of the next token, in nats, mean over each row's response tokens: [rows].

    Exact, over the whole vocabulary. Response tokens alone are looked at, each predicted from the true text before it.

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
    for batch in by_length([len(row) for row in rows], TOKENS):
        ids = padded([rows[i].input_ids for i in batch], pad_id)[0].to(device)
        places = [(b, t - 1) for b, i in enumerate(batch) for t in range(*rows[i].spans["response"])]
        slots, positions = (torch.tensor(each, device=device) for each in zip(*places, strict=True))
        logprobs = []
        for variant in (changed, reference):
            # Padding on the right needs no mask: no token looks ahead.
            with applied(model, variant), hooked(model, variant.edits), head_at(model, (slots, positions)), fast_matmul():
                logprobs.append(model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1))
        mine_NV, theirs_NV = logprobs
        kl_N = (mine_NV.exp() * (mine_NV - theirs_NV)).sum(-1).cpu().numpy()
        counts = np.bincount(slots.cpu().numpy(), minlength=len(batch))
        found[batch] = np.bincount(slots.cpu().numpy(), kl_N, len(batch)) / counts
    return found
