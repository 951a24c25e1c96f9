"""Batches: rows of like length, and rows that begin alike, are read together.

Conversations often begin with the same tokens: a system prompt, or a whole prompt that was answered many
times. In a causal model later tokens cannot change earlier states, so such a beginning is computed once.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# A chunk's rows share one pass over their prefixes, one switch of adapters and one saved file.
CHUNK_BATCHES = 8
# A pass over prefixes that saves fewer tokens than this costs more than it saves (experiments/bench/README.md).
LEAST_SAVED_TOKENS = 128
# The part of the token budget that the prefixes of a chunk may take.
PREFIX_PART = 4
# Rows of one prefix may be dealt to several ranks, in pieces of this part of a rank's share.
PIECES_PER_RANK = 8

Tokens = Sequence[int]


@dataclass(frozen=True)
class Chunk:
    """Rows that are read together.

    Attributes:
        batches: row indices, those of like length together.
        prefix_length: row → how many of its first tokens are read once for all rows that share them;
            rows that are absent share nothing.
        prefixes: one row for each distinct prefix; the prefix is its first `prefix_length` tokens.
        prefix_of: row → index into `prefixes`.
    """

    batches: Sequence[Sequence[int]]
    prefix_length: dict[int, int] = field(default_factory=dict)
    prefixes: Sequence[int] = ()
    prefix_of: dict[int, int] = field(default_factory=dict)

    @property
    def rows(self) -> list[int]:
        """All rows of the chunk."""
        return [row for batch in self.batches for row in batch]


def by_length(lengths: Sequence[int], token_budget: int, per_row: int = 0) -> list[list[int]]:
    """Group row indices into batches of like length, longest first: as few as the budget allows, and then as small as that allows.

    Args:
        lengths: tokens of each row.
        token_budget: a batch's rows times its longest row stays within this; a single longer row
            is a batch of its own.
        per_row: tokens of the budget that a row takes in addition to its own.

    Returns:
        Lists of row indices; together they hold every row once.

    Example:
        >>> by_length([3, 9, 4], token_budget=10)
        [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = [length + per_row for length in lengths]
    fewest = len(_fill(order, sizes, token_budget))
    # A larger budget never makes more batches, so the least that makes no more is found by halving.
    budgets = range(token_budget + 1)
    least = bisect.bisect_left(budgets, True, key=lambda budget: len(_fill(order, sizes, budget)) <= fewest)
    return _fill(order, sizes, least)


def _fill(order: Sequence[int], sizes: Sequence[int], token_budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * sizes[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def plan(rows: Sequence[Tokens], limits: Sequence[int] | None, token_budget: int, world: int = 1, per_row: int = 0) -> list[list[Chunk]]:
    """Plan which rank reads which rows, and in which order.

    Args:
        rows: the tokens of each conversation.
        limits: how many of a row's first tokens may be read apart from the rest of it; None where
            prefixes are not to be shared.
        token_budget: tokens of one forward pass, padding included.
        world: number of ranks.
        per_row: tokens of the budget that a row takes in addition to its own.

    Returns:
        The chunks of each rank. Together they hold every row once, and every rank has about as many tokens.
    """
    groups = shared_prefixes(rows, limits) if limits is not None else [(0, list(range(len(rows))))]
    return [_chunks(part, rows, token_budget, per_row) for part in _dealt(groups, rows, world)]


def shared_prefixes(rows: Sequence[Tokens], limits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Part rows into groups that begin alike, so that as many tokens as possible are read only once.

    Groups of groups are not made: a row shares one prefix, the one that saves most.

    Args:
        rows: the tokens of each row.
        limits: the longest prefix that each row may share.

    Returns:
        (prefix length, rows) of each group; a row that shares nothing is alone in a group of length 0.

    Example:
        >>> shared_prefixes([[1, 2, 3], [1, 2, 4], [7]], limits=[2, 2, 0])
        [(2, [0, 1]), (0, [2])]
    """
    order = sorted(range(len(rows)), key=lambda i: (tuple(rows[i][: limits[i]]), i))
    sorted_rows = [np.asarray(rows[i][: limits[i]]) for i in order]
    common = [_common(a, b) for a, b in itertools.pairwise(sorted_rows)]
    # Rows in sorted order are the leaves of a tree whose nodes are shared beginnings. Each node, once all
    # its rows are known, either shares its own prefix or leaves its parts as they are, whichever saves more.
    open_nodes = [_Node(depth=0, start=0)]
    for leaf in range(len(order)):
        depth = common[leaf] if leaf < len(common) else 0
        closed = _Grouping(0, [(0, leaf, leaf + 1)])
        start = leaf
        while open_nodes[-1].depth > depth:
            node = open_nodes.pop()
            closed, start = node.close(closed, leaf + 1), node.start
        if open_nodes[-1].depth < depth:
            open_nodes.append(_Node(depth, start))
        open_nodes[-1].parts.append(closed)
    groups = [group for part in open_nodes[0].parts for group in part.groups]
    return [(length, [order[i] for i in range(start, end)]) for length, start, end in groups]


@dataclass(frozen=True)
class _Grouping:
    saved: int
    groups: list[tuple[int, int, int]]  # (prefix length, first leaf, last leaf + 1)


@dataclass(frozen=True)
class _Node:
    depth: int
    start: int
    parts: list[_Grouping] = field(default_factory=list)

    def close(self, last: _Grouping, end: int) -> _Grouping:
        parts = [*self.parts, last]
        whole = (end - self.start - 1) * self.depth
        if whole >= sum(part.saved for part in parts):
            return _Grouping(whole, [(self.depth, self.start, end)])
        return _Grouping(sum(part.saved for part in parts), [group for part in parts for group in part.groups])


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


Group = tuple[int, list[int]]


def _dealt(groups: Sequence[Group], rows: Sequence[Tokens], world: int) -> list[list[Group]]:
    """Deal groups to ranks, largest first, each to the rank that has least to read so far."""
    if world == 1:
        return [list(groups)]

    def cost(group: Group) -> int:
        return group[0] + sum(len(rows[i]) - group[0] for i in group[1])

    piece = max(1, sum(map(cost, groups)) // (world * PIECES_PER_RANK))
    pieces: list[Group] = []
    for length, members in groups:
        # Cut a group across its lengths, so that every piece has short rows and long ones.
        count = min(len(members), -(-cost((length, members)) // piece))
        by_size = sorted(members, key=lambda i: (-len(rows[i]), i))
        pieces += [(length, by_size[k::count]) for k in range(count)]
    parts: list[list[Group]] = [[] for _ in range(world)]
    load = [0] * world
    for each in sorted(pieces, key=lambda group: (-cost(group), group[1][0])):
        rank = load.index(min(load))
        parts[rank].append(each)
        load[rank] += cost(each)
    return parts


def _chunks(groups: Sequence[Group], rows: Sequence[Tokens], token_budget: int, per_row: int) -> list[Chunk]:
    room = CHUNK_BATCHES * token_budget
    plain = [i for length, members in groups if length == 0 for i in members]
    chunks: list[Chunk] = []
    gathered: list[Group] = []

    def close() -> None:
        if saved_tokens(gathered) >= LEAST_SAVED_TOKENS:
            chunks.append(_shared_chunk(gathered, rows, token_budget, per_row))
        else:
            plain.extend(i for _, members in gathered for i in members)
        gathered.clear()

    def saved_tokens(some: Sequence[Group]) -> int:
        return sum(length * (len(members) - 1) for length, members in some)

    used = longest = 0
    for length, members in groups:
        if length == 0:
            continue
        for part in _cut(length, members, rows, room):
            size = sum(len(rows[i]) - length for i in part)
            full = used + size > room or (len(gathered) + 1) * max(longest, length) > token_budget // PREFIX_PART
            if gathered and full:
                close()
                used = longest = 0
            gathered.append((length, part))
            used, longest = used + size, max(longest, length)
    close()
    batches = by_length([len(rows[i]) for i in plain], token_budget, per_row)
    named = [[plain[k] for k in batch] for batch in batches]
    return chunks + [Chunk(named[k : k + CHUNK_BATCHES]) for k in range(0, len(named), CHUNK_BATCHES)]


def _cut(length: int, members: Sequence[int], rows: Sequence[Tokens], room: int) -> Iterator[list[int]]:
    part: list[int] = []
    used = 0
    for i in sorted(members, key=lambda i: (-len(rows[i]), i)):
        size = len(rows[i]) - length
        if part and used + size > room:
            yield part
            part, used = [], 0
        part.append(i)
        used += size
    if part:
        yield part


def _shared_chunk(groups: Sequence[Group], rows: Sequence[Tokens], token_budget: int, per_row: int) -> Chunk:
    members = [i for _, part in groups for i in part]
    lengths = {i: length for length, part in groups for i in part}
    # Keys and values of a prefix take up to twice the memory that a pass over as many tokens takes.
    longest = max(lengths.values())
    left = max(token_budget - 2 * len(groups) * longest, token_budget // 2)
    # Of its prefix each row has a copy of its own, of one layer at a time.
    batches = by_length([len(rows[i]) - lengths[i] for i in members], left, per_row + longest // 4)
    return Chunk(
        batches=[[members[k] for k in batch] for batch in batches],
        prefix_length=lengths,
        prefixes=[part[0] for _, part in groups],
        prefix_of={i: k for k, (_, part) in enumerate(groups) for i in part},
    )
