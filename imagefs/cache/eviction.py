"""This module chooses what leaves the cache: the hand of a clock goes round the regions of all open caches.

A region that was read since the hand last came by is passed over once (CLOCK, an LRU that costs one store for each read).
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Final

from imagefs import threads
from imagefs.cache.geometry import REGION
from imagefs.cache.shelf import Shelf
from imagefs.threads import Lane

BATCH_REGIONS: Final = 64
"""Regions looked at by one thread hop."""


def select(regions: Sequence[int], touched: bytearray, movable: Callable[[int], bool], wanted: int) -> tuple[list[int], int]:
    """Return up to `wanted` victims among `regions`, and the region where the hand goes on.

    Regions that are not movable are passed over; those that were touched are passed over and count as untouched from now on.
    """
    victims: list[int] = []
    for region in regions:
        if len(victims) == wanted:
            return victims, region
        if not movable(region):
            continue
        if touched[region]:
            touched[region] = 0
        else:
            victims.append(region)
    return victims, regions[-1] + 1


class Clock:
    """The hand: it stands before a region of a cache and stays there between evictions. Used by one task at a time."""

    def __init__(self) -> None:
        self._name = ""
        self._region = 0

    async def free(self, shelves: Sequence[Shelf], wanted: int, *, sparing: bool) -> int:
        """Evict regions of `shelves` until about `wanted` bytes are free; return the bytes that are.

        `sparing` leaves out regions that their caches want to keep. Two turns are enough: the first one forgives each
        region that was touched.
        """
        names = [shelf.name for shelf in shelves]
        start = names.index(self._name) if self._name in names else 0
        turn = itertools.islice(itertools.cycle([*shelves[start:], *shelves[:start]]), 2 * len(shelves) + 1)
        freed = 0
        for shelf in turn:
            if shelf.name != self._name:
                self._name, self._region = shelf.name, 0
            freed += await self._sweep(shelf, wanted - freed, sparing=sparing)
            if freed >= wanted:
                break
            self._region = 0
        return freed

    async def _sweep(self, shelf: Shelf, wanted: int, *, sparing: bool) -> int:
        """Evict from the hand to the end of one cache, or until `wanted` bytes are free."""
        freed = 0
        while freed < wanted:
            regions = await threads.run(Lane.DISK, shelf.data_regions, self._region, BATCH_REGIONS)
            if not regions:
                break
            count = -(-(wanted - freed) // REGION)
            victims, self._region = select(regions, shelf.touched, lambda region: shelf.movable(region, sparing=sparing), count)
            if victims:
                freed += await shelf.evict(victims)
        return freed
