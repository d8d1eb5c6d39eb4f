"""Caches and images are examined when somebody asks for it."""

import gc
from pathlib import Path

import pytest
import trio

from imagefs.cache.directory import cache_name
from imagefs.errors import StoreUnavailable, WrongBytes
from imagefs.hydration import verification
from imagefs.hydration.verification import CacheVerified, ImageVerified, verify_cached, verify_image
from imagefs.units import MIB, UNIT
from tests.support.caching import IMAGE, OTHER_IMAGE, Caches, HeldFiller, started
from tests.support.fetched import ScriptedObject, broken, noise
from tests.support.hydrating import record_of, stored_object

CONTENT = noise(2 * MIB + 100)
UNITS = 33


def silent(done: int, total: int) -> None:
    """Take no notice of the progress."""


def damage(caches: Caches, image_id: str, unit: int) -> None:
    """Change a byte of a cached unit on the disk, behind the daemon's back."""
    with (caches.path / cache_name(image_id, "stored", "v1") / "units").open("r+b") as file:
        file.seek(unit * UNIT + 5)
        byte = file.read(1)
        file.seek(unit * UNIT + 5)
        file.write(bytes([byte[0] ^ 1]))


async def test_damage_is_found_in_open_and_closed_caches(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Also what was proved before is compared; what is damaged is fetched again when it is read."""
    caches = await started(tmp_path, nursery)
    filler = HeldFiller(CONTENT)
    kept = await caches.open(filler)
    await kept.read(0, len(CONTENT))
    gone = await caches.open(HeldFiller(CONTENT), image_id=OTHER_IMAGE)
    await gone.read(0, len(CONTENT))
    del gone
    gc.collect()
    await trio.sleep(0.01)
    damage(caches, IMAGE, 17)
    damage(caches, OTHER_IMAGE, 3)
    damage(caches, OTHER_IMAGE, 32)
    seen: list[tuple[int, int]] = []
    found = await verify_cached(caches.root, None, lambda done, total: seen.append((done, total)))
    assert found == CacheVerified(caches=2, checked=2 * UNITS, damaged=3)
    assert seen == sorted(seen)
    assert seen[-1] == (2 * len(CONTENT), 2 * len(CONTENT))
    assert await verify_cached(caches.root, IMAGE, silent) == CacheVerified(caches=1, checked=UNITS - 1)
    filler.fills.clear()
    assert await kept.read(0, len(CONTENT)) == CONTENT
    assert filler.fills == [(17, 1)]
    caches.root.check_invariants()


async def test_one_image_of_several(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Only what was asked for is compared."""
    caches = await started(tmp_path, nursery)
    for image_id in (IMAGE, OTHER_IMAGE):
        await (await caches.open(HeldFiller(CONTENT), image_id=image_id)).read(0, len(CONTENT))
    damage(caches, OTHER_IMAGE, 0)
    assert await verify_cached(caches.root, IMAGE, silent) == CacheVerified(caches=1, checked=UNITS)
    assert await verify_cached(caches.root, IMAGE.replace("1", "9"), silent) == CacheVerified()


async def test_readers_and_verification_do_not_harm_each_other(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Who reads while all is proved again gets right bytes, and nothing is fetched twice."""
    caches = await started(tmp_path, nursery)
    filler = HeldFiller(CONTENT)
    cache = await caches.open(filler)
    await cache.read(0, len(CONTENT))
    filler.fills.clear()
    async with trio.open_nursery() as tasks:
        for start in range(0, len(CONTENT), 3 * UNIT):

            async def read(offset: int = start) -> None:
                for _ in range(20):
                    assert await cache.read(offset, 3 * UNIT) == CONTENT[offset : offset + 3 * UNIT]

            tasks.start_soon(read)
        for _ in range(3):
            assert (await verify_cached(caches.root, IMAGE, silent)).damaged == 0
    assert filler.fills == []


async def test_a_region_that_is_always_read_is_passed_over(tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who never leaves does not hold it up for ever; the result says so."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, len(CONTENT))
    monkeypatch.setattr(verification, "PATIENCE", 2)
    with cache.shelf.reading(range(16, 17)):
        assert await verify_cached(caches.root, IMAGE, silent) == CacheVerified(caches=1, checked=UNITS - 16, busy=1)


async def test_a_cache_that_cannot_be_read(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A cache without a sound header has nothing to compare; it is begun anew when its image is opened."""
    caches = await started(tmp_path, nursery)
    cache = await caches.open(HeldFiller(CONTENT))
    await cache.read(0, MIB)
    del cache
    gc.collect()
    await trio.sleep(0.01)
    spoil(tmp_path / cache_name(IMAGE, "stored", "v1") / "map")
    assert await verify_cached(caches.root, IMAGE, silent) == CacheVerified()
    assert await (await caches.open(HeldFiller(CONTENT))).read(0, 10) == CONTENT[:10]


def spoil(path: Path) -> None:
    """Overwrite the beginning of a file."""
    with path.open("r+b") as file:
        file.write(b"garbage")


@pytest.mark.parametrize(
    ("digests", "fields", "compared"),
    [
        (False, {}, ("size", "sha512", "md5")),
        (True, {}, ("size", "unit digests", "sha512", "md5")),
        (False, {"os_hash_algo": None, "checksum": None}, ("size",)),
    ],
)
async def test_an_image_that_is_right(digests: bool, fields: dict[str, str | None], compared: tuple[str, ...]) -> None:
    """The result says what the bytes were compared with, and all of them were read once."""
    record = record_of(CONTENT, fields, digests=digests)
    source = ScriptedObject(CONTENT)
    seen: list[int] = []
    found = await verify_image(stored_object(source, record, CONTENT), record, lambda done, total: seen.append(done))
    assert found == ImageVerified(len(CONTENT), compared)
    assert seen[-1] == len(CONTENT) == sum(length for _, length in source.requests)


async def test_an_image_that_is_wrong() -> None:
    """The first wrong unit is named where digests tell it, else the hash."""
    source = ScriptedObject(CONTENT[: 20 * UNIT] + b"!" + CONTENT[20 * UNIT + 1 :])
    with pytest.raises(WrongBytes, match=rf"unit 20.*offset {20 * UNIT}"):
        await verify_image(stored_object(source, record := record_of(CONTENT, digests=True), CONTENT), record, silent)
    with pytest.raises(WrongBytes, match="sha512"):
        await verify_image(stored_object(source, record := record_of(CONTENT), CONTENT), record, silent)
    with pytest.raises(WrongBytes, match="md5"):
        await verify_image(stored_object(source, record := record_of(CONTENT, {"os_hash_algo": None}), CONTENT), record, silent)


async def test_an_image_of_another_size() -> None:
    """An object that is longer or shorter than its record says is not read at all."""
    source = ScriptedObject(CONTENT)
    record = record_of(CONTENT + b"more")
    with pytest.raises(WrongBytes, match="upload it again"):
        await verify_image(stored_object(source, record, CONTENT), record, silent)
    assert source.requests == []


async def test_a_store_that_fails() -> None:
    """What the store raises is raised."""
    source = ScriptedObject(CONTENT)
    source.script = lambda attempt, offset, length: [broken()]
    record = record_of(CONTENT)
    with pytest.raises(StoreUnavailable):
        await verify_image(stored_object(source, record, CONTENT), record, silent)
