"""This module plans what of an image to bring next: what is missing of a stretch, without its zeros, in parts. Pure."""

from collections.abc import Iterator
from typing import Final

from imagefs.extents import Extents, clipped, widened
from imagefs.units import GIB, MIB, UNIT, align_down

PART: Final = 4 * MIB
"""Bytes brought by one request for a prefetch: several fetches, of which what the guest waits for has to wait for one at most."""
STRETCH: Final = GIB // 4
"""Bytes of an address space looked at in one go: some MiB of map and tables; then it may be another image's turn."""


def split(missing: Extents, nonzero: Extents, size: int) -> tuple[Extents, Extents]:
    """Return what of `missing`, in whole units, has to be fetched, and what is known to be zeros.

    `nonzero` is what may hold other than zeros of the same stretch of an address space of `size` bytes.
    """
    filled = [(start, min(stop, size)) for start, stop in widened(nonzero, UNIT)]
    wanted = [part for start, stop in missing for part in clipped(filled, start, stop)]
    return wanted, _without(missing, wanted)


def parts(extents: Extents) -> Iterator[tuple[int, int]]:
    """Yield the extents as (start, stop) of at most PART bytes, cut at multiples of PART: there no cluster is cut in two."""
    for start, stop in extents:
        offset = start
        while offset < stop:
            end = min(stop, align_down(offset, PART) + PART)
            yield offset, end
            offset = end


def length_of(extents: Extents) -> int:
    """Return the bytes of extents."""
    return sum(stop - start for start, stop in extents)


def _without(extents: Extents, taken: Extents) -> Extents:
    """Return the extents without `taken`, which lie within them."""
    left: Extents = []
    for start, stop in extents:
        offset = start
        for first, last in clipped(taken, start, stop):
            if offset < first:
                left.append((offset, first))
            offset = last
        if offset < stop:
            left.append((offset, stop))
    return left
