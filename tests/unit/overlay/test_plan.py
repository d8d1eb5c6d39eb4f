"""What reads and writes of a range mean for its blocks."""

import pytest

from imagefs.overlay import plan
from imagefs.overlay.block_map import BASE, DATA, PAGE_BLOCKS, ZERO
from imagefs.units import BLOCK

NOISE = bytes(range(1, 129)) * 32


def test_runs_are_cut_at_the_range() -> None:
    """Neighbours in one state make one run; the first and the last run end where the range does."""
    states = bytes([BASE, BASE, DATA, ZERO, ZERO])
    start, stop = 7 * BLOCK + 10, 12 * BLOCK - 3
    assert list(plan.runs(states, start, stop)) == [
        (BASE, start, 9 * BLOCK),
        (DATA, 9 * BLOCK, 10 * BLOCK),
        (ZERO, 10 * BLOCK, stop),
    ]


def test_runs_within_one_block() -> None:
    """A range within a block is one run."""
    assert list(plan.runs(bytes([DATA]), BLOCK + 5, BLOCK + 9)) == [(DATA, BLOCK + 5, BLOCK + 9)]


@pytest.mark.parametrize(
    ("start", "stop", "blocks"),
    [
        (0, BLOCK, []),
        (0, 3 * BLOCK, []),
        (1, BLOCK, [0]),
        (0, 1, [0]),
        (5, 9, [0]),
        (5, BLOCK + 9, [0, 1]),
        (5, 2 * BLOCK + 9, [0, 2]),
        (9 * BLOCK, 9 * BLOCK + 100, []),
        (9 * BLOCK, 9 * BLOCK + 99, [9]),
        (9 * BLOCK + 1, 9 * BLOCK + 100, [9]),
        (8 * BLOCK + 1, 9 * BLOCK + 100, [8]),
    ],
)
def test_partial_blocks(start: int, stop: int, blocks: list[int]) -> None:
    """Only blocks that keep some of their bytes are partial, and a short last block has no bytes behind the disk's end."""
    assert plan.partial_blocks(start, stop, 9 * BLOCK + 100) == blocks


@pytest.mark.parametrize(
    ("before", "start", "body", "empty_base", "after"),
    [
        ([BASE], 0, NOISE, False, [DATA]),
        ([BASE], 0, bytes(BLOCK), False, [ZERO]),
        ([BASE], 0, bytes(BLOCK), True, [BASE]),
        ([ZERO], 0, bytes(BLOCK), True, [ZERO]),
        ([DATA], 0, bytes(BLOCK), False, [DATA]),
        ([ZERO], 0, bytes(BLOCK), False, [ZERO]),
        ([ZERO], 10, bytes(20), False, [DATA]),
        ([BASE, BASE], 10, bytes(BLOCK), False, [DATA, DATA]),
        ([BASE, BASE, BASE], 10, bytes(2 * BLOCK), False, [DATA, ZERO, DATA]),
        ([BASE, BASE, ZERO], 0, bytes(BLOCK) + NOISE + bytes(BLOCK), False, [ZERO, DATA, ZERO]),
        ([BASE, BASE], 2 * BLOCK, bytes(BLOCK) + bytes(100), False, [ZERO, DATA]),
    ],
)
def test_states_after_a_write(before: list[int], start: int, body: bytes, empty_base: bool, after: list[int]) -> None:
    """Whole blocks of zeros are not stored unless data is there already; everything else is data."""
    assert list(plan.states_after_write(bytes(before), start, body, empty_base)) == after


def test_states_after_zeroing() -> None:
    """Data becomes zero; what was never written stays base only where that is zeros."""
    states = bytes([BASE, DATA, ZERO])
    assert list(plan.states_after_zeroing(states, empty_base=False)) == [ZERO, ZERO, ZERO]
    assert list(plan.states_after_zeroing(states, empty_base=True)) == [BASE, ZERO, ZERO]


@pytest.mark.parametrize(
    ("start", "stop", "first", "end"),
    [
        (0, BLOCK, 0, 1),
        (1, BLOCK, 1, 1),
        (1, 3 * BLOCK - 1, 1, 2),
        (5, 9, 1, 0),
        (9 * BLOCK, 9 * BLOCK + 100, 9, 10),
        (9 * BLOCK + 1, 9 * BLOCK + 100, 10, 10),
    ],
)
def test_whole_blocks(start: int, stop: int, first: int, end: int) -> None:
    """The blocks that lie wholly in a range; a short last block does if the range goes from its start to the disk's end."""
    assert plan.whole_blocks(start, stop, 9 * BLOCK + 100) == (first, end)


def test_page_spans() -> None:
    """Spans end where map pages do."""
    assert list(plan.page_spans(PAGE_BLOCKS - 1, 2 * PAGE_BLOCKS + 1)) == [
        (PAGE_BLOCKS - 1, PAGE_BLOCKS),
        (PAGE_BLOCKS, 2 * PAGE_BLOCKS),
        (2 * PAGE_BLOCKS, 2 * PAGE_BLOCKS + 1),
    ]
    assert list(plan.page_spans(3, 3)) == []
    assert list(plan.page_spans(4, 3)) == []
