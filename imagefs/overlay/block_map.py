"""This module is the form of an overlay's maps: what a block's state is, where it lies in the files, and how it is packed. Pure.

Each 4 KiB block of a disk is in one state. `base`: never written, the base shows (zeros if there is none). `data`: the bytes lie in the
data file, at the guest's own offset. `zero`: written with zeros, which are stored nowhere. A block never becomes `base` again, but in an
upper layer that is being merged into the one below it (`merge`).

The durable map packs four states to a byte, the first in the low bits, in pages of 4096 bytes, which disks write whole:

    0   u32   CRC-32C of the other 4092 bytes
    4   u32   0
    8   u64   number of the page, from 0
    16  4000 bytes: 16000 states

A page of zeros (a hole) says `base` for all its blocks. imagefs-overlay(5) describes the files.
"""

import struct
import uuid
from typing import Final, NamedTuple

from crc32c import crc32c

from imagefs.errors import InvalidInput, StateDamaged
from imagefs.sealed import seal, unseal, version_of
from imagefs.units import BLOCK, MIB, TIB, align_up

BASE: Final = 0
DATA: Final = 1
ZERO: Final = 2
DAMAGED: Final = 3
"""Only in the live map: the page of the durable map that held this block's state is unreadable, so nobody knows what the block is."""

BLOCK_SHIFT: Final = 12
BLOCK_MASK: Final = BLOCK - 1
ZERO_BLOCK: Final = bytes(BLOCK)

MAP_PAGE: Final = 4096
"""Bytes of a page of the durable map: what a host's disk writes as a whole, or not at all."""
_PAGE_HEADER: Final = struct.Struct("<IIQ")
_CRC_SIZE: Final = 4
STATES_PER_BYTE: Final = 4
PACKED_STATES: Final = 4000
"""Bytes of packed states in a page: a round number below the 4080 that the header leaves, so that a person can find a block's page."""
PAGE_BLOCKS: Final = PACKED_STATES * STATES_PER_BYTE
"""Blocks that a page holds the states of: 16000, which is 62.5 MiB of the disk."""

FLAGS_OFFSET: Final = MAP_PAGE
"""Where in the live map the flags begin: one byte for each page of the durable map, not 0 if that page is behind the live map."""
STATES_OFFSET: Final = 16 * MIB
"""Where in the live map the states begin, one byte each. The file is sparse: the room for the flags costs nothing, and a disk can grow."""
MAX_SIZE: Final = 512 * TIB
"""Bytes of the largest disk; its flags (8.6 MB) fit before the states."""

_MAP_MAGIC: Final = b"IMFSOVMP"
_LIVE_MAGIC: Final = b"IMFSOVLV"
_MAP_VERSION: Final = 2
_LIVE_VERSION: Final = 1
_MAP_HEADER: Final = struct.Struct("<QI16sHH")
_FIRST_MAP_VERSION: Final = 1
_FIRST_MAP_HEADER: Final = struct.Struct("<QI16sH")
"""The form before there were encrypted disks, without flags: still read, and written anew as the present one when the disk grows."""
_ENCRYPTED: Final = 1
"""The one flag that a header may have."""
_LIVE_HEADER: Final = struct.Struct("<Q16s16s")
MAX_IDENTITY: Final = 1024
"""Bytes that a base's identity may have, so that the header fits its page with room to spare."""

_UNPACK: Final = tuple(bytes(byte >> shift & 3 for byte in range(256)) for shift in (0, 2, 4, 6))
"""For each place in a byte, the table from the byte to the state there."""


class MapHeader(NamedTuple):
    """What the durable map says about its disk."""

    size: int
    """Bytes that the guest sees."""
    disk_uuid: uuid.UUID
    """Made with the disk; the live map must carry the same."""
    base_identity: str
    """Which base the blocks in state `base` show, such as `<image-id>@<version>`; empty if there is none."""
    encrypted: bool = False
    """Whether the data file is enciphered, and NAME.key has its key."""


class LiveHeader(NamedTuple):
    """What the live map says about itself."""

    size: int
    """Bytes of the disk that it has room for: at least the disk's, more after a grow that was cut short."""
    disk_uuid: uuid.UUID
    boot_id: bytes
    """The boot of the host's kernel whose page cache holds it."""


def block_count(size: int) -> int:
    """Return how many blocks a disk of `size` bytes has; the last one may be short."""
    return -(-size // BLOCK)


def page_count(size: int) -> int:
    """Return how many pages the durable map of a disk of `size` bytes has."""
    return -(-block_count(size) // PAGE_BLOCKS)


def page_offset(page: int) -> int:
    """Return where in the durable map a page lies; the header takes the first 4096 bytes."""
    return MAP_PAGE * (1 + page)


def data_file_size(size: int) -> int:
    """Return the bytes of the data file of a disk of `size` bytes: its last block is stored whole, zeros after the disk's end."""
    return align_up(size, BLOCK)


def pack_states(states: bytes) -> bytes:
    """Return 16000 states of at most 3 each, one to a byte, packed four to a byte.

    Four strided slices as big integers, shifted and joined: 25 µs, where a loop over the bytes takes 2 ms.
    """
    first, second, third, fourth = (int.from_bytes(states[place::STATES_PER_BYTE], "little") for place in range(STATES_PER_BYTE))
    return (first | second << 2 | third << 4 | fourth << 6).to_bytes(PACKED_STATES, "little")


def unpack_states(packed: bytes) -> bytes:
    """Return the 16000 states in 4000 bytes, one to a byte."""
    states = bytearray(PAGE_BLOCKS)
    for place, table in enumerate(_UNPACK):
        states[place::STATES_PER_BYTE] = packed.translate(table)
    return bytes(states)


def encode_page(page: int, states: bytes) -> bytes:
    """Return the 4096 bytes of page number `page`; `states` has one byte per block and may be short for the last page of a disk."""
    body = _PAGE_HEADER.pack(0, 0, page) + pack_states(states.ljust(PAGE_BLOCKS, b"\0"))
    body = body.ljust(MAP_PAGE, b"\0")[_CRC_SIZE:]
    return crc32c(body).to_bytes(_CRC_SIZE, "little") + body


def decode_page(page: int, body: bytes) -> bytes | None:
    """Return the 16000 states in the 4096 bytes of page number `page`, one to a byte; None if the page is damaged."""
    if not any(body):
        return bytes(PAGE_BLOCKS) if len(body) == MAP_PAGE else None
    if len(body) != MAP_PAGE or crc32c(body[_CRC_SIZE:]) != int.from_bytes(body[:_CRC_SIZE], "little"):
        return None
    _, _, number = _PAGE_HEADER.unpack_from(body)
    states = unpack_states(body[_PAGE_HEADER.size : _PAGE_HEADER.size + PACKED_STATES])
    return None if number != page or DAMAGED in states else states


def encode_map_header(header: MapHeader) -> bytes:
    """Return the 4096 bytes that begin the durable map. Raises InvalidInput for a size that no disk has, or a base identity that is too long."""
    identity = header.base_identity.encode()
    if not 0 < header.size <= MAX_SIZE:
        raise InvalidInput(f"a disk of {header.size} bytes cannot be: disks have from 1 byte to {MAX_SIZE // TIB} TiB")
    if len(identity) > MAX_IDENTITY:
        raise InvalidInput(f"the identity of the base has {len(identity)} bytes; {MAX_IDENTITY} are the most")
    payload = _MAP_HEADER.pack(header.size, BLOCK, header.disk_uuid.bytes, _ENCRYPTED * header.encrypted, len(identity)) + identity
    return seal(_MAP_MAGIC, _MAP_VERSION, payload).ljust(MAP_PAGE, b"\0")


def decode_map_header(page: bytes, origin: str) -> MapHeader:
    """Return what the first page of a durable map says. Raises StateDamaged, naming `origin`, if it cannot be right."""
    first = version_of(page) == _FIRST_MAP_VERSION
    form = _FIRST_MAP_HEADER if first else _MAP_HEADER
    payload = unseal(_MAP_MAGIC, _FIRST_MAP_VERSION if first else _MAP_VERSION, page, origin)
    if len(payload) < form.size:
        raise StateDamaged(f"{origin}: the header is cut short")
    size, block, disk_uuid, *flag_field, length = form.unpack_from(payload)
    flags = flag_field[0] if flag_field else 0
    identity = payload[form.size :]
    if not 0 < size <= MAX_SIZE or block != BLOCK or flags & ~_ENCRYPTED or length != len(identity):
        raise StateDamaged(f"{origin}: the header cannot be right: {size} bytes in blocks of {block}, flags {flags:#x}")
    try:
        return MapHeader(size, uuid.UUID(bytes=disk_uuid), identity.decode(), bool(flags & _ENCRYPTED))
    except UnicodeDecodeError as error:
        raise StateDamaged(f"{origin}: the identity of the base is not UTF-8") from error


def encode_live_header(header: LiveHeader) -> bytes:
    """Return the sealed record that begins the live map."""
    return seal(_LIVE_MAGIC, _LIVE_VERSION, _LIVE_HEADER.pack(header.size, header.disk_uuid.bytes, header.boot_id))


def decode_live_header(page: bytes, origin: str) -> LiveHeader:
    """Return what the first page of a live map says. Raises StateDamaged, naming `origin`, if it is no such header."""
    payload = unseal(_LIVE_MAGIC, _LIVE_VERSION, page, origin)
    if len(payload) != _LIVE_HEADER.size:
        raise StateDamaged(f"{origin}: the header has {len(payload)} bytes, not {_LIVE_HEADER.size}")
    size, disk_uuid, boot = _LIVE_HEADER.unpack(payload)
    return LiveHeader(size, uuid.UUID(bytes=disk_uuid), boot)
