"""This module names the calls on the host that an overlay makes, so that a test can make any of them fail, and record them all."""

import dataclasses
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from imagefs.aio import reader
from imagefs.errors import NoSpace
from imagefs.holes import punch_hole
from imagefs.sealed import boot_id

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the host says when there is no room."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls, each with the arguments, the result and the errors of its namesake in `os`."""

    pread: Callable[[int, int, int], bytes] = os.pread
    preadv: Callable[[int, Sequence[bytearray | memoryview], int, int], int] = os.preadv
    pwrite: Callable[[int, bytes | bytearray | memoryview, int], int] = os.pwrite
    fdatasync: Callable[[int], None] = os.fdatasync
    ftruncate: Callable[[int, int], None] = os.ftruncate
    punch_hole: Callable[[int, int, int], None] = punch_hole
    boot_id: Callable[[], bytes] = boot_id


CALLS: Final = Calls()
"""The host's own."""


def write_wholly(calls: Calls, fd: int, body: bytes | bytearray | memoryview, offset: int, origin: str) -> None:
    """Write all of `body` at `offset` bytes, going on after short writes.

    Raises NoSpace, naming `origin`, if the host has no room, and OSError; a part may have been written then.
    """
    try:
        written = calls.pwrite(fd, body, offset)
        if written == len(body):
            return
        rest = memoryview(body)
        while written < len(rest):
            more = calls.pwrite(fd, rest[written:], offset + written)
            if more == 0:
                raise OSError(errno.EIO, f"{origin}: the host wrote nothing at offset {offset + written}")
            written += more
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(f"{origin}: cannot write at offset {offset}: the filesystem of the state directory is full; free space there") from error
        raise


def read_wholly(calls: Calls, fd: int, body: bytearray | memoryview, offset: int) -> int:
    """Fill `body` from `offset` bytes, going on after short reads; return the bytes read, fewer only at the end of the file. Raises OSError."""
    return reader.read_wholly(calls.preadv, fd, body, offset)
