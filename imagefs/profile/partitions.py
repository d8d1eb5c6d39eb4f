"""This module finds the partitions of a disk: MBR with its chain of logical partitions, or GPT. Pure, and bounded by its input."""

import dataclasses
import struct
from typing import Final
from uuid import UUID

from imagefs.profile.rounds import Place, Plan, Round
from imagefs.units import KIB, MIB

SECTOR: Final = 512
"""Bytes that tables count in: what virtio and the image formats present, whatever the host's disks have."""

TABLE_HEAD: Final = MIB
"""Bytes from a disk's start that hold its tables, GRUB's first code and what programs that look for signatures read."""

MAX_PARTITIONS: Final = 64
"""Partitions that are looked at, in the order of the table."""

_MAX_LOGICAL: Final = 16
"""Logical partitions that are followed: each is a round trip, and a chain may be a loop."""

_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE
_SWAP: Final = 0x82
_ESP_MBR: Final = 0xEF
_GPT_ENTRIES_LENGTH: Final = 64 * KIB
"""Bytes of GPT entries that are read: 128 entries of 128 bytes are usual, and take a quarter of it."""

_ESP: Final = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_SWAP_GPT: Final = UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f")
_BIOS_BOOT: Final = UUID("21686148-6449-6e6f-744e-656564454649")


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """A part of a disk, in bytes; `kind` is "esp" (the firmware's), "bios" (GRUB's code alone), "swap" or "" (anything else)."""

    start: int
    length: int
    kind: str = ""


def find_partitions(head: bytes, size: int) -> Plan[list[Partition]]:
    """Plan to find the partitions of a disk of `size` bytes that begins with `head`; the whole disk is one if it has no table.

    All lie within the disk; those that overlap are all kept, since nothing but bytes is lost with a wrong one.
    """
    whole = [Partition(0, size)]
    if len(head) < 2 * SECTOR or head[510:512] != b"\x55\xaa":
        return whole
    primary = _mbr_entries(head[:SECTOR])
    if any(kind == _PROTECTIVE for kind, _, _ in primary) and head[SECTOR : SECTOR + 8] == b"EFI PART":
        found = yield from _gpt(head, size)
    else:
        found = yield from _mbr(primary, size)
    return found[:MAX_PARTITIONS] or whole


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, sectors) of the four entries that are in use."""
    entries = [(sector[at + 4], *struct.unpack_from("<II", sector, at + 8)) for at in range(446, 510, 16)]
    return [(kind, first, count) for kind, first, count in entries if kind and count]


def _within(first: int, count: int, kind: str, size: int) -> list[Partition]:
    """Return the partition cut to the disk; none if it begins outside."""
    start, length = first * SECTOR, count * SECTOR
    return [Partition(start, min(length, size - start), kind)] if 0 < start < size and length > 0 else []


def _mbr(primary: list[tuple[int, int, int]], size: int) -> Plan[list[Partition]]:
    """Plan to find primary and logical partitions; a logical one's sector counts from its own table, the next table's from the extended one."""
    found: list[Partition] = []
    extended = None
    for kind, first, count in primary:
        if kind in _EXTENDED:
            extended = first
        else:
            found += _within(first, count, {_SWAP: "swap", _ESP_MBR: "esp"}.get(kind, ""), size)
    table = extended
    for _ in range(_MAX_LOGICAL):
        if not table or table * SECTOR >= size:
            break
        (sector,) = yield Round(wanted=((table * SECTOR, SECTOR),), likely=((table * SECTOR, SECTOR),))
        if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
            break
        following = None
        for kind, first, count in _mbr_entries(sector):
            if kind in _EXTENDED:
                following = (extended or 0) + first
            else:
                found += _within(table + first, count, "swap" if kind == _SWAP else "", size)
        table = following
    return found


def _gpt(head: bytes, size: int) -> Plan[list[Partition]]:
    """Plan to find the partitions of the primary GPT. The backup is for disks whose primary is damaged, which no image should be."""
    at, count, step = struct.unpack_from("<QII", head, SECTOR + 72)
    if not 128 <= step <= 4 * KIB or step % 128:
        return []
    place: Place = (at * SECTOR, min(count * step, _GPT_ENTRIES_LENGTH))
    if place[0] + place[1] <= len(head):
        raw = head[place[0] : place[0] + place[1]]
    elif place[0] < size:
        (raw,) = yield Round(wanted=(place,), likely=(place,))
    else:
        return []
    found: list[Partition] = []
    for entry in range(0, len(raw) - 127, step):
        kind = UUID(bytes_le=raw[entry : entry + 16])
        first, last = struct.unpack_from("<QQ", raw, entry + 32)
        if kind.int and last >= first:
            found += _within(first, last - first + 1, {_ESP: "esp", _SWAP_GPT: "swap", _BIOS_BOOT: "bios"}.get(kind, ""), size)
    return found
