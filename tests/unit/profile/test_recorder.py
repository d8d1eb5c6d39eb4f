"""What is noted of a guest's reads, from when on, and until when."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imagefs.profile.record import BOOT_UNITS
from imagefs.profile.recorder import IDLE_SECONDS, LONGEST_SECONDS, Recorder
from imagefs.units import MIB, UNIT
from tests.support.booting import BootDisk
from tests.support.overlay import pattern


class Watch:
    """What a recorder told."""

    def __init__(self, disk: BootDisk) -> None:
        self.begun: list[Recorder] = []
        self.ended = 0
        self.recorder = Recorder(disk, self.begun.append, self._end)

    def _end(self) -> None:
        self.ended += 1


async def test_first_touches_are_noted_in_order_hits_and_misses_alike() -> None:
    """Each unit once, however it was read; reads past the end note nothing."""
    disk = BootDisk(10 * MIB)
    disk.here = {7}
    watch = Watch(disk)
    recorder = watch.recorder
    assert (recorder.size, recorder.units, watch.begun) == (10 * MIB, (), [])
    assert recorder.read_nowait(7 * UNIT + 5, 10) == pattern(7 * UNIT + 5, 10)
    assert recorder.read_nowait(3 * UNIT - 1, 2) is None
    assert await recorder.read(3 * UNIT - 1, 2) == pattern(3 * UNIT - 1, 2)
    recorder.read_nowait(7 * UNIT, UNIT)
    recorder.read_nowait(10 * MIB - 1, 4096)
    recorder.read_nowait(10 * MIB, 4096)
    assert recorder.units == (7, 2, 3, 159)
    assert watch.begun == [recorder]
    assert watch.ended == 0


async def test_after_the_end_reads_go_past_it() -> None:
    """The way of a hit is the disk's own method then, and nothing is noted."""
    disk = BootDisk()
    watch = Watch(disk)
    watch.recorder.read_nowait(0, 10)
    watch.recorder.end()
    watch.recorder.end()
    assert watch.ended == 1
    assert watch.recorder.read_nowait == disk.read_nowait
    await watch.recorder.read(UNIT, 10)
    assert watch.recorder.units == (0,)


async def test_who_asks_for_extents_is_no_guest() -> None:
    """What copies a disk asks for its extents first: its reads are not part of the boot."""
    disk = BootDisk()
    watch = Watch(disk)
    watch.recorder.read_nowait(0, 10)
    assert await watch.recorder.extents(5, 10) == [(5, 15)]
    assert watch.ended == 1


async def test_a_boot_too_long_for_a_profile_ends_there() -> None:
    """At 512 MiB of first touches the recording is over, and has just those."""
    disk = BootDisk()
    watch = Watch(disk)
    for number in range(BOOT_UNITS // 16):
        watch.recorder.read_nowait(number * MIB, MIB)
    assert watch.ended == 0
    watch.recorder.read_nowait(0, 10)
    assert watch.ended == 0
    watch.recorder.read_nowait(600 * MIB, 10)
    assert watch.ended == 1
    assert watch.recorder.units == tuple(range(BOOT_UNITS))


async def test_it_ends_when_nothing_was_read_for_a_while(autojump_clock: MockClock) -> None:
    """Reads that find what was read before count as reading too."""
    watch = Watch(BootDisk())
    watch.recorder.read_nowait(0, 10)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.recorder.finished)
        for _ in range(3):
            await trio.sleep(IDLE_SECONDS - 1)
            watch.recorder.read_nowait(0, 10)
    assert trio.current_time() - started == pytest.approx(3 * (IDLE_SECONDS - 1) + IDLE_SECONDS)
    assert watch.ended == 1


async def test_a_guest_that_waits_for_the_store_is_not_idle(autojump_clock: MockClock) -> None:
    """A store that is down for a minute does not end the recording: the boot goes on afterwards."""
    disk = BootDisk()
    watch = Watch(disk)
    disk.gate = trio.Event()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.recorder.read, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(watch.recorder.finished)
        await trio.sleep(60)
        assert watch.ended == 0
        disk.gate.set()
        await trio.sleep(1)
        watch.recorder.read_nowait(9 * UNIT, 10)
    assert watch.recorder.units == (0, 9)
    assert trio.current_time() - started == pytest.approx(61 + IDLE_SECONDS)


async def test_it_ends_after_two_minutes_of_reading(autojump_clock: MockClock) -> None:
    """What a guest reads then is its work."""
    watch = Watch(BootDisk())
    watch.recorder.read_nowait(0, 10)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.recorder.finished)
        await trio.sleep(0.5)
        for number in range(200):
            watch.recorder.read_nowait(number * UNIT, 10)
            assert watch.ended == (trio.current_time() - started > LONGEST_SECONDS)
            await trio.sleep(1)
    assert watch.recorder.units == tuple(range(int(LONGEST_SECONDS)))


async def test_waiting_for_the_end_returns_when_it_is_ended(autojump_clock: MockClock) -> None:
    """The disk is closed: nobody waits out the time."""
    watch = Watch(BootDisk())
    watch.recorder.read_nowait(0, 10)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.recorder.finished)
        await trio.sleep(2)
        watch.recorder.end()
    assert trio.current_time() - started == pytest.approx(2)


async def test_a_read_that_fails_is_a_read(autojump_clock: MockClock) -> None:
    """What it was for is noted, its error passes through, and it counts as waiting no longer."""

    class Failing(BootDisk):
        async def read(self, offset: int, length: int) -> bytes | bytearray:
            raise OSError("the disk is gone")

    watch = Watch(Failing())
    with pytest.raises(OSError, match="is gone"):
        await watch.recorder.read(UNIT, 10)
    await watch.recorder.finished()
    assert (watch.recorder.units, watch.ended) == ((1,), 1)
