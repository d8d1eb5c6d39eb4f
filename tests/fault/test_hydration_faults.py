"""Hydration while the store, the disk or the cache fails under it."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imagefs.cache.file import UnitFile
from imagefs.counters import COUNTERS
from imagefs.errors import StoreRefused, StoreUnavailable, VersionChanged
from imagefs.hydration import proof, reading
from imagefs.units import MIB, UNIT
from tests.support.caching import started
from tests.support.fetched import Piece, noise
from tests.support.hydrating import hydrator_of, picture, until

CONTENT = noise(6 * MIB + 100)


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps to the next deadline when nothing happened for a moment: threads are given time to end."""
    return MockClock(autojump_threshold=0.01)


def full(self: UnitFile, unit: int, body: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_is_waited_for(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk does not take is not fetched on and on; when there is room it goes on."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(UnitFile, "store", full)
        nursery.start_soon(hydrator.run)
        hydrator.consider(found.image)
        await trio.sleep(600)
        assert not found.is_marked()
        assert sum(length for _, length in found.source.requests) <= 15 * len(CONTENT)
    await until(found.is_marked)


@pytest.mark.parametrize("error", [StoreRefused("no right"), VersionChanged("another one")])
async def test_what_will_not_pass_ends_it(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, error: Exception) -> None:
    """A store that refuses for good is not asked again; readers hear of it themselves."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    found.source.script = lambda attempt, offset, length: [error]
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(600)
    asked = len(found.source.requests)
    await trio.sleep(600)
    assert 0 < asked == len(found.source.requests)
    with pytest.raises(type(error)):
        await found.disk.read(0, 10)


def cut(content: bytes) -> Callable[[int, int, int], list[Piece] | None]:
    """Return a script whose every second transfer ends a unit early."""
    return lambda attempt, offset, length: [content[offset : offset + length - UNIT]] if attempt % 2 == 0 else None


async def test_short_transfers(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """A store that sends less than it was asked for is asked for the rest; the image becomes complete."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    found.source.script = cut(CONTENT)
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)
    assert await found.disk.read(0, len(CONTENT)) == CONTENT


async def test_evictions_during_the_hash(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that go while the image is hashed make it neither verified nor wrong; it is completed and hashed again."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    evictions = [3]
    real = proof._add

    def evicting(shelf: object, offset: int, length: int, update: Callable[[bytearray], None]) -> None:
        if evictions:
            trio.from_thread.run(found.disk.shelf.evict, [evictions.pop()])
        real(found.disk.shelf, offset, length, update)

    monkeypatch.setattr(proof, "_add", evicting)
    refused = COUNTERS.images_failed_verification
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)
    assert COUNTERS.images_failed_verification == refused
    assert await found.disk.read(0, len(CONTENT)) == CONTENT


async def test_damage_that_the_hash_finds(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that the disk changed after it was proved spoils the hash, not the image: it is erased, fetched again, and hashed again."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    damages = [5 * UNIT + 7]
    real = proof._add

    def damaging(shelf: object, offset: int, length: int, update: Callable[[bytearray], None]) -> None:
        if damages:
            assert found.disk.shelf.file is not None
            with open(f"/proc/self/fd/{found.disk.shelf.file.units}", "r+b") as units:
                units.seek(damages.pop())
                units.write(b"damage")
        real(found.disk.shelf, offset, length, update)

    monkeypatch.setattr(proof, "_add", damaging)
    refused, damaged = COUNTERS.images_failed_verification, COUNTERS.cache_units_damaged
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)
    assert (COUNTERS.images_failed_verification, COUNTERS.cache_units_damaged) == (refused, damaged + 1)
    assert await found.disk.read(0, len(CONTENT)) == CONTENT


async def test_a_cache_that_cannot_be_read(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives an error for cached bytes makes the image neither verified nor wrong."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    failures = [OSError(errno.EIO, "Input/output error")]
    real = reading.read_politely

    def failing(file: UnitFile, offset: int, length: int) -> bytearray:
        if failures:
            raise reading.Unsettled(str(failures.pop()))
        return real(file, offset, length)

    monkeypatch.setattr(proof, "read_politely", failing)
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)


async def test_a_store_that_goes_away_before_the_extents(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """Tables and digests come from the store, too: without them nothing is brought, and nothing ends."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    failures = [StoreUnavailable("away")] * 5
    real = found.filler.extents

    async def extents(offset: int, length: int) -> list[tuple[int, int]]:
        if failures:
            raise failures.pop()
        return await real(offset, length)

    found.filler.extents = extents  # type: ignore[method-assign]
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)
    assert not failures
