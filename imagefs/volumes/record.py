"""This module is the record of a volume, and the form in which it lies in the state directory (imagefs-state(5))."""

from pathlib import Path
from typing import Final

import msgspec

from imagefs.disks.record import DiskRecord
from imagefs.errors import StateDamaged
from imagefs.sealed import seal, unseal

MAGIC: Final = b"IMFSVOLU"
VERSION: Final = 1
RECORD: Final = "volume"
"""The record's file name in the volume's directory."""
DISK: Final = "disk"
"""What a volume's disk is called, and its overlay files begin with."""


class VolumeRecord(msgspec.Struct, frozen=True):
    """What is kept of a volume. Owner and mode are its disk's.

    The disk's size is 0 as long as it has no overlay files. After that the files know best: when growing breaks off, they may be longer already.
    """

    uuid: str
    name: str
    created_at: str
    disk: DiskRecord


def encode(record: VolumeRecord) -> bytes:
    """Return the stored form."""
    return seal(MAGIC, VERSION, msgspec.json.encode(record))


def read_record(path: Path) -> VolumeRecord:
    """Read a record. Raises FileNotFoundError, StateDamaged if it is not sound."""
    payload = unseal(MAGIC, VERSION, path.read_bytes(), str(path))
    try:
        return msgspec.json.decode(payload, type=VolumeRecord)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"{path}: {error}") from error
