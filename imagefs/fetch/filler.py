"""This module fills units of an object's stored bytes: one ranged GET in a FETCH thread for each fill."""

import contextlib
from collections.abc import Callable

from imagefs import threads
from imagefs.extents import Extents, clipped, joined
from imagefs.fetch.stored import StoredObject
from imagefs.threads import Lane
from imagefs.units import UNIT, unit_count

Deliver = Callable[[int, bytes | None], None]
"""Takes a unit's number and its bytes (None: all zero); called from the FETCH thread."""


class ObjectFiller:
    """The filler of the stored address space: unit n is bytes n * 64 KiB and on of the object. Any number of fills may run at once."""

    def __init__(self, stored: StoredObject) -> None:
        """Take the object."""
        self._stored = stored
        self.size = stored.size
        """Bytes of the address space: the object's."""

    def plan(self, unit: int) -> tuple[int, int]:
        """Return (unit, 1): no other stored unit comes for free with one."""
        return unit, 1

    async def extents(self, offset: int, length: int) -> Extents:
        """Return the units within the range that are not known to be zeros: the digests tell, where there are any.

        Fetches pages of digests, 32 KiB for 64 MiB. Raises StoreErrors.
        """
        stop = min(offset + length, self.size)
        if offset >= stop:
            return []
        first, end = offset // UNIT, unit_count(stop)
        found = await threads.run(Lane.FETCH, self._stored.nonzero_units, first, end - first)
        return clipped(joined((unit * UNIT, (unit + 1) * UNIT) for unit in found), offset, stop)

    async def fill(self, first_unit: int, count: int, deliver: Deliver) -> None:
        """Fetch `count` units from `first_unit` on and deliver each, in order, as its last byte arrives.

        Raises StoreErrors; what was delivered before stays good. On cancellation the thread stops at its next unit or
        pause, and this waits for that.
        """
        await threads.run(Lane.FETCH, self._stream, first_unit, count, deliver)

    def _stream(self, first_unit: int, count: int, deliver: Deliver) -> None:
        with contextlib.closing(self._stored.stream_units(first_unit, count)) as bodies:
            for unit, body in enumerate(bodies, first_unit):
                deliver(unit, body)
