"""A filler that a test holds in its hand, caches over it, and a trio loop that a test without one can use."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing

from imagefs import threads
from imagefs.cache.budget import Budget
from imagefs.cache.cache import UnitCache
from imagefs.cache.directory import disk_usage
from imagefs.cache.filler import Deliver
from imagefs.cache.memory import Memory
from imagefs.cache.root import CacheRoot
from imagefs.extents import clipped
from imagefs.fetch.traffic import Traffic, Turn
from imagefs.threads import FETCH_LANES
from imagefs.units import GIB, MIB, UNIT
from imagefs.urgency import Urgency

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

IMAGE = "11111111-2222-3333-4444-555555555555"
OTHER_IMAGE = "11111111-2222-3333-4444-666666666666"


class HeldFiller:
    """A UnitFiller over `content`. `before(unit)` runs in the delivering thread ahead of each unit: it may wait, and it may raise."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.fills: list[tuple[int, int]] = []
        self.urgencies: list[Urgency] = []
        """Of the fills, in the same order."""
        self.nonzero: list[tuple[int, int]] = [(0, len(content))]
        self.free: Callable[[int], tuple[int, int]] = lambda unit: (unit, 1)
        self.before: Callable[[int], object] = lambda unit: None
        self.traffic = Traffic()
        self.asked = trio.Event()
        """Set by the first fill."""

    def plan(self, unit: int) -> tuple[int, int]:
        return self.free(unit)

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        return clipped(self.nonzero, offset, offset + length)

    async def turn(self, urgency: Urgency) -> Turn:
        return await self.traffic.turn(urgency)

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        self.fills.append((first_unit, count))
        self.urgencies.append(urgency)
        self.asked.set()
        await threads.run(FETCH_LANES[urgency], self._bring, first_unit, count, deliver)

    def _bring(self, first_unit: int, count: int, deliver: Deliver) -> None:
        for unit in range(first_unit, first_unit + count):
            self.before(unit)
            trio.from_thread.check_cancelled()
            body = self.content[unit * UNIT : (unit + 1) * UNIT]
            deliver(unit, body if any(body) else None)


class Gate:
    """Stops a filler before the units from `first` on until it is opened."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self, unit: int) -> None:
        if unit >= self._first:
            assert self._open.wait(60), "nobody opened the gate"


class Caches:
    """A CacheRoot in `path`, and the nursery that its fills run in."""

    def __init__(self, path: Path, nursery: trio.Nursery, *, limit: int = GIB, memory: int = 64 * MIB, floor: int = 0) -> None:
        self.path = path
        self.nursery = nursery
        self.budget = Budget(limit, floor_bytes=floor)
        self.memory = Memory(memory)
        self.root = CacheRoot(path, self.budget, self.memory)

    async def open(self, filler: HeldFiller, *, image_id: str = IMAGE, space: str = "stored", version: str = "v1") -> UnitCache:
        return await self.root.open(image_id, space, version, filler, self.nursery, name="debian")

    def used_on_disk(self) -> int:
        """Return what `du` says of the cache's directory."""
        return disk_usage(self.path)


async def settled(cache: UnitCache) -> None:
    """Return when nothing is happening to the cache: fills go on after the read that caused them."""
    while flights := cache._shelf.flights:
        await next(iter(flights.values())).wait()


async def all_settled(cache: UnitCache) -> None:
    """Return when nothing is happening to the cache and nothing is about to: what is fetched ahead waits for its turn before it begins."""
    for task in list(cache._supply._nursery.child_tasks):
        while task.name.endswith("Supply._bring_ahead") and task in cache._supply._nursery.child_tasks:
            await trio.testing.wait_all_tasks_blocked()
    await settled(cache)


async def started(path: Path, nursery: trio.Nursery, *, limit: int = GIB, memory: int = 64 * MIB) -> Caches:
    """Return caches that have seen what is in `path`."""
    caches = Caches(path, nursery, limit=limit, memory=memory)
    await caches.root.start()
    return caches


class LoopThread:
    """A trio loop with a nursery in a thread of its own, for tests that are not async: hypothesis's state machines."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self._ready.set()
            await self._end.wait()
            self.nursery.cancel_scope.cancel()

    def run(self, work: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run an async function on the loop and return its result."""
        return trio.from_thread.run(work, *args, trio_token=self._token)

    def stop(self) -> None:
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()
