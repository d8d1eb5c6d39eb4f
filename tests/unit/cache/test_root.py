"""All caches of a node together."""

import gc
import os
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.directory import cache_name
from imagefs.errors import InvalidInput
from imagefs.units import MIB, UNIT
from tests.support.caching import IMAGE, OTHER_IMAGE, Caches, Gate, HeldFiller, settled, started
from tests.support.fetched import noise

CONTENT = noise(MIB)


async def filled(caches: Caches, image_id: str, version: str = "v1") -> None:
    """Fill a cache and let go of it."""
    cache = await caches.open(HeldFiller(CONTENT), image_id=image_id, version=version)
    await cache.read(0, MIB)
    del cache
    gc.collect()
    await wait_all_tasks_blocked()


def exists(caches: Caches, image_id: str, version: str = "v1") -> bool:
    return (caches.path / cache_name(image_id, "stored", version)).exists()


async def test_two_openers_share(tmp_path: Path, nursery: trio.Nursery) -> None:
    """One version of an image has one set of files, however often it is opened, also at once."""
    caches = await started(tmp_path, nursery)
    opened = []

    async def open_one() -> None:
        opened.append(await caches.open(HeldFiller(CONTENT)))

    async with trio.open_nursery() as openers:
        for _ in range(3):
            openers.start_soon(open_one)
    await opened[0].read(0, 10)
    assert all(cache.read_nowait(0, 10) == CONTENT[:10] for cache in opened)


async def test_versions_and_spaces_are_apart(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Bytes of another version, or of the decoded disk, are other bytes."""
    caches = await started(tmp_path, nursery)
    for number, (space, version) in enumerate([("stored", "v1"), ("stored", "v2"), ("guest", "v1")]):
        content = noise(MIB, number)
        cache = await caches.open(HeldFiller(content), space=space, version=version)
        assert await cache.read(0, MIB) == content


async def test_a_cache_that_nobody_uses_is_closed(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Files are closed when the last reference goes, not while a fill runs; and the cache is found again."""
    caches = await started(tmp_path, nursery)
    filler, gate = HeldFiller(CONTENT), Gate(4)
    filler.before = gate
    descriptors = len(os.listdir("/proc/self/fd"))
    cache = await caches.open(filler)
    await cache.read(0, 10)
    del cache
    gc.collect()
    await wait_all_tasks_blocked()
    caches.root.check_invariants()
    gate.open()
    with trio.fail_after(30):
        while len(os.listdir("/proc/self/fd")) > descriptors:
            gc.collect()
            await trio.sleep(0.01)
    caches.root.check_invariants()
    again = HeldFiller(CONTENT)
    assert await (await caches.open(again)).read(0, 8 * UNIT) == CONTENT[: 8 * UNIT]
    assert again.fills == []


async def test_the_oldest_closed_cache_goes_first(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Room is made by removing the image that was cached longest ago, as a whole; never by one that is open."""
    caches = await started(tmp_path, nursery, limit=4 * MIB)
    await filled(caches, IMAGE, "v1")
    await filled(caches, OTHER_IMAGE, "v1")
    os.utime(tmp_path / cache_name(IMAGE, "stored", "v1") / "map", (2000, 2000))
    os.utime(tmp_path / cache_name(OTHER_IMAGE, "stored", "v1") / "map", (1000, 1000))
    caches = await started(tmp_path, nursery, limit=4 * MIB)
    cache = await caches.open(HeldFiller(noise(2 * MIB)), image_id=IMAGE, version="v2")
    for offset in (0, MIB):
        # One after the other: what is being written while room is counted is counted twice, to be on the safe side.
        await cache.read(offset, MIB)
        await settled(cache)
    assert exists(caches, IMAGE, "v1")
    assert not exists(caches, OTHER_IMAGE, "v1")
    assert not (tmp_path / OTHER_IMAGE).exists()
    assert cache.read_nowait(0, 2 * MIB) is not None
    assert caches.used_on_disk() <= 4 * MIB
    caches.root.check_invariants()


async def test_pinned_images_go_last(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A pinned image outlives a younger one, and an open one's regions, and goes when nothing else is left."""
    caches = await started(tmp_path, nursery, limit=3 * MIB)
    caches.root.pinned = {IMAGE}
    await filled(caches, IMAGE)
    big = HeldFiller(noise(8 * MIB))
    cache = await caches.open(big, image_id=OTHER_IMAGE)
    for offset in range(0, 8 * MIB, MIB):
        await cache.read(offset, MIB)
        assert caches.used_on_disk() <= 3 * MIB
    assert exists(caches, IMAGE)
    cache.pinned = True
    cache.keep(0, 8 * MIB)
    assert cache.pinned


async def test_a_smaller_budget_is_met_at_start(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What an earlier run left is trimmed before anything is served."""
    caches = await started(tmp_path, nursery)
    for version in ("v1", "v2", "v3"):
        await filled(caches, IMAGE, version)
    caches = await started(tmp_path, nursery, limit=2 * MIB)
    assert caches.used_on_disk() <= 2 * MIB
    assert sum(exists(caches, IMAGE, version) for version in ("v1", "v2", "v3")) == 1
    await started(tmp_path, nursery, limit=0)
    assert not any(exists(caches, IMAGE, version) for version in ("v1", "v2", "v3"))


async def test_prune(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Pruning removes what is not open and not pinned, and tells how much that was."""
    caches = await started(tmp_path, nursery)
    await filled(caches, IMAGE, "v1")
    await filled(caches, OTHER_IMAGE)
    caches.root.pinned = {OTHER_IMAGE}
    cache = await caches.open(HeldFiller(CONTENT), version="v2")
    await cache.read(0, 10)
    assert await caches.root.prune() >= MIB
    assert not exists(caches, IMAGE, "v1")
    assert exists(caches, IMAGE, "v2")
    assert exists(caches, OTHER_IMAGE)
    assert await cache.read(0, MIB) == CONTENT
    caches.root.check_invariants()


async def test_close(tmp_path: Path, nursery: trio.Nursery) -> None:
    """After closing no descriptor is left open."""
    descriptors = len(os.listdir("/proc/self/fd"))
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, MIB)
    await wait_all_tasks_blocked()
    caches.root.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_only_image_ids_become_paths(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Nothing but a UUID is used as a name."""
    caches = await started(tmp_path, nursery)
    with pytest.raises(InvalidInput, match="not an image id"):
        await caches.open(HeldFiller(CONTENT), image_id="../../etc")


async def test_an_unusable_directory_means_no_cache(tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    """A file where the directory should be is logged, and images are served."""
    (tmp_path / "cache").write_bytes(b"")
    caches = await started(tmp_path / "cache", nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    assert await cache.read(0, MIB) == CONTENT
    assert "nothing is cached" in caplog.text


async def test_no_descriptors_left(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An image whose cache cannot be opened is served all the same, and its room is not lost."""
    caches = await started(tmp_path, nursery)
    await filled(caches, IMAGE)
    used = caches.budget.used

    def exhausted(path: Path, flags: int, mode: int = 0o777) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exhausted)
        cache = await caches.open(HeldFiller(CONTENT))
    assert await cache.read(0, MIB) == CONTENT
    assert "Too many open files" in caplog.text
    assert caches.budget.used == used
    caches.root.check_invariants()
