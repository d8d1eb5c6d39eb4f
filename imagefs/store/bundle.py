"""This module is the catalog bundle: the records of many images in one object, so that a node that knows none reads them in a few requests.

The object is sealed (`sealed`: magic IMFSCATL, version 1) around a raw deflate stream of entries, each in little-endian byte order:

    36 bytes   image id
    u16        bytes of the version, u32 bytes of the record
               the version, ASCII: of which object the record was read
               the record in its stored form (`record`), which carries a checksum of its own

It is a copy and never the truth: an entry counts only for a record whose version in the listing is the same. What it is worth is the
worth of who may write it, so where versions are MD5 sums, as ETags are unless a server encrypts, an entry's record must have that sum.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from imagefs.errors import StateDamaged
from imagefs.sealed import seal, unseal
from imagefs.store.protocol import SMALL_LIMIT, StoredRecord
from imagefs.store.record import encode_record, is_image_id

KEY: Final = ".imagefs/catalog"
"""Below the prefix. No listing of images has a name that begins with a dot."""
MAGIC: Final = b"IMFSCATL"
VERSION: Final = 1
LARGEST: Final = SMALL_LIMIT - 1
"""Bytes of a bundle: a quarter of a million images. What does not fit is left out."""
UNPACKED_LIMIT: Final = 1024 * 1024 * 1024
"""Bytes after which the entries of a bundle are not read any further: a hostile stream grows a thousandfold."""
_ENTRY: Final = struct.Struct("<36sHI")
_PIECE: Final = 1024 * 1024
_HEADER_ROOM: Final = 64 * 1024
"""Bytes kept for the header, and for what is still in the compressor."""


def is_sum(version: str, body: bytes) -> bool:
    """Tell whether a version is the MD5 of the object's bytes."""
    return version == hashlib.md5(body, usedforsecurity=False).hexdigest()


def encode_bundle(records: Iterable[StoredRecord]) -> tuple[bytes, int]:
    """Return a bundle of the records and how many it has; those are left out for which there is no room."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces: list[bytes] = []
    packed = unpacked = count = 0
    for stored in records:
        body, version = encode_record(stored.record), stored.version.encode("ascii", "replace")
        if len(version) > 255:
            continue
        entry = _ENTRY.pack(stored.record.id.encode("ascii"), len(version), len(body)) + version + body
        # what the compressor holds back is less than what went into it since it last gave something
        if packed + len(entry) + _HEADER_ROOM > LARGEST or unpacked + len(entry) > UNPACKED_LIMIT:
            break
        piece = packer.compress(entry)
        pieces.append(piece)
        packed, unpacked, count = packed + len(piece), unpacked + len(entry), count + 1
    pieces.append(packer.flush())
    return seal(MAGIC, VERSION, b"".join(pieces)), count


def decode_bundle(bundle: bytes, origin: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (image id, version, record in its stored form) of every entry. Raises StateDamaged, naming `origin`, at the first that is not sound."""
    reader = _Reader(unseal(MAGIC, VERSION, bundle, origin), origin)
    while head := reader.take(_ENTRY.size):
        raw_id, version_length, body_length = _ENTRY.unpack(head)
        image_id = raw_id.decode("ascii", "replace")
        if not is_image_id(image_id) or body_length > LARGEST:
            raise StateDamaged(f"{origin}: an entry is not of an image")
        rest = reader.take(version_length + body_length)
        if len(rest) != version_length + body_length:
            raise StateDamaged(f"{origin}: cut short in an entry")
        yield image_id, rest[:version_length].decode("ascii", "replace"), rest[version_length:]


class _Reader:
    """Bytes of the deflate stream, in order; never much more of them in memory than are asked for."""

    def __init__(self, payload: bytes, origin: str) -> None:
        self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        self._left: bytes = payload
        self._ready = bytearray()
        self._total = 0
        self._origin = origin

    def take(self, count: int) -> bytes:
        """Return `count` bytes; none at the end. Raises StateDamaged."""
        while len(self._ready) < count and not self._unpacker.eof:
            try:
                piece = self._unpacker.decompress(self._left, _PIECE)
            except zlib.error as error:
                raise StateDamaged(f"{self._origin}: {error}") from None
            self._left = self._unpacker.unconsumed_tail
            self._ready += piece
            self._total += len(piece)
            if self._total > UNPACKED_LIMIT + _PIECE:
                raise StateDamaged(f"{self._origin}: it is longer than any bundle")
            if not piece and not self._left and not self._unpacker.eof:
                break
        if (self._ready and len(self._ready) < count) or (not self._unpacker.eof and not self._ready):
            raise StateDamaged(f"{self._origin}: cut short")
        found = bytes(self._ready[:count])
        del self._ready[:count]
        return found
