"""This module puts guest units together from the pieces that arrive for them, and delivers each one when its last byte is there."""

import threading

from imagefs.cache.filler import Deliver
from imagefs.units import UNIT


class UnitAssembler:
    """The units that one batch of a fill makes. Thread-safe; put bytes in from worker threads, since delivering writes to a disk.

    Invariants: a unit is delivered once, when as many bytes as it has were put; a unit of zeros only takes no memory. The
    ranges put do not overlap and lie within the units of the batch, whose last one is cut at `size` bytes.
    """

    def __init__(self, size: int, deliver: Deliver) -> None:
        """Take the bytes in the disk and where to deliver to."""
        self._size = size
        self._deliver = deliver
        self._lock = threading.Lock()
        self._bodies: dict[int, bytearray] = {}
        self._present: dict[int, int] = {}

    def zero(self, guest_offset: int, length: int) -> None:
        """Count `length` bytes at `guest_offset` as zeros."""
        self._spread(guest_offset, length, None)

    def put(self, guest_offset: int, body: bytes | memoryview) -> None:
        """Take the bytes at `guest_offset`."""
        self._spread(guest_offset, len(body), body)

    def _spread(self, guest_offset: int, length: int, body: bytes | memoryview | None) -> None:
        view = None if body is None else memoryview(body)
        offset, end = guest_offset, guest_offset + length
        while offset < end:
            unit = offset // UNIT
            stop = min(end, (unit + 1) * UNIT)
            part = None if view is None else view[offset - guest_offset : stop - guest_offset]
            self._take(unit, offset - unit * UNIT, stop - offset, part)
            offset = stop

    def _take(self, unit: int, start: int, length: int, part: memoryview | None) -> None:
        unit_length = min(UNIT, self._size - unit * UNIT)
        if length == unit_length:
            self._deliver(unit, None if part is None else _own(part))
            return
        with self._lock:
            if part is not None:
                body = self._bodies.get(unit)
                if body is None:
                    body = self._bodies[unit] = bytearray(unit_length)
                body[start : start + length] = part
            present = self._present.get(unit, 0) + length
            self._present[unit] = present
            if present < unit_length:
                return
            del self._present[unit]
            whole = self._bodies.pop(unit, None)
        # Outside the lock: delivering may write to a disk.
        self._deliver(unit, None if whole is None else bytes(whole))


def _own(part: memoryview) -> bytes:
    """Return the viewed bytes, without a copy if the view is a whole `bytes` object, as it is with 64 KiB clusters."""
    whole = part.obj
    return whole if isinstance(whole, bytes) and len(whole) == len(part) else bytes(part)
