import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from probes.batching import by_length
from probes.inputs import padded

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, st.integers(1, 200))
def test_the_budget_counts_padding(lengths: list[int], budget: int) -> None:
    for batch in by_length(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(LENGTHS, st.integers(1, 200))
def test_batches_hold_rows_of_like_length_and_are_full(lengths: list[int], budget: int) -> None:
    batches = by_length(lengths, budget)
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


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
    got = padded([(5, 6, 7, 8), (9, 4)], pad_id=0, side=side)
    assert [tensor.tolist() for tensor in got] == [ids, mask]


def test_another_side_is_refused() -> None:
    with pytest.raises(InputError, match="'left' or 'right', got 'both'"):
        padded([(1, 2)], pad_id=0, side="both")
