"""This module is what is known of one cache: the state of each unit, what is happening to it, and the files that hold it."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import trio

from imagefs import threads
from imagefs.cache import unit_map
from imagefs.cache.budget import Account, unit_cost
from imagefs.cache.file import Examined, UnitFile
from imagefs.cache.flight import Arrival, Flight
from imagefs.cache.geometry import REGION_UNITS, missing_runs, region_of, region_units, regions_of, unit_span
from imagefs.cache.invariants import require
from imagefs.cache.memory import Memory
from imagefs.cache.unit_map import ABSENT, DATA, UNKNOWN
from imagefs.cache.use_record import Use
from imagefs.counters import COUNTERS
from imagefs.threads import Lane
from imagefs.units import unit_count

log = logging.getLogger(__name__)

CREDIT: Final = 3
"""Turns of the clock's hand that a region can earn by being read again."""

_ABSENT_BYTE: Final = bytes([ABSENT])
_MARKS: Final = 4096
"""Units to be marked that are remembered while they are on their way."""
_GROUPS_AT_ONCE: Final = 256
"""Pages of the map read in one go: 1 MiB, which say what there is of 8 GiB."""


class Shelf:
    """The units of one address space of one image version. Used on the event loop only; lives as long as who uses it.

    Invariants:
    - A unit's state is DATA or ZERO only while the file holds exactly its bytes (those of a ZERO unit as a hole).
    - States change on the event loop only: who looks one up and does not await may rely on it.
    - Each unit has one Flight at most, and only the task that made it changes the unit's state, map entry or bytes: fills,
      examinations and evictions of one unit cannot overlap. Every flight lands, whatever happens.
    - A unit becomes ABSENT in memory and then on disk before its bytes go, and not while a reader is in its region.
    """

    def __init__(self, name: str, size: int, memory: Memory, storage: tuple[UnitFile, Account] | None, use: Use) -> None:
        """Take a unique name, the bytes of the address space, and the files with their account (None: store nothing).

        `use` says what the files hold at first, and follows what becomes of them: it outlives the shelf.
        """
        self.name = name
        self.size = size
        self.unit_count = unit_count(size)
        self.states = bytearray(self.unit_count) if storage is not None else bytearray(_ABSENT_BYTE * self.unit_count)
        """One state (unit_map) per unit; 0, UNKNOWN, for all of a cache that was just opened: opening looks at no unit."""
        self.touched = bytearray(-(-self.unit_count // REGION_UNITS))
        """For each region whether it was read since the clock's hand last passed."""
        self.credit = bytearray(len(self.touched))
        """For each region how many turns of the hand it is spared without being read."""
        self.marks: set[int] = set()
        """Units that are here and whose state says UNKNOWN, so that their first touch is not a hit: see `ReadAhead`. Some may be out of date."""
        self.flights: dict[int, Flight] = {}
        self.file: UnitFile | None = None
        """The files; None if nothing is, or no longer, stored."""
        self.account: Account | None = None
        """What the files have of the budget; kept when they are given up, since they still take room."""
        if storage is not None:
            self.file, self.account = storage
        self.descriptor = self.file.units if self.file is not None else -1
        self._use = use
        self.pinned = False
        """Evict from here last."""
        self._memory = memory
        self._readers: dict[int, int] = {}  # region -> readers that count on what is in it
        self._young: set[int] = set()  # regions that got units since the last `age`
        self._grown: set[int] = set()  # and those that did between the last two
        self._to_mark: set[int] = set()
        self._groups_known: set[int] = set()  # map pages whose absent units were noted
        self._told: set[str] = set()  # kinds of trouble that were logged

    @property
    def present(self) -> int:
        """Units that are here, as far as the map and what happened since tell."""
        return self._use.present

    @present.setter
    def present(self, present: int) -> None:
        self._use.present = present

    def is_missing(self, unit: int) -> bool:
        """Tell whether a unit is neither here nor on its way, for sure."""
        return self.states[unit] == ABSENT and unit not in self.flights and self.loose(unit) is None

    def loose(self, unit: int) -> bytes | None:
        """Return a unit that could not be stored, if its bytes are still in memory."""
        return self._memory.kept(self.name, unit)

    def forget_loose(self) -> None:
        """Drop the units that could not be stored and are in memory."""
        self._memory.forget(self.name)

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
        if unit in self._to_mark:
            self._to_mark.discard(unit)
            self._mark_if_data(unit)
        self.touched[region_of(unit)] = 1
        self._young.add(region_of(unit))
        flight.land()

    async def examine(self, units: Sequence[int]) -> int:
        """Learn the states of those of `units` that nobody looked at since opening; what is there is proved by its checksum.

        Returns how many of them were damaged, and so are absent now.
        """
        unknown = [unit for unit in units if self.states[unit] == UNKNOWN and unit not in self.flights]
        if not unknown or self.file is None:
            return 0
        self.marks.difference_update(unknown)
        flight = Flight()
        self.flights.update(dict.fromkeys(unknown, flight))
        groups = {unit_map.group_of(unit) for unit in unknown} - self._groups_known
        try:
            found = await threads.run(Lane.DISK, self.file.examine, unknown, sorted(groups))
            if self.file is not None:  # it was not given up meanwhile
                self._note(found)
                self._groups_known |= groups
            return len(found.damaged)
        finally:
            self.land(unknown, flight)

    async def learn(self, units: range) -> None:
        """Learn from the map which of `units` are absent, without proving those that it says are there. Safe to cancel."""
        unseen = [group for group in unit_map.groups_of(units) if group not in self._groups_known and UNKNOWN in self._group_states(group)]
        for start in range(0, len(unseen), _GROUPS_AT_ONCE):
            groups = unseen[start : start + _GROUPS_AT_ONCE]
            if self.file is None:
                return
            found = await threads.run(Lane.DISK, self.file.examine, (), groups)
            if self.file is not None:  # it was not given up meanwhile
                self._note(found)
                self._groups_known.update(groups)

    def missing(self, units: range) -> list[range]:
        """Return the runs of `units` that are neither here nor, as far as is known, on the disk."""
        states = self.states[units.start : units.stop]
        for unit in self.marks:
            if unit in units and states[unit - units.start] == UNKNOWN:
                states[unit - units.start] = DATA
        return missing_runs(states, units.start, self._groups_known)

    def mark(self, units: Iterable[int]) -> None:
        """See to it that the first touch of these units is not a hit: of those with data, once they are here."""
        if len(self._to_mark) > _MARKS:
            self._to_mark.clear()  # of fills that failed
        for unit in units:
            if self.states[unit] >= DATA:
                self._mark_if_data(unit)
            else:
                self._to_mark.add(unit)

    def unmark(self, units: range) -> bool:
        """Make marked ones of `units` hits again; return whether there was one."""
        found = False
        for unit in self.marks.intersection(units) if self.marks else ():
            self.marks.discard(unit)
            if self.states[unit] == UNKNOWN and unit not in self.flights:  # else it was evicted, or is being proved
                self.states[unit] = DATA
                found = True
        return found

    @property
    def complete(self) -> bool:
        """Whether all units are here, proved by their checksums since the cache was opened, or brought since then."""
        marked = sum(self.states[unit] == UNKNOWN for unit in self.marks)
        return self.states.count(DATA) + self.states.count(unit_map.ZERO) + marked == self.unit_count

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
        self._use.kept.update(regions_of(unit_span(offset, length)))

    def is_old(self, region: int) -> bool:
        """Tell whether a region got no units lately, so that who reads it now reads it again."""
        return region not in self._young and region not in self._grown

    def age(self) -> None:
        """Make regions old that got no units since the last call, and forget that they were read until now: that was one use of them."""
        for region in self._grown - self._young:
            self.touched[region] = 0
        self._grown, self._young = self._young, set()

    def movable(self, region: int, *, sparing: bool) -> bool:
        """Tell whether a region may be evicted now; `sparing` means that one to be kept may not."""
        if region in self._readers or (sparing and (self.pinned or region in self._use.kept)):
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

    def note_use(self) -> None:
        """Write down that the cache is in use, and what it wants to keep. Blocks; may run in any thread. Raises OSError."""
        file = self.file
        if file is not None:
            file.note_use(self._use.record(closed=False))

    def abandon(self, error: OSError) -> None:
        """Stop using files that cannot be read back: everything is fetched again, and nothing stored, until the cache is reopened."""
        if self.file is not None:
            log.error("a cache cannot be read from its disk, so the image is served without it cache=%s error=%s", self.name, error)
            self.file = None
            self.present = 0
            self._use.sound = False
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

    def _mark_if_data(self, unit: int) -> None:
        if self.states[unit] == DATA:
            self.marks.add(unit)
            self.states[unit] = UNKNOWN

    def _group_states(self, group: int) -> bytearray:
        return self.states[group * unit_map.GROUP : (group + 1) * unit_map.GROUP]

    def _note(self, found: Examined) -> None:
        for unit, state in found.states.items():
            self.states[unit] = state
        for unit in found.absent:
            # Others may have looked at it, filled and marked it, or be filling it, by now: then they know better.
            if self.states[unit] == UNKNOWN and unit not in self.flights and unit not in self.marks:
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
                self._use.sound = False
                log.warning("cannot evict cached units cache=%s first=%d count=%d error=%s", self.name, units.start, len(units), error)
        return erased

    def _tell(self, kind: str, message: str) -> None:
        """Log a kind of trouble once for each cache: after a power loss, or on a full disk, it comes a thousand times."""
        level = logging.DEBUG if kind in self._told else logging.WARNING
        self._told.add(kind)
        log.log(level, "%s cache=%s", message, self.name)
