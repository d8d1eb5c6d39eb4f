"""This module fills units of an object's stored bytes: mostly one ranged GET for each fill."""

import contextlib
import functools
from collections.abc import Callable, Container
from typing import Final

import trio

from imagefs import threads
from imagefs.errors import ImagefsError
from imagefs.extents import Extents, clipped, joined
from imagefs.fetch.race import Race
from imagefs.fetch.stored import StoredObject
from imagefs.fetch.traffic import Turn
from imagefs.threads import Lane
from imagefs.units import UNIT, unit_count
from imagefs.urgency import Urgency

Deliver = Callable[[int, bytes | None], None]
"""Takes a unit's number and its bytes (None: all zero); called from worker threads."""

SMALL_GAP: Final = 2
"""Units of zeros between two runs that are fetched along: 128 KiB take a millisecond of the link, one request more takes as much of a processor."""


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

    async def turn(self, urgency: Urgency) -> Turn:
        """Wait until the store may be asked for one more fill of this urgency. See `Traffic.turn`."""
        return await self._stored.traffic.turn(urgency)

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        """Fetch `count` units from `first_unit` on and deliver each, in order, as its last byte arrives.

        Units that digests at hand prove to be zeros are not fetched. Digests that are not at hand are, beside the units. Raises StoreErrors;
        what was delivered before stays good. On cancellation nothing is delivered any more once this returns.
        """
        stored = self._stored
        count = min(count, stored.units - first_unit)
        if count <= 0:
            return
        zeros = set(stored.known_zeros(first_unit, count))
        if zeros:
            await threads.run(Lane.DISK, _deliver_zeros, sorted(zeros), deliver)
        failure: ImagefsError | None = None
        async with trio.open_nursery() as pages:
            for page in stored.missing_pages(first_unit, count):
                pages.start_soon(_bring_page, stored, page)
            try:
                await self._fetch_runs(runs_between(range(first_unit, first_unit + count), zeros), deliver, urgency)
            except ImagefsError as error:  # raised outside of the nursery, which would put it into a group
                failure = error
            pages.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _fetch_runs(self, runs: list[range], deliver: Deliver, urgency: Urgency) -> None:
        """Fetch runs of units, all at once. Raises the first error, once all have ended."""
        errors: list[ImagefsError] = []

        async def fetch(run: range) -> None:
            try:
                await Race(self._stored.traffic, urgency).run(functools.partial(self._stream, run, deliver))
            except ImagefsError as error:
                errors.append(error)

        if len(runs) == 1:
            await fetch(runs[0])
        else:
            async with trio.open_nursery() as nursery:
                for run in runs:
                    nursery.start_soon(fetch, run)
        if errors:
            raise errors[0]

    def _stream(self, run: range, deliver: Deliver, race: Race) -> None:
        """Be one attempt: fetch what is left of a run, in a thread."""
        left = race.left(run)
        if left:
            with contextlib.closing(self._stored.stream_units(left[0], run.stop - left[0])) as bodies:
                for unit, body in enumerate(bodies, left[0]):
                    race.once(unit, deliver, unit, body)
                    if race.over:
                        return


def runs_between(units: range, skipped: Container[int]) -> list[range]:
    """Return `units` (step 1) as runs without those `skipped`, but for gaps that are so small that fetching them is no loss."""
    runs: list[range] = []
    for unit in units:
        if unit in skipped:
            continue
        if runs and unit - runs[-1].stop <= SMALL_GAP:
            runs[-1] = range(runs[-1].start, unit + 1)
        else:
            runs.append(range(unit, unit + 1))
    return runs


async def _bring_page(stored: StoredObject, page: int) -> None:
    await threads.run(Lane.TABLES, stored.load_page, page, abandon=True)


def _deliver_zeros(zeros: list[int], deliver: Deliver) -> None:
    for unit in zeros:
        deliver(unit, None)
