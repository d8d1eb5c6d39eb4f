"""This module is the record of an instance, and the form in which it lies in the state directory (imagefs-state(5))."""

from pathlib import Path
from typing import Final

import msgspec

from imagefs.errors import InvalidInput, NameTooLong, StateDamaged
from imagefs.flavors import Flavor
from imagefs.sealed import seal, unseal

MAGIC: Final = b"IMFSINST"
VERSION: Final = 1
RECORD: Final = "instance"
"""The record's file name in the instance's directory."""
DISK_MODE: Final = 0o600
NAME_LIMIT: Final = 255


class DiskRecord(msgspec.Struct, frozen=True):
    """A disk as it was made: size in bytes, and owner, mode and root's attributes as they are now."""

    name: str
    size: int
    uid: int
    gid: int
    mode: int = DISK_MODE
    xattrs: dict[str, bytes] = {}


class InstanceRecord(msgspec.Struct, frozen=True):
    """What is kept of an instance. `flavor` is as it was when the instance was made: a later change of it changes no disk."""

    uuid: str
    name: str
    uid: int
    gid: int
    mode: int
    created_at: str
    flavor: Flavor | None = None
    image_id: str | None = None
    data_version: str | None = None
    virtual_size: int = 0
    """Bytes of the image's disk; vda may be larger."""
    disks: tuple[DiskRecord, ...] = ()


def check_name(name: str) -> None:
    """Raise InvalidInput or NameTooLong unless `name` can name an instance: 1 to 255 bytes of printable UTF-8, no '/', not '.' or '..'."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{name!r} cannot be an instance's name: it is not UTF-8") from None
    if length > NAME_LIMIT:
        raise NameTooLong(f"'{name[:40]}...' cannot be an instance's name: it has {length} bytes, and {NAME_LIMIT} is the most")
    if not length or name in {".", ".."} or "/" in name or not name.isprintable():
        raise InvalidInput(f"{name!r} cannot be an instance's name: use 1 to {NAME_LIMIT} bytes of printable text without '/'")


def encode(record: InstanceRecord) -> bytes:
    """Return the stored form."""
    return seal(MAGIC, VERSION, msgspec.json.encode(record))


def read_record(path: Path) -> InstanceRecord:
    """Read a record. Raises FileNotFoundError, StateDamaged if it is not sound."""
    payload = unseal(MAGIC, VERSION, path.read_bytes(), str(path))
    try:
        return msgspec.json.decode(payload, type=InstanceRecord)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"{path}: {error}") from error
