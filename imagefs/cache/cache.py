"""This module is the cache as its readers see it: a Source over one address space of one image version that fills itself."""

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

import trio

from imagefs import threads
from imagefs.aio.reader import Reader
from imagefs.cache.demand import Demand
from imagefs.cache.filler import UnitFiller
from imagefs.cache.geometry import REGION_UNITS, assemble, clipped, unit_span, without_units
from imagefs.cache.invariants import require
from imagefs.cache.memory import Memory
from imagefs.cache.readahead import ReadAhead
from imagefs.cache.shelf import Shelf
from imagefs.cache.supply import Supply
from imagefs.cache.unit_map import ABSENT, DATA, UNKNOWN, ZERO
from imagefs.extents import Extents
from imagefs.threads import Lane
from imagefs.units import UNIT
from imagefs.urgency import Urgency

_UNIT_SHIFT: Final = UNIT.bit_length() - 1
_REGION_SHIFT: Final = (UNIT * REGION_UNITS).bit_length() - 1


class UnitCache:
    """A Source over the units that are on the shelf and, for those that are not, a filler. Used on the event loop only.

    Invariants (those of Shelf, and):
    - `read_nowait` does not await, so a unit that it found there stays there until it has read it.
    - Fills belong to the cache and not to the reader who caused them: cancelling a reader leaves them running.
    """

    def __init__(self, shelf: Shelf, filler: UnitFiller, nursery: trio.Nursery, memory: Memory, demand: Demand) -> None:
        """Take the shelf (which several caches of the same bytes may share), what fills it, where fills run, their memory, and who waits."""
        self._shelf = shelf
        self._filler = filler
        self._supply = Supply(shelf, filler, nursery, memory, demand)
        self._read_ahead = ReadAhead(shelf.unit_count)
        self._foreseen = 0
        # Of the shelf, once more, for the hot path: the same objects, which are changed in place.
        self._size = shelf.size
        self._states = shelf.states
        self._touched = shelf.touched
        self._reader = Reader(shelf.descriptor)

    @property
    def size(self) -> int:
        """Bytes of the address space."""
        return self._size

    @property
    def name(self) -> str:
        """What the cache is called in messages, and its directory below the cache's."""
        return self._shelf.name

    @property
    def shelf(self) -> Shelf:
        """What is known of the units, for who examines the cache as a whole."""
        return self._shelf

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
        try:
            return self._reader.nowait(length, offset)
        except OSError:
            return None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says: fetches what is missing, with what is probably wanted next; many readers of one unit share one fetch."""
        length = clipped(offset, length, self._size)
        if not length:
            return b""
        units = unit_span(offset, length)
        with self._shelf.reading(units):
            window_end = units.stop
            fresh = min(self._states[units.start : units.stop]) < DATA
            if fresh:
                window_end = await self._look_ahead(units)
            while True:
                loose = await self._supply.bring(units, window_end)
                try:
                    return await self._collect(offset, length, loose, fresh=fresh)
                except OSError as error:
                    self._shelf.abandon(error)

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says: what the filler says, less the units that are known to be zeros. Looks at no unit on the disk."""
        length = clipped(offset, length, self._size)
        if not length:
            return []
        found = await self._filler.extents(offset, length)
        return without_units(found, lambda unit: self._states[unit] == ZERO)

    async def prefetch(self, offset: int, length: int, urgency: Urgency = Urgency.AHEAD) -> None:
        """Bring a range here without reading it, several MiB at a time; does nothing where nothing is stored. Safe to cancel.

        Each part takes its turn before its units count as on their way: a reader who wants one of them never waits for the parts before it.
        Raises StoreErrors and ImageRefused, as `read` does.
        """
        length = clipped(offset, length, self._size)
        if length:
            await self._supply.prefetch(unit_span(offset, length), urgency)

    @contextlib.contextmanager
    def foreseen(self) -> Iterator[None]:
        """Guess nothing for the time of the block: what readers will want is known, by a boot profile, and on its way."""
        self._foreseen += 1
        try:
            yield
        finally:
            self._foreseen -= 1

    def is_here(self, offset: int, length: int) -> bool:
        """Tell whether all of a range is here, by what is known in memory: after a restart units count from their first touch on."""
        length = clipped(offset, length, self._size)
        if not length:
            return True
        units = unit_span(offset, length)
        marks, states = self._shelf.marks, self._states
        return min(states[units.start : units.stop]) >= DATA or all(
            states[unit] >= DATA or (states[unit] == UNKNOWN and unit in marks and unit not in self._shelf.flights) for unit in units
        )

    def missing(self, offset: int, length: int) -> Extents:
        """Return what of a range is neither here nor known to be on the disk, in whole units cut to the address space; no I/O.

        After a restart all is missing of which nobody asked the map: see `missing_extents`.
        """
        length = clipped(offset, length, self._size)
        runs = self._shelf.missing(unit_span(offset, length)) if length else ()
        return [(run.start * UNIT, min(run.stop * UNIT, self._size)) for run in runs]

    async def missing_extents(self, offset: int, length: int) -> Extents:
        """Return what `missing` does, after asking the map on the disk about units that nobody looked at yet. Safe to cancel."""
        length = clipped(offset, length, self._size)
        if length:
            await self._shelf.learn(unit_span(offset, length))
        return self.missing(offset, length)

    @property
    def complete(self) -> bool:
        """Whether all units are here, proved by their checksums since the cache was opened or brought since then."""
        return self._shelf.complete

    def keep(self, offset: int, length: int) -> None:
        """Evict this range only when nothing else is left, from now on: what a boot needs, for instance."""
        length = clipped(offset, length, self._size)
        if length:
            self._shelf.keep(offset, length)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises. Blocks: it reads what is stored."""
        require(self._states is self._shelf.states and self._touched is self._shelf.touched, "the hot path looks at the shelf's own states")
        self._shelf.check_invariants()

    async def _look_ahead(self, units: range) -> int:
        """Begin to fetch what is probably wanted after or beside a read of `units` that is no hit; return the end of the read's own window."""
        marked = self._shelf.unmark(units)
        if self._foreseen:
            return units.stop
        await self._shelf.examine(units)
        missed = ABSENT in self._states[units.start : units.stop]
        if not (marked or missed):
            return units.stop  # they were on the disk
        step = self._read_ahead.seen(units, missed)
        if self.storing:
            self._shelf.mark(step.marks)
            for part in step.ahead:
                self._supply.ahead(part)
        return step.window.stop

    async def _collect(self, offset: int, length: int, loose: dict[int, bytes], *, fresh: bool) -> bytes | bytearray:
        """Return the bytes of units that are all in the file or `loose`. Raises OSError if the file does not give them.

        `fresh` tells that some were not there when the read began: then they are probably in memory, what else `read_nowait` was told of.
        """
        if fresh and not loose:
            body = self.read_nowait(offset, length)
            if body is not None:
                return body
        units = unit_span(offset, length)
        if all(unit in loose for unit in units):
            return assemble(offset, length, loose, _nothing)
        file = self._shelf.file
        if file is None:  # it was given up while we waited
            return assemble(offset, length, loose, _nothing)
        if loose:
            return await threads.run(Lane.DISK, assemble, offset, length, loose, file.read)
        whole = bytearray(length)
        if (got := await self._reader.fill(whole, offset)) != length:
            raise OSError(errno.EIO, f"the cached units end {length - got} bytes early")
        return whole


def _nothing(offset: int, length: int) -> bytes:
    raise OSError(errno.ESTALE, f"{length} bytes at {offset} are not in memory, and the cache's file is not used any more")
