"""This module is the cache's arithmetic: which units a range touches, which ones to fetch together; it does no I/O.

A unit is 64 KiB of an address space (the last one may be short), a window 8 units, a region 16.
"""

from collections.abc import Callable, Mapping
from typing import Final

from imagefs.extents import Extents, joined
from imagefs.units import UNIT

WINDOW_UNITS: Final = 8
"""Units in a window: one miss fetches to the end of its aligned 512 KiB. At 1 Gb/s the 448 KiB more take 4 ms; one more request to a
store that is 30 ms away would take 30. No reader waits for them: each unit is served as it arrives."""

FILL_UNITS: Final = 16
"""Units that one fill takes for a reader who wants more than a window: 1 MiB, the largest read that the kernel sends."""

FREE_UNITS: Final = 64
"""Units that one fill takes on each side because they come for free: 4 MiB, twice the largest qcow2 cluster."""

REGION_UNITS: Final = 16
"""Units evicted together: 1 MiB, so that a hole is worth its system calls and its extent in the filesystem's tree."""

REGION: Final = REGION_UNITS * UNIT


def clipped(offset: int, length: int, size: int) -> int:
    """Return how many of the `length` bytes at `offset` there are in an address space of `size` bytes; 0 past its end."""
    return max(0, min(length, size - offset))


def unit_span(offset: int, length: int) -> range:
    """Return the units that the `length` bytes at `offset` touch; `length` is above 0."""
    return range(offset // UNIT, (offset + length - 1) // UNIT + 1)


def unit_length(unit: int, size: int) -> int:
    """Return the bytes of a unit of an address space of `size` bytes: 64 KiB, fewer for the last one."""
    return min(UNIT, size - unit * UNIT)


def region_of(unit: int) -> int:
    """Return the region that a unit lies in."""
    return unit // REGION_UNITS


def regions_of(units: range) -> range:
    """Return the regions that `units` (one or more, step 1) touch."""
    return range(units.start // REGION_UNITS, (units.stop - 1) // REGION_UNITS + 1)


def region_units(region: int, unit_count: int) -> range:
    """Return the units of a region of an address space of `unit_count` units."""
    return range(region * REGION_UNITS, min((region + 1) * REGION_UNITS, unit_count))


def plan_fill(unit: int, wanted_end: int, free: tuple[int, int], unit_count: int, missing: Callable[[int], bool]) -> range:
    """Return the units to fetch with the missing `unit`: one unbroken run of missing units, with `unit` in it.

    The run reaches to the end of the window of `unit`, or to `wanted_end` (the unit after the last one that the reader
    wants) if that is further, 1 MiB at most; and it takes in what of the range `free` (first unit, count) comes for free.
    """
    free_first, free_end = free[0], free[0] + free[1]
    window_end = unit - unit % WINDOW_UNITS + WINDOW_UNITS
    stop_limit = max(window_end, min(wanted_end, unit + FILL_UNITS), min(free_end, unit + FREE_UNITS))
    first_limit = max(0, min(unit, free_first), unit - FREE_UNITS)
    stop = unit + 1
    while stop < min(stop_limit, unit_count) and missing(stop):
        stop += 1
    first = unit
    while first > first_limit and missing(first - 1):
        first -= 1
    return range(first, stop)


def without_units(extents: Extents, left_out: Callable[[int], bool]) -> Extents:
    """Return the extents without the bytes of units that `left_out` names."""
    return joined(
        (max(start, unit * UNIT), min(stop, (unit + 1) * UNIT))
        for start, stop in extents
        for unit in unit_span(start, stop - start)
        if not left_out(unit)
    )


def assemble(offset: int, length: int, loose: Mapping[int, bytes], read: Callable[[int, int], bytes]) -> bytes:
    """Return the `length` bytes at `offset`: what units of `loose` have from there, the rest by `read(offset, length)`."""
    parts: list[bytes] = []
    end = offset + length
    start = offset  # of the run that `read` has to bring
    for unit in unit_span(offset, length):
        body = loose.get(unit)
        if body is None:
            continue
        unit_offset = unit * UNIT
        low, high = max(offset, unit_offset), min(end, unit_offset + UNIT)
        if start < low:
            parts.append(read(start, low - start))
        parts.append(body[low - unit_offset : high - unit_offset])
        start = high
    if start < end:
        parts.append(read(start, end - start))
    return b"".join(parts)
