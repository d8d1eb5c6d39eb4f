"""This module writes down what a guest reads first of a disk: a Source in front of the disk's own, for as long as a boot may take."""

from collections.abc import Callable
from typing import Final

import trio

from imagefs.extents import Extents
from imagefs.profile.record import BOOT_UNITS
from imagefs.source import Source
from imagefs.units import UNIT

IDLE_SECONDS: Final = 15.0
"""A guest that has read nothing for so long has booted, and waits for something else than its disk."""
LONGEST_SECONDS: Final = 120.0
"""What a guest reads after two minutes is its work, and not its boot."""

_SHIFT: Final = UNIT.bit_length() - 1


class Recorder:
    """A Source that shows `disk` and notes the units that are read of it, hits and misses, in order of first touch.

    It notes from the first read on until nothing was read for IDLE_SECONDS, or for LONGEST_SECONDS, or until `end` is called or the boot is
    too long for a profile. Then `read_nowait` is the disk's own, and `ended` has been called: who holds it may put the disk in its place.
    Nobody but a guest should read through it.
    """

    def __init__(self, disk: Source, begun: Callable[["Recorder"], None], ended: Callable[[], object]) -> None:
        """Take the disk, what is called at the first read, and what is called once at the end. Neither may raise or wait."""
        self._disk = disk
        self._begun = begun
        self._ended = ended
        self._units: dict[int, None] = {}
        self._waiting = 0
        self._started: float | None = None
        self._last = 0.0
        self._over = trio.Event()

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._disk.size

    @property
    def units(self) -> tuple[int, ...]:
        """What was read so far, in order of first touch."""
        return tuple(self._units)

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says."""
        self._note(offset, length)
        return self._disk.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says."""
        self._note(offset, length)
        self._waiting += 1
        try:
            return await self._disk.read(offset, length)
        finally:
            self._waiting -= 1
            self._last = trio.current_time()

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says. A guest cannot ask for extents: whoever does is about to copy the disk, and no boot is recorded any more."""
        self.end()
        return await self._disk.extents(offset, length)

    async def finished(self) -> None:
        """Return when the recording is over; to be called once it has begun. Safe to cancel."""
        while not self._over.is_set():
            now = trio.current_time()
            started = now if self._started is None else self._started
            left = min(started + LONGEST_SECONDS, now + IDLE_SECONDS if self._waiting else self._last + IDLE_SECONDS) - now
            if left <= 0:
                self.end()
                return
            with trio.move_on_after(left):
                await self._over.wait()

    def end(self) -> None:
        """Note nothing any more, and step out of the way. May be called again."""
        if not self._over.is_set():
            self._over.set()
            self.read_nowait = self._disk.read_nowait  # type: ignore[method-assign]
            self._ended()

    def _note(self, offset: int, length: int) -> None:
        if self._over.is_set():
            return
        self._last = trio.current_time()
        if self._started is None:
            self._started = self._last
            self._begun(self)
        stop = min(offset + length, self._disk.size)
        if offset >= stop:
            return
        units = self._units
        for unit in range(offset >> _SHIFT, (stop - 1 >> _SHIFT) + 1):
            if unit not in units:
                if len(units) == BOOT_UNITS:
                    self.end()
                    return
                units[unit] = None
