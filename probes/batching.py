"""Batches of like length under a token budget."""

from collections.abc import Sequence

import torch

from data.chat import Encoded
from data.errors import InputError


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group row indices into batches of like length, longest first.

    Args:
        lengths: tokens of each row.
        token_budget: a batch's rows times its longest row stays within this; a single longer row
            is a batch of its own.

    Returns:
        Lists of row indices; together they hold every row once.

    Example:
        >>> by_length([3, 9, 4], token_budget=10)
        [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device, side: str = "right") -> dict[str, torch.Tensor]:
    """Pad rows to one length.

    Returns:
        `input_ids`, `attention_mask` and `position_ids`, each [batch, tokens]. Positions count real
        tokens only, so that the padding side changes no result.

    Raises:
        InputError: `side` is neither left nor right.
    """
    if side not in ("left", "right"):
        raise InputError(f"padding side: may be 'left' or 'right', got {side!r}")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where] = torch.tensor(row.input_ids)
        mask[i, where] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {
        name: tensor.to(device, non_blocking=True)
        for name, tensor in {"input_ids": ids, "attention_mask": mask, "position_ids": positions}.items()
    }
