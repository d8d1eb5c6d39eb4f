"""This module is the qcow2 header: its fields by the names of the specification, and the bounds that each must keep.

The specification is QEMU's docs/interop/qcow2. All numbers are big-endian. Every field comes from a stranger, so each is
bounded here, before anything is read at the offsets it gives.
"""

import dataclasses
import enum
import struct
from typing import Final, NamedTuple

from imagefs.errors import ImageRefused
from imagefs.units import MIB, TIB, format_size

MAGIC: Final = b"QFI\xfb"
HEADER_BYTES: Final = 4096
"""How much of an image `parse_header` needs at most: the fields end at byte 112, and header_length is not followed further."""

MAX_VIRTUAL_SIZE: Final = 64 * TIB
"""Largest disk that is shown, in bytes: what a public cloud sells today, and 2^46 keeps every offset far from 63 bits."""

MAX_L1_BYTES: Final = 32 * MIB
"""QEMU's own limit on the active L1 table."""

_MIN_CLUSTER_BITS: Final = 9
_MAX_CLUSTER_BITS: Final = 21  # QEMU's own limit: 2 MiB clusters
_MIN_EXTENDED_CLUSTER_BITS: Final = 14
_MAX_SNAPSHOTS: Final = 65536  # QEMU's own limit
_MAX_REFCOUNT_TABLE: Final = 8 * MIB  # QEMU's own limit
_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_V3_END: Final = _V2.size + _V3.size

DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
EXTERNAL_DATA_FILE: Final = 1 << 2
COMPRESSION_TYPE: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4
KNOWN_INCOMPATIBLE: Final = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2


class Compression(enum.Enum):
    """How compressed clusters are compressed; the values are the header's."""

    ZLIB = 0
    ZSTD = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The facts of an accepted header. Sizes and offsets are in bytes.

    Invariants: 9 <= cluster_bits <= 21 (at least 14 if extended_l2); 0 <= size <= MAX_VIRTUAL_SIZE; the L1 entries that
    `size` needs are there, take at most MAX_L1_BYTES and lie within the stored bytes; no backing file, data file or encryption.
    """

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    compression: Compression
    extended_l2: bool

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_entry_words(self) -> int:
        """64-bit words in one L2 entry."""
        return 2 if self.extended_l2 else 1

    @property
    def l2_bits(self) -> int:
        """Binary logarithm of the number of entries in an L2 table, which takes exactly one cluster."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @property
    def l1_needed(self) -> int:
        """How many L1 entries the guest's bytes take; `l1_size` may be larger, for the saved state of a machine."""
        return -(-self.size >> (self.cluster_bits + self.l2_bits))


def is_qcow2(head: bytes) -> bool:
    """Tell whether `head`, the first bytes of an image, begins as a qcow (of any version) does."""
    return head.startswith(MAGIC)


def parse_header(head: bytes, stored_size: int, name: str) -> Qcow2Header:
    """Return the header in `head`, the first HEADER_BYTES (or more, or all) of the `stored_size` bytes of image `name`.

    Raises ImageRefused, with the field and what to do, if the image must not be read.
    """
    try:
        return _parse(head, stored_size)
    except _HeaderError as flaw:
        raise ImageRefused(f"image {name}: refused as qcow2: {flaw}") from None


class _HeaderError(Exception):
    """What is wrong with a header, and what to do about it."""


class _Fields(NamedTuple):
    """The fields that versions 2 and 3 share, by the specification's names."""

    magic: bytes
    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int


def _require(sound: bool, flaw: str) -> None:
    if not sound:
        raise _HeaderError(flaw)


def _parse(head: bytes, stored_size: int) -> Qcow2Header:
    _require(is_qcow2(head), f"it begins with {head[:4]!r}, not with {MAGIC!r}: correct its disk_format")
    _require(len(head) >= _V2.size, f"it is cut inside the header, at {len(head)} bytes: upload it again")
    fields = _Fields._make(_V2.unpack_from(head))
    version, bits, size = fields.version, fields.cluster_bits, fields.size
    _require(version in (2, 3), f"version {version} is unknown here: convert it with qemu-img convert -O qcow2")
    _require(fields.backing_file_offset == 0, "it has a backing file: flatten it with qemu-img convert")
    _require(_MIN_CLUSTER_BITS <= bits <= _MAX_CLUSTER_BITS, f"cluster_bits {bits} is not within 9..21: the header is damaged")
    _require(fields.crypt_method == 0, "it is encrypted: decrypt it with qemu-img convert")
    _require(size <= MAX_VIRTUAL_SIZE, f"its virtual size {size} is above {format_size(MAX_VIRTUAL_SIZE)}: the header is damaged")
    incompatible, compression_type = (0, 0) if version == 2 else _features(head, bits)
    extended_l2 = bool(incompatible & EXTENDED_L2)
    _require(not extended_l2 or bits >= _MIN_EXTENDED_CLUSTER_BITS, f"cluster_bits {bits} is too small for extended L2 entries: it is damaged")
    header = Qcow2Header(
        version=version,
        cluster_bits=bits,
        size=size,
        l1_size=fields.l1_size,
        l1_table_offset=fields.l1_table_offset,
        compression=_compression(incompatible, compression_type),
        extended_l2=extended_l2,
    )
    _check_l1(header, stored_size)
    _check_unread(fields, header.cluster_size, stored_size)
    return header


def _features(head: bytes, cluster_bits: int) -> tuple[int, int]:
    """Return the incompatible features and the compression type of a version 3 header."""
    _require(len(head) >= _V3_END, f"it is cut inside the header, at {len(head)} bytes: upload it again")
    incompatible, _, _, refcount_order, header_length = _V3.unpack_from(head, _V2.size)
    _require(
        _V3_END <= header_length <= 1 << cluster_bits and header_length % 8 == 0,
        f"header_length {header_length} is out of bounds: the header is damaged",
    )
    _require(len(head) >= min(header_length, HEADER_BYTES), f"it is cut inside the header, at {len(head)} bytes: upload it again")
    _require(not incompatible & EXTERNAL_DATA_FILE, "it has an external data file: flatten it with qemu-img convert")
    _require(not incompatible & CORRUPT, "it is marked corrupt: repair it with qemu-img check -r all, or upload it again")
    unknown = incompatible & ~KNOWN_INCOMPATIBLE
    _require(unknown == 0, f"incompatible feature bits {unknown:#x} are unknown here: convert it with an older qemu-img")
    _require(refcount_order <= 6, f"refcount_order {refcount_order} is above 6: the header is damaged")
    return incompatible, head[_V3_END] if header_length > _V3_END else 0


def _compression(incompatible: int, compression_type: int) -> Compression:
    _require(
        (compression_type != 0) == bool(incompatible & COMPRESSION_TYPE),
        f"compression_type {compression_type} contradicts the incompatible feature bits: the header is damaged",
    )
    _require(compression_type in (0, 1), f"compression_type {compression_type} is unknown here: convert it with qemu-img convert")
    return Compression(compression_type)


def _check_l1(header: Qcow2Header, stored_size: int) -> None:
    """Raise _HeaderError unless the L1 table is bounded, large enough and within the file."""
    _require(header.l1_size * 8 <= MAX_L1_BYTES, f"l1_size {header.l1_size} is above {MAX_L1_BYTES // 8}: the header is damaged")
    _require(header.l1_needed <= header.l1_size, f"l1_size {header.l1_size} is too small for {header.size} bytes: the header is damaged")
    if header.l1_size == 0:
        return
    offset = header.l1_table_offset
    _require(offset % header.cluster_size == 0, f"l1_table_offset {offset} is not aligned to a cluster: the header is damaged")
    _require(offset != 0, "l1_table_offset 0 points at the header: it is damaged")
    end = offset + header.l1_size * 8
    _require(end <= stored_size, f"its L1 table ends at {end}, beyond the file's end at {stored_size}: upload it again")


def _check_unread(fields: _Fields, cluster_size: int, stored_size: int) -> None:
    """Raise _HeaderError unless the tables that a reader does not need (refcounts, snapshots) are where such tables can be."""
    offset, clusters = fields.refcount_table_offset, fields.refcount_table_clusters
    _require(0 < offset < stored_size, f"refcount_table_offset {offset} is not within the file of {stored_size} bytes: it is cut or damaged")
    _require(offset % cluster_size == 0, f"refcount_table_offset {offset} is not aligned to a cluster: the header is damaged")
    _require(
        0 < clusters * cluster_size <= _MAX_REFCOUNT_TABLE,
        f"refcount_table_clusters {clusters} is not within 1..{_MAX_REFCOUNT_TABLE // cluster_size}: the header is damaged",
    )
    count, offset = fields.nb_snapshots, fields.snapshots_offset
    _require(count <= _MAX_SNAPSHOTS, f"nb_snapshots {count} is above {_MAX_SNAPSHOTS}: the header is damaged")
    sound = count == 0 or (offset < stored_size and offset % cluster_size == 0)
    _require(sound, f"snapshots_offset {offset} is not the start of a cluster within the file: it is cut or damaged")
