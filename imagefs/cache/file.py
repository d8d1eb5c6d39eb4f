"""This module is the two files of one cache: `units`, sparse, each unit at its own offset, and `map`, which says what is there.

All methods block and may be called from several threads; the caller sees to it that no two change the same unit at once.
"""

import dataclasses
import errno
import logging
import os
import threading
from collections.abc import Iterable
from typing import Final

from crc32c import crc32c

from imagefs.cache import unit_map
from imagefs.cache.geometry import REGION, unit_length
from imagefs.cache.unit_map import ABSENT, DATA, ENTRY, GROUP, ZERO, MapHeader
from imagefs.holes import allocated_bytes, data_ranges, punch_hole
from imagefs.units import UNIT, unit_count

log = logging.getLogger(__name__)

ZEROS: Final = bytes(UNIT)


@dataclasses.dataclass(frozen=True, slots=True)
class Examined:
    """What the disk says: the state of each unit that was asked about, units found absent besides, and what was lost."""

    states: dict[int, int]
    absent: list[int]
    damaged: list[int]
    erased: int
    """Entries that counted as present and were erased because of damage."""


class UnitFile:
    """The open files of one cache.

    Invariants: a unit's entry says DATA or ZERO only after its bytes were written (or its hole was punched), and is erased
    before they go. Where power was lost neither holds; the checksums tell.
    """

    def __init__(self, units: int, entries: int, header: MapHeader) -> None:
        """Take the descriptors of `units` and `map`, which this closes, and the map's header."""
        self.units = units
        """Descriptor of the units: a unit whose state is DATA or ZERO may be read from it directly."""
        self._map = entries
        self._size = header.size
        self._seed = header.seed
        self._unit_count = unit_count(header.size)
        self._map_lock = threading.Lock()  # entries are written, and pages of them punched, one after the other

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.units)
        os.close(self._map)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of the units. Raises OSError, also if the file is too short."""
        body = os.pread(self.units, length, offset)
        if len(body) != length:
            raise OSError(errno.EIO, f"the cached units end {length - len(body)} bytes early")
        return body

    def store(self, unit: int, body: bytes) -> int:
        """Write a unit and then its entry; return its state, DATA or ZERO. Raises OSError, with the unit absent."""
        offset, zero = unit * UNIT, is_zero(body)
        try:
            if zero:
                # A damaged unit may have left bytes here, and a zero unit is read as a hole.
                punch_hole(self.units, offset, UNIT)
            else:
                _write(self.units, body, offset)
            state = ZERO if zero else DATA
            with self._map_lock:
                _write(self._map, unit_map.pack_entry(self._seed, unit, state, crc32c(body)), unit_map.entry_offset(unit))
        except OSError:
            self._discard(range(unit, unit + 1))
            raise
        return state

    def examine(self, units: Iterable[int], groups: Iterable[int]) -> Examined:
        """Say which of `units` are there, by their checksums, and which of all units of the map pages `groups` are absent.

        Damaged units are erased. Never raises: what cannot be read is damaged.
        """
        states: dict[int, int] = {}
        damaged = []
        for unit in units:
            states[unit] = self._proved_state(unit)
            if states[unit] == unit_map.UNKNOWN:
                damaged.append(unit)
                states[unit] = ABSENT
        erased = sum(self._discard(range(unit, unit + 1)) for unit in damaged)
        absent = [unit for group in groups for unit in self._absent_units(group)]
        return Examined(states, absent, damaged, erased)

    def erase(self, units: range) -> int:
        """Make `units` absent and give their bytes back; return how many were there. Raises OSError.

        A map page without entries is given back too, so that the map of a huge image does not outgrow a small budget.
        """
        start, length = unit_map.entry_offset(units.start), len(units) * ENTRY
        with self._map_lock:
            entries = os.pread(self._map, length, start)
            erased = unit_map.count_present(entries)
            if not is_zero(entries):  # on a full disk, do not ask for a page to write zeros to
                _write(self._map, bytes(length), start)
            for group in unit_map.groups_of(units):
                page_offset = unit_map.entry_offset(group * GROUP)
                if is_zero(os.pread(self._map, GROUP * ENTRY, page_offset)):
                    punch_hole(self._map, page_offset, GROUP * ENTRY)
        punch_hole(self.units, units.start * UNIT, len(units) * UNIT)
        return erased

    def data_regions(self, first: int, limit: int) -> list[int]:
        """Return up to `limit` regions, from `first` on, that have bytes on the disk. Raises OSError."""
        found: list[int] = []
        while len(found) < limit and first * REGION < self._size:
            try:
                offset = os.lseek(self.units, first * REGION, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            found.append(offset // REGION)
            first = found[-1] + 1
        return found

    def allocated(self) -> int:
        """Return the bytes that both files take on their filesystem."""
        return allocated_bytes(self.units) + allocated_bytes(self._map)

    def count_present(self) -> int:
        """Return how many entries say that their unit is there; reads the allocated parts of the map. Raises OSError."""
        return count_present(self._map, self._unit_count)

    def _proved_state(self, unit: int) -> int:
        """Return ABSENT, or the state that both the entry and the unit's bytes prove; UNKNOWN stands for damage."""
        try:
            entry = unit_map.unpack_entry(self._seed, unit, os.pread(self._map, ENTRY, unit_map.entry_offset(unit)))
            if entry is None or entry[0] == ABSENT:
                return unit_map.UNKNOWN if entry is None else ABSENT
            body = self.read(unit * UNIT, unit_length(unit, self._size))
        except OSError as error:
            log.warning("cannot read a cached unit unit=%d error=%s", unit, error)
            return unit_map.UNKNOWN
        state, crc = entry
        sound = crc32c(body) == crc and (state == DATA or is_zero(body))
        return state if sound else unit_map.UNKNOWN

    def _absent_units(self, group: int) -> list[int]:
        first = group * GROUP
        count = min(GROUP, self._unit_count - first)
        try:
            entries = os.pread(self._map, count * ENTRY, unit_map.entry_offset(first))
        except OSError:
            return []
        return [first + index for index in unit_map.absent_entries(entries)]

    def _discard(self, units: range) -> int:
        """Erase what could not be written or proved; that this may fail too changes nothing, since it is still not proved."""
        try:
            return self.erase(units)
        except OSError as error:
            log.warning("cannot erase cached units first=%d count=%d error=%s", units.start, len(units), error)
            return 0


def count_present(entries: int, units: int) -> int:
    """Return how many entries of the map with descriptor `entries` say that their unit is there. Blocks. Raises OSError."""
    present = 0
    step = 256 * GROUP * ENTRY  # a multiple of the entries' size, and of pages, where holes begin
    for start, stop in data_ranges(entries, unit_map.HEADER_AREA, unit_map.entry_offset(units)):
        for offset in range(start, stop, step):
            present += unit_map.count_present(os.pread(entries, min(step, stop - offset), offset))
    return present


def is_zero(body: bytes) -> bool:
    """Tell whether `body`, of one unit at most, is all zeros."""
    return body == ZEROS[: len(body)]


def _write(descriptor: int, body: bytes, offset: int) -> None:
    """Write all of `body`. Raises OSError; a disk that takes only part of it is full."""
    if os.pwrite(descriptor, body, offset) != len(body):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
