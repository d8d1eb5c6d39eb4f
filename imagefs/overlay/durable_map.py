"""This module is the durable map of a disk: the states of its blocks as they are after a power loss."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from imagefs.errors import InvalidInput, NoSpace, StateDamaged
from imagefs.holes import data_ranges
from imagefs.overlay.block_map import MAP_PAGE, MapHeader, decode_map_header, decode_page, encode_map_header, encode_page, page_count, page_offset
from imagefs.overlay.calls import FULL, Calls, read_wholly, write_wholly


class DurableMap:
    """The open file of a durable map. All methods block. A page says only what is true of data that is durable already."""

    def __init__(self, path: Path, calls: Calls) -> None:
        """Open the map at `path`. Raises StateDamaged if it is missing or not a map, or shorter than its disk needs."""
        self._origin = str(path)
        self._calls = calls
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StateDamaged(f"{path}: the map of the disk's blocks is missing; restore it from a backup, or delete the disk") from error
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, self._fd)
            page = bytearray(MAP_PAGE)
            got = read_wholly(calls, self._fd, page, 0)
            self.header = decode_map_header(bytes(page[:got]), self._origin)
            self._check_length()
            on_failure.pop_all()

    def _check_length(self) -> None:
        length, needed = os.fstat(self._fd).st_size, self._length(self.header.size)
        if length < needed:
            raise StateDamaged(f"{self._origin}: cut short at {length} bytes; a disk of {self.header.size} bytes needs {needed}")

    @staticmethod
    def create(path: Path, header: MapHeader, calls: Calls) -> None:
        """Make the map of a new disk, all `base`, durable but for its name. Raises FileExistsError, InvalidInput, NoSpace and OSError."""
        first_page = encode_map_header(header)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            set_length(calls, fd, DurableMap._length(header.size), str(path))
            write_wholly(calls, fd, first_page, 0, str(path))
            calls.fdatasync(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _length(size: int) -> int:
        return page_offset(page_count(size))

    def pages(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield (page, its 16000 states) for each page that is not a hole, in order; None instead of the states if the page is damaged."""
        body = bytearray(MAP_PAGE)
        for start, stop in data_ranges(self._fd, MAP_PAGE, self._length(self.header.size)):
            # A filesystem whose own blocks are larger may report ranges that begin within a page.
            for offset in range(start - start % MAP_PAGE, stop, MAP_PAGE):
                got = read_wholly(self._calls, self._fd, body, offset)
                page = offset // MAP_PAGE - 1
                yield page, decode_page(page, bytes(body[:got]))

    def write(self, pages: Iterable[tuple[int, bytes]]) -> None:
        """Write pages, each with its states; `sync` makes them durable. Raises NoSpace and OSError."""
        for page, states in pages:
            write_wholly(self._calls, self._fd, encode_page(page, states), page_offset(page), self._origin)

    def sync(self) -> None:
        """Make what was written durable. Raises OSError."""
        self._calls.fdatasync(self._fd)

    def grow(self, size: int) -> None:
        """Make this the map of a disk of `size` bytes, durably; the new blocks are `base`. Raises NoSpace, InvalidInput and OSError."""
        header = self.header._replace(size=size)
        set_length(self._calls, self._fd, self._length(size), self._origin)
        self.sync()  # the header must not promise pages that a power loss takes away
        write_wholly(self._calls, self._fd, encode_map_header(header), 0, self._origin)
        self.sync()
        self.header = header

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def set_length(calls: Calls, fd: int, length: int, origin: str) -> None:
    """Lengthen a file to `length` bytes by a hole; a longer file stays as it is.

    Raises NoSpace, InvalidInput if the filesystem has no files that long, and OSError.
    """
    if os.fstat(fd).st_size >= length:
        return
    try:
        calls.ftruncate(fd, length)
    except OSError as error:
        if error.errno in FULL:
            raise NoSpace(f"{origin}: the filesystem of the state directory is full; free space there") from error
        if error.errno == errno.EFBIG:
            raise InvalidInput(
                f"{origin}: the filesystem of the state directory has no files of {length} bytes; use a smaller disk or XFS"
            ) from error
        raise
