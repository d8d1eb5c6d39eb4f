"""This module is the cache as its readers see it: a Source over one address space of one image version that fills itself."""

import errno
import logging
import os
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.budget import fill_cost, unit_cost
from imagefs.cache.filler import UnitFiller
from imagefs.cache.flight import Blame, Fill, Flight
from imagefs.cache.geometry import FILL_UNITS, REGION_UNITS, assemble, clipped, plan_fill, unit_span, without_units
from imagefs.cache.invariants import require
from imagefs.cache.memory import Memory
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import ABSENT, DATA, ZERO
from imagefs.errors import ImagefsError, StoreUnavailable
from imagefs.extents import Extents
from imagefs.threads import Lane
from imagefs.units import UNIT

log = logging.getLogger(__name__)

_UNIT_SHIFT: Final = UNIT.bit_length() - 1
_REGION_SHIFT: Final = (UNIT * REGION_UNITS).bit_length() - 1


class UnitCache:
    """A Source over the units that are on the shelf and, for those that are not, a filler. Used on the event loop only.

    Invariants (those of Shelf, and):
    - `read_nowait` does not await, so a unit that it found there stays there until it has read it.
    - Fills belong to the cache and not to the reader who caused them: cancelling a reader leaves them running.
    """

    def __init__(self, shelf: Shelf, filler: UnitFiller, nursery: trio.Nursery, memory: Memory) -> None:
        """Take the shelf (which several caches of the same bytes may share), what fills it, where fills run, and their memory."""
        self._shelf = shelf
        self._filler = filler
        self._nursery = nursery
        self._memory = memory
        # Of the shelf, once more, for the hot path: the same objects, which are changed in place.
        self._size = shelf.size
        self._states = shelf.states
        self._touched = shelf.touched
        self._descriptor = shelf.descriptor
        self._nowait = os.RWF_NOWAIT

    @property
    def size(self) -> int:
        """Bytes of the address space."""
        return self._size

    @property
    def name(self) -> str:
        """What the cache is called in messages, and its directory below the cache's."""
        return self._shelf.name

    @property
    def storing(self) -> bool:
        """Whether units are kept on the disk: not with a budget of 0, and not when the disk fails."""
        return self._shelf.file is not None

    @property
    def cached_bytes(self) -> int:
        """Bytes that are here; units that nobody touched since the cache was opened are counted unseen."""
        return min(self._size, self._shelf.present * UNIT)

    @property
    def pinned(self) -> bool:
        """Whether other caches are evicted before this one. May be set."""
        return self._shelf.pinned

    @pinned.setter
    def pinned(self, pinned: bool) -> None:
        self._shelf.pinned = pinned

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says. Every guest read comes through here: no locks, no logging, no allocation but the bytes."""
        if offset + length > self._size:
            length = clipped(offset, length, self._size)
        if not length:
            return b""
        first = offset >> _UNIT_SHIFT
        last = (offset + length - 1) >> _UNIT_SHIFT
        if first == last:
            state = self._states[first]
            if state < DATA:
                return None
            self._touched[offset >> _REGION_SHIFT] = 1
            if state == ZERO:
                return bytes(length)
        else:
            if min(self._states[first : last + 1]) < DATA:
                return None
            self._touched[offset >> _REGION_SHIFT] = 1
            self._touched[(offset + length - 1) >> _REGION_SHIFT] = 1
        body = bytearray(length)
        try:
            if os.preadv(self._descriptor, (body,), offset, self._nowait) == length:
                return body
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                # tmpfs, for one, does not know RWF_NOWAIT, and needs it least: from now on without.
                self._nowait = 0
        return None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says: fetches what is missing with the rest of its window; many readers of one unit share one fetch."""
        length = clipped(offset, length, self._size)
        if not length:
            return b""
        units = unit_span(offset, length)
        with self._shelf.reading(units):
            while True:
                loose = await self._bring(units)
                try:
                    return await self._collect(offset, length, loose)
                except OSError as error:
                    self._shelf.abandon(error)

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says: what the filler says, less the units that are known to be zeros. Looks at no unit on the disk."""
        length = clipped(offset, length, self._size)
        if not length:
            return []
        found = await self._filler.extents(offset, length)
        return without_units(found, lambda unit: self._states[unit] == ZERO)

    async def prefetch(self, offset: int, length: int) -> None:
        """Bring a range here without reading it, 1 MiB at a time; does nothing where nothing is stored. Safe to cancel.

        Raises StoreErrors and ImageRefused, as `read` does.
        """
        length = clipped(offset, length, self._size)
        units = unit_span(offset, length) if length else range(0)
        for first in range(units.start, units.stop, FILL_UNITS):
            if not self.storing:
                return
            part = range(first, min(first + FILL_UNITS, units.stop))
            with self._shelf.reading(part):
                await self._bring(part)

    def keep(self, offset: int, length: int) -> None:
        """Evict this range only when nothing else is left, from now on: what a boot needs, for instance."""
        length = clipped(offset, length, self._size)
        if length:
            self._shelf.keep(offset, length)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises. Blocks: it reads what is stored."""
        require(self._states is self._shelf.states and self._touched is self._shelf.touched, "the hot path looks at the shelf's own states")
        self._shelf.check_invariants()

    async def _bring(self, units: range) -> dict[int, bytes]:
        """Return when every unit is in the file or in the result, which has those that could not be stored.

        The caller is `reading` the units. Raises the error of the fill that should have brought one. A unit that only
        shared a fill with a damaged one gets a second fill, of its own.
        """
        loose: dict[int, bytes] = {}
        second: set[int] = set()
        pending = list(units)
        while pending := [unit for unit in pending if self._states[unit] < DATA and unit not in loose]:
            await self._shelf.examine(pending)
            for unit, flight in self._board(pending, units.stop, loose).items():
                await flight.wait()
                if flight.blame is Blame.NEIGHBOUR and unit not in second:
                    second.add(unit)
                    continue
                flight.check()
                if flight.body is not None:
                    loose[unit] = flight.body
        return loose

    def _board(self, pending: list[int], wanted_end: int, loose: dict[int, bytes]) -> dict[int, Flight]:
        """Return the flights of pending units, starting the fills that are missing; units that are in memory go to `loose`."""
        shelf = self._shelf
        flights: dict[int, Flight] = {}
        for unit in pending:
            if shelf.is_missing(unit):
                planned = plan_fill(unit, wanted_end, self._filler.plan(unit), shelf.unit_count, shelf.is_missing)
                flights[unit] = self._start_fill(planned)[unit]
            elif (flight := shelf.flights.get(unit)) is not None:
                flights[unit] = flight
            elif self._states[unit] == ABSENT and (body := shelf.loose(unit)) is not None:
                loose[unit] = body
        return flights

    async def _collect(self, offset: int, length: int, loose: dict[int, bytes]) -> bytes | bytearray:
        """Return the bytes of units that are all in the file or `loose`. Raises OSError if the file does not give them."""
        if not loose:
            body = self.read_nowait(offset, length)
            if body is not None:
                return body
        units = unit_span(offset, length)
        if all(unit in loose for unit in units):
            return assemble(offset, length, loose, _nothing)
        file = self._shelf.file
        if file is None:  # it was given up while we waited
            return assemble(offset, length, loose, _nothing)
        return await threads.run(Lane.DISK, assemble, offset, length, loose, file.read)

    def _start_fill(self, units: range) -> dict[int, Flight]:
        """Start a fill of missing units, in the nursery: it outlives the reader who caused it. Return their flights."""
        shelf = self._shelf
        flights = {unit: Flight() for unit in units}
        shelf.flights.update(flights)
        fill = Fill(units, self._size, self.name, shelf.publish)
        try:
            self._nursery.start_soon(self._fill, fill)
        except RuntimeError as error:  # the nursery is closed
            self._land(fill, StoreUnavailable(f"{self.name}: not fetched, because imagefs is ending: {error}"))
        return flights

    async def _fill(self, fill: Fill) -> None:
        """Run one fill. Only cancellation leaves here as an exception; readers get everything else."""
        units, shelf = fill.units, self._shelf
        what = f"{self.name}: units {units.start} to {units.stop - 1}"
        error: ImagefsError = StoreUnavailable(f"{what}: the fetch was given up")
        try:
            async with self._memory.hold(len(units) * UNIT):
                if shelf.file is not None and shelf.account is not None and await shelf.account.reserve(fill_cost(units)):
                    fill.file = shelf.file
                await self._filler.fill(units.start, len(units), fill.deliver)
            error = StoreUnavailable(f"{what}: the fetch ended without all of them")
        except ImagefsError as failure:
            error = failure
        except Exception as failure:
            log.exception("a fill failed unexpectedly cache=%s first=%d count=%d", self.name, units.start, len(units))
            error = ImagefsError(f"{what}: cannot be filled: {failure!r}")
        finally:
            self._land(fill, error)

    def _land(self, fill: Fill, error: ImagefsError) -> None:
        """Land what a filler that has ended did not bring, with its error; what it brought lands as it is published."""
        undelivered = fill.undelivered(error)
        for unit, blame in undelivered:
            self._shelf.flights.pop(unit).land(error=error, blame=blame)
        if fill.file is not None and self._shelf.account is not None:
            self._shelf.account.release(unit_cost(len(undelivered)))
            # The map's pages are charged until the next measurement, which sees what was really written.
            self._shelf.account.settle(fill_cost(fill.units) - unit_cost(len(fill.units)))


def _nothing(offset: int, length: int) -> bytes:
    raise OSError(errno.ESTALE, f"{length} bytes at {offset} are not in memory, and the cache's file is not used any more")
