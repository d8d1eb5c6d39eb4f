"""This module checks the header of a direct disk, into which its owner may have written anything. Pure.

What it refers to has to be what imagefs put there, byte for byte: the image on the mount as backing file, of the format raw, and no other file.
All else has to keep the bounds of any qcow2 header.
"""

import struct
from collections.abc import Iterator
from typing import Final

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.header import Qcow2Header, parse_header

_BACKING: Final = struct.Struct(">QI")
_BACKING_AT: Final = 8
_HEADER_LENGTH_AT: Final = 100
_FIELDS_END: Final = 104
_EXTENSION: Final = struct.Struct(">II")
_END: Final = 0
_BACKING_FORMAT: Final = 0xE2792ACA
_DATA_FILE: Final = 0x44415441
_CRYPTO: Final = 0x0537BE77


def check_direct_header(head: bytes, stored_size: int, backing: str, name: str) -> Qcow2Header:
    """Return the header in `head`, the first HEADER_BYTES of the `stored_size` bytes of the disk `name`. Raises ImageRefused."""
    blank = bytearray(head)
    if len(head) >= _FIELDS_END:
        blank[_BACKING_AT : _BACKING_AT + _BACKING.size] = bytes(_BACKING.size)
    header = parse_header(bytes(blank), stored_size, name)
    if header.version != 3:
        raise ImageRefused(f"image {name}: refused as qcow2: it is of version {header.version}, and was made in version 3: make the instance anew")
    offset, length = _BACKING.unpack_from(head, _BACKING_AT)
    found = head[offset : offset + length] if offset >= _FIELDS_END and offset + length <= len(head) else b""
    if found != backing.encode(errors="surrogateescape"):
        raise ImageRefused(f"image {name}: refused as qcow2: its backing file is not {backing}: set it back with qemu-img rebase -u")
    formats = [content for kind, content in _extensions(head, name, offset) if kind == _BACKING_FORMAT]
    if formats != [b"raw"]:
        raise ImageRefused(f"image {name}: refused as qcow2: the format of its backing file is not raw: set it back with qemu-img rebase -u -F raw")
    return header


def _extensions(head: bytes, name: str, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (type, content) of the header's extensions, which end where the backing file's name begins. Raises ImageRefused."""
    at = struct.unpack_from(">I", head, _HEADER_LENGTH_AT)[0]
    while at + _EXTENSION.size <= min(end, len(head)):
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == _END:
            return
        at += _EXTENSION.size
        if at + length > min(end, len(head)):
            raise ImageRefused(f"image {name}: refused as qcow2: an extension of its header does not end: the header is damaged")
        if kind in (_DATA_FILE, _CRYPTO):
            raise ImageRefused(f"image {name}: refused as qcow2: its header refers to a data file or a key: make the instance anew")
        yield kind, head[at : at + length]
        at += length + -length % 8
