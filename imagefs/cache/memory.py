"""This module bounds the memory that fills take, and keeps the last units that had no place on the cache's disk."""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from typing import Final

import trio

from imagefs.cache.invariants import require

KEPT_FRACTION: Final = 8
"""One part in this many of the memory holds unstored units: enough that a guest reading 4 KiB at a time fetches each unit once."""


class Memory:
    """The memory of all caches of one daemon, in bytes. Used on the event loop only.

    Invariants: fills in flight hold `limit` bytes at most, kept units limit / 8 at most.
    """

    def __init__(self, limit: int) -> None:
        """Take the bytes that fills may hold at once."""
        self._limit = limit
        self._turn = trio.Lock()  # waiting for room is in order, so that a large fill is not overtaken for ever
        self._room = trio.Event()
        self._in_flight = 0
        self._kept: OrderedDict[tuple[Hashable, int], bytes] = OrderedDict()
        self._kept_bytes = 0

    @property
    def in_flight(self) -> int:
        """Bytes that fills hold now."""
        return self._in_flight

    @contextlib.asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Hold `amount` bytes for the time of the block; wait, in order, until there is room. More than all of it counts as all of it."""
        amount = min(amount, self._limit)
        async with self._turn:
            while self._in_flight + amount > self._limit:
                self._room = trio.Event()
                await self._room.wait()
            self._in_flight += amount
        try:
            yield
        finally:
            self._in_flight -= amount
            self._room.set()

    def keep(self, owner: Hashable, unit: int, body: bytes) -> None:
        """Keep a unit that is not stored; the oldest ones make room."""
        self._drop((owner, unit))
        self._kept[owner, unit] = body
        self._kept_bytes += len(body)
        while self._kept_bytes > self._limit // KEPT_FRACTION:
            self._drop(next(iter(self._kept)))

    def kept(self, owner: Hashable, unit: int) -> bytes | None:
        """Return a unit that is still kept."""
        return self._kept.get((owner, unit))

    def forget(self, owner: Hashable) -> None:
        """Drop all units of an owner that is gone."""
        for key in [key for key in self._kept if key[0] == owner]:
            self._drop(key)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises."""
        require(0 <= self._in_flight <= self._limit, "fills hold no more than the limit")
        require(self._kept_bytes == sum(map(len, self._kept.values())) <= self._limit // KEPT_FRACTION, "kept units are counted and bounded")

    def _drop(self, key: tuple[Hashable, int]) -> None:
        body = self._kept.pop(key, None)
        if body is not None:
            self._kept_bytes -= len(body)
