"""This module seals what imagefs writes to its own disk: a magic, a version, a length and a checksum around each record.

A sealed record is a 24-byte header in little-endian byte order and a payload:

    0   8 bytes   magic, ASCII
    8   u32       version of the payload's form
    12  u32       bytes of payload
    16  u32       CRC-32C of the payload
    20  u32       CRC-32C of the 20 bytes before
"""

import contextlib
import os
import secrets
import struct
from pathlib import Path
from typing import Final

from crc32c import crc32c

from imagefs.errors import StateDamaged

_HEADER: Final = struct.Struct("<8sIII")
_CHECK: Final = struct.Struct("<I")
HEADER_SIZE: Final = _HEADER.size + _CHECK.size


def seal(magic: bytes, version: int, payload: bytes) -> bytes:
    """Return `payload` behind a header. `magic` has exactly 8 bytes."""
    header = _HEADER.pack(magic, version, len(payload), crc32c(payload))
    return header + _CHECK.pack(crc32c(header)) + payload


def version_of(record: bytes) -> int:
    """Return the version that a record says it has; 0 if it is too short to say. Whether the record is sound, `unseal` tells."""
    return int.from_bytes(record[8:12], "little") if len(record) >= HEADER_SIZE else 0


def unseal(magic: bytes, version: int, record: bytes, origin: str) -> bytes:
    """Return the payload of a record that begins `record`. Raises StateDamaged, naming `origin`, if anything is off."""
    if len(record) < HEADER_SIZE:
        raise StateDamaged(f"{origin}: cut short at {len(record)} bytes")
    found, found_version, length, payload_crc = _HEADER.unpack_from(record)
    if crc32c(record[: _HEADER.size]) != _CHECK.unpack_from(record, _HEADER.size)[0]:
        raise StateDamaged(f"{origin}: the header fails its checksum")
    if found != magic:
        raise StateDamaged(f"{origin}: the magic is {found!r}, not {magic!r}")
    if found_version != version:
        raise StateDamaged(f"{origin}: version {found_version} is unknown here: this imagefs reads {version}")
    payload = record[HEADER_SIZE : HEADER_SIZE + length]
    if len(payload) != length or crc32c(payload) != payload_crc:
        raise StateDamaged(f"{origin}: the content fails its checksum")
    return payload


def write_durably(path: Path, body: bytes) -> None:
    """Replace the file at `path` by `body`, mode 0600: after a crash there is the old file or the new one, whole.

    Raises OSError, with no trace left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def boot_id() -> bytes:
    """Return the 16 bytes that name this boot of the host's kernel: what the page cache holds lives as long as they do."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", ""))
