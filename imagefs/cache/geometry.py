"""This module is the cache's arithmetic: which units a range touches, which ones to fetch together; it does no I/O.

A unit is 64 KiB of an address space (the last one may be short), a region 16 units.
"""

import re
from collections.abc import Callable, Container, Mapping
from typing import Final

from imagefs.cache.unit_map import ABSENT, DATA, GROUP, UNKNOWN, groups_of
from imagefs.extents import Extents, joined
from imagefs.units import UNIT

FILL_UNITS: Final = 16
"""Units that one fill takes for a reader: 1 MiB, the largest read that the kernel sends."""

FREE_UNITS: Final = 64
"""Units that one fill takes on each side because they come for free: 4 MiB, twice the largest qcow2 cluster."""

REGION_UNITS: Final = 16
"""Units evicted together: 1 MiB, so that a hole is worth its system calls and its extent in the filesystem's tree."""

REGION: Final = REGION_UNITS * UNIT

_UNKNOWN_BYTE: Final = bytes([UNKNOWN])
_DATA_BYTE: Final = bytes([DATA])
_MISSING: Final = re.compile(b"[" + re.escape(bytes([UNKNOWN, ABSENT])) + b"]+")


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


def missing_runs(states: bytes | bytearray, first: int, known_groups: Container[int]) -> list[range]:
    """Return the runs of units that are neither here nor known to be on the disk, of those whose `states` begin with that of unit `first`.

    Units that nobody looked at are missing unless their page of the map is one of `known_groups`: then they are on the disk.
    """
    seen = bytearray(states)
    if UNKNOWN in seen:
        for group in groups_of(range(first, first + len(seen))):
            if group in known_groups:
                low, high = max(0, group * GROUP - first), (group + 1) * GROUP - first
                seen[low:high] = seen[low:high].replace(_UNKNOWN_BYTE, _DATA_BYTE)
    return [range(first + run.start(), first + run.end()) for run in _MISSING.finditer(seen)]


def plan_fill(unit: int, wanted_end: int, free: tuple[int, int], unit_count: int, missing: Callable[[int], bool]) -> range:
    """Return the units to fetch with the missing `unit`: one unbroken run of missing units, with `unit` in it.

    The run reaches to `wanted_end` (the unit after the last one that the reader, or its window, wants), 1 MiB at most; and it takes in
    what of the range `free` (first unit, count) comes for free.
    """
    free_first, free_end = free[0], free[0] + free[1]
    stop_limit = max(min(wanted_end, unit + FILL_UNITS), min(free_end, unit + FREE_UNITS))
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
