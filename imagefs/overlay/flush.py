"""This module is the order in which an overlay becomes durable: the data first, and only then the map that says there is data.

So a block that was never flushed reads, after a power loss, as it was before (its old state in the durable map) or as it was written
(its state was `data` before), but never as the zeros of a hole that a map promised to be data.

Where a layer lies above another, the lower one is flushed between taking the upper's states and telling them: what the upper's durable map
is told to be the lower's (a block that was merged) is durable there already.
"""

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import trio

from imagefs.aio.sync import sync
from imagefs.overlay.block_map import data_file_size
from imagefs.overlay.durable_map import set_length
from imagefs.overlay.files import DiskFiles
from imagefs.threads import Lane, run

BATCH: Final = 1024
"""Pages of the durable map that one round of a flush tells: their states take 16 MB while it runs, and stand for 62.5 GiB of the disk."""


class Flusher:
    """Flushes one disk, one flush at a time.

    Invariants: what goes into the durable map in a round was taken from the live map before that round's flush of what lies below, and its
    sync of the data, began; a round that failed leaves its pages pending; once a sync has failed, every later flush fails; `stale` is True
    if the data file or the live map was changed since the last flush that did not fail began, or nobody knows.
    """

    def __init__(self, files: DiskFiles, flush_below: Callable[[], Awaitable[None]]) -> None:
        """Flush the disk whose files these are; they stay the caller's. `flush_below` does so for the layer that is the disk's base."""
        self.stale = True
        self._flush_below = flush_below
        self._origin = files.origin
        self._data_fd = files.data_fd
        self._durable = files.durable
        self._live = files.live
        self._calls = files.calls
        self._lock = trio.Lock()
        self._begun = 0
        self._ended_well = 0
        self._failed = False

    async def flush(self) -> None:
        """Make durable what was written before this call, here and below. Callers that wait for a running flush share the next one.

        Nothing is synced if nothing was written since the last flush.

        On cancellation a sync that has begun is waited for. Raises NoSpace if the durable map finds no room (flush again once there is
        some) and OSError. After a failed sync the kernel may have dropped what it could not write and taken it for written, so a later
        sync that succeeds proves nothing: from then on every flush raises OSError (EIO), until the disk is opened again.
        """
        before = self._begun
        async with self._turn():
            self._check_usable()
            if self._ended_well > before:  # that one began after this call: it covers all this call has to
                return
            self._begun += 1
            number = self._begun
            if self.stale:
                await self._flush()
            else:
                await self._flush_below()
            self._ended_well = number

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the lock. One that nobody holds is had at once: trio would else let others have their turn first, a tenth of a flush's time."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    async def _flush(self) -> None:
        self.stale = False  # first of all: a write that comes from now on sets it again
        try:
            for pages in _rounds(self._live.behind()):
                await self._round(pages)
        except BaseException:
            self.stale = True
            raise

    async def grow(self, size: int) -> None:
        """Make the data file and the durable map those of a disk of `size` bytes. No flush runs meanwhile. See OverlayDisk.grow."""
        async with self._lock:
            self._check_usable()
            await run(Lane.DISK, self._grow, size)

    def _check_usable(self) -> None:
        if self._failed:
            raise OSError(
                errno.EIO, f"{self._origin}: an earlier flush failed, and what was written since the last good one may be lost; check the host's disk"
            )

    async def _round(self, pages: list[int]) -> None:
        # Taken before anything is made durable: a block that is written, or merged into the layer below, meanwhile is not in `taken`.
        taken = self._live.take(pages)
        try:
            await self._flush_below()
            with self._sync_fails_for_good():
                await sync(self._data_fd, self._calls.fdatasync)
            if taken:  # where only blocks were written that hold data already, there is nothing to tell
                await run(Lane.DISK, self._tell, taken)
        except BaseException:
            self._live.put_back(pages)
            raise
        self._live.told(pages)

    def _tell(self, taken: list[tuple[int, bytes]]) -> None:
        """Write the map and sync it; the data is durable. Runs in a thread."""
        self._durable.write(taken)
        with self._sync_fails_for_good():
            self._durable.sync()

    def _grow(self, size: int) -> None:
        """Lengthen both files, the data first. Runs in a thread."""
        set_length(self._calls, self._data_fd, data_file_size(size), f"{self._origin}.data")
        # These sync as well, and an error of what was written before is told only once, to whoever syncs next.
        with self._sync_fails_for_good():
            self._calls.fdatasync(self._data_fd)
            self._durable.grow(size)

    @contextlib.contextmanager
    def _sync_fails_for_good(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._failed = True
            raise


def _rounds(pages: list[int]) -> Iterator[list[int]]:
    """Yield `pages` in batches; once nothing, if there are none: the data must be synced all the same."""
    if not pages:
        yield []
    for first in range(0, len(pages), BATCH):
        yield pages[first : first + BATCH]
