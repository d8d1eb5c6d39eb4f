"""Units that are in the cache twice share their blocks where the filesystem can do that, and nothing else changes."""

import errno
import gc
import os
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache import sharing
from imagefs.cache.cache import UnitCache
from imagefs.counters import COUNTERS
from imagefs.units import MIB, UNIT
from tests.support.caching import IMAGE, OTHER_IMAGE, Caches, HeldFiller, settled, started
from tests.support.fetched import noise
from tests.support.filesystems import mounted

pytestmark = pytest.mark.mount

CONTENT = noise(3 * MIB) + bytes(MIB)


async def fill(caches: Caches, image_id: str, content: bytes = CONTENT, **names: str) -> UnitCache:
    """Fill a cache."""
    cache = await caches.open(HeldFiller(content), image_id=image_id, **names)
    for offset in range(0, len(content), MIB):
        await cache.read(offset, MIB)
    await settled(cache)
    return cache


def taken(filesystem: Path) -> int:
    """Return the bytes that a filesystem's blocks take, each counted once."""
    os.sync()
    status = os.statvfs(filesystem)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
async def test_images_share(tmp_path: Path, nursery: trio.Nursery, kind: str) -> None:
    """Equal units of two images, and of both spaces of one, take room once; evicting one copy leaves the other; `du` counts all as before."""
    before = COUNTERS.cache_shared_bytes
    with mounted(kind, tmp_path, 320 * MIB) as where:
        caches = await started(where / "cache", nursery, limit=64 * MIB)
        one = await fill(caches, IMAGE)
        await caches.root._share()
        alone = taken(where)
        other, guest = await fill(caches, OTHER_IMAGE), await fill(caches, IMAGE, space="guest")
        counted = caches.used_on_disk()
        await caches.root._share()
        assert COUNTERS.cache_shared_bytes - before == 6 * MIB
        assert taken(where) - alone < MIB
        assert caches.used_on_disk() >= counted - MIB
        await one._shelf.evict(range(4))
        assert one.read_nowait(0, 1) is None
        for cache in (other, guest):
            assert await cache.read(0, 4 * MIB) == CONTENT
            cache.check_invariants()
        assert await one.read(0, 4 * MIB) == CONTENT
        caches.root.check_invariants()
        caches.root.close()


async def test_closed_caches_share_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What an earlier daemon cached, and nobody has open, is known by its map."""
    before = COUNTERS.cache_shared_bytes
    with mounted("xfs", tmp_path, 320 * MIB) as where:
        caches = await started(where / "cache", nursery, limit=64 * MIB)
        await fill(caches, IMAGE)
        caches.root.close()
        caches = await started(where / "cache", nursery, limit=64 * MIB)
        cache = await fill(caches, OTHER_IMAGE)
        await caches.root._share()
        assert COUNTERS.cache_shared_bytes - before == 3 * MIB
        assert await cache.read(0, 4 * MIB) == CONTENT
        caches.root.close()


async def test_caches_that_are_closed_soon_share_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What was stored in a cache that nobody holds any more is not forgotten."""
    before = COUNTERS.cache_shared_bytes
    with mounted("xfs", tmp_path, 320 * MIB) as where:
        caches = await started(where / "cache", nursery, limit=64 * MIB)
        await caches.root._share()
        await fill(caches, IMAGE)
        gc.collect()
        await wait_all_tasks_blocked()
        cache = await fill(caches, OTHER_IMAGE)
        await caches.root._share()
        assert COUNTERS.cache_shared_bytes - before == 3 * MIB
        assert await cache.read(0, 4 * MIB) == CONTENT
        caches.root.close()


async def test_units_that_only_look_equal(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """If checksums of different units were the same, nothing would be shared and nothing lost: the kernel compares."""
    monkeypatch.setattr("imagefs.cache.file.crc32c", lambda body, value=0: 7)
    before = COUNTERS.cache_shared_bytes
    with mounted("xfs", tmp_path, 320 * MIB) as where:
        caches = await started(where / "cache", nursery, limit=64 * MIB)
        cache = await fill(caches, IMAGE)
        await caches.root._share()
        assert COUNTERS.cache_shared_bytes == before
        assert await cache.read(0, 4 * MIB) == CONTENT
        caches.root.close()


@pytest.mark.parametrize(("number", "again"), [(errno.EIO, True), (errno.EOPNOTSUPP, False)])
async def test_sharing_that_fails(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, number: int, again: bool) -> None:
    """A pair that cannot share is passed over; where the filesystem cannot do it after all, it is not asked again."""
    calls: list[int] = []

    def fail(*arguments: int) -> int:
        calls.append(arguments[1])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("imagefs.cache.root.can_share", lambda path: True)
    monkeypatch.setattr(sharing, "share", fail)
    caches = await started(tmp_path, nursery)
    held = [await fill(caches, IMAGE)]
    await caches.root._share()
    for image_id in (OTHER_IMAGE, IMAGE):
        held.append(await fill(caches, image_id, version="v2"))
        asked = len(calls)
        await caches.root._share()
        assert await held[-1].read(0, 4 * MIB) == CONTENT
    assert (len(calls) > asked) is again
    assert len(calls) >= (96 if again else 1)


async def test_filesystem_that_cannot_share(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, nothing is remembered and nothing asked."""

    def fail(*arguments: int) -> int:
        raise AssertionError("nobody asks")

    monkeypatch.setattr(sharing, "share", fail)
    with mounted("ext4", tmp_path, 64 * MIB) as where:
        caches = await started(where / "cache", nursery, limit=32 * MIB)
        for image_id in (IMAGE, OTHER_IMAGE):
            cache = await fill(caches, image_id)
            assert cache._shelf.file is not None
            assert cache._shelf.file.stored is None
        await caches.root._share()
        caches.root.close()


async def test_zeros_take_no_room(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Units of zeros are holes: an image of zeros takes a page of its map."""
    caches = await started(tmp_path, nursery)
    cache = await fill(caches, IMAGE, bytes(8 * MIB))
    assert cache._shelf.file is not None
    assert cache._shelf.file.allocated() <= 2 * UNIT // 16
    assert cache.read_nowait(0, 8 * MIB) == bytes(8 * MIB)
