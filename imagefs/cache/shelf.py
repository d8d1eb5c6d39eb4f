"""This module is what is known of one cache: the state of each unit, what is happening to it, and the files that hold it."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final

import trio

from imagefs import threads
from imagefs.cache import unit_map
from imagefs.cache.budget import Account, unit_cost
from imagefs.cache.file import Examined, UnitFile
from imagefs.cache.flight import Arrival, Flight
from imagefs.cache.geometry import REGION_UNITS, region_of, region_units, regions_of, unit_span
from imagefs.cache.invariants import require
from imagefs.cache.memory import Memory
from imagefs.cache.unit_map import ABSENT, DATA, UNKNOWN
from imagefs.counters import COUNTERS
from imagefs.threads import Lane
from imagefs.units import unit_count

log = logging.getLogger(__name__)

_ABSENT_BYTE: Final = bytes([ABSENT])


class Shelf:
    """The units of one address space of one image version. Used on the event loop only; lives as long as who uses it.

    Invariants:
    - A unit's state is DATA or ZERO only while the file holds exactly its bytes (those of a ZERO unit as a hole).
    - States change on the event loop only: who looks one up and does not await may rely on it.
    - Each unit has one Flight at most, and only the task that made it changes the unit's state, map entry or bytes: fills,
      examinations and evictions of one unit cannot overlap. Every flight lands, whatever happens.
    - A unit becomes ABSENT in memory and then on disk before its bytes go, and not while a reader is in its region.
    """

    def __init__(self, name: str, size: int, memory: Memory, storage: tuple[UnitFile, Account] | None, present: int) -> None:
        """Take a unique name, the bytes of the address space, and the files with their account (None: store nothing).

        `present` is the number of units that the files hold at first.
        """
        self.name = name
        self.size = size
        self.unit_count = unit_count(size)
        self.states = bytearray(self.unit_count) if storage is not None else bytearray(_ABSENT_BYTE * self.unit_count)
        """One state (unit_map) per unit; 0, UNKNOWN, for all of a cache that was just opened: opening looks at no unit."""
        self.touched = bytearray(-(-self.unit_count // REGION_UNITS))
        """For each region whether it was read since the clock's hand last passed."""
        self.flights: dict[int, Flight] = {}
        self.file: UnitFile | None = None
        """The files; None if nothing is, or no longer, stored."""
        self.account: Account | None = None
        """What the files have of the budget; kept when they are given up, since they still take room."""
        if storage is not None:
            self.file, self.account = storage
        self.descriptor = self.file.units if self.file is not None else -1
        self.present = present if storage is not None else 0
        """Units that are here, as far as the map and what happened since tell."""
        self.pinned = False
        """Evict from here last."""
        self._memory = memory
        self._readers: dict[int, int] = {}  # region -> readers that count on what is in it
        self._kept_regions: set[int] = set()
        self._groups_known: set[int] = set()  # map pages whose absent units were noted
        self._told: set[str] = set()  # kinds of trouble that were logged

    def is_missing(self, unit: int) -> bool:
        """Tell whether a unit is neither here nor on its way, for sure."""
        return self.states[unit] == ABSENT and unit not in self.flights and self.loose(unit) is None

    def loose(self, unit: int) -> bytes | None:
        """Return a unit that could not be stored, if its bytes are still in memory."""
        return self._memory.kept(self.name, unit)

    def land(self, units: range | list[int], flight: Flight) -> None:
        """End a flight that several units share."""
        for unit in units:
            del self.flights[unit]
        flight.land()

    def publish(self, arrival: Arrival) -> None:
        """Make a unit that was delivered known, and wake who waits for it."""
        unit, stored = arrival.unit, arrival.state != ABSENT and self.file is not None
        flight = self.flights.pop(unit)
        if arrival.reserved and self.account is not None:
            self._settle(self.account, arrival)
        COUNTERS.cache_units_filled += 1
        if not stored:
            COUNTERS.cache_units_uncached += 1
            self._memory.keep(self.name, unit, arrival.body)
            flight.land(body=arrival.body)
            return
        if arrival.state == unit_map.ZERO:
            COUNTERS.cache_zero_units += 1
        self.present = min(self.present + 1, self.unit_count)
        self.states[unit] = arrival.state
        self.touched[region_of(unit)] = 1
        flight.land()

    async def examine(self, units: Sequence[int]) -> None:
        """Learn the states of those of `units` that nobody looked at since opening; what is there is proved by its checksum."""
        unknown = [unit for unit in units if self.states[unit] == UNKNOWN and unit not in self.flights]
        if not unknown or self.file is None:
            return
        flight = Flight()
        self.flights.update(dict.fromkeys(unknown, flight))
        groups = {unit_map.group_of(unit) for unit in unknown} - self._groups_known
        try:
            found = await threads.run(Lane.DISK, self.file.examine, unknown, sorted(groups))
            if self.file is not None:  # it was not given up meanwhile
                self._note(found)
                self._groups_known |= groups
        finally:
            self.land(unknown, flight)

    @contextlib.contextmanager
    def reading(self, units: range) -> Iterator[None]:
        """Keep units that are here, or come here, from being evicted for the time of the block."""
        regions = regions_of(units)
        for region in regions:
            self._readers[region] = self._readers.get(region, 0) + 1
        try:
            yield
        finally:
            for region in regions:
                self._readers[region] -= 1
                if not self._readers[region]:
                    del self._readers[region]

    def keep(self, offset: int, length: int) -> None:
        """Evict the regions of this range (not empty) only when nothing else is left, from now on."""
        self._kept_regions.update(regions_of(unit_span(offset, length)))

    def movable(self, region: int, *, sparing: bool) -> bool:
        """Tell whether a region may be evicted now; `sparing` means that one to be kept may not."""
        if region in self._readers or (sparing and (self.pinned or region in self._kept_regions)):
            return False
        return self.flights.keys().isdisjoint(region_units(region, self.unit_count))

    def data_regions(self, first: int, limit: int) -> list[int]:
        """Return up to `limit` regions from `first` on that take room on the disk. Blocks; may run in any thread."""
        file = self.file
        if file is None:
            return []
        try:
            return file.data_regions(first, limit)
        except OSError as error:
            log.warning("cannot see what a cache holds cache=%s error=%s", self.name, error)
            return []

    async def evict(self, regions: Sequence[int]) -> int:
        """Give the bytes of regions back to the filesystem, of those that are still movable; return how many bytes that frees.

        Cancellation does not cut it short: it punches a few holes.
        """
        victims = [region_units(region, self.unit_count) for region in regions if self.movable(region, sparing=False)]
        if self.file is None or self.account is None or not victims:
            return 0
        flight = Flight()
        units = [unit for region in victims for unit in region]
        for unit in units:
            self.flights[unit] = flight
            self.states[unit] = ABSENT
        try:
            with trio.CancelScope(shield=True):
                erased = await threads.run(Lane.DISK, self._erase, self.file, victims)
            self.present = max(0, self.present - erased)
            COUNTERS.cache_units_evicted += erased
        finally:
            self.land(units, flight)
        return self.account.remeasure()

    def abandon(self, error: OSError) -> None:
        """Stop using files that cannot be read back: everything is fetched again, and nothing stored, until the cache is reopened."""
        if self.file is not None:
            log.error("a cache cannot be read from its disk, so the image is served without it cache=%s error=%s", self.name, error)
            self.file = None
            self.present = 0
            self.states[:] = _ABSENT_BYTE * self.unit_count

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises. Blocks: it proves every unit that counts as here."""
        require(len(self.states) == self.unit_count, "each unit has a state")
        require(all(count > 0 for count in self._readers.values()), "readers are counted")
        require(all(self.states[unit] < DATA for unit in self.flights), "a unit on its way is not here")
        require(0 <= self.present <= self.unit_count, "units are counted")
        there = [unit for unit, state in enumerate(self.states) if state >= DATA]
        if self.file is None:
            require(not there, "without files no unit is here")
            return
        found = self.file.examine(there, ())
        require(not found.damaged, "each unit that is here is what the map says")
        require(all(found.states[unit] == self.states[unit] for unit in there), "the map has the states that memory has")

    def _note(self, found: Examined) -> None:
        for unit, state in found.states.items():
            self.states[unit] = state
        for unit in found.absent:
            # Others may have looked at it, or be filling it, by now: then they know better.
            if self.states[unit] == UNKNOWN and unit not in self.flights:
                self.states[unit] = ABSENT
        COUNTERS.cache_unit_hits_checked += sum(state >= DATA for state in found.states.values())
        COUNTERS.cache_units_damaged += len(found.damaged)
        self.present = max(0, self.present - found.erased)
        if found.damaged:
            self._tell("damage", f"units {found.damaged} fail their checksums and are fetched again")

    def _settle(self, account: Account, arrival: Arrival) -> None:
        """Bring the account in line with what was reserved for a unit and what became of it."""
        if arrival.state == DATA:
            account.settle(unit_cost(1))
            return
        account.release(unit_cost(1))
        if arrival.failure is not None:
            # Part of it may have been written, and could perhaps not be taken back.
            account.remeasure()
            self._tell("disk", f"a unit cannot be stored, so it is served from memory: {arrival.failure}")

    def _erase(self, file: UnitFile, victims: list[range]) -> int:
        """Erase regions in a thread. What fails is logged: in memory they are absent all the same."""
        erased = 0
        for units in victims:
            try:
                erased += file.erase(units)
            except OSError as error:
                log.warning("cannot evict cached units cache=%s first=%d count=%d error=%s", self.name, units.start, len(units), error)
        return erased

    def _tell(self, kind: str, message: str) -> None:
        """Log a kind of trouble once for each cache: after a power loss, or on a full disk, it comes a thousand times."""
        level = logging.DEBUG if kind in self._told else logging.WARNING
        self._told.add(kind)
        log.log(level, "%s cache=%s", message, self.name)
