"""This module reads a whole stored object from the store, in order, with several requests in flight, past the cache."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

import trio

from imagefs import threads
from imagefs.threads import Lane
from imagefs.units import MIB, UNIT

CHUNK_UNITS: Final = 4 * MIB // UNIT
"""Units of one request."""
IN_FLIGHT: Final = 4
"""Requests at a time, 16 MiB of memory: at 1 Gb/s a store that is 30 ms away is kept busy by two."""


class StoredUnits(Protocol):
    """The part of `fetch.stored.StoredObject` that is needed here."""

    @property
    def units(self) -> int:
        """Units in the object; the last one may be short."""
        ...

    def stream_units(self, first_unit: int, count: int) -> Iterable[bytes]:
        """Yield units in order. Blocks. Raises StoreErrors."""
        ...


class _Chunk:
    """Some units on their way. What goes wrong is raised when their turn comes."""

    def __init__(self, first_unit: int, count: int) -> None:
        self.first_unit = first_unit
        self.count = count
        self._come = trio.Event()
        self._bodies: list[bytes] = []
        self._error: Exception | None = None

    async def fetch(self, stored: StoredUnits) -> None:
        """Fetch them."""
        try:
            self._bodies = await threads.run(Lane.IDLE, lambda: list(stored.stream_units(self.first_unit, self.count)))
        except Exception as error:
            self._error = error
        self._come.set()

    async def bodies(self) -> list[bytes]:
        """Return the units, once they have come. Raises what went wrong."""
        await self._come.wait()
        if self._error is not None:
            raise self._error
        return self._bodies


async def stream(stored: StoredUnits, take: Callable[[int, list[bytes]], Awaitable[None]], turn: Callable[[int], Awaitable[None]]) -> None:
    """Call `take` with the number of the first one of some units and their bytes, for all units of the object, in order.

    `turn` is awaited before a request for so many bytes. Raises what `take`, `turn` and the store raise. Safe to cancel: no thread is at
    work on it after that.
    """
    failures: list[Exception] = []
    chunks: deque[_Chunk] = deque()
    async with trio.open_nursery() as nursery:
        try:
            for first in range(0, stored.units, CHUNK_UNITS):
                count = min(CHUNK_UNITS, stored.units - first)
                await turn(count * UNIT)
                chunks.append(_Chunk(first, count))
                nursery.start_soon(chunks[-1].fetch, stored)
                if len(chunks) == IN_FLIGHT:
                    await _take_first(chunks, take)
            while chunks:
                await _take_first(chunks, take)
        except Exception as error:  # raised outside of the nursery, which would put it into a group
            failures.append(error)
            nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _take_first(chunks: deque[_Chunk], take: Callable[[int, list[bytes]], Awaitable[None]]) -> None:
    chunk = chunks.popleft()
    await take(chunk.first_unit, await chunk.bodies())
