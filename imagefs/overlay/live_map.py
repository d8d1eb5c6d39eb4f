"""This module is the live map of a disk: the states of its blocks as reads and writes see them.

One byte for each block in a sparse file, read by pread and written by pwrite: both are the page cache, so that what is marked outlives the
daemon. Never through a mapping, though that would spare each read of a guest a microsecond: a page that the host cannot read, and on tmpfs
a hole when it is full, would end the process (SIGBUS), and the next one, and so all guests' disks. So it is an error of this disk alone.

The file is never synced. It is trusted wholly while the kernel that holds its pages runs (`boot_id`), and made anew from the durable map
otherwise, also when it is missing or its header is torn: then it is at best a shadow of what the durable map says.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from imagefs.errors import StateDamaged
from imagefs.holes import data_ranges
from imagefs.overlay.block_map import (
    DAMAGED,
    FLAGS_OFFSET,
    MAP_PAGE,
    PAGE_BLOCKS,
    STATES_OFFSET,
    LiveHeader,
    MapHeader,
    block_count,
    decode_live_header,
    encode_live_header,
    page_count,
)
from imagefs.overlay.calls import Calls, read_wholly, write_wholly
from imagefs.overlay.durable_map import set_length

log = logging.getLogger(__name__)

_UNREADABLE = bytes((DAMAGED,)) * PAGE_BLOCKS
_ALL_BASE = bytes(PAGE_BLOCKS)
_SET = b"\1"

Pages = Callable[[], Iterable[tuple[int, bytes | None]]]


class LiveMap:
    """The open live map of a disk of `size` bytes.

    Invariants: a page of the durable map that says other than the live one has its flag set in the file; `pending` has a page's byte set if
    its flag must outlive the flush that runs now, so it is never set where the file's is not.
    """

    def __init__(self, path: Path, header: MapHeader, pages: Pages, calls: Calls) -> None:
        """Open the live map of the disk with `header`; make it anew from the durable map's `pages()` if it is of another boot.

        Raises StateDamaged if it is of this boot and does not fit the disk; NoSpace and OSError.
        """
        self._origin = str(path)
        self._calls = calls
        self._boot_id = calls.boot_id()
        self._uuid = header.disk_uuid
        self._pread = calls.pread
        self._blocks = block_count(header.size)
        trusted = self._open(path, header)
        self._fd = self._make(path, header, pages) if trusted is None else trusted
        try:
            flags = bytearray(page_count(header.size))
            read_wholly(calls, self._fd, flags, FLAGS_OFFSET)
            self.pending = flags
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, path: Path, header: MapHeader) -> int | None:
        """Return the descriptor of the file if it is to be trusted, else None."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(os.close, fd)
            page = bytearray(MAP_PAGE)
            got = read_wholly(self._calls, fd, page, 0)
            try:
                found = decode_live_header(bytes(page[:got]), self._origin)
            except StateDamaged:
                return None
            if found.boot_id != self._boot_id:
                return None
            if found.disk_uuid != header.disk_uuid or found.size < header.size or os.fstat(fd).st_size < self._length(header.size):
                raise StateDamaged(
                    f"{path}: this live map belongs to disk {found.disk_uuid} of {found.size} bytes, not to {header.disk_uuid} of {header.size}: "
                    "files of two disks or of two points in time are mixed; restore them together"
                )
            on_failure.pop_all()
        return fd

    def _make(self, path: Path, header: MapHeader, pages: Pages) -> int:
        """Replace the file by one made from the durable map, and return its descriptor. Until it is whole it has another name."""
        temporary = path.with_name(f"{path.name}.new")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            set_length(self._calls, fd, self._length(header.size), self._origin)
            blocks = block_count(header.size)
            for page, states in pages():
                if states != _ALL_BASE:
                    first = page * PAGE_BLOCKS
                    write_wholly(self._calls, fd, self._readable(page, states)[: blocks - first], STATES_OFFSET + first, self._origin)
            write_wholly(self._calls, fd, encode_live_header(LiveHeader(header.size, header.disk_uuid, self._boot_id)), 0, self._origin)
            temporary.rename(path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return fd

    def _readable(self, page: int, states: bytes | None) -> bytes:
        if states is not None:
            return states
        log.warning("a page of the durable map is damaged, its blocks cannot be read live_map=%s page=%d", self._origin, page)
        return _UNREADABLE

    @staticmethod
    def _length(size: int) -> int:
        return STATES_OFFSET + block_count(size)

    def state(self, block: int) -> int:
        """Return the state of a block of the disk. Raises OSError, StateDamaged."""
        found = self._pread(self._fd, 1, STATES_OFFSET + block)
        return found[0] if found else self._cut_short(block)

    def states(self, first: int, stop: int) -> bytes:
        """Return the states of the blocks [first, stop), as far as the disk has them. Raises OSError, StateDamaged."""
        length = min(stop, self._blocks) - first
        found = self._pread(self._fd, max(0, length), STATES_OFFSET + first)
        return found if len(found) >= length else self._reread(first, length)

    def _reread(self, first: int, length: int) -> bytes:
        found = bytearray(length)
        if (got := read_wholly(self._calls, self._fd, found, STATES_OFFSET + first)) != length:
            self._cut_short(first + got)
        return bytes(found)

    def _cut_short(self, block: int) -> NoReturn:
        raise StateDamaged(f"{self._origin}: this live map was cut short, and says nothing of block {block}: restore the disk from a backup")

    def mark(self, first: int, states: bytes) -> None:
        """Set the states of the blocks from `first` on, whose bytes are written already. Returns with them in the page cache.

        Raises NoSpace and OSError; some of the blocks may be marked then.
        """
        # The flags first: a mark without its flag would never reach the durable map. pwrite even if the byte in memory is not set only
        # because a flush runs: that costs a microsecond once a flush.
        for page in range(first // PAGE_BLOCKS, (first + len(states) - 1) // PAGE_BLOCKS + 1):
            if not self.pending[page]:
                write_wholly(self._calls, self._fd, _SET, FLAGS_OFFSET + page, self._origin)
                self.pending[page] = 1
        write_wholly(self._calls, self._fd, states, STATES_OFFSET + first, self._origin)

    def behind(self) -> list[int]:
        """Return the pages that the durable map has to be told of, in order."""
        found = []
        page = self.pending.find(1)
        while page >= 0:
            found.append(page)
            page = self.pending.find(1, page + 1)
        return found

    def take(self, pages: list[int]) -> list[tuple[int, bytes]]:
        """Return (page, its states now) for each of `pages`; what is marked from now on sets them pending again. `put_back` or `told` must follow."""
        taken = [(page, self.states(page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS)) for page in pages]
        for page in pages:
            self.pending[page] = 0
        return taken

    def put_back(self, pages: list[int]) -> None:
        """Undo `take`: the durable map was not told."""
        for page in pages:
            self.pending[page] = 1

    def told(self, pages: list[int]) -> None:
        """Note that the durable map has what `take` returned for `pages`, durably."""
        if pages:
            first, last = pages[0], pages[-1]
            # A flag that stays set costs one page at the next flush after a restart, no more: an error here is none.
            with contextlib.suppress(OSError):
                self._calls.pwrite(self._fd, self.pending[first : last + 1], FLAGS_OFFSET + first)

    def touched_pages(self, first_block: int = 0, stop_block: int | None = None) -> list[int]:
        """Return the pages of the durable map within whose blocks something was ever marked, and perhaps some more, in order.

        Only those with blocks of [first_block, stop_block); all by default. Blocks for some seeks in the file.
        """
        found: list[int] = []
        end = self._blocks if stop_block is None else stop_block
        for start, stop in data_ranges(self._fd, STATES_OFFSET + first_block, STATES_OFFSET + end):
            first, last = (start - STATES_OFFSET) // PAGE_BLOCKS, (stop - STATES_OFFSET - 1) // PAGE_BLOCKS
            found.extend(range(max(first, found[-1] + 1) if found else first, last + 1))
        return found

    def grow(self, size: int) -> None:
        """Make room for a disk of `size` bytes; the new blocks are `base`. To be called before the durable map grows. Raises NoSpace and OSError."""
        set_length(self._calls, self._fd, self._length(size), self._origin)
        write_wholly(self._calls, self._fd, encode_live_header(LiveHeader(size, self._uuid, self._boot_id)), 0, self._origin)
        self._blocks = block_count(size)
        self.pending.extend(bytes(max(0, page_count(size) - len(self.pending))))  # longer already after a grow that failed

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
