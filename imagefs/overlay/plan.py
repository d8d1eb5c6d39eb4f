"""This module decides what a read or a write of a range means for its blocks. Pure.

Offsets are in bytes of the disk. "The states of a range" are one byte for each block that the range touches.
"""

import bisect
import itertools
from collections.abc import Iterator

from imagefs.extents import Extents, joined
from imagefs.overlay.block_map import BASE, BLOCK_MASK, BLOCK_SHIFT, DATA, PAGE_BLOCKS, ZERO, ZERO_BLOCK
from imagefs.units import BLOCK, align_up

_ZEROED = bytes.maketrans(bytes((BASE, DATA)), bytes((ZERO, ZERO)))
_ZEROED_EMPTY = bytes.maketrans(bytes((DATA,)), bytes((ZERO,)))


def runs(states: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (state, start, stop) for each longest stretch of [start, stop) in one state, in order; `states` are those of the range."""
    block = start >> BLOCK_SHIFT
    for state, group in itertools.groupby(states):
        block += sum(1 for _ in group)
        end = min(stop, block << BLOCK_SHIFT)
        yield state, start, end
        start = end


def partial_blocks(start: int, stop: int, size: int) -> list[int]:
    """Return the blocks, two at most, of which a write of [start, stop) leaves some bytes as they are.

    Where the disk of `size` bytes ends within a block, a write up to the end covers the block.
    """
    blocks = []
    if start & BLOCK_MASK:
        blocks.append(start >> BLOCK_SHIFT)
    if stop & BLOCK_MASK and stop != size and (not blocks or blocks[0] != stop >> BLOCK_SHIFT):
        blocks.append(stop >> BLOCK_SHIFT)
    return blocks


def states_after_write(states: bytes, start: int, body: bytes | bytearray, empty_base: bool) -> bytes:
    """Return the states of the range once `body` is written at `start`: `data`, except for blocks that hold no data and get only zeros.

    Those become `zero`, or stay `base` where the base is zeros anyway (`empty_base`).
    """
    after = bytearray(bytes((DATA,)) * len(states))
    first_whole = -start & BLOCK_MASK
    index = 1 if first_whole else 0
    for position in range(first_whole, len(body) - BLOCK + 1, BLOCK):
        if states[index] != DATA and body.startswith(ZERO_BLOCK, position):
            after[index] = BASE if empty_base and states[index] == BASE else ZERO
        index += 1
    return bytes(after)


def states_after_zeroing(states: bytes, empty_base: bool) -> bytes:
    """Return the states of blocks in `states` once they hold zeros without storing them: `zero`, or still `base` if that is zeros anyway."""
    return states.translate(_ZEROED_EMPTY if empty_base else _ZEROED)


def whole_blocks(start: int, stop: int, size: int) -> tuple[int, int]:
    """Return the first block that lies wholly in [start, stop), and the one after the last; not above the first if there is none.

    Where the disk of `size` bytes ends within a block, the block's bytes up to the end are all of it.
    """
    return align_up(start, BLOCK) >> BLOCK_SHIFT, (align_up(stop, BLOCK) if stop == size else stop) >> BLOCK_SHIFT


def page_spans(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks [start, stop) as spans that end where the pages of the durable map do: pieces of at most 62.5 MiB."""
    while start < stop:
        end = min(stop, (start // PAGE_BLOCKS + 1) * PAGE_BLOCKS)
        yield start, end
        start = end


def occupied(states: bytes, start: int, stop: int, below: Extents) -> Extents:
    """Return the extents of [start, stop), a range in `states` over a base with the extents `below` there.

    What is `zero` is left out, what is `base` is as the base says; blocks whose state is lost count as occupied, so that reading tells.
    """
    stops = [end for _, end in below]
    found: Extents = []
    for state, first, last in runs(states, start, stop):
        if state == BASE:
            index = bisect.bisect_right(stops, first)
            while index < len(below) and below[index][0] < last:
                found.append((max(first, below[index][0]), min(last, below[index][1])))
                index += 1
        elif state != ZERO:
            found.append((first, last))
    return joined(found)
