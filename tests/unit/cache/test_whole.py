"""What is done to a cache as a whole."""

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.unit_map import GROUP, ZERO
from imagefs.cache.whole import discard, prove_again, prove_all, put_zeros
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.caching import HeldFiller, settled, started
from tests.support.fetched import noise

CONTENT = noise(2 * MIB + 100)


async def test_zeros_cost_an_entry_each(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Missing units become zeros without a fetch, over several pages of the map; what is here stays what it is."""
    caches = await started(tmp_path, nursery)
    filler = HeldFiller(bytes(2 * GROUP * UNIT + 100))
    cache = await caches.open(filler)
    await cache.missing_extents(0, cache.size)
    assert await put_zeros(cache.shelf, range(5, cache.shelf.unit_count))
    assert cache.shelf.states.count(ZERO) == cache.shelf.unit_count - 5
    assert filler.fills == []
    assert await cache.read(cache.size - 200, 200) == bytes(200)
    assert filler.fills == []
    assert caches.used_on_disk() <= caches.budget.used
    cache.check_invariants()
    caches.root.check_invariants()


async def test_zeros_are_found_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """After a restart they count as here."""
    async with trio.open_nursery() as first:
        caches = await started(tmp_path, first)
        cache = await caches.open(HeldFiller(bytes(MIB + 100)))
        await cache.missing_extents(0, cache.size)
        assert await put_zeros(cache.shelf, range(17))
        first.cancel_scope.cancel()
    caches.root.close()
    again = HeldFiller(bytes(MIB + 100))
    cache = await (await started(tmp_path, nursery)).open(again)
    assert await cache.missing_extents(0, cache.size) == []
    assert await cache.read(0, MIB + 100) == bytes(MIB + 100)
    assert again.fills == []


async def test_zeros_without_room(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Where the budget has no room nothing is noted; where nothing is stored neither."""
    caches = await started(tmp_path / "small", nursery, limit=60_000)
    cache = await caches.open(HeldFiller(bytes(MIB)))
    await cache.missing_extents(0, cache.size)
    caches.budget.limit = caches.budget.used
    assert not await put_zeros(cache.shelf, range(16))
    caches = await started(tmp_path / "none", nursery, limit=0)
    cache = await caches.open(HeldFiller(bytes(MIB)))
    assert not await put_zeros(cache.shelf, range(16))


async def test_zeros_that_the_disk_does_not_take(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the units stay missing, and can be fetched."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(bytes(MIB)))
    await cache.missing_extents(0, cache.size)
    file = cache.shelf.file
    assert file is not None

    def full(units: range) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "store_zeros", full)
    with pytest.raises(OSError, match="No space"):
        await put_zeros(cache.shelf, range(16))
    assert cache.missing(0, MIB) == [(0, MIB)]
    assert await cache.read(0, MIB) == bytes(MIB)
    caches.root.check_invariants()


async def test_zeros_that_a_reader_brings_meanwhile(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """While room is made for them, a reader brings all of a run of zeros: nothing is left to note then, and nothing is held for it."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(bytes(MIB)))
    await cache.missing_extents(0, cache.size)
    account, file = cache.shelf.account, cache.shelf.file
    assert account is not None
    assert file is not None
    reserve = account.reserve

    async def slowly(cost: int, urgency: Urgency = Urgency.DEMAND) -> bool:
        if urgency is Urgency.IDLE:
            await cache.read(0, MIB)
            while account.in_flight:
                await wait_all_tasks_blocked()
        return await reserve(cost, urgency)

    monkeypatch.setattr(account, "reserve", slowly)
    losses = file.losses
    assert await put_zeros(cache.shelf, range(16))
    assert (file.losses, account.in_flight) == (losses, 0)
    assert cache.complete
    caches.root.check_invariants()


async def test_proving_again_finds_what_changed_since(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A unit that was proved once, and was changed on the disk since, is erased; all others stay hits."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    await settled(cache)
    file = cache.shelf.file
    assert file is not None
    file.store(20, noise(UNIT, 9))  # with its checksum, so that it is as good as any
    assert await prove_again(cache.shelf, 1) == (16, 0)
    overwrite(f"/proc/self/fd/{file.units}", 20 * UNIT)
    assert await prove_all(cache.shelf) == 1
    assert cache.missing(0, len(CONTENT)) == [(20 * UNIT, 21 * UNIT)]
    assert await cache.read(0, len(CONTENT)) == CONTENT


def overwrite(path: str, offset: int) -> None:
    """Change a few bytes of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"changed")


async def test_a_region_that_is_in_use_is_left_alone(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Units that a reader counts on are not examined behind its back."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    await settled(cache)
    with cache.shelf.reading(range(3, 4)):
        assert await prove_again(cache.shelf, 0) is None
        assert cache.read_nowait(3 * UNIT, 10) == CONTENT[3 * UNIT : 3 * UNIT + 10]


async def test_discarding_leaves_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Everything goes, in memory and on the disk, after who reads and what is on its way."""
    caches = await started(tmp_path, nursery)
    filler = HeldFiller(CONTENT)
    cache = await caches.open(filler)
    await cache.read(0, MIB)
    async with trio.open_nursery() as tasks:
        with cache.shelf.reading(range(0, 1)):
            tasks.start_soon(cache.read, MIB, MIB)
            tasks.start_soon(discard, cache.shelf)
            await trio.sleep(0.05)
            assert cache.read_nowait(0, 10) == CONTENT[:10]
    await settled(cache)
    await discard(cache.shelf)
    assert cache.cached_bytes == 0
    assert cache.read_nowait(0, 10) is None
    assert caches.used_on_disk() < UNIT
    cache.check_invariants()
    assert await cache.read(0, 10) == CONTENT[:10]  # a cache can be filled anew
