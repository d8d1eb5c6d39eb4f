"""The cache as its readers see it, when nothing goes wrong."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.file import UnitFile
from imagefs.cache.geometry import REGION_UNITS
from imagefs.counters import COUNTERS
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.caching import Gate, HeldFiller, all_settled, settled, started
from tests.support.fetched import noise

CONTENT = noise(20 * UNIT) + bytes(3 * UNIT) + noise(2 * UNIT + 1000)


@pytest.fixture
def filler() -> HeldFiller:
    """25 units and a bit: data, a run of zeros, data."""
    return HeldFiller(CONTENT)


async def test_a_miss_fetches_its_window_and_hits_fetch_nothing(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """The first read fetches from its unit to the end of the window, and beside that what comes before; then everything there is inline."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    assert cache.read_nowait(2 * UNIT, 10) is None
    assert await cache.read(2 * UNIT + 5, 10) == CONTENT[2 * UNIT + 5 : 2 * UNIT + 15]
    await all_settled(cache)
    assert sorted(filler.fills) == [(0, 2), (2, 2)]
    assert sorted(filler.urgencies) == [Urgency.DEMAND, Urgency.AHEAD]
    assert cache.read_nowait(0, 4 * UNIT) == CONTENT[: 4 * UNIT]
    assert cache.read_nowait(4 * UNIT - 1, 2) is None
    assert cache.cached_bytes == 4 * UNIT
    assert len(filler.fills) == 2
    cache.check_invariants()
    caches.root.check_invariants()


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 0),
        (len(CONTENT), 1),
        (10**12, 5),
        (len(CONTENT) - 3, 100),
        (0, 2 * len(CONTENT)),
        (20 * UNIT - 5, UNIT),
        (19 * UNIT, 5 * UNIT),
        (21 * UNIT, 9),
    ],
)
async def test_ranges(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller, offset: int, length: int) -> None:
    """Reads are cut at the end and empty past it, and cross units, windows and zeros; inline as well once they are here."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    assert await cache.read(offset, length) == CONTENT[offset : offset + length]
    assert cache.read_nowait(offset, length) == CONTENT[offset : offset + length]
    assert cache.size == len(CONTENT)


async def test_zero_units_take_no_room(tmp_path: Path, nursery: trio.Nursery) -> None:
    """An image of zeros is cached as holes, and counts as cached."""
    filler = HeldFiller(bytes(64 * UNIT))
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    before = caches.used_on_disk()
    assert await cache.read(0, 64 * UNIT) == bytes(64 * UNIT)
    assert cache.read_nowait(5, 100) == bytes(100)
    assert cache.cached_bytes == 64 * UNIT
    assert caches.used_on_disk() - before <= 4096
    assert caches.budget.used <= 16 * 4096 + 5 * 4096


async def test_a_restart_keeps_what_was_cached(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A new process fetches nothing again: it proves each unit at its first touch, and then hits are inline."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(0, len(CONTENT))
    again = HeldFiller(CONTENT)
    reopened = await (await started(tmp_path, nursery)).open(again)
    assert reopened.cached_bytes == len(CONTENT)
    assert reopened.read_nowait(0, 10) is None
    checked = COUNTERS.cache_unit_hits_checked
    assert await reopened.read(UNIT, 2 * UNIT) == CONTENT[UNIT : 3 * UNIT]
    assert COUNTERS.cache_unit_hits_checked == checked + 2
    assert reopened.read_nowait(UNIT, 2 * UNIT) == CONTENT[UNIT : 3 * UNIT]
    assert await reopened.read(0, len(CONTENT)) == CONTENT
    assert again.fills == []


async def test_a_partly_filled_cache_fetches_the_rest(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """After a restart a miss learns from the map what is missing, and fetches no unit that is there."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(4 * UNIT, 4 * UNIT)
    await settled(cache)
    again = HeldFiller(CONTENT)
    reopened = await (await started(tmp_path, nursery)).open(again)
    assert await reopened.read(0, 8 * UNIT) == CONTENT[: 8 * UNIT]
    assert again.fills == [(0, 4)]


async def test_64_readers_cause_one_fill(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """All who want one cold unit share one fetch, and all get its bytes."""
    gate = Gate(0)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    results: list[bytes] = []

    async def read(index: int) -> None:
        results.append(bytes(await cache.read(index, 10)))

    async with trio.open_nursery() as readers:
        for index in range(64):
            readers.start_soon(read, index)
        await filler.asked.wait()
        await wait_all_tasks_blocked()
        assert filler.fills == [(0, 4)]
        gate.open()
    assert sorted(results) == sorted(CONTENT[index : index + 10] for index in range(64))
    assert filler.fills == [(0, 4)]


async def test_units_are_served_as_they_arrive(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A reader of the first unit does not wait for the rest of the window; who wants a later unit joins the same fill."""
    gate = Gate(1)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    assert await cache.read(0, 100) == CONTENT[:100]
    assert cache.read_nowait(0, 100) == CONTENT[:100]
    assert cache.read_nowait(UNIT, 100) is None
    later: list[bytes] = []

    async def read_later() -> None:
        later.append(bytes(await cache.read(3 * UNIT, 100)))

    async with trio.open_nursery() as readers:
        readers.start_soon(read_later)
        await wait_all_tasks_blocked()
        assert later == []
        gate.open()
    assert later == [CONTENT[3 * UNIT : 3 * UNIT + 100]]
    assert filler.fills[0] == (0, 4)


async def test_a_cancelled_reader_leaves_the_fill_running(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """The fetch belongs to the cache: who gives up does not take it away from others, nor from later."""
    gate = Gate(0)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)
    with trio.move_on_after(0.01) as scope:
        await cache.read(0, 100)
    assert scope.cancelled_caught
    gate.open()
    assert await cache.read(0, 100) == CONTENT[:100]
    assert filler.fills == [(0, 4)]
    cache.check_invariants()


async def test_large_reads_are_fetched_in_parallel(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A read of more than 1 MiB does not fetch its parts one after the other."""
    gate = Gate(0)
    filler.before = gate
    cache = await (await started(tmp_path, nursery)).open(filler)

    async with trio.open_nursery() as readers:
        readers.start_soon(cache.read, 0, len(CONTENT))
        await filler.asked.wait()
        await wait_all_tasks_blocked()
        assert sorted(filler.fills) == [(0, 16), (16, 10)]
        gate.open()


async def test_units_that_come_for_free_are_kept(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """The filler says what a unit brings with it, and the cache takes it."""
    filler.free = lambda unit: (0, 12)
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(5 * UNIT, 1)
    assert filler.fills == [(0, 12)]


async def test_prefetch(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A range is brought here without being read; ranges past the end, and empty ones, are no error."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.prefetch(UNIT, 18 * UNIT)
    assert cache.read_nowait(UNIT, 18 * UNIT) == CONTENT[UNIT : 19 * UNIT]
    await cache.prefetch(10**12, 5)
    await cache.prefetch(0, 0)
    assert sum(count for _, count in filler.fills) >= 18


async def test_bytes_that_left_the_page_cache(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit whose bytes are on the disk only is read in a thread."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(0, 8 * UNIT)

    real = os.preadv

    def away(descriptor: int, buffers: tuple[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", away)
    assert cache.read_nowait(0, 10) is None
    assert await cache.read(5, 2 * UNIT) == CONTENT[5 : 2 * UNIT + 5]


async def test_a_filesystem_without_nowait(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RWF_NOWAIT is not supported, a hit is a plain read, and it is asked for once."""
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(0, 8 * UNIT)
    real = os.preadv

    refused = []

    def refuse(descriptor: int, buffers: tuple[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            refused.append(offset)
            raise OSError(95, "Operation not supported")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    assert cache.read_nowait(0, 10) == CONTENT[:10]
    assert cache.read_nowait(5, 10) == CONTENT[5:15]
    assert refused == [0]


async def test_without_room_everything_is_served_from_memory(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A cache with a budget of 0 makes no files and serves everything; a guest that reads in small pieces still fetches each unit once."""
    caches = await started(tmp_path / "cache", nursery, limit=0)
    cache = await caches.open(filler)
    uncached = COUNTERS.cache_units_uncached
    for offset in range(0, 2 * UNIT, 4096):
        assert await cache.read(offset, 4096) == CONTENT[offset : offset + 4096]
    assert await cache.read(15 * UNIT + 7, 10 * UNIT) == CONTENT[15 * UNIT + 7 : 25 * UNIT + 7]
    assert filler.fills[0] == (0, 4)
    assert len(filler.fills) <= 3
    assert COUNTERS.cache_units_uncached > uncached
    assert not cache.storing
    assert cache.cached_bytes == 0
    assert list((tmp_path / "cache").iterdir()) == []
    await cache.prefetch(0, MIB)
    cache.check_invariants()


async def test_eviction_forgets_and_fetches_again(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """A budget of a few regions serves a larger image, never takes more room than it has, and evicts what was not touched."""
    content = noise(6 * MIB)
    filler = HeldFiller(content)
    limit = 3 * MIB
    caches = await started(tmp_path, nursery, limit=limit)
    cache = await caches.open(filler)
    evicted = COUNTERS.cache_units_evicted
    for offset in range(0, len(content), UNIT // 2):
        assert await cache.read(offset, 10) == content[offset : offset + 10]
        assert cache.read_nowait(0, 10) is not None or await cache.read(0, 10) == content[:10]
        assert caches.used_on_disk() <= limit
    assert COUNTERS.cache_units_evicted - evicted >= 2 * REGION_UNITS
    assert cache.storing
    assert 0 < cache.cached_bytes <= limit
    await settled(cache)
    cache.check_invariants()
    caches.root.check_invariants()


async def test_what_is_to_be_kept_goes_last(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A range that a boot needs survives a scan of the rest of the image."""
    content = noise(6 * MIB)
    filler = HeldFiller(content)
    caches = await started(tmp_path, nursery, limit=3 * MIB)
    cache = await caches.open(filler)
    cache.keep(0, MIB)
    await cache.read(0, MIB)
    for offset in range(MIB, len(content), MIB // 2):
        await cache.read(offset, MIB // 2)
    assert cache.read_nowait(0, MIB) == content[:MIB]


async def test_a_region_that_is_being_read_stays(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction passes over what a reader in a thread is about to read."""
    content = noise(3 * MIB)
    cache = await (await started(tmp_path, nursery)).open(HeldFiller(content))
    await cache.read(0, len(content))
    shelf = cache._shelf
    with shelf.reading(range(3)):
        assert not shelf.movable(0, sparing=False)
        assert await shelf.evict([0, 1]) > 0
    assert cache.read_nowait(0, 10) == content[:10]
    assert cache.read_nowait(MIB, 10) is None
    assert await cache.read(0, len(content)) == content
    cache.check_invariants()


async def test_readers_wait_for_an_eviction_under_way(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants a unit whose room is just being given back waits, and fetches it again."""
    content = noise(2 * MIB)
    filler = HeldFiller(content)
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(0, len(content))
    real, gate = UnitFile.erase, Gate(0)

    def erase(file: UnitFile, units: range) -> int:
        gate(0)
        return real(file, units)

    monkeypatch.setattr(UnitFile, "erase", erase)
    read: list[bytes] = []

    async def read_all() -> None:
        read.append(bytes(await cache.read(0, len(content))))

    async with trio.open_nursery() as both:
        both.start_soon(cache._shelf.evict, [0])
        await wait_all_tasks_blocked()
        assert cache.read_nowait(0, 10) is None
        assert cache.read_nowait(MIB, 10) == content[MIB : MIB + 10]
        both.start_soon(read_all)
        await wait_all_tasks_blocked()
        assert read == []
        gate.open()
    assert read == [content]
    cache.check_invariants()


async def test_extents_are_the_fillers_less_known_zeros(tmp_path: Path, nursery: trio.Nursery, filler: HeldFiller) -> None:
    """Units of zeros that were seen are left out, and the filler's answer is cut to the range; no unit is filled for it."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    assert await cache.extents(0, 100 * UNIT) == [(0, len(CONTENT))]
    assert filler.fills == []
    await cache.prefetch(19 * UNIT, 4 * UNIT)
    assert await cache.extents(0, 100 * UNIT) == [(0, 20 * UNIT), (23 * UNIT, len(CONTENT))]
    assert await cache.extents(20 * UNIT + 5, UNIT) == await cache.extents(100 * UNIT, 5) == []
    assert await cache.extents(19 * UNIT + 9, 5 * UNIT) == [(19 * UNIT + 9, 20 * UNIT), (23 * UNIT, 24 * UNIT + 9)]
