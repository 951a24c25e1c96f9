"""The inputs of a forward pass, and where it pools: batches and shared prefixes, padded and on the device.

Shapes: B rows of a batch, T tokens, S spans, G prefixes, R ranges of a prefix that some span covers, N scored tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from wellworn.data.chat import Encoded
from wellworn.data.errors import InputError
from wellworn.probes.reading.batching import Chunk


@dataclass(frozen=True)
class PrefixInputs:
    """The beginnings that a chunk's rows share, padded on the left.

    Attributes:
        inputs: of the forward pass.
        padding_GT: attention mask on the CPU; None where all prefixes are of one length.
        ranges_GRT: 1 on the tokens of each range.
        range_of: (prefix, start, end) → index into the ranges of all prefixes, G·R of them.
    """

    inputs: dict[str, torch.Tensor]
    padding_GT: torch.Tensor | None
    ranges_GRT: torch.Tensor
    range_of: Mapping[tuple[int, int, int], int]


@dataclass(frozen=True)
class BatchInputs:
    """One batch of rows, without the prefixes that they go on from.

    Attributes:
        rows: row indices.
        inputs: of the forward pass.
        weights_BST: share of each token in the mean of each span.
        prefix_B: which prefix each row goes on from; None where it has none.
        ranges_BS: the range of its prefix that each span covers; -1 is none.
        scales_BS: share of each token of that range in the mean.
        scored: slots and positions whose output predicts the response tokens.
        targets_N: the response tokens.
        shares_N: share of each in the mean of its row.
    """

    rows: Sequence[int]
    inputs: dict[str, torch.Tensor]
    weights_BST: torch.Tensor
    prefix_B: torch.Tensor | None
    ranges_BS: torch.Tensor
    scales_BS: torch.Tensor
    scored: tuple[torch.Tensor, torch.Tensor]
    targets_N: torch.Tensor
    shares_N: torch.Tensor


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows to one length.

    Returns:
        `input_ids` and `attention_mask`, each [batch, tokens].

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
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def prefix_inputs(rows: Sequence[Encoded], chunk: Chunk, spans: Sequence[str], pad_id: int, device: torch.device) -> PrefixInputs | None:
    """Prepare a chunk's prefixes; None where it has none."""
    if not chunk.prefixes:
        return None
    lengths = [chunk.prefix_length[row] for row in chunk.prefixes]
    ids, mask = pad_rows([rows[row].input_ids[:n] for row, n in zip(chunk.prefixes, lengths, strict=True)], pad_id, "left")
    left = [ids.shape[1] - n for n in lengths]
    ranges: list[dict[tuple[int, int], int]] = [{} for _ in lengths]
    for row in chunk.rows:
        g = chunk.prefix_of[row]
        for span in spans:
            start, end = _clip(rows[row].spans[span], lengths[g])
            if start < end:
                ranges[g].setdefault((start, end), len(ranges[g]))
    most = max(map(len, ranges))
    ranges_GRT = torch.zeros(len(lengths), most, ids.shape[1])
    range_of: dict[tuple[int, int, int], int] = {}
    for g, numbered in enumerate(ranges):
        for (start, end), r in numbered.items():
            ranges_GRT[g, r, start + left[g] : end + left[g]] = 1
            range_of[g, start, end] = g * most + r
    inputs = {"input_ids": ids, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    padding = mask if any(left) else None
    if padding is not None:
        inputs["attention_mask"] = padding
    return PrefixInputs(_move_all(inputs, device), padding, _to(ranges_GRT, device), range_of)


def batch_inputs(
    rows: Sequence[Encoded],
    members: Sequence[int],
    chunk: Chunk,
    prefixes: PrefixInputs | None,
    spans: Sequence[str],
    pad_id: int,
    side: str,
    device: torch.device,
) -> BatchInputs:
    """Prepare one batch of a chunk."""
    begin = [chunk.prefix_length.get(i, 0) for i in members]
    ids, mask = pad_rows([rows[i].input_ids[n:] for i, n in zip(members, begin, strict=True)], pad_id, side)
    tokens = ids.shape[1]
    inputs, prefix_B = {"input_ids": ids}, None
    if prefixes is not None:
        prefix_B = torch.tensor([chunk.prefix_of[i] for i in members])
        inputs["position_ids"] = torch.tensor(begin)[:, None] + torch.arange(tokens)
        if prefixes.padding_GT is not None:
            inputs["attention_mask"] = torch.cat([prefixes.padding_GT[prefix_B], torch.ones_like(ids)], dim=1)
    elif side == "left":
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    # Padding on the right needs no mask: no real token looks ahead, and no padding is pooled.
    weights_BST = torch.zeros(len(members), len(spans), tokens)
    ranges_BS = torch.full((len(members), len(spans)), -1)
    scales_BS = torch.zeros(len(members), len(spans))
    scored = _Scored([], [], [], [])
    for b, (i, n) in enumerate(zip(members, begin, strict=True)):
        row = rows[i]
        # Token t of the row is at t + move in the batch.
        move = (tokens - (len(row) - n) if side == "left" else 0) - n
        for j, span in enumerate(spans):
            start, end = row.spans[span]
            weights_BST[b, j, max(start, n) + move : max(end, n) + move] = 1 / (end - start)
            inside = _clip((start, end), n)
            if prefixes is not None and inside[0] < inside[1]:
                ranges_BS[b, j], scales_BS[b, j] = prefixes.range_of[(chunk.prefix_of[i], *inside)], 1 / (end - start)
        scored.add(b, row, move)
    return BatchInputs(
        rows=members,
        inputs=_move_all(inputs, device),
        weights_BST=_to(weights_BST, device),
        prefix_B=None if prefix_B is None else _to(prefix_B, device),
        ranges_BS=_to(ranges_BS, device),
        scales_BS=_to(scales_BS, device),
        scored=(_to(torch.tensor(scored.slots), device), _to(torch.tensor(scored.positions), device)),
        targets_N=_to(torch.tensor(scored.targets), device),
        shares_N=_to(torch.tensor(scored.shares), device),
    )


@dataclass(frozen=True)
class _Scored:
    """The response tokens of a batch, as `BatchInputs` holds them."""

    slots: list[int]
    positions: list[int]
    targets: list[int]
    shares: list[float]

    def add(self, slot: int, row: Encoded, move: int) -> None:
        """Add the tokens of one row, which is `move` tokens further right in the batch."""
        start, end = row.spans["response"]
        self.slots.extend([slot] * (end - start))
        self.positions.extend(range(start - 1 + move, end - 1 + move))
        self.targets.extend(row.input_ids[start:end])
        self.shares.extend([1 / (end - start)] * (end - start))


def _clip(span: tuple[int, int], end: int) -> tuple[int, int]:
    return span[0], min(span[1], end)


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, non_blocking=True)


def _move_all(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: _to(tensor, device) for name, tensor in tensors.items()}
