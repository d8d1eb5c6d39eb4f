"""Fills for readers, and fills ahead of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.cache import UnitCache
from imagefs.cache.filler import Deliver
from imagefs.cache.flight import Fill
from imagefs.cache.memory import RESERVED
from imagefs.cache.readahead import MARK_UNITS, STREAM_UNITS
from imagefs.cache.unit_map import DATA, UNKNOWN
from imagefs.counters import COUNTERS
from imagefs.errors import StoreUnavailable
from imagefs.fetch.traffic import SLOTS
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.caching import OTHER_IMAGE, Gate, HeldFiller, all_settled, settled, started
from tests.support.fetched import noise

CONTENT = noise(20 * MIB)


async def test_a_reader_does_not_wait_behind_a_queue_of_prefetches(tmp_path: Path, nursery: trio.Nursery) -> None:
    """With every turn ahead taken and a whole image queued behind, a unit of that image is fetched for its reader at once."""
    filler, gate = HeldFiller(CONTENT), Gate(16)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    nursery.start_soon(cache.prefetch, MIB, 19 * MIB)
    await filler.asked.wait()
    await wait_all_tasks_blocked()
    assert filler.urgencies == [Urgency.AHEAD] * SLOTS[Urgency.AHEAD]
    assert cache.missing(MIB, 19 * MIB) == [(MIB, 20 * MIB)]
    with trio.fail_after(30):
        assert await cache.read(0, 10) == CONTENT[:10]
        reader = trio.Event()

        async def read_the_last_unit() -> None:
            assert await cache.read(20 * MIB - 10, 10) == CONTENT[-10:]
            reader.set()

        nursery.start_soon(read_the_last_unit)
        await wait_all_tasks_blocked()
        assert filler.fills[-1] == (319, 1)  # not stuck in the queue, but on its way
        gate.open()
        await reader.wait()


async def test_a_prefetch_waits_for_what_others_have_on_the_way(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Two prefetches of one range fetch it once, and both return when it is there; what is there already costs nothing."""
    filler, gate = HeldFiller(CONTENT), Gate(0)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    done: list[int] = []

    async def prefetch(number: int) -> None:
        await cache.prefetch(5, 3 * MIB)
        assert cache.is_here(5, 3 * MIB)
        done.append(number)

    async with trio.open_nursery() as both:
        both.start_soon(prefetch, 1)
        await wait_all_tasks_blocked()
        both.start_soon(prefetch, 2)
        await wait_all_tasks_blocked()
        assert done == []
        gate.open()
    fills = len(filler.fills)
    await cache.prefetch(0, 3 * MIB)
    assert len(filler.fills) == fills
    assert sorted(unit for first, count in filler.fills for unit in range(first, first + count)) == list(range(49))


async def test_a_cancelled_prefetch_leaves_its_fills_running(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What is on its way arrives; what waited for a turn is not fetched, and nothing is held for it."""
    filler, gate = HeldFiller(CONTENT), Gate(0)
    filler.before = gate
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    async with trio.open_nursery() as given_up:
        given_up.start_soon(cache.prefetch, 0, 20 * MIB)
        await filler.asked.wait()
        await wait_all_tasks_blocked()
        given_up.cancel_scope.cancel()
    gate.open()
    await settled(cache)
    assert len(filler.fills) == SLOTS[Urgency.AHEAD]
    assert cache.is_here(0, SLOTS[Urgency.AHEAD] * MIB)
    with trio.fail_after(30):
        while caches.memory.in_flight or filler.traffic.running(Urgency.AHEAD):
            await wait_all_tasks_blocked()
    cache.check_invariants()
    caches.root.check_invariants()


async def test_a_failed_prefetch(tmp_path: Path, nursery: trio.Nursery) -> None:
    """The error of a fill is raised; nothing is held afterwards, and a later one may succeed."""
    filler = HeldFiller(CONTENT)

    def fail(unit: int) -> None:
        if unit >= 40:
            raise StoreUnavailable("away")

    filler.before = fail
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    with pytest.raises(StoreUnavailable, match="away"):
        await cache.prefetch(0, 4 * MIB, Urgency.IDLE)
    with trio.fail_after(30):
        while caches.memory.in_flight or filler.traffic.running(Urgency.IDLE):
            await wait_all_tasks_blocked()
    filler.before = lambda unit: None
    await cache.prefetch(0, 4 * MIB, Urgency.IDLE)
    assert cache.is_here(0, 4 * MIB)


async def test_what_a_prefetch_has_fetched_is_counted(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Prefetched bytes, and the fills that readers waited for."""
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(CONTENT))
    prefetched, demanded = COUNTERS.prefetch_bytes, COUNTERS.demand_fills
    await cache.prefetch(0, 3 * MIB)
    await all_settled(cache)
    await cache.read(19 * MIB, 4 * UNIT)
    with trio.fail_after(30):
        while COUNTERS.demand_fills == demanded:  # a fill is counted once it has ended, which its units do not wait for
            await wait_all_tasks_blocked()
    assert COUNTERS.prefetch_bytes == prefetched + 3 * MIB
    assert COUNTERS.demand_fills == demanded + 1


async def test_memory_is_taken_before_anything_is_asked_for(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Prefetches leave readers their part of a small memory, and a memory smaller than a prefetch still brings it."""
    filler, gate = HeldFiller(CONTENT), Gate(16)
    filler.before = gate
    caches = await started(tmp_path, nursery, memory=4 * MIB)
    assert RESERVED > 2 * MIB
    cache = await caches.open(filler)
    nursery.start_soon(cache.prefetch, MIB, 19 * MIB)
    await filler.asked.wait()
    await wait_all_tasks_blocked()
    assert len(filler.fills) == 2
    assert caches.memory.in_flight == 2 * MIB
    assert await cache.read(0, MIB) == CONTENT[:MIB]
    gate.open()
    await cache.prefetch(0, 20 * MIB)
    assert cache.is_here(0, 20 * MIB)
    caches.memory.check_invariants()


async def test_a_budget_smaller_than_what_is_prefetched(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A boot set that does not fit is brought as far as there is room, and read all the same."""
    caches = await started(tmp_path, nursery, limit=6 * MIB, memory=4 * MIB)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.prefetch(0, 20 * MIB)
    assert caches.used_on_disk() <= 6 * MIB
    for offset in range(0, 20 * MIB, MIB):
        assert await cache.read(offset, 100) == CONTENT[offset : offset + 100]
        assert caches.used_on_disk() <= 6 * MIB
    await all_settled(cache)
    cache.check_invariants()
    caches.root.check_invariants()


class NestedFiller(HeldFiller):
    """A filler that must read another cache before it can fill, as that of an image must read its tables."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.tables: list[object] = []

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        for tables in self.tables:
            await tables.read(first_unit * UNIT, 10)  # type: ignore[attr-defined]
        await super().fill(first_unit, count, deliver, urgency)


async def test_fills_that_read_another_cache_do_not_wait_for_each_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Readers that hold all the memory and all the turns between them still get the tables that their fills have to read first."""
    caches = await started(tmp_path, nursery, memory=MIB)
    tables, filler = HeldFiller(CONTENT), NestedFiller(CONTENT)
    filler.traffic = tables.traffic
    filler.tables = [await caches.open(tables, image_id=OTHER_IMAGE)]
    cache = await caches.open(filler)

    async def read(offset: int) -> None:
        assert await cache.read(offset, MIB) == CONTENT[offset : offset + MIB]

    with trio.fail_after(60):
        async with trio.open_nursery() as readers:
            for offset in range(0, 20 * MIB, MIB):
                readers.start_soon(read, offset)
            readers.start_soon(cache.prefetch, 0, 20 * MIB)
        while caches.memory.in_flight:  # of windows that nobody waited for
            await wait_all_tasks_blocked()
    caches.memory.check_invariants()


async def test_a_stream_is_read_ahead_and_touches_its_marks(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A reader that goes straight on finds what it wants there; a marked unit is no hit at its first touch, and then it is one."""
    filler = HeldFiller(CONTENT)
    cache = await (await started(tmp_path, nursery)).open(filler)
    ahead = COUNTERS.readahead_bytes
    for offset in range(0, 4 * MIB, MIB // 4):
        assert await cache.read(offset, MIB // 4) == CONTENT[offset : offset + MIB // 4]
        await all_settled(cache)
    assert COUNTERS.readahead_bytes > ahead
    assert Urgency.AHEAD in filler.urgencies
    shelf = cache.shelf
    marked = sorted(shelf.marks)
    assert marked
    assert all(unit % MARK_UNITS == 0 and shelf.states[unit] == UNKNOWN for unit in marked)
    unit = marked[0]
    assert cache.is_here(unit * UNIT, UNIT)
    assert cache.missing(0, 20 * MIB)[0][0] > unit * UNIT
    assert cache.read_nowait(unit * UNIT, 10) is None
    assert await cache.read(unit * UNIT, 10) == CONTENT[unit * UNIT : unit * UNIT + 10]
    assert shelf.states[unit] == DATA
    assert cache.read_nowait(unit * UNIT, 10) == CONTENT[unit * UNIT : unit * UNIT + 10]
    await all_settled(cache)
    cache.check_invariants()


async def test_marked_units_count_as_here(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A cache of which some units are marked is complete; one that is evicted while it is marked is missing, and stays so."""
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(CONTENT))
    assert not cache.complete
    await cache.prefetch(0, len(CONTENT))
    assert cache.complete
    shelf = cache.shelf
    shelf.mark([3, 100, 319])
    assert shelf.states[3] == UNKNOWN
    assert cache.complete
    assert cache.missing(0, len(CONTENT)) == []
    assert cache.is_here(0, len(CONTENT))
    await shelf.evict([0])
    assert not shelf.unmark(range(16))
    assert not cache.complete
    assert not cache.is_here(3 * UNIT, 1)
    assert cache.missing(0, 2 * MIB) == [(0, MIB)]
    assert await shelf.examine([100]) == 0
    assert not shelf.unmark(range(100, 101))
    assert shelf.states[100] == DATA
    assert await cache.read(319 * UNIT, 10) == CONTENT[319 * UNIT : 319 * UNIT + 10]
    cache.check_invariants()


async def test_without_room_nothing_is_read_ahead(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Where nothing is stored there is no place for what is fetched ahead."""
    filler = HeldFiller(CONTENT)
    cache = await (await started(tmp_path, nursery, limit=0)).open(filler)
    for first in range(3 * STREAM_UNITS):
        assert await cache.read(first * UNIT, 10) == CONTENT[first * UNIT : first * UNIT + 10]
    assert set(filler.urgencies) == {Urgency.DEMAND}


async def test_what_is_missing_after_a_restart(tmp_path: Path, nursery: trio.Nursery) -> None:
    """All of it, until the map was asked: then what is on the disk is not, although nobody has proved it yet."""
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(CONTENT))
    await cache.prefetch(5 * MIB, 3 * MIB)
    await settled(cache)
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(CONTENT))
    assert cache.missing(4 * MIB, 5 * MIB) == [(4 * MIB, 9 * MIB)]
    assert await cache.missing_extents(4 * MIB, 5 * MIB) == [(4 * MIB, 5 * MIB), (8 * MIB, 9 * MIB)]
    assert await cache.missing_extents(0, 10**12) == [(0, 5 * MIB), (8 * MIB, 20 * MIB)]
    assert await cache.missing_extents(10**12, 5) == []
    assert not cache.is_here(5 * MIB, 1)
    assert cache.is_here(10**12, 5)
    await cache.prefetch(4 * MIB, 5 * MIB)
    assert cache.missing(0, 20 * MIB) == [(0, 4 * MIB), (9 * MIB, 20 * MIB)]


async def test_readers_wake_when_their_units_are_there(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Each of several readers of one fill goes on as soon as its own units have come, in whatever order, and not before."""
    filler, gate = HeldFiller(CONTENT), Gate(6)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    done: list[int] = []

    async def read(first: int, stop: int) -> None:
        assert await cache.read(first * UNIT, (stop - first) * UNIT) == CONTENT[first * UNIT : stop * UNIT]
        done.append(first)

    with trio.fail_after(30):
        async with trio.open_nursery() as readers:
            readers.start_soon(cache.prefetch, 0, MIB)
            await filler.asked.wait()
            for first, stop in ((0, 2), (1, 5), (4, 9)):
                readers.start_soon(read, first, stop)
            while len(done) < 2:
                await wait_all_tasks_blocked()
            assert sorted(done) == [0, 1]
            gate.open()
    assert sorted(done) == [0, 1, 4]


class WaitingFiller(HeldFiller):
    """A filler whose fills wait in the middle, and need the first unit of another cache then."""

    def __init__(self, content: bytes, tables: UnitCache, go_on: trio.Event) -> None:
        super().__init__(content)
        self.tables = tables
        self.go_on = go_on

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        await self.go_on.wait()
        await self.tables.read(0, 10)
        await super().fill(first_unit, count, deliver, urgency)


@pytest.mark.parametrize("memory", [64 * MIB, SLOTS[Urgency.DEMAND] * UNIT])
async def test_fills_do_not_wait_for_a_fill_that_waits_for_them(tmp_path: Path, nursery: trio.Nursery, memory: int) -> None:
    """With all turns, or all memory, held by fills that need a table, a reader of that table who came before them to it is let in."""
    caches = await started(tmp_path, nursery, memory=memory)
    held, go_on = HeldFiller(CONTENT), trio.Event()
    tables = await caches.open(held, image_id=OTHER_IMAGE)
    filler = WaitingFiller(CONTENT, tables, go_on)
    if memory == 64 * MIB:
        filler.traffic = held.traffic
    guest = await caches.open(filler)

    async def read(cache: UnitCache, unit: int) -> None:
        assert await cache.read(unit * UNIT, 10) == CONTENT[unit * UNIT : unit * UNIT + 10]

    with trio.fail_after(30):
        async with trio.open_nursery() as readers:
            for number in range(SLOTS[Urgency.DEMAND]):
                readers.start_soon(read, guest, 319 - number * 12)
            while filler.traffic.running(Urgency.DEMAND) < SLOTS[Urgency.DEMAND]:
                await wait_all_tasks_blocked()
            readers.start_soon(read, tables, 0)
            while (flight := tables.shelf.flights.get(0)) is None or flight.fill is None:
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert held.fills == []
            go_on.set()
        while caches.memory.in_flight:  # of windows that nobody waited for
            await wait_all_tasks_blocked()
    caches.root.check_invariants()
    assert [held.traffic.running(urgency) for urgency in Urgency] == [0, 0, 0]


class Meanwhile(set[int]):
    """The units that were delivered, during whose growth in the delivering thread a reader comes."""

    def __init__(self, come: Callable[[], None]) -> None:
        super().__init__()
        self._come = come

    def add(self, unit: int) -> None:
        super().add(unit)
        self._come()


async def test_a_reader_who_comes_while_its_unit_is_delivered_is_woken() -> None:
    """However far the delivering thread has got with a unit when a reader begins to wait for it."""
    published: list[int] = []
    fill = Fill(range(4), 4 * UNIT, "image", lambda arrival: published.append(arrival.unit))
    fill.delivered = Meanwhile(lambda: fill.want([0]))
    fill.deliver(0, None)
    await wait_all_tasks_blocked()
    assert published == [0]


async def test_what_the_map_said_of_a_marked_unit_before_it_came_counts_no_more(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A look at the map that began before a unit came, and ends after it was marked, does not make it absent."""
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(CONTENT))
    shelf, file = cache.shelf, cache.shelf.file
    assert file is not None
    before = file.examine((), [0])
    await cache.read(0, MIB)
    await all_settled(cache)
    shelf.mark([4])
    shelf._note(before)
    assert cache.is_here(0, MIB)
    assert await cache.read(0, MIB) == CONTENT[:MIB]
    await all_settled(cache)
    assert shelf.present == file.count_present()
