"""This module says what fills a cache: the other side of a miss."""

from collections.abc import Callable
from typing import Protocol

from imagefs.fetch.traffic import Turn
from imagefs.urgency import Urgency

Deliver = Callable[[int, bytes | None], None]
"""Takes a unit's number and its bytes (None: all zero). May be called from any thread, in any order, once for each unit; it
writes the unit to the cache's disk, so a worker thread is the place for it. Units that were not asked for are passed over."""


class UnitFiller(Protocol):
    """Brings units of one address space: an object's bytes as stored, or the bytes of the disk that an image holds."""

    @property
    def size(self) -> int:
        """Bytes of the address space; never changes."""
        ...

    def plan(self, unit: int) -> tuple[int, int]:
        """Return the range (first unit, count) around `unit` that filling `unit` brings for free; (unit, 1) if nothing. Never waits."""
        ...

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return what of a range within the address space may hold other than zeros, as `Source.extents` says; reads tables at most."""
        ...

    async def turn(self, urgency: Urgency) -> Turn:
        """Wait until one more fill of this urgency may begin; whoever fills holds the turn until it has ended. Safe to cancel."""
        ...

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        """Bring `count` units from `first_unit` on, and deliver each as soon as it is there. Any number of fills may run at once.

        `urgency` says whose threads do it.

        Raises a StoreError or ImageRefused if some cannot be had; those delivered before are good. On cancellation it
        returns once nothing calls `deliver` any more.
        """
        ...
