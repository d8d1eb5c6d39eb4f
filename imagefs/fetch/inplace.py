"""This module reads a local object where it lies: no copy in the cache, and a hit is one `preadv` on the event loop."""

import contextlib
import os
import stat
import weakref
from typing import Final

from imagefs import threads
from imagefs.aio.reader import Reader
from imagefs.errors import ImageRefused, StoreUnavailable, VersionChanged
from imagefs.extents import Extents, clipped, widened
from imagefs.fetch.stored import StoredObject
from imagefs.holes import data_ranges
from imagefs.threads import Lane
from imagefs.units import UNIT, unit_count

_UNPROVED: Final = 0
_PROVED: Final = 1

Pin = tuple[int, int, int, int]
"""Device, inode, size and modification time in nanoseconds: another one means other bytes."""


class InPlaceSource:
    """A Source over the local file of a stored object. Its descriptor is closed with its last reference.

    A unit is proved by its digest when it is first touched, in a DISK thread, and read directly from then on. Holes are
    fine: they are proved like other bytes.

    Invariants: `read_nowait` returns bytes of proved units only; after every read the file is still the one that was
    pinned, so bytes that somebody wrote into it later are refused and not served.
    """

    def __init__(self, stored: StoredObject) -> None:
        """Open the file. Blocks. Raises VersionChanged if it is not the pinned version, StoreUnavailable if it cannot be opened."""
        if stored.path is None:
            raise ImageRefused(f"{stored.name}: it has no local file that could be read in place")
        self._stored = stored
        self._path = stored.path
        self._size = stored.size
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise StoreUnavailable(f"{stored.name}: cannot open {self._path}: {error.strerror}") from error
        self._closer = weakref.finalize(self, os.close, self._file)
        self._pin = self._confirmed_pin()
        self._reader = Reader(self._file)
        self._proved = bytearray(unit_count(self._size))

    @property
    def size(self) -> int:
        """Bytes in the object."""
        return self._size

    @property
    def cached_bytes(self) -> int:
        """Bytes that were proved and are read directly from now on."""
        return min(self._size, self._proved.count(_PROVED) * UNIT)

    def close(self) -> None:
        """Close the descriptor; no read may be under way or follow."""
        self._closer()

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says. None also if the file has changed: `read` says so."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        first, last = offset // UNIT, (offset + length - 1) // UNIT
        if not self._proved[first] or (first != last and _UNPROVED in self._proved[first : last + 1]):
            return None
        try:
            body = self._reader.nowait(length, offset)
        except OSError:
            return None
        if body is None or _pin_of(os.fstat(self._file)) != self._pin:
            return None
        return body

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says. Raises VersionChanged if the file is not the pinned one any more, WrongBytes, StoreUnavailable."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        if _UNPROVED not in self._proved[offset // UNIT : (offset + length - 1) // UNIT + 1]:
            body = bytearray(length)
            with contextlib.suppress(OSError):
                if await self._reader.fill(body, offset) == length:
                    self._check_pin()
                    return body
        return await threads.run(Lane.DISK, self._read_proved, offset, length)

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says: what the filesystem has no hole for, in whole units. Raises VersionChanged, StoreUnavailable."""
        stop = min(offset + length, self._size)
        return await threads.run(Lane.DISK, self._data_extents, offset, stop) if offset < stop else []

    def _data_extents(self, offset: int, stop: int) -> Extents:
        try:
            # Whole units: that bounds the list, and a unit is read as a whole anyway, to be proved.
            found = widened(data_ranges(self._file, offset, stop), UNIT)
        except OSError as error:
            raise StoreUnavailable(f"{self._stored.name}: cannot tell the holes of {self._path}: {error.strerror}") from error
        self._check_pin()
        return clipped(found, offset, stop)

    def _read_proved(self, offset: int, length: int) -> bytes:
        """Read in a thread, proving each unit that was not: the bytes that are returned are the bytes that were proved."""
        end = offset + length
        parts = []
        while offset < end:
            unit = offset // UNIT
            start = unit * UNIT
            stop = min(start + UNIT, self._size)
            if self._proved[unit]:
                # No need for the whole unit; a run of proved units goes in one read.
                while stop < end and self._proved[stop // UNIT]:
                    stop = min(stop + UNIT, self._size)
                stop = min(stop, end)
                part = self._pread(offset, stop - offset)
            else:
                whole = self._pread(start, stop - start)
                self._stored.verify_unit(unit, whole)
                self._proved[unit] = _PROVED
                stop = min(stop, end)
                part = whole[offset - start : stop - start]
            parts.append(part)
            offset = stop
        self._check_pin()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            body = os.pread(self._file, length, offset)
        except OSError as error:
            raise StoreUnavailable(f"{self._stored.name}: cannot read {self._path} at offset {offset}: {error.strerror}") from error
        if len(body) != length:
            self._check_pin()
            raise StoreUnavailable(f"{self._stored.name}: {self._path} gave {len(body)} of {length} bytes at offset {offset}")
        return body

    def _confirmed_pin(self) -> Pin:
        """Return the pin of the open file, once the store has said that the file at the path, the same one, is the pinned version."""
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnavailable(f"{self._stored.name}: {self._path} is not a regular file")
        self._stored.confirm()
        try:
            at_path = self._path.stat()
        except OSError as error:
            raise VersionChanged(f"{self._stored.name}: {self._path} is gone: {error.strerror}") from error
        if _pin_of(at_path) != _pin_of(status) or status.st_size != self._size:
            raise VersionChanged(f"{self._stored.name}: {self._path} was replaced while it was being opened")
        return _pin_of(status)

    def _check_pin(self) -> None:
        if _pin_of(os.fstat(self._file)) != self._pin:
            raise VersionChanged(f"{self._stored.name}: {self._path} has changed since it was opened; open it again for its present bytes")


def _pin_of(status: os.stat_result) -> Pin:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
