"""Disks that are full or broken, fetches that fail, and daemons that end at the wrong moment, under the cache."""

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache import file as cache_file
from imagefs.cache.directory import cache_name
from imagefs.cache.file import UnitFile
from imagefs.cache.filler import Deliver
from imagefs.cache.unit_map import ENTRY, entry_offset
from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError, ImageRefused, StoreUnavailable, WrongBytes
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.caching import IMAGE, Gate, HeldFiller, settled, started
from tests.support.fetched import noise

CONTENT = noise(24 * UNIT)


def failing(units: set[int], error: Callable[[], Exception]) -> Callable[[int], None]:
    """Return a `before` that raises ahead of certain units."""

    def before(unit: int) -> None:
        if unit in units:
            raise error()

    return before


async def test_a_failed_fill_fails_all_who_wait_and_is_tried_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Every reader of a unit that did not come gets the error; the next read asks anew and may succeed."""
    filler = HeldFiller(CONTENT)
    gate = Gate(0)
    fail = failing({0}, lambda: StoreUnavailable("the store is away"))

    def before(unit: int) -> None:
        gate(unit)
        fail(unit)

    filler.before = before
    cache = await (await started(tmp_path, nursery)).open(filler)
    errors: list[str] = []

    async def read() -> None:
        with pytest.raises(StoreUnavailable, match="away") as caught:
            await cache.read(0, 10)
        errors.append(str(caught.value))

    async with trio.open_nursery() as readers:
        for _ in range(5):
            readers.start_soon(read)
        await filler.asked.wait()
        await wait_all_tasks_blocked()
        gate.open()
    assert len(errors) == 5
    assert len(filler.fills) == 1
    filler.before = lambda unit: None
    assert await cache.read(0, 10) == CONTENT[:10]
    cache.check_invariants()


async def test_units_before_a_failure_stay(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What was delivered ahead of the failure is served and kept."""
    filler = HeldFiller(CONTENT)
    filler.before = failing({3}, lambda: StoreUnavailable("gone"))
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    assert await cache.read(0, 3 * UNIT) == CONTENT[: 3 * UNIT]
    await settled(cache)
    assert cache.read_nowait(0, 3 * UNIT) == CONTENT[: 3 * UNIT]
    with pytest.raises(StoreUnavailable):
        await cache.read(3 * UNIT, 1)
    caches.root.check_invariants()


@pytest.mark.parametrize("error", [WrongBytes, ImageRefused])
async def test_a_damaged_unit_does_not_take_its_neighbours_along(tmp_path: Path, nursery: trio.Nursery, error: type[ImagefsError]) -> None:
    """A reader whose unit came after a damaged one in the same fill gets it by a fill of its own."""
    filler, gate = HeldFiller(CONTENT), Gate(0)
    fail = failing({2}, lambda: error("unit 2 is damaged"))

    def before(unit: int) -> None:
        gate(unit)
        fail(unit)

    filler.before = before
    cache = await (await started(tmp_path, nursery)).open(filler)
    read: dict[int, bytes] = {}

    async def read_unit(unit: int) -> None:
        read[unit] = bytes(await cache.read(unit * UNIT, 10))

    async with trio.open_nursery() as readers:
        readers.start_soon(read_unit, 0)
        await filler.asked.wait()
        readers.start_soon(read_unit, 5)
        await wait_all_tasks_blocked()
        gate.open()
    assert read == {unit: CONTENT[unit * UNIT : unit * UNIT + 10] for unit in (0, 5)}
    with pytest.raises(error, match="unit 2"):
        await cache.read(0, 4 * UNIT)


async def test_a_filler_with_a_bug(tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged and reaches the reader as an error; the daemon lives."""
    filler = HeldFiller(CONTENT)
    filler.before = failing({0}, lambda: KeyError("a bug"))
    cache = await (await started(tmp_path, nursery)).open(filler)
    with pytest.raises(ImagefsError, match="a bug"):
        await cache.read(0, 10)
    assert "unexpectedly" in caplog.text


class OddFiller(HeldFiller):
    """Delivers what the test says, on the event loop."""

    def __init__(self, deliveries: list[tuple[int, bytes | None]]) -> None:
        super().__init__(CONTENT)
        self.deliveries = deliveries

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        await trio.lowlevel.checkpoint()
        for unit, body in self.deliveries:
            deliver(unit, body)


async def test_a_filler_that_breaks_its_promises(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Units of the wrong length are refused, units that do not come are errors, strangers and repetitions are passed over."""
    caches = await started(tmp_path, nursery)
    short = await caches.open(OddFiller([(0, b"short")]), version="short")
    with pytest.raises(WrongBytes, match="5 bytes"):
        await short.read(0, 10)
    odd = await caches.open(OddFiller([(99, bytes(UNIT)), (1, noise(UNIT)), (1, bytes(UNIT)), (0, None)]), version="odd")
    assert await odd.read(0, 2 * UNIT) == bytes(UNIT) + noise(UNIT)
    with pytest.raises(StoreUnavailable, match="without all"):
        await odd.read(2 * UNIT, 10)
    odd.check_invariants()
    caches.root.check_invariants()


async def test_ending_wakes_the_readers(tmp_path: Path) -> None:
    """When the fills are cancelled, who waits for them gets an error and does not wait for ever; so does who comes later."""
    filler, gate = HeldFiller(CONTENT), Gate(0)
    filler.before = gate
    errors = 0

    async with trio.open_nursery() as readers:
        async with trio.open_nursery() as fills:
            cache = await (await started(tmp_path, fills)).open(filler)

            async def read() -> None:
                nonlocal errors
                with pytest.raises(StoreUnavailable):
                    await cache.read(0, 10)
                errors += 1

            readers.start_soon(read)
            await filler.asked.wait()
            fills.cancel_scope.cancel()
            gate.open()
        readers.start_soon(read)
    assert errors == 2
    cache.check_invariants()


def full_disk(descriptor: int, body: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken_disk(descriptor: int, body: bytes, offset: int) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("fault", [full_disk, broken_disk])
async def test_a_disk_that_takes_no_more(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Callable[[int, bytes, int], int]
) -> None:
    """Units that cannot be stored are served from memory, with one warning; when the disk is well again they are stored."""
    filler = HeldFiller(CONTENT)
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    uncached = COUNTERS.cache_units_uncached
    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "_write", fault)
        assert await cache.read(0, len(CONTENT)) == CONTENT
        assert await cache.read(5, 3 * UNIT) == CONTENT[5 : 3 * UNIT + 5]
    assert COUNTERS.cache_units_uncached == uncached + 24
    assert caplog.text.count("cannot be stored") == 1
    caches.root.check_invariants()
    for unit in range(24):
        caches.memory.forget(cache.name)
        assert await cache.read(unit * UNIT, 10) == CONTENT[unit * UNIT : unit * UNIT + 10]
    assert cache.cached_bytes == len(CONTENT)
    cache.check_invariants()


async def test_a_disk_that_is_full_half_way(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of units of which some are stored and some are not gets them all."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    real = os.pwrite

    def full_above(descriptor: int, body: bytes, offset: int) -> int:
        if len(body) == UNIT and offset // UNIT % 3 == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, body, offset)

    monkeypatch.setattr(os, "pwrite", full_above)
    assert await cache.read(7, len(CONTENT)) == CONTENT[7:]
    assert await cache.read(UNIT // 2, 9 * UNIT) == CONTENT[UNIT // 2 : 9 * UNIT + UNIT // 2]
    assert cache.cached_bytes == 16 * UNIT
    cache.check_invariants()
    caches.root.check_invariants()


async def test_a_disk_that_cannot_be_read_back(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that were stored and cannot be read any more are fetched again, and the files are left alone until they are reopened."""
    filler = HeldFiller(CONTENT)
    cache = await (await started(tmp_path, nursery)).open(filler)
    await cache.read(0, len(CONTENT))
    fills = len(filler.fills)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(UnitFile, "read", fail)
    assert await cache.read(0, len(CONTENT)) == CONTENT
    assert len(filler.fills) > fills
    assert not cache.storing
    assert cache.cached_bytes == 0
    assert "without it" in caplog.text
    assert await cache.read(UNIT, 10) == CONTENT[UNIT : UNIT + 10]
    cache.check_invariants()


async def test_damage_of_every_kind_is_fetched_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Flipped, zeroed, swapped and torn units and entries, found after a restart, cost a fetch each and are never served."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    caches.root.close()
    where = tmp_path / cache_name(IMAGE, "stored", "v1")
    _damage(where)
    filler = HeldFiller(CONTENT)
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    damaged = COUNTERS.cache_units_damaged
    assert await cache.read(0, len(CONTENT)) == CONTENT
    assert COUNTERS.cache_units_damaged == damaged + 7
    await settled(cache)
    assert sum(count for _, count in filler.fills) == 7
    assert cache.cached_bytes == len(CONTENT)
    cache.check_invariants()
    caches.root.check_invariants()


def _damage(where: Path) -> None:
    """Flip a bit of unit 1, zero unit 3, swap units 5 and 6, swap the entries of 8 and 9, tear that of 11."""
    with (where / "units").open("r+b") as units, (where / "map").open("r+b") as entries:

        def at(unit: int) -> bytes:
            return os.pread(units.fileno(), UNIT, unit * UNIT)

        def entry(unit: int) -> bytes:
            return os.pread(entries.fileno(), ENTRY, entry_offset(unit))

        one, five, six = bytearray(at(1)), at(5), at(6)
        one[1000] ^= 0x80
        for unit, body in ((1, bytes(one)), (3, bytes(UNIT)), (5, six), (6, five)):
            os.pwrite(units.fileno(), body, unit * UNIT)
        eight, nine, eleven = entry(8), entry(9), entry(11)
        for unit, body in ((8, nine), (9, eight), (11, eleven[:4] + bytes(4))):
            os.pwrite(entries.fileno(), body, entry_offset(unit))


async def test_lost_holes_after_a_power_loss(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Entries that reached the disk without their units (holes now) are found, also where the units' file lost its end."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    caches.root.close()
    os.truncate(tmp_path / cache_name(IMAGE, "stored", "v1") / "units", 20 * UNIT + 100)
    filler = HeldFiller(CONTENT)
    caches = await started(tmp_path, nursery)
    cache = await caches.open(filler)
    assert await cache.read(0, len(CONTENT)) == CONTENT
    assert sum(count for _, count in filler.fills) == 4


async def test_a_cache_that_goes_during_an_eviction(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Caches that are opened and dropped while room is being made leave the budget right and the limit kept."""
    limit = 3 * MIB
    caches = await started(tmp_path, nursery, limit=limit)
    content = noise(2 * MIB)

    async def churn(version: str) -> None:
        for _ in range(3):
            cache = await caches.open(HeldFiller(content), version=version)
            for offset in range(0, len(content), MIB // 2):
                assert await cache.read(offset, 100) == content[offset : offset + 100]
                assert caches.used_on_disk() <= limit
            del cache
            gc.collect()

    async with trio.open_nursery() as readers:
        for version in ("v1", "v2", "v3", "v4"):
            readers.start_soon(churn, version)
    with trio.fail_after(30):
        while caches.root._opened:
            gc.collect()
            await trio.sleep(0.01)
    caches.root.check_invariants()
    assert caches.used_on_disk() <= limit


@pytest.mark.parametrize("call", ["imagefs.cache.file.punch_hole", "imagefs.cache.file._write"])
async def test_closed_cache_that_cannot_shrink(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A closed cache of which nothing can be punched goes as a whole when room is needed: it is what frees it."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(noise(3 * MIB)))
    for offset in range(0, 3 * MIB, MIB):
        await cache.read(offset, MIB)
    await settled(cache)
    caches.root.close()
    caches = await started(tmp_path, nursery, limit=4 * MIB)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(call, fail)
        assert await caches.root._make_room(MIB, Urgency.DEMAND) >= 3 * MIB
    assert await caches.root.status() == []
    assert caches.used_on_disk() < MIB
    caches.root.check_invariants()
