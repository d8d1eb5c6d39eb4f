"""This module fills guest units of a qcow2 image: it locates them, fetches the stored units they are in, and inflates clusters.

Three parts: `fill` finds the extents (async, it may wait for tables), `plan.plan_fetches` groups them into requests (pure), and
`_pull` runs one request in a thread and delivers each guest unit as soon as its bytes are there.
"""

import contextlib
import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator
from typing import Final, Protocol

import trio

from imagefs import threads
from imagefs.cache.filler import Deliver
from imagefs.errors import ImagefsError, ImageRefused, WrongBytes
from imagefs.extents import Extents
from imagefs.fetch.race import Race
from imagefs.fetch.traffic import Traffic, Turn
from imagefs.image.qcow2.assembler import UnitAssembler
from imagefs.image.qcow2.image import Qcow2Image
from imagefs.image.qcow2.inflate import InflateError, inflate
from imagefs.image.qcow2.plan import Fetch, Piece, plan_fetches, stored_units
from imagefs.image.qcow2.tables import Extent, Kind
from imagefs.threads import Lane
from imagefs.units import MIB, UNIT, align_down, unit_count
from imagefs.urgency import Urgency

BATCH: Final = 4 * MIB
"""Guest bytes located and fetched at a time: two of the largest clusters, and a bound on the memory that one fill takes."""

PARALLEL: Final = 4
"""Requests of one batch in flight at a time; a batch of a well laid out image has one or two."""

RECENT_BUDGET: Final = 8 * MIB
"""Bytes of stored units kept, because clusters that share a stored unit are often wanted one after the other."""

_WIDEN: Final = 8
"""Neighbour units looked at on each side by `plan`: a stored unit holds some three compressed clusters of a usual image."""


class StoredUnits(Protocol):
    """The part of `fetch.stored.StoredObject` that is needed here."""

    @property
    def traffic(self) -> Traffic:
        """What is fetched from the object's store."""
        ...

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        """Yield the verified bytes of stored units in order, one `bytes` per unit, the object's last one short. Blocks.

        Raises a StoreError if they cannot be had.
        """
        ...


class RecentUnits:
    """The stored units used last, by number. Thread-safe. Invariant: they take at most `budget` bytes."""

    def __init__(self, budget: int = RECENT_BUDGET) -> None:
        """Take the bytes that may be kept."""
        self._capacity = budget // UNIT
        self._lock = threading.Lock()
        self._bodies: OrderedDict[int, bytes] = OrderedDict()

    def get(self, unit: int) -> bytes | None:
        """Return a unit's bytes if they are still kept."""
        with self._lock:
            body = self._bodies.get(unit)
            if body is not None:
                self._bodies.move_to_end(unit)
            return body

    def add(self, unit: int, body: bytes) -> None:
        """Keep a unit's bytes; the least recently used ones make room."""
        with self._lock:
            self._bodies[unit] = body
            self._bodies.move_to_end(unit)
            while len(self._bodies) > self._capacity:
                self._bodies.popitem(last=False)


class Qcow2Filler:
    """Fills the guest units of one image from its stored units (a `cache.filler.UnitFiller`). Any number of fills may run at once."""

    def __init__(self, image: Qcow2Image, stored: StoredUnits) -> None:
        """Take the open image and the object that its stored units are streamed from."""
        self._image = image
        self._stored = stored
        self._recent = RecentUnits()
        self.size = image.size
        """Bytes in the guest address space."""

    async def turn(self, urgency: Urgency) -> Turn:
        """Wait until the store may be asked for one more fill of this urgency. See `Traffic.turn`."""
        return await self._stored.traffic.turn(urgency)

    def plan(self, unit: int) -> tuple[int, int]:
        """Return the range (first unit, count) around guest `unit` that the same stored units bring anyway. Never waits.

        Filling the whole range costs no fetch beyond that of `unit`, only its inflation: the rest of a large cluster, or
        the compressed clusters beside it.
        """
        cluster_units = max(1, self._image.header.cluster_size // UNIT)
        widen = max(_WIDEN, cluster_units)
        first, last = max(0, unit - widen), min(unit_count(self.size) - 1, unit + widen)
        coming = stored_units(self._unit_extents(unit) or ())
        low = high = unit
        while low > first and self._within(low - 1, coming):
            low -= 1
        while high < last and self._within(high + 1, coming):
            high += 1
        return low, high - low + 1

    async def extents(self, offset: int, length: int) -> Extents:
        """Return what of a range may hold other than zeros, by the L1 and L2 tables. See `Qcow2Image.nonzero`."""
        return await self._image.nonzero(offset, length)

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        """Fetch and decode guest units and deliver each one when it is whole; units behind the disk's end are passed over.

        Raises ImageRefused or WrongBytes for units that a damaged table, cluster or stored unit makes unreadable, after all
        others were delivered, and other StoreErrors at the end of their batch. On cancellation requests stop at their next
        stored unit, and this waits for that.
        """
        offset, end = first_unit * UNIT, min((first_unit + count) * UNIT, self.size)
        damaged: list[ImagefsError] = []
        while offset < end:
            # Batches end where a cluster ends, so that none is inflated twice.
            stop = min(end, align_down(offset, BATCH) + BATCH)
            extents = await self._image.extents(offset, stop - offset)
            errors = await self._fill_batch(extents, deliver, urgency)
            for error in errors:
                if not isinstance(error, ImageRefused | WrongBytes):
                    raise error
            damaged += errors
            offset = stop
        if damaged:
            raise damaged[0]

    def _unit_extents(self, unit: int) -> list[Extent] | None:
        return self._image.extents_nowait(unit * UNIT, min(UNIT, self.size - unit * UNIT))

    def _within(self, unit: int, coming: set[int]) -> bool:
        """Tell whether a guest unit, not one of zeros, can be made from the stored units in `coming` alone."""
        extents = self._unit_extents(unit)
        if extents is None or any(extent.kind is Kind.REFUSED for extent in extents):
            return False
        needed = stored_units(extents)
        return bool(needed) and needed <= coming

    async def _fill_batch(self, extents: list[Extent], deliver: Deliver, urgency: Urgency) -> list[ImagefsError]:
        """Deliver the units of `extents` and return what kept some of them from it."""
        assembler = UnitAssembler(self.size, deliver)
        errors: list[ImagefsError] = [self._image.refusal(extent) for extent in extents if extent.kind is Kind.REFUSED]
        zeros = list(_zeros(extents))
        if zeros:
            await threads.run(Lane.DISK, _put_zeros, zeros, assembler)
        limiter = trio.CapacityLimiter(PARALLEL)

        async def run(fetch: Fetch) -> None:
            async with limiter:
                try:
                    await Race(self._stored.traffic, urgency).run(functools.partial(self._pull, fetch, assembler, errors))
                except ImagefsError as error:
                    errors.append(error)

        fetches = plan_fetches(extents, self._image.header.cluster_size)
        if len(fetches) == 1:
            await run(fetches[0])
            return errors
        async with trio.open_nursery() as nursery:
            for fetch in fetches:
                nursery.start_soon(run, fetch)
        return errors

    def _pull(self, fetch: Fetch, assembler: UnitAssembler, errors: list[ImagefsError], race: Race) -> None:
        """Be one attempt at a request, in a thread. What is wrong with a piece is appended to `errors`, so that it does not stop the others.

        Raises StoreErrors that are not about the bytes.
        """
        left = race.left(range(len(fetch.pieces)))
        if not left:
            return
        try:
            self._stream(fetch, deque(left), assembler, errors, race)
        except WrongBytes as error:
            if len(left) == 1:
                race.once(left[0], errors.append, error)
                return
            # One stored unit is bad. What is made from others must not suffer: bring each remaining piece by itself.
            for part in race.left(left):
                try:
                    self._stream(fetch, deque([part]), assembler, errors, race)
                except WrongBytes as wrong:
                    race.once(part, errors.append, wrong)

    def _stream(self, fetch: Fetch, waiting: deque[int], assembler: UnitAssembler, errors: list[ImagefsError], race: Race) -> None:
        """Finish the pieces whose numbers are `waiting` (not empty), in order, as the last stored unit of each arrives, and take them off."""
        pieces = fetch.pieces
        held: dict[int, bytes] = {}
        last_unit = max(pieces[part].last_unit for part in waiting)
        with contextlib.closing(self._units(pieces[waiting[0]].first_unit, last_unit)) as units:
            for unit, body in units:
                race.moved()
                held[unit] = body
                while waiting and pieces[waiting[0]].last_unit <= unit:
                    part = waiting.popleft()
                    race.once(part, self._finish, pieces[part], held, assembler, errors)
                wanted_from = pieces[waiting[0]].first_unit if waiting else unit + 1
                for passed in [number for number in held if number < wanted_from]:
                    del held[passed]
                trio.from_thread.check_cancelled()

    def _units(self, first_unit: int, last_unit: int) -> Generator[tuple[int, bytes], None, None]:
        """Yield stored units in order: those at both ends that are still kept, and the others from one stream."""
        unit = first_unit
        while unit <= last_unit and (body := self._recent.get(unit)) is not None:
            yield unit, body
            unit += 1
        tail: deque[tuple[int, bytes]] = deque()
        while last_unit >= unit and (body := self._recent.get(last_unit)) is not None:
            tail.appendleft((last_unit, body))
            last_unit -= 1
        if unit <= last_unit:
            with contextlib.closing(self._stored.stream_units(unit, last_unit - unit + 1)) as bodies:
                for number, body in enumerate(bodies, unit):
                    self._recent.add(number, body)
                    yield number, body
        yield from tail

    def _finish(self, piece: Piece, held: dict[int, bytes], assembler: UnitAssembler, errors: list[ImagefsError]) -> None:
        """Make a piece's guest bytes from the stored units it lies in, and put them where they belong."""
        body = _cut(piece, held)
        if not piece.compressed:
            assembler.put(piece.guest_offset, body)
            return
        header = self._image.header
        try:
            cluster = inflate(header.compression, body, header.cluster_size)
        except InflateError as error:
            errors.append(self._image.damaged(piece.guest_offset, f"{error} (compressed cluster at host offset {piece.host_offset})"))
            return
        assembler.put(piece.guest_offset, memoryview(cluster)[piece.skip : piece.skip + piece.length])


def _zeros(extents: list[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the guest offset and length of what reads as zeros, also behind the file's end."""
    for extent in extents:
        if extent.kind is Kind.ZERO:
            yield extent.guest_offset, extent.length
        elif extent.kind is Kind.DATA and extent.host_length < extent.length:
            yield extent.guest_offset + extent.host_length, extent.length - extent.host_length


def _put_zeros(zeros: list[tuple[int, int]], assembler: UnitAssembler) -> None:
    for guest_offset, length in zeros:
        assembler.zero(guest_offset, length)


def _cut(piece: Piece, held: dict[int, bytes]) -> bytes | memoryview:
    """Return a piece's stored bytes from the stored units at hand."""
    start = piece.host_offset - piece.first_unit * UNIT
    if piece.first_unit == piece.last_unit:
        return memoryview(held[piece.first_unit])[start : start + piece.host_length]
    joined = b"".join(held[unit] for unit in range(piece.first_unit, piece.last_unit + 1))
    return memoryview(joined)[start : start + piece.host_length]
