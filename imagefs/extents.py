"""This module is the arithmetic of extents: lists of (start, stop) in bytes, in order and not overlapping; it does no I/O."""

from collections.abc import Iterable

from imagefs.units import align_down, align_up

Extents = list[tuple[int, int]]
"""Ranges [start, stop), none of them empty."""


def joined(extents: Iterable[tuple[int, int]]) -> Extents:
    """Return extents that come by their starts, with those that touch or overlap as one; empty ones are left out."""
    found: Extents = []
    for start, stop in extents:
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def widened(extents: Iterable[tuple[int, int]], step: int) -> Extents:
    """Return the extents with each start and stop moved outwards to a multiple of `step`, and those that touch then as one."""
    return joined((align_down(start, step), align_up(stop, step)) for start, stop in extents)


def clipped(extents: Iterable[tuple[int, int]], start: int, stop: int) -> Extents:
    """Return what of the extents is within [start, stop)."""
    return [(max(first, start), min(last, stop)) for first, last in extents if first < stop and last > start]
