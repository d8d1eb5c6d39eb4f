"""This module finds what of a disk may hold other than zeros, from the live map and from what the base says, without reading any of it."""

from collections.abc import Callable

import trio

from imagefs.extents import Extents, joined
from imagefs.overlay import plan
from imagefs.overlay.block_map import BASE, BLOCK_SHIFT, PAGE_BLOCKS
from imagefs.overlay.live_map import LiveMap
from imagefs.source import Source
from imagefs.units import BLOCK

_PAGE_BYTES = PAGE_BLOCKS * BLOCK


async def disk_extents(live: LiveMap, base: Callable[[], Source | None], start: int, stop: int) -> Extents:
    """Return the extents of [start, stop), bytes of a disk with this live map, which lie within it. Safe to cancel.

    Stretches of the live map that are holes cost one question to the base, however long. `base` is called anew for each question: which
    source gives what the disk's unwritten blocks show may change while this waits, what they show does not.
    """
    found: Extents = []
    position = start
    for page in live.touched_pages(start >> BLOCK_SHIFT, (stop - 1 >> BLOCK_SHIFT) + 1):
        first, last = max(start, page * _PAGE_BYTES), min(stop, (page + 1) * _PAGE_BYTES)
        found += await _below(base(), position, first)
        # Taken before the base is asked: a block that is merged into the base meanwhile is in these, or in what the base says.
        states = live.states(first >> BLOCK_SHIFT, (last - 1 >> BLOCK_SHIFT) + 1)
        found += plan.occupied(states, first, last, await _below(base(), first, last) if BASE in states else [])
        position = last
        await trio.lowlevel.checkpoint()  # half a millisecond for a page
    found += await _below(base(), position, stop)
    return joined(found)


async def _below(base: Source | None, start: int, stop: int) -> Extents:
    stop = min(stop, base.size) if base is not None else start
    return await base.extents(start, stop - start) if base is not None and start < stop else []
