"""The mark of a complete cache, in its form and in its life."""

import errno
import gc
import os
from pathlib import Path

import pytest
import trio

from imagefs.cache import file as cache_file
from imagefs.cache.cache import UnitCache
from imagefs.cache.directory import CacheDirectory, cache_name
from imagefs.cache.mark import LIMIT, Checked, Mark, decode_mark, encode_mark
from imagefs.cache.whole import mark_complete
from imagefs.errors import StateDamaged
from imagefs.units import MIB, UNIT
from tests.support.caching import IMAGE, Caches, HeldFiller, started
from tests.support.fetched import noise

CONTENT = noise(MIB + 100)
MARK = Mark(7, 17, "v1", Checked.HASH, "sha512", "ab" * 64)


def test_a_mark_comes_back_as_it_was() -> None:
    """What is written is read, and the largest mark is within its page."""
    assert decode_mark(encode_mark(MARK), "here") == MARK
    assert len(encode_mark(Mark(2**32, 2**40, "x" * 1024, Checked.HASH, "sha512", "f" * 128))) < LIMIT
    assert [Mark(1, 1, "v", checked).verified for checked in Checked] == [True, True, False]


def test_every_torn_mark_is_refused() -> None:
    """A mark that is cut, or of which a bit flipped, is none."""
    body = encode_mark(MARK)
    for length in range(len(body)):
        with pytest.raises(StateDamaged):
            decode_mark(body[:length], "here")
    for position in range(0, len(body), 7):
        torn = bytearray(body)
        torn[position] ^= 4
        with pytest.raises(StateDamaged):
            decode_mark(bytes(torn), "here")


async def complete(caches: Caches) -> UnitCache:
    """Return a cache that is complete and marked."""
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    assert await mark(cache)
    return cache


async def mark(cache: UnitCache) -> bool:
    file = cache.shelf.file
    assert file is not None
    return await mark_complete(cache.shelf, Mark(file.seed, cache.shelf.unit_count, "v1", Checked.NOTHING), file.losses)


def path_of(caches: Caches) -> Path:
    return caches.path / cache_name(IMAGE, "stored", "v1") / "complete"


async def reopened(caches: Caches) -> Mark | None:
    """Return the mark that the cache has when it is opened anew; nobody may hold it."""
    gc.collect()
    await trio.sleep(0.01)
    cache = await caches.open(HeldFiller(CONTENT))
    assert cache.shelf.file is not None
    return cache.shelf.file.mark


async def test_a_mark_outlives_the_cache(tmp_path: Path, nursery: trio.Nursery) -> None:
    """It is there when the cache is opened again, and can be seen without opening it, in either state."""
    caches = await started(tmp_path, nursery)
    cache = await complete(caches)
    assert await caches.root.mark(IMAGE, "stored", "v1") is not None
    del cache
    gc.collect()
    await trio.sleep(0.01)
    assert await caches.root.mark(IMAGE, "stored", "v1") is not None
    assert [status.mark is not None for status in await caches.root.status()] == [True]
    assert await caches.root.mark(IMAGE, "guest", "v1") is None
    assert await reopened(caches) is not None


async def test_a_cache_with_a_gap_is_not_marked(tmp_path: Path, nursery: trio.Nursery) -> None:
    """One missing unit is enough, and one that was lost while the bytes were compared, even if it is here again."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, UNIT * 12)
    assert not await mark(cache)
    await cache.read(0, len(CONTENT))
    file = cache.shelf.file
    assert file is not None
    losses = file.losses
    await cache.shelf.evict([0])
    await cache.read(0, len(CONTENT))
    assert not await mark_complete(cache.shelf, Mark(file.seed, cache.shelf.unit_count, "v1", Checked.NOTHING), losses)
    assert not path_of(caches).exists()
    assert await mark(cache)


@pytest.mark.parametrize("how", ["torn", "other map", "gap", "directory", "link"])
async def test_marks_that_cannot_be_right(tmp_path: Path, nursery: trio.Nursery, how: str) -> None:
    """After a crash a mark may be torn, or outlive what it is about: such a mark is removed when the cache is opened."""
    caches = await started(tmp_path, nursery)
    cache = await complete(caches)
    assert cache.shelf.file is not None
    seed, units = cache.shelf.file.seed, cache.shelf.unit_count
    del cache
    gc.collect()
    await trio.sleep(0.01)
    spoil(path_of(caches), how, Mark(seed ^ 1, units, "v1", Checked.NOTHING))
    assert CacheDirectory(tmp_path).mark(cache_name(IMAGE, "stored", "v1")) is None
    assert await reopened(caches) is None


def spoil(path: Path, how: str, other: Mark) -> None:
    """Do to a mark what a crash, or somebody, may do."""
    if how == "torn":
        os.truncate(path, 40)
    elif how == "other map":
        path.write_bytes(encode_mark(other))
    elif how == "gap":
        with (path.parent / "map").open("r+b") as entries:
            entries.seek(2048)
            entries.write(bytes(2048))  # after a power loss the number of units that was noted counts for nothing
            entries.seek(4096 + 3 * 8)
            entries.write(bytes(8))
    else:
        body = path.read_bytes()
        path.unlink()
        if how == "link":
            (path.parent / "elsewhere").write_bytes(body)
            path.symlink_to("elsewhere")
        else:
            path.mkdir()


async def test_a_full_disk_takes_no_mark(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that cannot be written is not there, and nothing is left of it; the cache serves on."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))

    def full(path: Path, body: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file, "write_durably", full)
    assert not await mark(cache)
    assert cache.shelf.file is not None
    assert cache.shelf.file.mark is None
    assert await cache.read(0, 10) == CONTENT[:10]


async def test_a_damaged_unit_takes_the_mark_along(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A unit that fails its checksum after a restart is lost, and completeness with it."""
    caches = await started(tmp_path, nursery)
    cache = await complete(caches)
    del cache
    gc.collect()
    await trio.sleep(0.01)
    hurt(tmp_path / cache_name(IMAGE, "stored", "v1") / "units")
    cache = await caches.open(HeldFiller(CONTENT))
    assert cache.shelf.file is not None
    assert cache.shelf.file.mark is not None
    assert await cache.read(0, len(CONTENT)) == CONTENT
    assert cache.shelf.file.mark is None


def hurt(path: Path) -> None:
    """Change some bytes of a file."""
    with path.open("r+b") as file:
        file.seek(5 * UNIT)
        file.write(b"damage")
