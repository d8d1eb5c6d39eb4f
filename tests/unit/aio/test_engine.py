"""Reads and syncs by a ring that a test holds in its hand."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.aio import engine
from imagefs.aio.engine import MEMORY, Engine, open_engine, serving
from imagefs.aio.reader import COLD, PROBE, Reader
from imagefs.aio.ring import Ring
from imagefs.aio.sync import sync
from imagefs.counters import COUNTERS
from tests.support.rings import HeldRing, Request, failing, halved, served

CONTENT = os.urandom(300_000)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file with CONTENT."""
    (tmp_path / "file").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
async def ring() -> AsyncIterator[HeldRing]:
    """A ring whose engine is the current one."""
    held = HeldRing()
    async with serving(Engine(held, None)):
        yield held
    assert held.closed
    assert engine.current is None


def ring_engine() -> Engine:
    """Return the current engine."""
    assert engine.current is not None
    return engine.current


async def until(condition: Callable[[], object]) -> None:
    """Return when something has come true."""
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_a_read_waits_for_its_result_and_has_the_bytes(file: int, ring: HeldRing) -> None:
    """Reads that end in another order than they began each have their own bytes, and take no thread."""
    reader, found, before = Reader(file), {}, COUNTERS.disk_reads_by_thread

    async def read(offset: int, length: int) -> None:
        body = bytearray(length)
        assert await reader.fill(body, offset) == length
        found[offset] = bytes(body)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(read, number * 5000, 100 * (number + 1))
        await until(lambda: len(ring.waiting) == 8)
        assert not found
        ring.finish()
    assert found == {number * 5000: CONTENT[number * 5000 :][: 100 * (number + 1)] for number in range(8)}
    assert COUNTERS.disk_reads_by_thread == before


@pytest.mark.parametrize(
    "by",
    [failing(errno.EIO), failing(errno.EAGAIN), failing(errno.ENOMEM), failing(errno.EINVAL), failing(errno.EINTR), halved, lambda request: 0],
    ids=["EIO", "EAGAIN", "ENOMEM", "EINVAL", "EINTR", "short", "nothing"],
)
async def test_what_a_ring_does_not_read_a_thread_reads(file: int, ring: HeldRing, by: Callable[[Request], int]) -> None:
    """Whatever a ring says, the bytes are right; it is a thread that finds out whether they can be had."""
    ring.at_once = by
    before, body = COUNTERS.disk_reads_by_thread, bytearray(1000)
    assert await Reader(file).fill(body, 77) == 1000
    assert body == CONTENT[77:1077]
    assert len(ring.asked) == 1
    assert COUNTERS.disk_reads_by_thread == before + 1


async def test_an_error_that_is_one_is_raised(file: int, ring: HeldRing) -> None:
    """When neither ring nor thread can read, the thread's error is raised."""

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    ring.at_once = failing(errno.EIO)
    with pytest.raises(OSError, match="the disk is broken"):
        await Reader(file, preadv).fill(bytearray(10), 0)


async def test_a_read_ends_at_the_end_of_the_file(file: int, ring: HeldRing) -> None:
    """There are fewer bytes then, and none past it."""
    ring.at_once = served
    body = bytearray(1000)
    assert await Reader(file).fill(body, len(CONTENT) - 300) == 300
    assert body[:300] == CONTENT[-300:]
    assert await Reader(file).fill(body, len(CONTENT) + 5) == 0
    assert await Reader(file).fill(bytearray(), 0) == 0


async def test_a_ring_that_takes_nothing_is_done_without(file: int, ring: HeldRing) -> None:
    """A kernel that is short of memory refuses a request: a thread does it, and nothing is left waiting."""
    ring.refuse = True
    body = bytearray(100)
    assert await Reader(file).fill(body, 5) == 100
    assert body == CONTENT[5:105]
    os.write(file, b"x")
    await sync(file)
    assert not ring.asked


async def test_more_reads_than_a_ring_has_room_for(file: int) -> None:
    """What is more goes to threads at once, and is not kept waiting by those in the ring."""
    held = HeldRing(room=2)
    async with serving(Engine(held, None)), trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(Reader(file).fill, bytearray(10), number)
        await until(lambda: len(held.waiting) == 2)
        body = bytearray(10)
        assert await Reader(file).fill(body, 50) == 10
        assert body == CONTENT[50:60]
        await sync(file)
        assert len(held.asked) == 2
        held.finish()


async def test_a_cancelled_read_waits_until_the_kernel_lets_go_of_its_buffer(file: int, ring: HeldRing) -> None:
    """Until then the buffer stays where it is; whoever waits for the reader may close the file after it."""
    body = bytearray(100)
    ended = trio.Event()

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            await Reader(file).fill(body, 0)
        ended.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(read, scope)
        await until(lambda: ring.waiting)
        scope.cancel()
        await wait_all_tasks_blocked(0.01)
        assert not ended.is_set()
        with pytest.raises(BufferError):
            body.extend(b"longer")
        ring.finish()
    assert ended.is_set()
    assert body == CONTENT[:100]
    body.extend(b"longer")


async def test_the_end_waits_for_reads_under_way(file: int) -> None:
    """An engine's rings are closed after the last of its reads, also when everything is being cancelled."""
    held = HeldRing()
    async with trio.open_nursery() as outer:

        async def serve() -> None:
            async with serving(Engine(held, None)), trio.open_nursery() as nursery:
                nursery.start_soon(Reader(file).fill, bytearray(10), 0)
                await trio.sleep_forever()

        outer.start_soon(serve)
        await until(lambda: held.waiting)
        outer.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked(0.01)
            assert not held.closed
            held.finish()
    assert held.closed
    assert engine.current is None


async def test_the_polled_ring_is_for_reads_that_come_while_others_are_under_way(file: int) -> None:
    """One read at a time goes through the plain ring; after an overlap the polled one is used for a while."""
    plain, polled = HeldRing(at_once=served), HeldRing(room=64, at_once=served)
    reader = Reader(file)
    async with serving(Engine(plain, polled)):
        for _ in range(3):
            await reader.fill(bytearray(10), 0)
        assert (len(plain.asked), len(polled.asked)) == (3, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(reader.fill, bytearray(10), 0)
        assert (len(plain.asked), len(polled.asked)) == (4, 1)
        for _ in range(MEMORY):
            await reader.fill(bytearray(10), 0)
        assert (len(plain.asked), len(polled.asked)) == (5, MEMORY)


async def test_a_sync_is_done_once_and_its_error_is_final(file: int, ring: HeldRing) -> None:
    """The kernel tells an error of what it could not write once: to ask again would be told that all is well."""
    ring.at_once = served
    await sync(file)
    assert ring.asked[-1].address == 0
    ring.at_once = failing(errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as raised:
        await sync(file)
    assert raised.value.errno == errno.EIO
    assert len(ring.asked) == 2


@pytest.mark.parametrize("number", [errno.ECANCELED, errno.EINTR])
async def test_a_sync_that_the_kernel_gave_up_is_done_by_a_thread(file: int, ring: HeldRing, number: int) -> None:
    """That it had no worker for it says nothing about the disk: the sync was not done, and is done in another way."""
    ring.at_once = failing(number)
    os.write(file, b"x")
    assert not await ring_engine().sync(file)
    await sync(file)
    assert len(ring.asked) == 2


async def test_a_call_that_is_given_is_the_one_that_syncs(file: int, ring: HeldRing) -> None:
    """A test that loses power sees each sync."""
    synced: list[int] = []
    await sync(file, synced.append)
    assert synced == [file]
    assert not ring.asked


async def test_a_file_that_is_not_in_memory_is_not_asked_in_vain(file: int, ring: HeldRing) -> None:
    """After some misses in a row only every so-and-so-many-th read tries on the spot; the first that hits ends that."""
    tried: list[int] = []
    absent = True

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        tried.append(offset)
        if absent:
            raise BlockingIOError
        return os.preadv(fd, buffers, offset, flags)

    reader = Reader(file, preadv)  # type: ignore[arg-type]  # a list of bytearrays is one of buffers
    for number in range(COLD + 3 * PROBE):
        assert reader.nowait(10, number) is None
    assert len(tried) == COLD + 3
    absent = False
    assert any(reader.nowait(10, 7) for _ in range(PROBE))
    tried.clear()
    for _ in range(5):
        assert reader.nowait(10, 7) == bytearray(CONTENT[7:17])
    assert len(tried) == 5


async def test_without_an_engine_each_read_tries_first(file: int) -> None:
    """A thread costs more than an attempt."""
    tried: list[int] = []

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        tried.append(offset)
        raise BlockingIOError

    reader = Reader(file, preadv)
    for _ in range(3 * PROBE):
        assert reader.nowait(10, 0) is None
    assert len(tried) == 3 * PROBE


async def test_a_kernel_without_io_uring_leaves_reads_to_threads(
    file: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and everything works."""

    def refuse(entries: int, *, polled: bool) -> Ring:
        raise OSError(errno.EPERM, "io_uring is disabled here")

    caplog.set_level("INFO")
    monkeypatch.setattr(engine, "Ring", refuse)
    async with serving(open_engine()):
        assert engine.current is None
        body = bytearray(10)
        assert await Reader(file).fill(body, 3) == 10
        assert body == CONTENT[3:13]
        await sync(file)
    assert "io_uring is disabled here" in caplog.text


async def test_a_kernel_without_polled_rings_has_the_plain_one(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All reads go through that."""
    held = HeldRing(at_once=served)

    def refuse(entries: int, *, polled: bool) -> HeldRing:
        if polled:
            raise OSError(errno.EPERM, "not for you")
        return held

    monkeypatch.setattr(engine, "Ring", refuse)
    async with serving(open_engine()), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(Reader(file).fill, bytearray(10), 0)
    assert len(held.asked) == 3
