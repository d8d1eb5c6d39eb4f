"""This module is the form of a cache's map on disk (imagefs-cache(5)): a sealed header and one entry per unit; it does no I/O.

An entry has 8 bytes, little-endian; a unit that is absent has 8 zero bytes:

    0   u32   CRC-32C of the unit's bytes
    4   u8    state: 2 data, 3 zero
    5   u24   check: the low 24 bits of the CRC-32C, begun with the header's seed, of the unit's number (u64), the CRC and the state

The check finds entries that are torn, swapped or of another map; the CRC finds units that are not what their entry says.
So nothing here needs fsync: after a power loss what did not reach the disk is found when it is first touched.
"""

import hashlib
import struct
from typing import Final

import msgspec
from crc32c import crc32c

from imagefs.errors import StateDamaged
from imagefs.sealed import seal, unseal
from imagefs.units import UNIT

MAGIC: Final = b"IMFSCACH"
VERSION: Final = 1
HEADER_AREA: Final = 4096
"""Bytes before the first entry: one page, so that a page of the file holds entries only."""

ENTRY: Final = 8
GROUP: Final = 4096 // ENTRY
"""Units whose entries share a page of the map: 32 MiB of the address space."""

UNKNOWN: Final = 0
"""In memory only: not looked at since the cache was opened."""
ABSENT: Final = 1
"""In memory only: on disk it is the entry of zeros."""
DATA: Final = 2
ZERO: Final = 3

ABSENT_ENTRY: Final = bytes(ENTRY)
_MAX_VERSION: Final = 1024
_CHECKED: Final = struct.Struct("<QIB")
_ENTRY: Final = struct.Struct("<IB")


class MapHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cache holds: the bytes of which image, in which address space, of which version; sizes in bytes."""

    image_id: str
    space: str
    source_version: str
    size: int
    seed: int
    unit: int = UNIT


def encode_header(header: MapHeader) -> bytes:
    """Return the sealed header; it fits the header area."""
    return seal(MAGIC, VERSION, msgspec.json.encode(header))


def decode_header(area: bytes, origin: str) -> MapHeader:
    """Return the header in the header area of a map. Raises StateDamaged, naming `origin`, if it is not sound."""
    payload = unseal(MAGIC, VERSION, area, origin)
    try:
        return msgspec.json.decode(payload, type=MapHeader)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"{origin}: the header is not valid: {error}") from error


def header_version(version: str) -> str:
    """Return a source's version as headers hold it: as it is, or its SHA-256 if it is so long that it might not fit."""
    return version if len(msgspec.json.encode(version)) <= _MAX_VERSION else "sha256:" + hashlib.sha256(version.encode()).hexdigest()


def entry_offset(unit: int) -> int:
    """Return the offset of a unit's entry in the map."""
    return HEADER_AREA + unit * ENTRY


def group_of(unit: int) -> int:
    """Return the number of the map page that holds a unit's entry."""
    return unit // GROUP


def groups_of(units: range) -> range:
    """Return the map pages that hold the entries of `units` (one or more, step 1)."""
    return range(units.start // GROUP, (units.stop - 1) // GROUP + 1)


def pack_entry(seed: int, unit: int, state: int, crc: int) -> bytes:
    """Return the entry of a unit that is DATA or ZERO and whose bytes have the CRC-32C `crc`."""
    return _ENTRY.pack(crc, state) + _check(seed, unit, state, crc)


def unpack_entry(seed: int, unit: int, entry: bytes) -> tuple[int, int] | None:
    """Return (state, crc) of a unit's entry, (ABSENT, 0) for one of zeros; None if the entry is damaged."""
    if entry == ABSENT_ENTRY:
        return ABSENT, 0
    if len(entry) != ENTRY:
        return None
    crc, state = _ENTRY.unpack_from(entry)
    if state not in (DATA, ZERO) or entry[_ENTRY.size :] != _check(seed, unit, state, crc):
        return None
    return state, crc


def absent_entries(entries: bytes) -> list[int]:
    """Return the positions of the absent entries among whole `entries`, such as a page of the map."""
    count = len(entries) // ENTRY
    if not any(entries):
        return list(range(count))
    return [index for index in range(count) if entries[index * ENTRY : (index + 1) * ENTRY] == ABSENT_ENTRY]


def count_present(entries: bytes) -> int:
    """Return how many of whole `entries` say that their unit is there, sound or not."""
    states = entries[4::ENTRY]
    return states.count(DATA) + states.count(ZERO)


def _check(seed: int, unit: int, state: int, crc: int) -> bytes:
    return struct.pack("<I", crc32c(_CHECKED.pack(unit, crc, state), seed))[:3]
