"""This module reads cached bytes without pushing what guests read out of the host's page cache."""

import os
from typing import Final

from imagefs.cache.file import UnitFile
from imagefs.errors import StateDamaged
from imagefs.units import MIB

STEP: Final = 4 * MIB
"""Bytes read in one go."""


class Unsettled(StateDamaged):
    """The cache changed while it was being compared: what was found out about it as a whole means nothing. It has to be done again."""


def read_politely(file: UnitFile, offset: int, length: int) -> bytearray:
    """Return exactly `length` bytes of the units. What was not in the page cache before is not there afterwards. Blocks. Raises Unsettled."""
    body = bytearray(length)
    try:
        if _resident(file.units, body, offset):
            return body
        if os.preadv(file.units, (body,), offset) == length:
            os.posix_fadvise(file.units, offset, length, os.POSIX_FADV_DONTNEED)
            return body
    except OSError as error:
        raise Unsettled(f"cannot read {length} cached bytes at offset {offset}: {error}") from error
    raise Unsettled(f"the cached bytes end before offset {offset + length}")


def _resident(descriptor: int, body: bytearray, offset: int) -> bool:
    """Fill `body` if all of it is in memory."""
    try:
        return os.preadv(descriptor, (body,), offset, os.RWF_NOWAIT) == len(body)
    except OSError:  # not all of it, or a filesystem (tmpfs) that cannot tell
        return False
