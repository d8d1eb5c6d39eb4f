"""This module plans how to fetch extents: pieces of them, grouped into runs of stored units that one request each can bring. Pure."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from imagefs.image.qcow2.tables import Extent, Kind
from imagefs.units import MIB, UNIT, align_down

FETCH_UNITS: Final = 2 * MIB // UNIT
"""Stored units in one request, unless one cluster takes more: large enough that the first byte's wait does not count."""

GAP_UNITS: Final = 1
"""Unwanted stored units between two wanted ones that are fetched along: 64 KiB take less time than another request."""


class Piece(NamedTuple):
    """What one run of stored bytes gives: guest bytes as they are (DATA, within one stored unit), or from one compressed cluster.

    The `length` guest bytes at `guest_offset` come from `host_length` bytes at `host_offset`. Of a compressed cluster they are
    the bytes from `skip` on.
    """

    host_offset: int
    host_length: int
    guest_offset: int
    length: int
    compressed: bool
    skip: int

    @property
    def first_unit(self) -> int:
        """The first stored unit it needs."""
        return self.host_offset // UNIT

    @property
    def last_unit(self) -> int:
        """The last stored unit it needs."""
        return (self.host_offset + self.host_length - 1) // UNIT


class Fetch(NamedTuple):
    """One request: stored units `first_unit` to `last_unit`, and the pieces made from them, by host offset."""

    first_unit: int
    last_unit: int
    pieces: list[Piece]


def plan_fetches(extents: Iterable[Extent], cluster_size: int) -> list[Fetch]:
    """Return the requests that bring all DATA and COMPRESSED extents, by host offset; other extents are passed over."""
    pieces = sorted(piece for extent in extents for piece in _pieces(extent, cluster_size))
    fetches: list[Fetch] = []
    for piece in pieces:
        if fetches and _joins(piece, fetches[-1]):
            last = fetches[-1]
            last.pieces.append(piece)
            fetches[-1] = last._replace(last_unit=max(last.last_unit, piece.last_unit))
        else:
            fetches.append(Fetch(piece.first_unit, piece.last_unit, [piece]))
    return fetches


def stored_units(extents: Iterable[Extent]) -> set[int]:
    """Return the stored units that the extents' bytes lie in."""
    ranges = [(extent.host_offset, extent.host_offset + extent.host_length) for extent in extents if extent.host_length]
    return {unit for start, stop in ranges for unit in range(start // UNIT, (stop - 1) // UNIT + 1)}


def _joins(piece: Piece, fetch: Fetch) -> bool:
    return piece.first_unit - fetch.last_unit - 1 <= GAP_UNITS and piece.last_unit - fetch.first_unit < FETCH_UNITS


def _pieces(extent: Extent, cluster_size: int) -> Iterable[Piece]:
    if extent.kind is Kind.COMPRESSED:
        yield Piece(extent.host_offset, extent.host_length, extent.guest_offset, extent.length, True, extent.guest_offset % cluster_size)
    elif extent.kind is Kind.DATA:
        host_offset, host_end = extent.host_offset, extent.host_offset + extent.host_length
        while host_offset < host_end:
            stop = min(host_end, align_down(host_offset, UNIT) + UNIT)
            guest_offset = extent.guest_offset + host_offset - extent.host_offset
            yield Piece(host_offset, stop - host_offset, guest_offset, stop - host_offset, False, 0)
            host_offset = stop
