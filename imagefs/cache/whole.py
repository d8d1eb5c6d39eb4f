"""This module is what is done to a cache as a whole, in small steps: zeros noted, units proved again, all of it given up.

All functions run on the event loop, beside readers, fills and evictions of the same cache.
"""

import contextlib
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.budget import PAGE
from imagefs.cache.flight import Flight
from imagefs.cache.geometry import region_units
from imagefs.cache.mark import Mark
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import ABSENT, DATA, GROUP, UNKNOWN, ZERO, group_of
from imagefs.counters import COUNTERS
from imagefs.threads import Lane
from imagefs.urgency import Urgency

READER_PAUSE: Final = 0.01
"""Seconds between two looks whether a reader has left a region. It is in it for as long as a read takes."""


async def put_zeros(shelf: Shelf, units: range) -> bool:
    """Note those of `units` (step 1) that are missing as zeros: a map entry each, and no fetch. Return whether there was room for all.

    The caller knows that they are zeros; units that nobody looked at yet are left out. Evicts nothing. Raises OSError if the disk does not
    take the entries. Cancellation waits for one page of the map.
    """
    for first in range(units.start - units.start % GROUP, units.stop, GROUP):
        missing = [unit for unit in range(max(first, units.start), min(first + GROUP, units.stop)) if shelf.is_missing(unit)]
        for run in _runs(missing):
            if not await _put_zero_run(shelf, run):
                return False
        await trio.lowlevel.checkpoint()
    return True


async def prove_again(shelf: Shelf, region: int) -> tuple[int, int] | None:
    """Compare the units of a region that are here with their checksums, those too that were proved before; return how many these are, and how
    many of them are damaged.

    Damaged ones are erased. None: a reader, a fill or an eviction is at the region; try again. Safe to cancel.
    """
    if not shelf.movable(region, sparing=False):
        return None
    units = region_units(region, shelf.unit_count)
    for unit in units:
        if shelf.states[unit] >= DATA:
            shelf.states[unit] = UNKNOWN
    damaged = await shelf.examine(units)
    return damaged + sum(shelf.states[unit] >= DATA for unit in units), damaged


async def prove_all(shelf: Shelf) -> int:
    """Do `prove_again` to all regions, waiting for who is at one; return how many units are damaged. Safe to cancel."""
    damaged = region = 0
    while region < len(shelf.touched):
        found = await prove_again(shelf, region)
        if found is None:
            await trio.sleep(READER_PAUSE)
            continue
        damaged += found[1]
        region += 1
    return damaged


async def discard(shelf: Shelf) -> None:
    """Give up all units, in memory and on the disk: what they hold has turned out to be wrong.

    The caller sees to it that no fill delivers any more. Who reads a region is waited for. Safe to cancel; then some may be left.
    """
    shelf.forget_loose()
    for region in range(len(shelf.touched)):
        units = region_units(region, shelf.unit_count)
        while shelf.file is not None and not _is_absent(shelf, units):
            if shelf.movable(region, sparing=False):
                await shelf.evict([region])
                break
            await trio.sleep(READER_PAUSE)
    shelf.forget_loose()


async def mark_complete(shelf: Shelf, mark: Mark, losses: int) -> bool:
    """Mark the cache as complete unless units were lost since `losses` (UnitFile.losses) was read; return whether it is marked."""
    file = shelf.file
    if file is None:
        return False
    with contextlib.suppress(OSError):  # a full disk: it is as complete without a mark, and checked again after the next mount
        return await threads.run(Lane.DISK, file.write_mark, mark, losses)
    return False


async def _put_zero_run(shelf: Shelf, run: range) -> bool:
    """Note a run of missing units of one map page as zeros."""
    file, account = shelf.file, shelf.account
    if file is None or account is None or not await account.reserve(PAGE, Urgency.IDLE):
        return False
    run = range(run.start, next((unit for unit in run if not shelf.is_missing(unit)), run.stop))  # others came while room was made
    if not run:
        account.release(PAGE)
        return True
    flight = Flight()
    shelf.flights.update(dict.fromkeys(run, flight))
    try:
        with trio.CancelScope(shield=True):
            await threads.run(Lane.DISK, file.store_zeros, run)
        if shelf.file is not None:  # it was not given up meanwhile
            shelf.states[run.start : run.stop] = bytes([ZERO]) * len(run)
            shelf.present = min(shelf.present + len(run), shelf.unit_count)
            COUNTERS.cache_zero_units += len(run)
    finally:
        account.settle(PAGE)
        shelf.land(run, flight)
    return True


def _is_absent(shelf: Shelf, units: range) -> bool:
    """Tell whether units are known to be absent and not on their way."""
    return shelf.states.count(ABSENT, units.start, units.stop) == len(units) and shelf.flights.keys().isdisjoint(units)


def _runs(units: list[int]) -> list[range]:
    """Return ascending `units` as runs."""
    runs: list[range] = []
    for unit in units:
        if runs and runs[-1].stop == unit and group_of(runs[-1].start) == group_of(unit):
            runs[-1] = range(runs[-1].start, unit + 1)
        else:
            runs.append(range(unit, unit + 1))
    return runs
