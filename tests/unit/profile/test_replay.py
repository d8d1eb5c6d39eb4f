"""Ranges are brought in their order, some at a time, and nothing of it outlives an error or a cancellation."""

import contextlib

import pytest
import trio
import trio.testing

from imagefs.errors import StoreUnavailable
from imagefs.profile.replay import IN_FLIGHT, Each, bring, everything, is_cached
from imagefs.units import GIB, MIB, UNIT
from imagefs.urgency import Urgency
from tests.support.booting import BootDisk
from tests.support.overlay import PatternBase

RANGES = [(number * MIB, UNIT) for number in range(100, 0, -1)]


async def test_ranges_are_brought_in_order_and_sixteen_at_a_time() -> None:
    """All of them, as what a reader will probably want, and each is told of when it is here."""
    disk, brought = BootDisk(), list[int]()
    disk.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring, disk.prefetch, Each(RANGES), brought.append)
        await trio.testing.wait_all_tasks_blocked()
        assert disk.prefetched == RANGES[:IN_FLIGHT]
        assert brought == []
        disk.gate.set()
    assert disk.prefetched == RANGES
    assert disk.most_at_once == IN_FLIGHT
    assert brought == [UNIT] * len(RANGES)
    assert disk.urgencies == {Urgency.AHEAD}


async def test_the_first_failure_ends_it() -> None:
    """It is raised as it is, not in a group, and nothing more is asked for."""
    disk = BootDisk()
    disk.failure = StoreUnavailable("the store is down")
    with pytest.raises(StoreUnavailable, match="is down"):
        await bring(disk.prefetch, Each(RANGES), lambda length: None)
    assert len(disk.prefetched) <= IN_FLIGHT
    assert disk.at_once == 0


async def test_it_can_be_cancelled() -> None:
    """Whatever is under way is cancelled with it."""
    disk = BootDisk()
    disk.gate = trio.Event()
    with trio.move_on_after(0.01) as scope:
        await bring(disk.prefetch, Each(RANGES), lambda length: None)
    assert scope.cancelled_caught
    assert disk.at_once == 0


async def test_everything_is_all_that_may_hold_data_in_pieces() -> None:
    """Pieces of 1 MiB at most; what is zeros is skipped and counted, so that all of the disk is accounted for."""
    disk = BootDisk(2 * GIB + 5 * MIB)
    disk.data = [(0, MIB + UNIT), (GIB - UNIT, GIB + UNIT), (2 * GIB + 4 * MIB, 2 * GIB + 5 * MIB)]
    skipped: list[int] = []
    async with contextlib.aclosing(everything(disk, skipped.append)) as ranges:
        found = [extent async for extent in ranges]
    assert found == [(0, MIB), (MIB, UNIT), (GIB - UNIT, UNIT), (GIB, UNIT), (2 * GIB + 4 * MIB, MIB)]
    assert sum(skipped) + sum(length for _, length in found) == disk.size


def test_only_what_is_cached_can_be_brought() -> None:
    """A source that is read in place, or none, cannot."""
    assert is_cached(BootDisk())
    assert not is_cached(PatternBase(MIB))
    assert not is_cached(None)
