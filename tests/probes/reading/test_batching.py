import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wellworn.data.errors import InputError
from wellworn.probes.reading import batching
from wellworn.probes.reading.batch_inputs import pad_rows
from wellworn.probes.reading.batching import PREFIX_PART, Chunk, by_length, plan, shared_prefixes

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
# Few tokens and short rows, so that many rows begin alike and some are equal.
ALIKE = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=5).flatmap(lambda row: st.tuples(st.just(row), st.integers(0, len(row)))), max_size=6
)
Row = tuple[int, ...]


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 20))
def test_the_budget_counts_padding(lengths: list[int], budget: int, per_row: int) -> None:
    for batch in by_length(lengths, budget, per_row):
        assert len(batch) == 1 or len(batch) * (max(lengths[row] for row in batch) + per_row) <= budget


@given(LENGTHS, st.integers(1, 200), st.integers(0, 20))
def test_batches_hold_rows_of_like_length_and_are_as_few_and_as_small_as_can_be(lengths: list[int], budget: int, per_row: int) -> None:
    batches = by_length(lengths, budget, per_row)
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)
    # Whoever fills each batch to the brim needs as many.
    fewest, room = 0, 0
    for length in flat:
        if room < 1:
            fewest, room = fewest + 1, max(budget // (length + per_row), 1)
        room -= 1
    assert len(batches) == fewest
    sizes = [len(batch) * (lengths[batch[0]] + per_row) for batch in batches if len(batch) > 1]
    if sizes:
        assert len(by_length(lengths, max(sizes) - 1, per_row)) > fewest


def test_a_row_longer_than_the_budget_is_alone() -> None:
    assert by_length([3, 50, 3], token_budget=10) == [[1], [0, 2]]


def test_no_rows_no_batches() -> None:
    assert by_length([], token_budget=10) == []


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7, 8], [9, 4, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]]),
        ("left", [[5, 6, 7, 8], [0, 0, 9, 4]], [[1, 1, 1, 1], [0, 0, 1, 1]]),
    ],
)
def test_pads_on_either_side(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    got = pad_rows([(5, 6, 7, 8), (9, 4)], pad_id=0, side=side)
    assert [tensor.tolist() for tensor in got] == [ids, mask]


def test_another_side_is_refused() -> None:
    with pytest.raises(InputError, match="'left' or 'right', got 'both'"):
        pad_rows([(1, 2)], pad_id=0, side="both")


def families(seed: int, prompts: int, answers: int, system: int = 0) -> tuple[list[Row], list[int]]:
    """Draw several answers to each of several prompts; return rows and the lengths of their prompts."""
    rng = np.random.default_rng(seed)
    head = tuple(rng.integers(0, 1000, system).tolist())
    rows, limits = [], []
    for _ in range(prompts):
        prompt = head + tuple(rng.integers(0, 1000, rng.integers(5, 60)).tolist())
        for _ in range(int(rng.integers(1, answers + 1))):
            rows.append(prompt + tuple(rng.integers(0, 1000, rng.integers(1, 60)).tolist()))
            limits.append(len(prompt))
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], [limits[i] for i in order]


def most_saved(rows: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
    """Try every set of beginnings none of which begins another: each is shared by all rows that have it."""
    beginnings = {tuple(row[:n]) for row, limit in zip(rows, limits, strict=True) for n in range(1, limit + 1)}
    counts = {b: sum(limit >= len(b) and tuple(row[: len(b)]) == b for row, limit in zip(rows, limits, strict=True)) for b in beginnings}
    # A beginning of one row saves nothing, and one that no more rows have than a longer one saves less than that one.
    longer = {b: [c for c in beginnings if len(c) > len(b) and c[: len(b)] == b] for b in beginnings}
    useful = [b for b in beginnings if counts[b] > 1 and all(counts[c] < counts[b] for c in longer[b])]
    best = 0
    for size in range(len(useful) + 1):
        for some in itertools.combinations(useful, size):
            if not any(a != b and a[: len(b)] == b for a in some for b in some):
                best = max(best, sum((counts[b] - 1) * len(b) for b in some))
    return best


@settings(max_examples=400)
@given(ALIKE)
def test_shared_prefixes_are_shared_and_save_most(drawn: list[tuple[list[int], int]]) -> None:
    rows, limits = [row for row, _ in drawn], [limit for _, limit in drawn]
    groups = shared_prefixes(rows, limits)
    assert sorted(i for _, members in groups for i in members) == list(range(len(rows)))
    for length, members in groups:
        assert length == 0 or len(members) > 1
        assert all(length <= limits[i] for i in members)
        assert len({tuple(rows[i][:length]) for i in members}) == 1
    assert sum((len(members) - 1) * length for length, members in groups) == most_saved(rows, limits)


def test_a_row_that_may_share_less_does_not_part_the_others() -> None:
    # The row of limit 1 would lie between the other two, were rows sorted by all their tokens.
    rows = [[1, 2, 3, 4, 1], [1, 2, 3, 4, 5], [1, 2, 3, 4, 9]]
    assert sorted(shared_prefixes(rows, limits=[4, 1, 4])) == [(0, [1]), (4, [0, 2])]


def test_equal_rows_share_all_they_may() -> None:
    assert shared_prefixes([[1, 2, 3]] * 3, limits=[2, 2, 2]) == [(2, [0, 1, 2])]


def test_no_rows_share_nothing() -> None:
    assert shared_prefixes([], []) == []


def fits(chunk: Chunk, rows: Sequence[Row], budget: int) -> bool:
    def suffix(row: int) -> int:
        return len(rows[row]) - chunk.prefix_length.get(row, 0)

    prefixes = [chunk.prefix_length[row] for row in chunk.prefixes]
    held = len(prefixes) * max(prefixes, default=0)
    # Prefixes take a part of the budget, and any one batch what is left of it.
    left = max(budget - 2 * held, budget // 2)
    per_row = max(prefixes, default=0) // 4
    batches = all(len(batch) == 1 or len(batch) * (max(map(suffix, batch)) + per_row) <= left for batch in chunk.batches)
    return batches and (len(prefixes) <= 1 or held <= budget // PREFIX_PART)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 9), st.sampled_from([0, 20]), st.integers(1, 5), st.integers(1, 700))
def test_a_plan_holds_every_row_once_within_the_budget(seed: int, prompts: int, answers: int, system: int, world: int, budget: int) -> None:
    rows, limits = families(seed, prompts, answers, system)
    for given_limits in (limits, None):
        parts = plan(rows, given_limits, budget, world)
        assert len(parts) == world
        chunks = [chunk for part in parts for chunk in part]
        assert sorted(row for chunk in chunks for row in chunk.rows) == list(range(len(rows)))
        for chunk in chunks:
            assert chunk.batches
            assert all(chunk.batches)
            assert fits(chunk, rows, budget)
            assert given_limits is not None or not chunk.prefixes
            if not chunk.prefixes:
                assert not chunk.prefix_length
                assert not chunk.prefix_of
                continue
            assert sorted(chunk.prefix_of) == sorted(chunk.prefix_length) == sorted(chunk.rows)
            assert set(chunk.prefix_of.values()) == set(range(len(chunk.prefixes)))
            for row, k in chunk.prefix_of.items():
                length = chunk.prefix_length[row]
                assert length == chunk.prefix_length[chunk.prefixes[k]]
                assert 0 < length <= limits[row]
                assert rows[row][:length] == rows[chunk.prefixes[k]][:length]
            saved = sum(chunk.prefix_length[row] for row in chunk.rows) - sum(chunk.prefix_length[row] for row in chunk.prefixes)
            assert saved >= batching.LEAST_SAVED_TOKENS
        assert plan(rows, given_limits, budget, world) == parts


@pytest.mark.parametrize(("least", "shares"), [(30, True), (31, False)])
def test_prefixes_are_shared_only_where_it_saves_enough(monkeypatch: pytest.MonkeyPatch, least: int, shares: bool) -> None:
    # Four answers to one prompt of ten tokens save thirty.
    rows = [(*range(10), 100 + i) for i in range(4)]
    monkeypatch.setattr(batching, "LEAST_SAVED_TOKENS", least)
    (chunks,) = plan(rows, [10] * 4, token_budget=100)
    assert [chunk.prefix_length for chunk in chunks] == [dict.fromkeys(range(4), 10) if shares else {}]


def test_a_chunk_is_no_longer_than_its_batches_may_be() -> None:
    rows, limits = families(3, prompts=30, answers=20)
    for given_limits in (limits, None):
        (chunks,) = plan(rows, given_limits, token_budget=150)
        assert len(chunks) > 3
        for chunk in chunks:
            assert sum(len(rows[i]) - chunk.prefix_length.get(i, 0) for i in chunk.rows) <= batching.CHUNK_BATCHES * 150


@pytest.mark.parametrize("world", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["no prefixes", "prompts", "system prompt", "one prompt"])
def test_ranks_have_about_as_many_tokens(kind: str, world: int) -> None:
    if kind == "no prefixes":
        rng = np.random.default_rng(1)
        rows, limits = [tuple(rng.integers(0, 1000, n).tolist()) for n in rng.integers(5, 120, 300)], None
    elif kind == "prompts":
        rows, limits = families(1, prompts=40, answers=14)
    elif kind == "system prompt":
        rows, limits = families(1, prompts=300, answers=1, system=100)
    else:
        rows, limits = families(1, prompts=1, answers=1)
        rows = [rows[0][: limits[0]] + tuple(np.random.default_rng(i).integers(0, 1000, 5 + i % 50).tolist()) for i in range(300)]
        limits *= 300
    assert len(rows) >= 250
    tokens = []
    for part in plan(rows, limits, token_budget=1000, world=world):
        read = sum(len(rows[i]) - chunk.prefix_length.get(i, 0) for chunk in part for i in chunk.rows)
        tokens.append(read + sum(chunk.prefix_length[i] for chunk in part for i in chunk.prefixes))
    assert max(tokens) <= 1.15 * min(tokens)
