"""All caches of a node together."""

import gc
import os
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.cache import UnitCache
from imagefs.cache.directory import cache_name
from imagefs.errors import InvalidInput
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
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


async def read_as_guests_do(cache: UnitCache, offset: int, length: int) -> None:
    """Read what is there on the spot, and else as it takes."""
    if cache.read_nowait(offset, length) is None:
        await cache.read(offset, length)


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
    filler, gate = HeldFiller(CONTENT), Gate(2)
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
    assert await (await caches.open(again)).read(0, 4 * UNIT) == CONTENT[: 4 * UNIT]
    assert again.fills == []


async def test_the_oldest_closed_cache_goes_first(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Room is made by removing what is of the image that was used longest ago; what is open and what was used later stays."""
    caches = await started(tmp_path, nursery, limit=4 * MIB)
    await filled(caches, IMAGE, "v1")
    await filled(caches, OTHER_IMAGE, "v1")
    os.utime(tmp_path / cache_name(IMAGE, "stored", "v1") / "map", (2000, 2000))
    os.utime(tmp_path / cache_name(OTHER_IMAGE, "stored", "v1") / "map", (1000, 1000))
    # Room for half a window less than there is: what is being written while room is counted is counted twice, to be on the safe side.
    limit = caches.used_on_disk() + 6 * UNIT
    caches = await started(tmp_path, nursery, limit=limit)
    cache = await caches.open(HeldFiller(noise(8 * UNIT)), image_id=IMAGE, version="v2")
    await cache.read(0, 8 * UNIT)
    await settled(cache)
    assert exists(caches, IMAGE, "v1")
    assert not exists(caches, OTHER_IMAGE, "v1")
    assert not (tmp_path / OTHER_IMAGE).exists()
    assert cache.read_nowait(0, 8 * UNIT) is not None
    assert caches.used_on_disk() <= limit
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


async def test_what_is_pinned_is_pinned_when_it_is_opened(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Whoever opens a pinned image has a pinned cache, and one that is open follows when pins change."""
    caches = await started(tmp_path, nursery)
    caches.root.pinned = frozenset({IMAGE})
    cache, other = await caches.open(HeldFiller(CONTENT)), await caches.open(HeldFiller(CONTENT), image_id=OTHER_IMAGE)
    assert (cache.pinned, other.pinned) == (True, False)
    caches.root.pinned = frozenset({OTHER_IMAGE})
    assert (cache.pinned, other.pinned) == (False, True)


async def test_a_cache_that_was_only_read_was_used(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What counts is when a cache was open last, not when something came to it; to be looked at is no use."""
    caches = await started(tmp_path, nursery)
    await filled(caches, IMAGE)
    await filled(caches, OTHER_IMAGE)
    for number, image_id in enumerate((IMAGE, OTHER_IMAGE)):
        os.utime(tmp_path / cache_name(image_id, "stored", "v1") / "map", (1000 + number, 1000 + number))
    await filled(caches, IMAGE)
    again = await started(tmp_path, nursery)
    first, second = (await again.root.status())[0], (await again.root.status())[1]
    assert (first.image_id, second.image_id) == (IMAGE, OTHER_IMAGE)
    assert first.last_used > second.last_used == 1001


async def test_status(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Open and closed caches are told apart, and their units counted, whether the daemon ended or was killed."""
    caches = await started(tmp_path, nursery)
    await filled(caches, IMAGE)
    cache = await caches.open(HeldFiller(CONTENT), image_id=OTHER_IMAGE)
    await cache.read(0, UNIT)
    await settled(cache)
    closed, opened = await caches.root.status()
    assert (closed.image_id, closed.open, closed.cached, closed.size, closed.complete, closed.space) == (IMAGE, False, MIB, MIB, True, "stored")
    assert (opened.image_id, opened.open, opened.complete) == (OTHER_IMAGE, True, False)
    assert UNIT <= opened.cached < MIB
    assert closed.allocated > MIB
    killed = await started(tmp_path, nursery)
    found = await killed.root.status()
    assert [(line.cached, line.open) for line in found] == [(closed.cached, False), (opened.cached, False)]


async def test_a_closed_cache_shrinks_and_keeps_what_boots_need(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Of a cache that nobody uses only as much goes as is needed, and what it wants to keep stays, also after a restart."""
    caches = await started(tmp_path, nursery)
    content = noise(8 * MIB)
    old = await caches.open(HeldFiller(content))
    await old.read(0, 8 * MIB)
    old.keep(5 * MIB, 10)
    await settled(old)
    del old
    gc.collect()
    await wait_all_tasks_blocked()
    caches = await started(tmp_path, nursery, limit=9 * MIB)
    new = await caches.open(HeldFiller(noise(8 * MIB, 2)), image_id=OTHER_IMAGE)
    for count in range(1, 8):
        await new.read((count - 1) * MIB, MIB)
        await settled(new)
        if count == 2:
            assert 4 * MIB <= (await caches.root.status())[0].cached < 8 * MIB
    caches.root.check_invariants()
    left = (await caches.root.status())[0]
    assert left.cached == MIB
    filler = HeldFiller(content)
    old = await caches.open(filler)
    assert await old.read(5 * MIB, MIB) == content[5 * MIB : 6 * MIB]
    assert filler.fills == []
    assert caches.used_on_disk() <= 9 * MIB


async def test_what_nobody_waits_for_evicts_nothing_in_use(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Idle work takes from closed caches; what is read ahead takes from open ones too, but not what is kept; a reader takes everything."""
    caches = await started(tmp_path, nursery, limit=5 * MIB)
    await filled(caches, IMAGE, "closed")
    used = await caches.open(HeldFiller(noise(3 * MIB)), image_id=OTHER_IMAGE)
    used.keep(0, MIB)
    for offset in range(0, 3 * MIB, MIB):
        await used.read(offset, MIB)
        await settled(used)
    account = used._shelf.account
    assert account is not None
    assert await account.reserve(MIB, Urgency.IDLE)
    assert not exists(caches, IMAGE, "closed")
    assert used.cached_bytes == 3 * MIB
    while await account.reserve(MIB // 2, Urgency.IDLE):
        assert used.cached_bytes == 3 * MIB
    for urgency, left in ((Urgency.AHEAD, MIB), (Urgency.DEMAND, 0)):
        while await account.reserve(MIB // 2, urgency):
            assert used.cached_bytes >= left
        assert used.cached_bytes == left
    caches.root.check_invariants()


async def test_one_long_reader_does_not_push_out_what_is_read_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Two MiB that were read again stay through a scan of an image that is larger than the cache."""
    caches = await started(tmp_path, nursery, limit=8 * MIB)
    daily = await caches.open(HeldFiller(noise(2 * MIB)))
    await daily.read(0, 2 * MIB)
    await settled(daily)
    scanned = await caches.open(HeldFiller(noise(20 * MIB, 2)), image_id=OTHER_IMAGE)
    for offset in range(0, 20 * MIB, MIB):
        if offset % (4 * MIB) == 0:
            daily._shelf.age()
            scanned._shelf.age()
            for region in range(2):
                await read_as_guests_do(daily, region * MIB, MIB)
        await read_as_guests_do(scanned, offset, MIB)
        await settled(scanned)
    assert daily.read_nowait(0, 2 * MIB) is not None


async def test_pruning_what_is_cold(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Regions in use that were not read lately go too, if that is asked for; pinned and kept ones stay."""
    caches = await started(tmp_path, nursery)
    cache, pinned = await caches.open(HeldFiller(noise(3 * MIB))), await caches.open(HeldFiller(CONTENT), image_id=OTHER_IMAGE)
    caches.root.pinned = frozenset({OTHER_IMAGE})
    for one in (cache, pinned):
        await one.read(0, 3 * MIB)
        await settled(one)
        one._shelf.age()
        one._shelf.age()
    cache.keep(0, MIB)
    await read_as_guests_do(cache, 2 * MIB, 10)
    assert await caches.root.prune() == 0
    assert await caches.root.prune(OTHER_IMAGE, cold=True) == 0
    assert await caches.root.prune(cold=True) >= MIB
    assert cache.cached_bytes == 2 * MIB
    assert pinned.cached_bytes == MIB
    assert cache.read_nowait(0, MIB) is not None
    assert cache.read_nowait(2 * MIB, MIB) is not None


async def test_tending_never_fails(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What to keep is noted while the cache is open, for the case that the daemon is killed; a disk that fails meanwhile is put up with."""
    monkeypatch.setattr("imagefs.cache.root.TEND_SECONDS", 0.01)
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, MIB)
    cache.keep(0, 10)
    rounds = trio.Event()
    trim, failures = caches.budget.trim, [OSError(5, "Input/output error")]

    async def trim_or_fail() -> None:
        if failures:
            raise failures.pop()
        file = cache._shelf.file
        assert file is not None
        if file.read_use().kept == {0}:
            rounds.set()
        await trim()

    monkeypatch.setattr(caches.budget, "trim", trim_or_fail)
    nursery.start_soon(caches.root.tend)
    with trio.fail_after(30):
        await rounds.wait()
    assert "not tended to" in caplog.text
    assert await cache.read(0, MIB) == CONTENT
