"""This module is the mark of a complete cache (imagefs-cache(5)): that all of it is here, and what it was compared with; it does no I/O.

A mark belongs to one map, by that map's seed, and holds as long as no unit of it was lost: whoever erases one removes the mark first.
"""

import enum
from typing import Final

import msgspec

from imagefs.errors import StateDamaged
from imagefs.sealed import seal, unseal

MAGIC: Final = b"IMFSDONE"
VERSION: Final = 1
FILE_NAME: Final = "complete"
LIMIT: Final = 4096
"""Bytes that a mark takes at most: one page of the budget."""


@enum.unique
class Checked(enum.Enum):
    """What the bytes of a complete cache were compared with."""

    DIGESTS = "digests"
    """Each unit with its digest, when it came from the store."""
    HASH = "hash"
    """All of them with the hash of the whole image."""
    NOTHING = "nothing"
    """The store says no hash that this imagefs can compare with."""


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All `units` of the map with `seed` are here, and what they were checked against: for HASH the algorithm, as hashlib calls it, and the
    value in hexadecimal.
    """

    seed: int
    units: int
    data_version: str
    checked: Checked
    algorithm: str = ""
    value: str = ""

    @property
    def verified(self) -> bool:
        """Whether the bytes were compared with anything."""
        return self.checked is not Checked.NOTHING


def encode_mark(mark: Mark) -> bytes:
    """Return the sealed mark."""
    return seal(MAGIC, VERSION, msgspec.json.encode(mark))


def decode_mark(body: bytes, origin: str) -> Mark:
    """Return the mark in `body`. Raises StateDamaged, naming `origin`, if it is not sound."""
    payload = unseal(MAGIC, VERSION, body, origin)
    try:
        return msgspec.json.decode(payload, type=Mark)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateDamaged(f"{origin}: the mark is not valid: {error}") from error
