"""This module bounds the memory that fills take, and keeps the last units that had no place on the cache's disk."""

import collections
from collections import OrderedDict
from collections.abc import Hashable
from types import TracebackType
from typing import Final, Self

import trio

from imagefs.cache.invariants import require
from imagefs.units import MIB
from imagefs.urgency import Urgency

KEPT_FRACTION: Final = 8
"""One part in this many of the memory holds unstored units: enough that a guest reading 4 KiB at a time fetches each unit once."""

RESERVED: Final = 16 * MIB
"""Bytes that only what a reader waits for may hold, or half of the memory where that is less."""


class Hold:
    """Bytes of the memory, held until `release` or the end of a `with` block. Used on the event loop only."""

    __slots__ = ("_amount", "_memory", "_urgency")

    def __init__(self, memory: "Memory", amount: int, urgency: Urgency | None) -> None:
        """Made by `Memory.take` and `Memory.exceed`, which has no urgency."""
        self._memory: Memory | None = memory
        self._amount = amount
        self._urgency = urgency

    def release(self) -> None:
        """Give the bytes back; more than once does no harm."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.give_back(self._amount, self._urgency)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Memory:
    """The memory of all caches of one daemon, in bytes. Used on the event loop only.

    Invariants: fills in flight hold `limit` bytes at most, but for what `exceed` gave; those that no reader waits for leave RESERVED of it to
    readers; kept units take limit / 8 at most.
    """

    def __init__(self, limit: int) -> None:
        """Take the bytes that fills may hold at once."""
        self._limit = limit
        self._shared = limit - min(RESERVED, limit // 2)
        self._queues: dict[Urgency, collections.deque[tuple[int, trio.Event]]] = {urgency: collections.deque() for urgency in Urgency}
        self._held = 0
        self._held_ahead = 0  # of it, by what no reader waits for
        self._exceeded = 0
        self._kept: OrderedDict[tuple[Hashable, int], bytes] = OrderedDict()
        self._kept_bytes = 0

    @property
    def in_flight(self) -> int:
        """Bytes that fills hold now."""
        return self._held + self._exceeded

    async def take(self, amount: int, urgency: Urgency = Urgency.DEMAND) -> Hold:
        """Hold `amount` bytes; wait until there is room, in order within each urgency. More than all of it counts as all of it.

        Safe to cancel.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        amount = min(amount, self._limit if urgency is Urgency.DEMAND else self._shared)
        queue = self._queues[urgency]
        if not any(self._queues[more] for more in Urgency if more <= urgency) and self._fits(amount, urgency):
            self._add(amount, urgency)
            return Hold(self, amount, urgency)
        waiting = (amount, trio.Event())
        queue.append(waiting)
        try:
            await waiting[1].wait()
        except BaseException:
            if waiting[1].is_set():
                self.give_back(amount, urgency)
            else:
                queue.remove(waiting)
                self._call()
            raise
        return Hold(self, amount, urgency)

    def exceed(self, amount: int) -> Hold:
        """Hold `amount` bytes beyond the limit without waiting: for what a fill that holds its part already needs to go on."""
        self._exceeded += amount
        return Hold(self, amount, None)

    def give_back(self, amount: int, urgency: Urgency | None) -> None:
        """Take held bytes back, and call who waits: the work of `Hold.release`."""
        if urgency is None:
            self._exceeded -= amount
            return
        self._held -= amount
        if urgency is not Urgency.DEMAND:
            self._held_ahead -= amount
        self._call()

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
        require(0 <= self._held_ahead <= self._held <= self._limit and self._exceeded >= 0, "fills hold no more than the limit")
        require(self._held_ahead <= self._shared, "readers have their part")
        require(self._kept_bytes == sum(map(len, self._kept.values())) <= self._limit // KEPT_FRACTION, "kept units are counted and bounded")

    def _fits(self, amount: int, urgency: Urgency) -> bool:
        if self._held + amount > self._limit:
            return False
        return urgency is Urgency.DEMAND or self._held_ahead + amount <= self._shared

    def _add(self, amount: int, urgency: Urgency) -> None:
        self._held += amount
        if urgency is not Urgency.DEMAND:
            self._held_ahead += amount

    def _call(self) -> None:
        """Let those go on for whom there is room, the most urgent first; a large one is not overtaken by smaller ones for ever."""
        for urgency, queue in self._queues.items():
            while queue and self._fits(queue[0][0], urgency):
                amount, called = queue.popleft()
                self._add(amount, urgency)
                called.set()
            if queue:
                return

    def _drop(self, key: tuple[Hashable, int]) -> None:
        body = self._kept.pop(key, None)
        if body is not None:
            self._kept_bytes -= len(body)
