"""This module is the two files of one cache: `units`, sparse, each unit at its own offset, and `map`, which says what is there.

All methods block and may be called from several threads; the caller sees to it that no two change the same unit at once.
"""

import collections
import contextlib
import dataclasses
import errno
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from crc32c import crc32c

from imagefs.cache import mark, unit_map, use_record
from imagefs.cache.geometry import REGION, REGION_UNITS, unit_length
from imagefs.cache.mark import Mark
from imagefs.cache.unit_map import ABSENT, DATA, ENTRY, GROUP, ZERO, MapHeader
from imagefs.cache.use_record import UseRecord
from imagefs.errors import StateDamaged
from imagefs.holes import allocated_bytes, data_ranges, punch_hole
from imagefs.sealed import boot_id, write_durably
from imagefs.units import UNIT, unit_count

log = logging.getLogger(__name__)

ZEROS: Final = bytes(UNIT)
_ZERO_CRC: Final = crc32c(ZEROS)


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
    before they go. Where power was lost neither holds; the checksums tell. A mark of completeness goes before a unit does.
    """

    def __init__(self, units: int, entries: int, header: MapHeader, mark_path: Path | None = None) -> None:
        """Take the descriptors of `units` and `map`, which this closes, the map's header, and where its mark lies (None: it has none, ever)."""
        self.units = units
        """Descriptor of the units: a unit whose state is DATA or ZERO may be read from it directly."""
        self._map = entries
        self._size = header.size
        self._seed = header.seed
        self._unit_count = unit_count(header.size)
        self._map_lock = threading.Lock()  # entries are written, and pages of them punched, one after the other
        self._mark_path = mark_path
        self._mark_gone = False
        self.mark: Mark | None = None
        """That all of the cache is here, and what it was compared with; None if that is not known, or not any more."""
        self.stored: collections.deque[tuple[int, int]] | None = None
        """Whole units of data that were stored, with the CRC-32C of each, for who looks for equal ones; None if nobody does."""
        self.losses = 0
        """How often units were erased. What is found out about a cache as a whole holds only if this is the same before and after."""

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
            state, checksum = ZERO if zero else DATA, crc32c(body)
            with self._map_lock:
                _write(self._map, unit_map.pack_entry(self._seed, unit, state, checksum), unit_map.entry_offset(unit))
        except OSError:
            self._discard(range(unit, unit + 1))
            raise
        if self.stored is not None and state == DATA and len(body) == UNIT:
            self.stored.append((unit, checksum))
        return state

    def store_zeros(self, units: range) -> None:
        """Make absent `units`, of one map page, units of zeros. Raises OSError, with all of them absent."""
        entries = bytearray()
        for unit in units:
            short = unit_length(unit, self._size)
            entries += unit_map.pack_entry(self._seed, unit, ZERO, _ZERO_CRC if short == UNIT else crc32c(ZEROS[:short]))
        try:
            punch_hole(self.units, units.start * UNIT, len(units) * UNIT)  # damaged units may have left bytes here
            with self._map_lock:
                _write(self._map, bytes(entries), unit_map.entry_offset(units.start))
        except OSError:
            self._discard(units)
            raise

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
            self.losses += 1
            self._remove_mark()
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

    def present_regions(self, first: int, limit: int) -> list[int]:
        """Return up to `limit` regions, from `first` on, of which the map says that something is there. Raises OSError."""
        found: list[int] = []
        size = REGION_UNITS * ENTRY
        for start, stop in data_ranges(self._map, unit_map.entry_offset(first * REGION_UNITS), unit_map.entry_offset(self._unit_count)):
            for offset in range(start, stop, GROUP * ENTRY):
                entries = os.pread(self._map, min(GROUP * ENTRY, stop - offset), offset)
                region = (offset - unit_map.HEADER_AREA) // size
                found += [region + index for index in range(-(-len(entries) // size)) if any(entries[index * size : (index + 1) * size])]
                if len(found) >= limit:
                    return found[:limit]
        return found

    def allocated(self) -> int:
        """Return the bytes that both files take on their filesystem."""
        return allocated_bytes(self.units) + allocated_bytes(self._map)

    def count_present(self) -> int:
        """Return how many entries say that their unit is there; reads the allocated parts of the map. Raises OSError."""
        return count_present(self._map, self._unit_count)

    def read_use(self) -> UseRecord:
        """Return what the map says of its use. Raises OSError."""
        return read_use(self._map, self._unit_count)

    def begin_use(self) -> UseRecord:
        """Return what the map says of its use, and note that it is in use: from now on its units have to be counted. Raises OSError.

        Takes no longer for a large image than for a small one, unless the daemon that used the cache last was killed.
        """
        found = self.read_use()
        self.note_use(UseRecord(None, found.kept))
        return UseRecord(self.count_present() if found.present is None else found.present, found.kept)

    def note_use(self, record: UseRecord) -> None:
        """Write down how the cache is used, and with it that it was used now. Raises OSError."""
        _write(self._map, use_record.encode(record, boot_id()), use_record.OFFSET)

    def read_mark(self) -> None:
        """See whether the cache is marked as complete. A mark that is torn, of another map, or of more units than are here, is removed.

        Never raises. Call it before anything else is done with the files.
        """
        found = self._sound_mark()
        if found is None:
            self._remove_mark()
        self.mark = found

    def write_mark(self, found: Mark, losses: int) -> bool:
        """Mark the cache as complete, unless units were lost since `losses` was read, or are not here. Return whether it is marked.

        Raises OSError.
        """
        with self._map_lock:
            if self._mark_path is None or self.losses != losses or self.count_present() != self._unit_count:
                return False
            self._mark_gone = False
            write_durably(self._mark_path, mark.encode_mark(found))
            self.mark = found
        return True

    @property
    def seed(self) -> int:
        """The number that a mark of this map names it by."""
        return self._seed

    def _sound_mark(self) -> Mark | None:
        if self._mark_path is None:
            return None
        try:
            found = read_mark(self._mark_path)
            if found is None or found.seed != self._seed or found.units != self._unit_count or self._present() != self._unit_count:
                return None
        except (OSError, StateDamaged) as error:
            log.warning("a cache's mark of completeness cannot be used and is removed path=%s error=%s", self._mark_path, error)
            return None
        return found

    def _present(self) -> int:
        """Return how many units are there, without counting them if the map says it. Raises OSError."""
        known = self.read_use().present
        return self.count_present() if known is None else known

    def _remove_mark(self) -> None:
        """Remove the mark, once: there is none then until `write_mark`. That this may fail is harmless: a mark counts with all units only."""
        self.mark = None
        if self._mark_path is None or self._mark_gone:
            return
        with contextlib.suppress(OSError):
            self._mark_path.unlink(missing_ok=True)
            self._mark_gone = True

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


def read_use(entries: int, units: int) -> UseRecord:
    """Return what the map with descriptor `entries`, of so many units, says of its use. Blocks. Raises OSError."""
    area = os.pread(entries, use_record.AREA, use_record.OFFSET)
    return use_record.decode(area, boot_id(), units=units, regions=-(-units // REGION_UNITS))


def read_mark(path: Path) -> Mark | None:
    """Return the mark in the file at `path`, None if there is none. Blocks. Raises OSError, StateDamaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return mark.decode_mark(os.pread(descriptor, mark.LIMIT, 0), str(path))
    finally:
        os.close(descriptor)


def checksums(entries: int, header: MapHeader, limit: int) -> list[tuple[int, int]]:
    """Return up to `limit` whole units of data, each with its CRC-32C, of the map with descriptor `entries`. Blocks. Raises OSError."""
    found: list[tuple[int, int]] = []
    for start, stop in data_ranges(entries, unit_map.HEADER_AREA, unit_map.entry_offset(header.size // UNIT)):
        for offset in range(start, stop, GROUP * ENTRY):
            page = os.pread(entries, min(GROUP * ENTRY, stop - offset), offset)
            first = (offset - unit_map.HEADER_AREA) // ENTRY
            for index in range(len(page) // ENTRY):
                entry = unit_map.unpack_entry(header.seed, first + index, page[index * ENTRY : (index + 1) * ENTRY])
                if entry is not None and entry[0] == DATA:
                    found.append((first + index, entry[1]))
            if len(found) >= limit:
                return found[:limit]
    return found


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
