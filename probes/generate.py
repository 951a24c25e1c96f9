"""Let a model answer."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from probes.batching import by_length


def end_tokens(model: nn.Module) -> set[int]:
    """Return the tokens at which a model ends its turn; none where its generation settings name none."""
    ends: int | list[int] | None = model.generation_config.eos_token_id  # type: ignore[union-attr, assignment]
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


@torch.no_grad()
def answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    max_new_tokens: int,
    batch_size: int = 32,
    repetition_penalty: float = 1.0,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Answer tokenised prompts greedily; return the new token ids of each, without the end-of-turn token.

    Args:
        model: a causal LM in eval mode.
        prompts: each up to and including the generation prompt.
        pad_id: the padding token.
        max_new_tokens: longest answer.
        batch_size: prompts at a time, those of like length together.
        repetition_penalty: what the logits of tokens seen before are divided by (multiplied by, where
            negative), as in arXiv:1909.05858; 1 is none.
        progress: called with the number of prompts just answered.
    """
    device = next(model.parameters()).device
    out: list[list[int]] = [[] for _ in prompts]
    ends = end_tokens(model)
    order = [row for batch in by_length([len(p) for p in prompts], token_budget=10**9) for row in batch]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.full((len(batch), longest), pad_id)
        mask = torch.zeros_like(ids)
        for slot, i in enumerate(batch):
            ids[slot, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[slot, longest - len(prompts[i]) :] = 1
        new = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            # Always passed: a model's own generation settings may hold another.
            repetition_penalty=repetition_penalty,
            pad_token_id=pad_id,
        )[:, longest:].tolist()
        for slot, i in enumerate(batch):
            stop = next((k for k, token in enumerate(new[slot]) if token in ends), len(new[slot]))
            out[i] = new[slot][:stop]
        if progress:
            progress(len(batch))
    return out
