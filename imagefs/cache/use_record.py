"""This module is what a cache's map says of its use (imagefs-cache(5)): how many units are there, and which regions to evict last; it does no I/O.

The record is sealed, and lies behind the header in the map's first page, so that it takes no room of its own. It is written when a cache is
opened and when it is closed, which also moves the map's time: that is when the cache was last used.
"""

import dataclasses
import struct
from collections.abc import Collection, Iterable
from typing import Final, Self

from imagefs.errors import StateDamaged
from imagefs.sealed import HEADER_SIZE, seal, unseal

MAGIC: Final = b"IMFSUSED"
VERSION: Final = 1
OFFSET: Final = 2048
"""Where the record begins in the map: a header takes 1.4 KiB at most."""
AREA: Final = 2048

KEPT_LIMIT: Final = 16384
"""Regions that may be kept at most, 16 GiB: a record that says more is not sound."""
UNKNOWN_COUNT: Final = 2**64 - 1
"""The number of units in a record of a cache that is open, or whose daemon was killed: it has to be counted."""
_FIXED: Final = struct.Struct("<16sQ")
_RANGE: Final = struct.Struct("<II")
_RANGES: Final = (AREA - HEADER_SIZE - _FIXED.size) // _RANGE.size
"""Ranges of regions that fit: the boot of a Debian touches 150 regions, of which many are neighbours."""


@dataclasses.dataclass(frozen=True, slots=True)
class UseRecord:
    """`present` units are there (None: not known); `kept` are the regions that are evicted last."""

    present: int | None = None
    kept: frozenset[int] = frozenset()


NOTHING_KNOWN: Final = UseRecord()


@dataclasses.dataclass(slots=True)
class Use:
    """The same of a cache that is open, as it changes; `sound` turns False once the count is not to be relied on."""

    present: int = 0
    kept: set[int] = dataclasses.field(default_factory=set)
    sound: bool = True

    @classmethod
    def of(cls, record: UseRecord) -> Self:
        """Return what a cache goes on with that was just opened."""
        return cls(record.present or 0, set(record.kept))

    def record(self, *, closed: bool) -> UseRecord:
        """Return what to write down: the count only once nothing changes it any more."""
        return UseRecord(self.present if closed and self.sound else None, frozenset(self.kept))


def encode(record: UseRecord, boot: bytes) -> bytes:
    """Return the sealed record, which fits its area. `boot` are the 16 bytes that name this boot of the kernel.

    Regions that lie so scattered that they do not fit are kept with what is between the nearest of them.
    """
    ranges = _fitted(_ranges(record.kept))
    count = UNKNOWN_COUNT if record.present is None else record.present
    return seal(MAGIC, VERSION, _FIXED.pack(boot, count) + b"".join(_RANGE.pack(*part) for part in ranges)).ljust(AREA, b"\0")


def decode(area: bytes, boot: bytes, *, units: int, regions: int) -> UseRecord:
    """Return the record in its area, of a cache of so many units and regions; nothing known if there is none that is sound.

    The count is believed in the boot that it was written in only: without a flush the map may have lost entries since.
    """
    try:
        payload = unseal(MAGIC, VERSION, area, "use record")
        if len(payload) < _FIXED.size or (len(payload) - _FIXED.size) % _RANGE.size:
            return NOTHING_KNOWN
        found_boot, count = _FIXED.unpack_from(payload)
        ranges = [_RANGE.unpack_from(payload, offset) for offset in range(_FIXED.size, len(payload), _RANGE.size)]
    except StateDamaged:
        return NOTHING_KNOWN
    if any(not first < stop <= regions for first, stop in ranges) or sum(stop - first for first, stop in ranges) > KEPT_LIMIT:
        return NOTHING_KNOWN
    return UseRecord(
        count if found_boot == boot and count <= units else None, frozenset(region for first, stop in ranges for region in range(first, stop))
    )


def _ranges(regions: Collection[int]) -> list[tuple[int, int]]:
    """Return the regions as (first, stop), in order and apart."""
    found: list[tuple[int, int]] = []
    for region in sorted(regions):
        if found and found[-1][1] == region:
            found[-1] = (found[-1][0], region + 1)
        else:
            found.append((region, region + 1))
    return found


def _fitted(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges over the smallest gaps until they fit."""
    excess = len(ranges) - _RANGES
    if excess <= 0:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda index: ranges[index][0] - ranges[index - 1][1])
    return _joined_at(ranges, set(gaps[:excess]))


def _joined_at(ranges: Iterable[tuple[int, int]], joints: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for index, (first, stop) in enumerate(ranges):
        if index in joints:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((first, stop))
    return found
