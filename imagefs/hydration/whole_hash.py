"""This module finds the hash of a whole image in its record: which one there is that can be computed here."""

import dataclasses
import hashlib
import re
from typing import TYPE_CHECKING, Final

from imagefs.store.record import ImageRecord

if TYPE_CHECKING:
    from hashlib import _Hash

_ALGORITHMS: Final = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}
"""Those with a fixed length. The name stands in a record that others wrote."""
_HEX: Final = re.compile(r"[0-9a-f]+")


@dataclasses.dataclass(frozen=True, slots=True)
class WholeHash:
    """What the hash of an image's stored bytes is: the algorithm as hashlib calls it, and the value in lower-case hexadecimal."""

    algorithm: str
    value: str

    def begin(self) -> "_Hash":
        """Return a hash of no bytes."""
        return hashlib.new(self.algorithm, usedforsecurity=False)


def whole_hashes(record: ImageRecord) -> list[WholeHash]:
    """Return the hashes of a record that can be computed here, the best one first: Glance's multihash, then the MD5 `checksum`."""
    named = ((record.os_hash_algo, record.os_hash_value), ("md5", record.checksum))
    found = [WholeHash(algorithm, value.lower()) for algorithm, value in named if algorithm and value and algorithm in _ALGORITHMS]
    return [one for one in found if _HEX.fullmatch(one.value) and len(one.value) == 2 * one.begin().digest_size]
