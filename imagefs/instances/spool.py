"""This module is a spool: a file without a name that holds a new image until it is stored, and is gone with its descriptor whatever happens.

It keeps account of what was written, in units of 64 KiB, and all else is zeros that take no room and no reading. It may be enciphered, with a
key that is nowhere but in memory.
"""

import errno
import io
import os
import secrets
import weakref
from pathlib import Path
from typing import BinaryIO, Final, cast

from imagefs.errors import ImagefsError, NoSpace
from imagefs.overlay.calls import CALLS, FULL, Calls, read_wholly, write_wholly
from imagefs.overlay.cipher import KEY_SIZE, BlockCipher
from imagefs.units import BLOCK, GIB, UNIT, align_down, align_up, format_size

_GROUP: Final = GIB // UNIT
"""Units whose account is kept together: 16 KiB of memory for each GiB of the spool that has anything."""
_NAMELESS: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
"""What filesystems say that have no O_TMPFILE."""


class Spool:
    """The file. Written by one thread at a time; any number may read what was written before.

    Invariants: a unit that was written is there as a whole; nothing of a unit that was not is ever read from the file; of an enciphered
    spool no plain byte reaches the file.
    """

    def __init__(self, directory: Path, *, encrypted: bool = False, calls: Calls = CALLS) -> None:
        """Make the file on the filesystem of `directory`. Blocks. Raises NoSpace, ImagefsError."""
        self.size = 0
        """Bytes that a reader gets: up to the last one written, or as `extend` says."""
        self._directory = directory
        self._calls = calls
        self._cipher = BlockCipher(secrets.token_bytes(KEY_SIZE)) if encrypted else None
        self._written: dict[int, bytearray] = {}
        try:
            self._file = _nameless(directory)
        except OSError as error:
            raise self._explained(error, "cannot be made") from error
        self._closer = weakref.finalize(self, os.close, self._file)

    def close(self) -> None:
        """Let go of the file and so of all that is in it. Blocks. Nothing may be read or written any more, or at the time."""
        self._closer()

    def extend(self, size: int) -> None:
        """Make the spool `size` bytes long, if it is shorter; they are zeros, and take no room."""
        self.size = max(self.size, size)

    def write_at(self, offset: int, body: bytes | bytearray | memoryview) -> None:
        """Write `body` at `offset`, a multiple of 64 KiB; up to the end of its last unit zeros follow it. Blocks.

        Raises NoSpace, ImagefsError; what is in those units then is not known.
        """
        if offset % UNIT:
            raise ValueError(f"offset {offset} is not the start of a unit")
        units = memoryview(body)
        if self._cipher is not None or len(body) % UNIT:
            units = memoryview(bytearray(align_up(len(body), UNIT)))
            units[: len(body)] = body
        if self._cipher is not None:
            self._cipher.encipher(units, offset // BLOCK)
        try:
            write_wholly(self._calls, self._file, units, offset, str(self._directory))
        except (NoSpace, OSError) as error:
            raise self._explained(error, f"cannot be written at {format_size(offset)}") from error
        for unit in range(offset // UNIT, (offset + len(units)) // UNIT):
            group, slot = divmod(unit, _GROUP)
            self._written.setdefault(group, bytearray(_GROUP))[slot] = 1
        self.size = max(self.size, offset + len(body))

    def reader(self) -> BinaryIO:
        """Return a stream of the spool's bytes from its beginning. It may be closed or not; other streams do not notice it."""
        return cast(BinaryIO, io.BufferedReader(_Reader(self), UNIT))

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on, which are all there. Blocks. Raises OSError."""
        end = offset + len(target)
        while offset < end:
            unit = offset // UNIT
            stop = min(end, (unit + 1) * UNIT)
            written = self._is_written(unit)
            while stop < end and self._is_written(stop // UNIT) == written:
                stop = min(end, stop + UNIT)
            part, target = target[: stop - offset], target[stop - offset :]
            if written:
                self._read_written(part, offset)
            else:
                part[:] = bytes(len(part))
            offset = stop

    def _is_written(self, unit: int) -> bool:
        group = self._written.get(unit // _GROUP)
        return group is not None and bool(group[unit % _GROUP])

    def _read_written(self, target: memoryview, offset: int) -> None:
        if self._cipher is None:
            self._fetch(target, offset)
            return
        start = align_down(offset, BLOCK)
        blocks = memoryview(bytearray(align_up(offset + len(target), BLOCK) - start))
        self._fetch(blocks, start)
        self._cipher.decipher(blocks, start // BLOCK)
        target[:] = blocks[offset - start : offset - start + len(target)]

    def _fetch(self, target: memoryview, offset: int) -> None:
        got = read_wholly(self._calls, self._file, target, offset)
        if got != len(target):
            raise OSError(errno.EIO, f"a temporary file in {self._directory} ends at {offset + got}, before what was written to it")

    def _explained(self, error: OSError | NoSpace, what: str) -> ImagefsError:
        """Return the error that says what is wrong and what to do."""
        subject = f"the temporary file in {self._directory} for the new image {what}"
        if isinstance(error, NoSpace) or error.errno in FULL:
            return NoSpace(f"{subject}: its filesystem is full; make room there, as much as the disk has data, and try again")
        if error.errno == errno.EFBIG:
            return NoSpace(f"{subject}: files there cannot be so long; choose disk_format qcow2, which takes less, or another filesystem")
        return ImagefsError(f"{subject}: {error.strerror}")


class _Reader(io.RawIOBase):
    """One stream over a spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._spool.size}[whence])
        return self._offset

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # collections.abc.Buffer is of Python 3.12
        target = memoryview(buffer)
        target = target[: max(0, min(len(target), self._spool.size - self._offset))]
        self._spool.read_into(target, self._offset)
        self._offset += len(target)
        return len(target)


def _nameless(directory: Path) -> int:
    """Return the descriptor of a new file that has no name. Raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(directory, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in _NAMELESS:
            raise
    path = directory / f".spool-{secrets.token_hex(8)}"
    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        path.unlink()
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
