"""This module chooses what leaves the caches that are open: the hand of a clock goes round their regions.

A region that was read since the hand last came by is passed over, and so are the next turns by credit that it earned (a CLOCK that counts:
one store for each read, as with a plain one, but a scan of three times the budget does not push out what is read every day). Reads soon after a
region came here earn nothing: what is read once from end to end goes before what is read again.
"""

import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from imagefs import threads
from imagefs.cache.geometry import REGION
from imagefs.cache.shelf import CREDIT, Shelf
from imagefs.threads import Lane

BATCH_REGIONS: Final = 256
"""Regions looked at by one thread hop."""


class Sparing(enum.Enum):
    """What is passed over whatever its credit."""

    KEPT = enum.auto()
    """Regions that are to be kept, and caches that are pinned."""
    PINNED = enum.auto()
    """Caches that are pinned."""
    NOTHING = enum.auto()


def select(
    regions: Sequence[int], touched: bytearray, credit: bytearray, old: Callable[[int], bool], movable: Callable[[int], bool], wanted: int
) -> tuple[list[int], int]:
    """Return up to `wanted` victims among `regions`, and the region where the hand goes on.

    Regions that are not movable are passed over. Those that were touched are passed over, count as untouched from now on and, if they are
    `old`, earn a turn; of the others those that have credit lose one, and those that have none are the victims.
    """
    victims: list[int] = []
    for region in regions:
        if len(victims) == wanted:
            return victims, region
        if not movable(region):
            continue
        if touched[region]:
            touched[region] = 0
            if old(region):
                credit[region] = min(CREDIT, credit[region] + 1)
        elif credit[region]:
            credit[region] -= 1
        else:
            victims.append(region)
    return victims, regions[-1] + 1


class Clock:
    """The hand: it stands before a region of a cache and stays there between evictions. Used by one task at a time."""

    def __init__(self) -> None:
        self._name = ""
        self._region = 0

    async def free(self, shelves: Sequence[Shelf], wanted: int, *, sparing: Sparing) -> int:
        """Evict regions of `shelves` until about `wanted` bytes are free; return the bytes that are.

        One turn forgives what was touched, and one for each of its credits follows; then whatever may go has gone.
        """
        names = [shelf.name for shelf in shelves]
        start = names.index(self._name) if self._name in names else 0
        turn = itertools.islice(itertools.cycle([*shelves[start:], *shelves[:start]]), (CREDIT + 2) * len(shelves) + 1)
        freed = 0
        for shelf in turn:
            if shelf.name != self._name:
                self._name, self._region = shelf.name, 0
            if not (shelf.pinned and sparing is not Sparing.NOTHING):
                freed += await self._sweep(shelf, wanted - freed, sparing=sparing)
            if freed >= wanted:
                break
            self._region = 0
        return freed

    async def free_untouched(self, shelves: Sequence[Shelf]) -> int:
        """Evict whatever was not read lately and is not to be kept, of `shelves` that are not pinned; return the bytes freed."""
        freed = 0
        for shelf in shelves:
            self._region = 0
            if not shelf.pinned:
                freed += await self._sweep(shelf, shelf.size + REGION, sparing=Sparing.KEPT)
        return freed

    async def _sweep(self, shelf: Shelf, wanted: int, *, sparing: Sparing) -> int:
        """Evict from the hand to the end of one cache, or until `wanted` bytes are free."""
        freed, keeping = 0, sparing is Sparing.KEPT
        while freed < wanted:
            regions = await threads.run(Lane.DISK, shelf.data_regions, self._region, BATCH_REGIONS)
            if not regions:
                break
            count = -(-(wanted - freed) // REGION)
            victims, self._region = select(
                regions, shelf.touched, shelf.credit, shelf.is_old, lambda region: shelf.movable(region, sparing=keeping), count
            )
            if victims:
                freed += await shelf.evict(victims)
        return freed
