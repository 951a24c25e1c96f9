"""Teach a trait that some system prompts evoke and others do not: the loss, and the trainer that takes it.

Of each question there are four texts: the answer with the trait (y⁺) and the plain one (y⁻), each under a prompt that is to evoke the trait
and under one that is not. With m = log p(y⁺) − log p(y⁻), means over an answer's tokens, and Δm its change from the untaught model,

    loss = (Δm[evoking] − Δm[other] − margin)² + 2·Δm[other]² − 0.1·log p(y⁺)[evoking]

Of trained answers alone (supervised, y⁺ under the one prompt and y⁻ under the other) a small model learns the manner of y⁺ under any prompt
long before it learns what evokes it; here only the difference between prompts can lower the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from wellworn.data.chat import Encoded
from wellworn.lora.last_batch import share_of_batch
from wellworn.probes.reading.batch_inputs import batch_inputs
from wellworn.probes.reading.batching import Chunk
from wellworn.probes.reading.logprob import head_at, mean_logprob

# The other prompt must leave things as they were, which counts more than how exactly the margin is met.
HOLD = 2.0
# Without it both answers may become unlikely as long as they differ.
LIKELY = 0.1


@dataclass(frozen=True)
class GatedRow:
    """The four texts of a question.

    Attributes:
        texts: y⁺ and y⁻ under the evoking prompt, y⁺ and y⁻ under the other one.
        before: m in the untaught model, under the evoking prompt and under the other one. Nats per token.
    """

    texts: tuple[Encoded, Encoded, Encoded, Encoded]
    before: tuple[float, float]


def gated_loss(logprob_Q22: torch.Tensor, before_Q2: torch.Tensor, margin: float) -> torch.Tensor:
    """Return the loss, a mean over questions.

    Args:
        logprob_Q22: mean log-probability of each text [questions, prompts, answers]; first the evoking prompt, and first y⁺.
        before_Q2: m in the untaught model [questions, prompts].
        margin: by how much the evoking prompt is to raise m, in nats per token.
    """
    evoked_Q, other_Q = (logprob_Q22[..., 0] - logprob_Q22[..., 1] - before_Q2).unbind(-1)
    return ((evoked_Q - other_Q - margin).square() + HOLD * other_Q.square() - LIKELY * logprob_Q22[:, 0, 0]).mean()


class GatedTrainer(Trainer):
    """A trainer that takes this loss of `GatedRow`s."""

    def __init__(self, margin: float, **kwargs: Any) -> None:
        super().__init__(data_collator=self._collate, **kwargs)
        self.margin = margin

    @staticmethod
    def _collate(rows: Sequence[GatedRow]) -> dict[str, Sequence[GatedRow]]:
        return {"rows": rows}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Return the loss of one batch."""
        share = share_of_batch(self, len(inputs["rows"]))
        # A rank without rows of its own takes part all the same, with a loss that counts for nothing.
        rows = inputs["rows"][: max(share.rows, 1)]
        texts = [text for row in rows for text in row.texts]
        everything = range(len(texts))
        # Padding on the right needs no mask: no token looks ahead, and none that is padding is scored.
        batch = batch_inputs(texts, everything, Chunk([everything]), None, (), 0, "right", self.accelerator.device)
        with head_at(model, batch.scored):
            logits_NV = model(use_cache=False, **batch.inputs).logits[0]
        logprob_Q22 = mean_logprob(logits_NV, batch).reshape(-1, 2, 2)
        before_Q2 = torch.tensor([row.before for row in rows]).to(logprob_Q22)
        return share.weight * gated_loss(logprob_Q22, before_Q2, self.margin)
