"""This module is about holes in files: making them, finding what lies between them, and counting what a file really takes."""

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_STAT_BLOCK: Final = 512
"""Bytes that one of stat's `st_blocks` stands for, whatever the filesystem."""

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the room of `length` bytes at `offset` back to the filesystem; they read as zeros, and the file keeps its size.

    Nothing happens past the end of the file. Blocks for as long as the filesystem takes. Raises OSError; EOPNOTSUPP where files have no holes.
    """
    while _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def allocated_bytes(fd: int) -> int:
    """Return the bytes that the file takes on its filesystem; holes take none."""
    return os.fstat(fd).st_blocks * _STAT_BLOCK


def data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of what is not a hole within [start, stop), in order; all of the file where holes cannot be told.

    The file must not change meanwhile. Raises OSError.
    """
    while start < stop:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole until the end of the file
                return
            raise
        if first >= stop:
            return
        start = min(stop, os.lseek(fd, first, os.SEEK_HOLE))
        yield first, start
