"""Images that are in use are brought completely when nobody waits."""

import gc
import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from imagefs.cache.mark import Checked
from imagefs.counters import COUNTERS
from imagefs.errors import WrongBytes
from imagefs.hydration.hydrator import SPARE_PART, Hydrator, Mode
from imagefs.hydration.pace import HEAD_START, SILENCE
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.caching import OTHER_IMAGE, HeldFiller, settled, started
from tests.support.fetched import broken, noise
from tests.support.hydrating import Picture, hydrator_of, picture, record_of, until

CONTENT = noise(3 * MIB + 100)


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps to the next deadline when nothing happened for a moment: threads are given time to end."""
    return MockClock(autojump_threshold=0.01)


async def completed(found: Picture, hydrator: Hydrator, nursery: trio.Nursery) -> None:
    """Let the hydrator bring an image until it is marked."""
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(found.is_marked)


def marks(path: Path) -> int:
    """Return how many caches on the disk have a mark."""
    return len(list(path.glob("*/*/complete")))


async def test_the_rest_comes_after_silence(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """In mode idle nothing is brought for half a minute after the opening, then all of it, and the image is marked as checked."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    opened, before, marked = trio.current_time(), COUNTERS.hydrated_bytes, COUNTERS.images_completed
    await completed(found, hydrator, nursery)
    assert found.filler.fills[0][0] >= opened + SILENCE
    assert {fill[3] for fill in found.filler.fills} == {Urgency.IDLE}
    assert COUNTERS.hydrated_bytes - before == len(CONTENT)
    assert COUNTERS.images_completed - marked == 1
    mark = found.disk.shelf.file.mark if found.disk.shelf.file is not None else None
    assert mark is not None
    assert (mark.checked, mark.algorithm, mark.value) == (Checked.HASH, "sha512", found.image.record.os_hash_value)
    found.source.script = lambda attempt, offset, length: [broken()]
    assert await found.disk.read(0, len(CONTENT)) == CONTENT


async def test_a_miss_begins_the_silence_anew(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """A guest that reads what is not here is left alone for half a minute from then on."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(SILENCE - 5)
    await found.disk.read(0, 10)
    missed = trio.current_time()
    await until(lambda: bool(found.filler.idle()))
    assert found.filler.idle()[0][0] >= missed + SILENCE


async def test_it_pauses_while_a_reader_waits(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """No part is begun while a miss is under way, and it goes on after it."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches, "full", rate=MIB)
    found = await picture(caches, hydrator, noise(40 * MIB))
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(lambda: bool(found.filler.fills))
    with caches.root.demand.waiting():
        await trio.sleep(10)  # for what was let pass already
        await settled(found.disk)
        brought = len(found.filler.fills)
        await trio.sleep(20)
        assert len(found.filler.fills) == brought
    await until(found.is_marked)


async def test_full_begins_at_once(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """In mode full only the boot profile has a head start."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches, "full")
    found = await picture(caches, hydrator, CONTENT)
    opened = trio.current_time()
    await completed(found, hydrator, nursery)
    assert found.filler.fills[0][0] >= opened + HEAD_START


async def test_off_and_too_large(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """Mode off brings nothing, mode idle no image above its limit, and mode full takes no notice of that."""
    caches = await started(tmp_path, nursery)
    modes: list[tuple[Mode, int]] = [("off", 100 * MIB), ("idle", len(CONTENT) - 1)]
    for mode, limit in modes:
        hydrator = hydrator_of(caches, mode, limit=limit)
        found = await picture(caches, hydrator, CONTENT)
        nursery.start_soon(hydrator.run)
        hydrator.consider(found.image)
        await trio.sleep(1000)
        assert not found.filler.fills
    hydrator = hydrator_of(caches, "full", limit=0)
    await completed(await picture(caches, hydrator, CONTENT), hydrator, nursery)


async def test_an_image_of_exactly_the_limit(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """The limit is the largest image that is hydrated."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches, limit=len(CONTENT))
    await completed(await picture(caches, hydrator, CONTENT), hydrator, nursery)


async def test_the_rate_is_kept(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """So many bytes take so many seconds, those that are hashed included."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches, "full", rate=MIB)
    found = await picture(caches, hydrator, noise(16 * MIB))
    await completed(found, hydrator, nursery)
    assert found.filler.fills[-1][0] - found.filler.fills[0][0] >= 12  # parts of 4 MiB; the first one comes at once
    assert trio.current_time() - found.filler.fills[0][0] >= 28


async def test_nothing_is_evicted_for_it(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """Only room that nobody needs is filled: what others have cached stays, and a part of the budget is left to readers."""
    limit = 8 * MIB
    caches = await started(tmp_path, nursery, limit=limit)
    other = await caches.open(HeldFiller(noise(4 * MIB)), image_id=OTHER_IMAGE)
    await other.prefetch(0, 4 * MIB)
    here = other.cached_bytes
    evicted = COUNTERS.cache_units_evicted
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, noise(16 * MIB))
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(3600)
    assert (other.cached_bytes, COUNTERS.cache_units_evicted) == (here, evicted)
    assert caches.budget.used <= limit - limit // SPARE_PART
    assert not found.is_marked()


async def test_room_that_comes_is_used(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """An image for which there was no room is gone on with when there is."""
    caches = await started(tmp_path, nursery, limit=8 * MIB)
    other = await caches.open(HeldFiller(noise(5 * MIB)), image_id=OTHER_IMAGE)
    await other.prefetch(0, 5 * MIB)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(600)
    assert not found.is_marked()
    del other
    gc.collect()
    await trio.sleep(1)
    await caches.root.prune()
    await until(found.is_marked)


async def test_zeros_are_not_fetched(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """Units that digests prove to be zeros cost neither a request nor disk, and count as here."""
    content = noise(UNIT) + bytes(40 * UNIT) + noise(UNIT, 2) + bytes(UNIT // 2)
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, content, record_of(content, digests=True))
    await completed(found, hydrator, nursery)
    assert sum(length for _, length in found.source.requests) == 2 * UNIT
    found.source.script = lambda attempt, offset, length: [broken()]
    assert await found.disk.read(0, len(content)) == content
    mark = found.disk.shelf.file.mark if found.disk.shelf.file is not None else None
    assert mark is not None
    assert mark.checked is Checked.DIGESTS


async def test_a_complete_image_is_left_alone(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """After a restart the mark tells that there is nothing to do: no request, no hash, no second mark."""
    async with trio.open_nursery() as first:
        caches = await started(tmp_path, first)
        hydrator = hydrator_of(caches)
        await completed(await picture(caches, hydrator, CONTENT), hydrator, first)
        first.cancel_scope.cancel()
    caches.root.close()
    again = await started(tmp_path, nursery)
    hydrator, counted = hydrator_of(again), COUNTERS.images_completed
    found = await picture(again, hydrator, CONTENT)
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(1000)
    assert found.is_marked()
    assert (found.source.requests, COUNTERS.images_completed) == ([], counted)


async def test_what_is_here_is_not_fetched_again(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """After a restart in the middle the map tells what is missing."""
    async with trio.open_nursery() as first:
        caches = await started(tmp_path, first)
        cut = await picture(caches, hydrator_of(caches), CONTENT)
        await cut.disk.prefetch(MIB, MIB)
        del cut
        first.cancel_scope.cancel()
    caches.root.close()
    again = await started(tmp_path, nursery)
    hydrator = hydrator_of(again)
    found = await picture(again, hydrator, CONTENT)
    await completed(found, hydrator, nursery)
    assert sum(length for _, length in found.source.requests) == len(CONTENT) - MIB


async def test_the_last_opened_goes_first(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """One image at a time, the one that was opened last before others."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = [
        await picture(caches, hydrator, CONTENT, record_of(CONTENT, image_id=image_id)) for image_id in (OTHER_IMAGE, OTHER_IMAGE.replace("6", "7"))
    ]
    for one in (*found, found[0]):
        hydrator.consider(one.image)
    nursery.start_soon(hydrator.run)
    await until(lambda: all(one.is_marked() for one in found))
    assert found[0].filler.fills[-1][0] <= found[1].filler.fills[0][0]


async def test_a_store_that_is_down_is_waited_for(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """It is asked again, less and less often, and what it gave before is kept."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    found.source.script = lambda attempt, offset, length: [broken()]
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(600)
    assert 5 <= len(found.source.requests) <= 100
    found.source.script = lambda attempt, offset, length: None
    await until(found.is_marked)


async def test_damage_spoils_only_itself(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """What is right of an image of which a unit is wrong in the store is brought; the image is not marked, and not tried for ever."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    content = noise(12 * MIB)
    found = await picture(caches, hydrator, content, record_of(content, digests=True))
    found.source.content = content[: 5 * MIB] + b"!" + content[5 * MIB + 1 :]
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await trio.sleep(1000)
    asked = len(found.source.requests)
    assert found.disk.is_here(0, 4 * MIB)
    assert found.disk.is_here(8 * MIB, 4 * MIB)
    assert not found.is_marked()
    await trio.sleep(3600)
    assert len(found.source.requests) == asked


async def test_a_fill_that_fails_unexpectedly(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """A mistake in the code of a filler ends neither the task nor the hydration of other images."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found, other = await picture(caches, hydrator, CONTENT), await picture(caches, hydrator, CONTENT, record_of(CONTENT, image_id=OTHER_IMAGE))

    def fail(offset: int) -> None:
        raise ZeroDivisionError

    found.filler.before = fail
    nursery.start_soon(hydrator.run)
    hydrator.consider(other.image)
    hydrator.consider(found.image)
    await until(other.is_marked)
    assert not found.is_marked()


async def test_the_task_survives_its_own_mistakes(
    tmp_path: Path, nursery: trio.Nursery, clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in the hydrator itself is logged, and it goes on: an exception would end the mount."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    failures = [RuntimeError("a mistake")]
    real = found.disk.missing_extents

    async def missing_extents(offset: int, length: int) -> list[tuple[int, int]]:
        if failures:
            raise failures.pop()
        return await real(offset, length)

    monkeypatch.setattr(found.disk, "missing_extents", missing_extents)
    await completed(found, hydrator, nursery)
    assert "hydration failed unexpectedly" in caplog.text


async def test_an_image_that_is_gone(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """Nothing more is brought of an image that the library let go of, or that the store has no more."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found, other = await picture(caches, hydrator, CONTENT), await picture(caches, hydrator, CONTENT, record_of(CONTENT, image_id=OTHER_IMAGE))
    filler, other_filler = found.filler, other.filler
    hydrator.consider(found.image)
    hydrator.consider(other.image)
    del found
    gc.collect()
    hydrator.forget(other.image.key)
    nursery.start_soon(hydrator.run)
    await trio.sleep(1000)
    assert not filler.fills
    assert not other_filler.fills


async def test_wrong_bytes_are_refused(tmp_path: Path, nursery: trio.Nursery, clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """An image whose bytes have not the hash of its record is not served any more, and nothing of it stays cached."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT, record_of(CONTENT, wrong=True))
    other = await picture(caches, hydrator, CONTENT, record_of(CONTENT, image_id=OTHER_IMAGE))
    before = COUNTERS.images_failed_verification
    nursery.start_soon(hydrator.run)
    hydrator.consider(found.image)
    await until(lambda: COUNTERS.images_failed_verification == before + 1)
    await trio.sleep(10)
    assert found.disk.cached_bytes == 0
    for offset in (0, MIB):
        with pytest.raises(WrongBytes, match="sha512"):
            await found.disk.read(offset, 10)
    assert any(record.levelno == logging.ERROR and found.image.record.id in record.getMessage() for record in caplog.records)
    assert await other.disk.read(0, 10) == CONTENT[:10]
    key = found.image.key
    del found
    gc.collect()
    with pytest.raises(WrongBytes):
        hydrator.verdict(key).check()  # who opens it again hears the same
    hydrator.forget(key)
    gc.collect()
    hydrator.verdict(key).check()


@pytest.mark.parametrize(
    ("fields", "checked", "algorithm"),
    [
        ({"os_hash_algo": None, "os_hash_value": None}, Checked.HASH, "md5"),
        ({"os_hash_algo": "sha9000"}, Checked.HASH, "md5"),
        ({"os_hash_value": "abc"}, Checked.HASH, "md5"),
        ({"os_hash_algo": None, "checksum": None}, Checked.NOTHING, ""),
    ],
)
async def test_what_a_record_names(
    tmp_path: Path, nursery: trio.Nursery, clock: MockClock, fields: dict[str, str | None], checked: Checked, algorithm: str
) -> None:
    """The best hash that can be computed here decides; without one the mark says that nothing was compared."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT, record_of(CONTENT, fields))
    await completed(found, hydrator, nursery)
    mark = found.disk.shelf.file.mark if found.disk.shelf.file is not None else None
    assert mark is not None
    assert (mark.checked, mark.algorithm, mark.verified) == (checked, algorithm, checked is not Checked.NOTHING)


async def test_an_eviction_takes_the_mark_along(tmp_path: Path, nursery: trio.Nursery, clock: MockClock) -> None:
    """A cache that lost a unit is not complete: the mark is gone from memory and from the disk."""
    caches = await started(tmp_path, nursery)
    hydrator = hydrator_of(caches)
    found = await picture(caches, hydrator, CONTENT)
    await completed(found, hydrator, nursery)
    assert marks(tmp_path) == 1
    assert await found.disk.shelf.evict([1])
    assert not found.is_marked()
    assert marks(tmp_path) == 0
