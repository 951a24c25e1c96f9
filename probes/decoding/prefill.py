"""Prefill: read many prompts except the last token of each; prompts of like length together, and shared beginnings once."""

from collections.abc import Callable, Iterator, Sequence

import psutil
import torch
from torch import nn

from wellworn.probes.decoding.kv_cache import CacheSlice, GrowingCache, put_together
from wellworn.probes.decoding.rows import Rows
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import LEAST_SAVED_TOKENS, by_length, shared_prefixes
from wellworn.probes.reading.hooks import forward
from wellworn.probes.reading.layers import text_config, unwrap

# Tokens of one pass. More are slower on a CPU: the pass no longer fits its cache.
PASS_TOKENS = 2048

Prompts = Sequence[Sequence[int]]
# How many rows of a pass belong to which variant, by its index, in the order of the rows.
Runs = Sequence[tuple[int, int]]
SetRuns = Callable[[Runs], None]


def prefill(model: nn.Module, prompts: Prompts, runs: Runs, set_runs: SetRuns) -> Rows:
    """Return rows that have read their prompts except the last token; if the model cannot share, they have read nothing.

    Args:
        model: a causal LM in eval mode.
        prompts: of the rows.
        runs: which variant they belong to.
        set_runs: sets which variant the rows of each pass belong to.
    """
    rows = Rows.start(model, prompts)
    if not rows.kept.joins:
        return rows
    parts, start = [], 0
    for kind, count in runs:
        # More tokens than rows are read here, so variants gain nothing by being read together.
        set_runs([(kind, count)])
        for members, cache in _passes(model, [prompt[:-1] for prompt in prompts[start : start + count]]):
            ends = torch.tensor([len(prompts[start + i]) - 1 for i in members])
            parts.append(CacheSlice(cache, torch.tensor(members) + start, ends))
        start += count
    rows.cache, rows.unread = put_together(parts, len(prompts), rows.tokens_BT.shape[1] - 1), 1
    return rows


def rows_that_fit(model: nn.Module, tokens: int) -> int:
    """Return how many rows of so many tokens memory has room for, at least one: a third of what is free may hold keys and values."""
    config = text_config(model)
    # A model may be spread over several devices; the fullest of them decides.
    devices = {weight.device for weight in model.parameters()}
    free = min(torch.cuda.mem_get_info(each)[0] if each.type == "cuda" else psutil.virtual_memory().available for each in devices)
    heads = getattr(config, "num_attention_heads", None)
    # Blocks without attention hold about this much while they read a prompt.
    width = config.hidden_size
    if heads:
        width = (getattr(config, "num_key_value_heads", None) or heads) * (getattr(config, "head_dim", None) or width // heads)
    size = torch.finfo(unwrap(model).dtype).bits // 8
    return max(1, int(free // (3 * 2 * config.num_hidden_layers * width * size * tokens)))


def _passes(model: nn.Module, prompts: Prompts) -> Iterator[tuple[list[int], GrowingCache]]:
    """Read prompts pass by pass; yield which they were, and their keys and values, padded on the right.

    Padding on the right needs no mask: no token attends ahead, and entries are contiguous also after a shared beginning, as sliding windows
    need.
    """
    lengths = [len(prompt) for prompt in prompts]
    groups = shared_prefixes(prompts, [max(0, length - 1) for length in lengths])
    shared = [(common, members) for common, members in groups if common * (len(members) - 1) >= LEAST_SAVED_TOKENS]
    known = {i for _, members in shared for i in members}
    alone = [i for i, length in enumerate(lengths) if length and i not in known]
    for common, members in [*shared, (0, alone)]:
        beginning = GrowingCache()
        if common:
            _read(model, beginning, [prompts[members[0]][:common]], 0)
        for batch in by_length([lengths[i] - common for i in members], PASS_TOKENS):
            some = [members[k] for k in batch]
            cache = beginning.for_rows(len(some))
            _read(model, cache, [prompts[i][common:] for i in some], common)
            yield some, cache


def _read(model: nn.Module, cache: GrowingCache, prompts: Prompts, start: int) -> None:
    """Read prompts from a position on, after what the cache holds."""
    ids = pad_rows(prompts, 0)[0].to(next(model.parameters()).device)
    positions = (start + torch.arange(ids.shape[1], device=ids.device)).expand_as(ids)
    # The logits after these tokens are not needed: the head gets as few positions as possible.
    forward(model, {}, False, input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
