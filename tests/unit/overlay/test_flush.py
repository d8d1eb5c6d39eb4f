"""Flushing: what is synced in which order, how often, and what a failure means."""

import dataclasses
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.errors import NoSpace
from imagefs.overlay import flush
from imagefs.overlay.block_map import PAGE_BLOCKS
from imagefs.overlay.calls import CALLS, Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK, GIB
from tests.support.overlay import new_disk

NOISE = bytes(range(1, 129)) * 32
OTHER_BOOT = Calls(boot_id=lambda: bytes(16))


class Syncs:
    """Notes which file is synced and written, in order; `before` runs before each sync and may raise."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.before: Callable[[str], None] = lambda name: None

    def calls(self) -> Calls:
        return dataclasses.replace(CALLS, fdatasync=self._fdatasync, pwrite=self._pwrite)

    def _fdatasync(self, fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        self.seen.append(f"sync {name}")
        self.before(name)

    def _pwrite(self, fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        if name == "vda.map":
            self.seen.append(f"write {name}")
        return os.pwrite(fd, body, offset)


@pytest.fixture
def syncs() -> Syncs:
    return Syncs()


@pytest.fixture
def disk(tmp_path: Path, syncs: Syncs) -> OverlayDisk:
    disk = new_disk(tmp_path, GIB, None, syncs.calls())
    syncs.seen.clear()
    return disk


async def test_data_is_durable_before_the_map_says_so(disk: OverlayDisk, syncs: Syncs) -> None:
    """First the data, then the map."""
    disk.write_nowait(0, NOISE)
    await disk.flush()
    assert syncs.seen == ["sync vda.data", "write vda.map", "sync vda.map"]
    disk.close()


async def test_flush_without_new_states_syncs_the_data_only(disk: OverlayDisk, syncs: Syncs) -> None:
    """Writing over blocks that hold data changes no map: one sync is enough."""
    disk.write_nowait(0, NOISE)
    await disk.flush()
    syncs.seen.clear()
    disk.write_nowait(0, NOISE[::-1])
    await disk.flush()
    assert syncs.seen == ["sync vda.data"]
    disk.close()


async def test_flush_of_what_is_durable_syncs_nothing(disk: OverlayDisk, syncs: Syncs) -> None:
    """Without a write since the last flush there is nothing to sync; after opening nobody knows, and after a failure neither."""
    disk.write_nowait(0, NOISE)
    await disk.flush()
    syncs.seen.clear()
    await disk.flush()
    assert syncs.seen == []
    await disk.discard(0, BLOCK)
    await disk.flush()
    assert syncs.seen == ["sync vda.data", "write vda.map", "sync vda.map"]
    disk.close()


async def test_flush_after_a_failed_one_tries_again(tmp_path: Path) -> None:
    """What a flush that failed, or was cancelled, left undone is done by the next, without another write."""
    full = [True]

    def pwrite(fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        if full[0] and os.readlink(f"/proc/self/fd/{fd}").endswith(".map"):
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, body, offset)

    OverlayDisk.create(tmp_path, "vda", GIB, "")
    disk = OverlayDisk.open(tmp_path, "vda", None, dataclasses.replace(CALLS, pwrite=pwrite))
    disk.write_nowait(0, NOISE)
    for _ in range(2):
        with pytest.raises(NoSpace):
            await disk.flush()
    full[0] = False
    await disk.flush()
    disk.close()
    disk = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert disk.read_nowait(0, BLOCK) == NOISE
    disk.close()


async def test_only_changed_pages_are_written(disk: OverlayDisk, syncs: Syncs) -> None:
    """Each changed page of the map is written once."""
    for page in (0, 3, 3, 9):
        disk.write_nowait(page * PAGE_BLOCKS * BLOCK, NOISE)
    await disk.flush()
    assert syncs.seen == ["sync vda.data", *["write vda.map"] * 3, "sync vda.map"]
    disk.close()


async def test_many_pages_are_told_in_rounds(disk: OverlayDisk, syncs: Syncs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A flush of many pages holds few in memory; each round syncs the data before its part of the map."""
    monkeypatch.setattr(flush, "BATCH", 2)
    for page in range(5):
        disk.write_nowait(page * PAGE_BLOCKS * BLOCK, NOISE)
    await disk.flush()
    assert syncs.seen.count("sync vda.data") == 3
    assert syncs.seen.count("write vda.map") == 5
    disk.close()
    again = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert [again.read_nowait(page * PAGE_BLOCKS * BLOCK, BLOCK) for page in range(5)] == [NOISE] * 5
    again.close()


async def test_write_during_a_flush_waits_for_the_next(disk: OverlayDisk, syncs: Syncs, tmp_path: Path) -> None:
    """A block that is written while the data is synced is not in the map yet, and the next flush brings it there."""
    started, go_on = trio.Event(), threading.Event()

    def hold(name: str) -> None:
        trio.from_thread.run_sync(started.set)
        go_on.wait()

    disk.write_nowait(0, NOISE)
    syncs.before = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.flush)
        await started.wait()
        disk.write_nowait(BLOCK, NOISE)
        go_on.set()
    disk.close()
    crashed = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert crashed.read_nowait(0, 2 * BLOCK) == NOISE + bytes(BLOCK)
    crashed.close()


async def test_waiting_flushes_share_one(disk: OverlayDisk, syncs: Syncs) -> None:
    """Flushes that come while one runs are served together by one more, not by that one: it may have begun before their writes."""
    started, go_on = trio.Event(), threading.Event()

    def hold(name: str) -> None:
        trio.from_thread.run_sync(started.set)
        go_on.wait()

    syncs.before = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.flush)
        await started.wait()
        disk.write_nowait(0, NOISE)
        for _ in range(5):
            nursery.start_soon(disk.flush)
        await wait_all_tasks_blocked()
        go_on.set()
    assert syncs.seen == ["sync vda.data", "sync vda.data", "write vda.map", "sync vda.map"]
    disk.close()


@pytest.mark.parametrize("failing", ["vda.data", "vda.map"])
async def test_failed_sync_is_never_forgotten(disk: OverlayDisk, syncs: Syncs, failing: str, tmp_path: Path) -> None:
    """After a failed sync no flush succeeds until the disk is opened again; what was not told then is told after that."""

    def fail_once(name: str) -> None:
        if name == failing:
            syncs.before = lambda name: None
            raise OSError(errno.EIO, "the disk is broken")

    syncs.before = fail_once
    disk.write_nowait(0, NOISE)
    with pytest.raises(OSError, match="the disk is broken"):
        await disk.flush()
    for _ in range(2):
        with pytest.raises(OSError, match="an earlier flush failed") as caught:
            await disk.flush()
        assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="an earlier flush failed"):
        await disk.grow(2 * GIB)
    assert disk.read_nowait(0, BLOCK) == NOISE
    disk.close()
    disk = OverlayDisk.open(tmp_path, "vda", None)
    await disk.flush()
    disk.check_invariants()
    disk.close()
    disk = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert disk.read_nowait(0, BLOCK) == NOISE
    disk.close()


async def test_flushes_that_wait_for_a_failing_one_fail_too(disk: OverlayDisk, syncs: Syncs) -> None:
    """Nobody is told that bytes are durable after a failure."""
    started, go_on = trio.Event(), threading.Event()
    failures = []

    def fail(name: str) -> None:
        trio.from_thread.run_sync(started.set)
        go_on.wait()
        raise OSError(errno.EIO, "the disk is broken")

    async def one() -> None:
        with pytest.raises(OSError, match=r"broken|earlier") as caught:
            await disk.flush()
        failures.append(caught.value.errno)

    syncs.before = fail
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await started.wait()
        nursery.start_soon(one)
        nursery.start_soon(one)
        await wait_all_tasks_blocked()
        go_on.set()
    assert failures == [errno.EIO] * 3
    disk.close()


async def test_full_host_fails_a_flush_only_until_there_is_room(tmp_path: Path) -> None:
    """ENOSPC for the map's page is not a failed sync: the next flush tells it."""
    full = [False]

    def pwrite(fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        if full[0] and os.readlink(f"/proc/self/fd/{fd}").endswith(".map"):
            raise OSError(errno.ENOSPC, "full")
        return os.pwrite(fd, body, offset)

    disk = new_disk(tmp_path, GIB, None, dataclasses.replace(CALLS, pwrite=pwrite))
    disk.write_nowait(0, NOISE)
    full[0] = True
    with pytest.raises(NoSpace, match="full"):
        await disk.flush()
    full[0] = False
    await disk.flush()
    disk.close()
    disk = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert disk.read_nowait(0, BLOCK) == NOISE
    disk.close()


async def test_cancelled_flush_takes_nothing_with_it(disk: OverlayDisk, syncs: Syncs) -> None:
    """A flush that is cancelled before it began leaves everything for the next, also for those that wait behind it."""
    disk.write_nowait(0, NOISE)
    with trio.CancelScope() as scope:
        scope.cancel()
        await disk.flush()
    assert scope.cancelled_caught
    await disk.flush()
    assert syncs.seen == ["sync vda.data", "write vda.map", "sync vda.map"]
    disk.check_invariants()
    disk.close()


async def test_failed_growth_keeps_the_size(tmp_path: Path) -> None:
    """A host without room for a longer file leaves the disk as it was, and usable."""

    def ftruncate(fd: int, length: int) -> None:
        if length >= 2 * GIB and os.readlink(f"/proc/self/fd/{fd}").endswith(".data"):
            raise OSError(errno.EFBIG, "too big")
        os.ftruncate(fd, length)

    disk = new_disk(tmp_path, GIB, None, dataclasses.replace(CALLS, ftruncate=ftruncate))
    with pytest.raises(Exception, match=r"vda\.data.*no files of 2147483648 bytes"):
        await disk.grow(2 * GIB)
    assert disk.size == GIB
    disk.write_nowait(GIB - BLOCK, NOISE)
    await disk.flush()
    disk.close()
    disk = OverlayDisk.open(tmp_path, "vda", None)
    assert disk.size == GIB
    assert disk.read_nowait(GIB - BLOCK, BLOCK) == NOISE
    disk.close()
