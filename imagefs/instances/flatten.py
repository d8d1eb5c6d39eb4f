"""This module flattens a disk: what its layers and its image show becomes one image, without the zeros, in a spool.

Reading goes on while earlier pieces are compressed and written, so that it takes as long as the slowest of the three; pieces are few, so that
it takes little memory and leaves guests their share of threads and of the store.
"""

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final, Literal, Protocol

import trio

from imagefs.errors import StoreUnavailable
from imagefs.extents import widened
from imagefs.image.qcow2 import writer
from imagefs.image.qcow2.deflate import deflate
from imagefs.image.qcow2.writer import CLUSTER, Qcow2Writer
from imagefs.instances.spool import Spool
from imagefs.source import Source
from imagefs.threads import Lane, run
from imagefs.units import GIB, MIB, align_down

DiskFormat = Literal["qcow2", "raw"]
Clusters = list[tuple[int, bytes | bytearray]]
"""Numbers of clusters that are not zeros, and what is to be stored of each."""

PIECE: Final = MIB
"""Bytes read at once: the most that one fill of the cache brings."""
IN_FLIGHT: Final = 4
"""Pieces that are read, compressed or waiting for their turn: enough that a store that is 30 ms away gives 130 MB/s, in 8 MiB of memory."""
_ZEROS: Final = bytes(CLUSTER)


class Sink(Protocol):
    """What makes an image of clusters that come in order."""

    def pack(self, first: int, body: bytes | bytearray) -> Clusters:
        """Return what is to be stored of the clusters in `body`, of which `first` is the first. Runs in any thread."""
        ...

    def put(self, clusters: Clusters) -> None:
        """Take the next clusters. Blocks. Raises NoSpace, ImagefsError."""
        ...

    def finish(self) -> int:
        """Write what is left and return the bytes of the image. Blocks. Raises NoSpace, ImagefsError."""
        ...


def virtual_size(size: int, disk_format: DiskFormat) -> int:
    """Return the bytes of the disk in the image that `flatten` makes of a disk of `size` bytes: in a qcow2 it has whole sectors of 512 bytes."""
    return writer.virtual_size(size) if disk_format == "qcow2" else size


async def flatten(disk: Source, disk_format: DiskFormat, spool: Spool, progress: Callable[[int, int], None]) -> int:
    """Write what `disk` shows into the empty `spool`, as a compressed qcow2 without backing file or as raw bytes; return the image's bytes.

    The disk must not change meanwhile. Only its extents are read. `progress` is called on the event loop with the bytes of the disk that are
    done, those that are zeros included, and with all of them; what it raises ends this. Raises what the disk raises, InvalidInput for a
    disk that is too large for qcow2, NoSpace, ImagefsError. Safe to cancel: no thread is at work in the spool after that.
    """
    sink: Sink = _Qcow2(spool, disk.size) if disk_format == "qcow2" else _Raw(spool, disk.size)
    failure: list[Exception] = []
    pieces: deque[_Piece] = deque()

    async def store() -> None:
        piece = pieces.popleft()
        await run(Lane.DISK, sink.put, await piece.packed())
        progress(min(piece.stop, disk.size), disk.size)

    async with trio.open_nursery() as nursery:
        try:
            async with contextlib.aclosing(_ranges(disk)) as ranges:
                async for start, stop in ranges:
                    pieces.append(_Piece(start, stop))
                    nursery.start_soon(pieces[-1].make, disk, sink)
                    if len(pieces) == IN_FLIGHT:
                        await store()
            while pieces:
                await store()
        except Exception as error:  # raised outside of the nursery, which would put it into a group
            failure.append(error)
            nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
    size = await run(Lane.DISK, sink.finish)
    progress(disk.size, disk.size)
    return size


class _Piece:
    """Some clusters on their way from the disk. What goes wrong on it is raised when its turn comes."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._made = trio.Event()
        self._clusters: Clusters = []
        self._error: Exception | None = None

    async def make(self, disk: Source, sink: Sink) -> None:
        """Read and pack it."""
        try:
            wanted = min(self.stop, disk.size) - self.start
            body = await disk.read(self.start, wanted)
            if len(body) != wanted:
                raise StoreUnavailable(f"the disk gave {len(body)} of {wanted} bytes at offset {self.start}")
            self._clusters = await run(Lane.PACK, sink.pack, self.start // CLUSTER, body)
        except Exception as error:
            self._error = error
        self._made.set()

    async def packed(self) -> Clusters:
        """Return what is to be stored, once it is made. Raises what went wrong."""
        await self._made.wait()
        if self._error is not None:
            raise self._error
        return self._clusters


async def _ranges(disk: Source) -> AsyncGenerator[tuple[int, int], None]:
    """Yield the pieces of the disk that may hold other than zeros, in order, as (start, stop): whole clusters within one PIECE."""
    for first in range(0, disk.size, GIB):
        for start, stop in widened(await disk.extents(first, min(GIB, disk.size - first)), CLUSTER):
            offset = start
            while offset < stop:
                end = min(stop, align_down(offset, PIECE) + PIECE)
                yield offset, end
                offset = end


class _Qcow2:
    """A Sink that writes a compressed qcow2."""

    def __init__(self, spool: Spool, size: int) -> None:
        self._writer = Qcow2Writer(spool, size)

    def pack(self, first: int, body: bytes | bytearray) -> Clusters:
        """As Sink says."""
        return [(number, deflate(cluster) or cluster) for number, cluster in _nonzero(first, body)]

    def put(self, clusters: Clusters) -> None:
        """As Sink says."""
        for number, cluster in clusters:
            self._writer.put(number, cluster)

    def finish(self) -> int:
        """As Sink says."""
        return self._writer.finish()


class _Raw:
    """A Sink that writes the bytes as they are, and nothing for zeros."""

    def __init__(self, spool: Spool, size: int) -> None:
        self._spool = spool
        self._size = size
        spool.extend(size)

    def pack(self, first: int, body: bytes | bytearray) -> Clusters:
        """As Sink says."""
        return list(_nonzero(first, body))

    def put(self, clusters: Clusters) -> None:
        """As Sink says."""
        for number, cluster in clusters:
            self._spool.write_at(number * CLUSTER, cluster[: self._size - number * CLUSTER])

    def finish(self) -> int:
        """As Sink says."""
        return self._size


def _nonzero(first: int, body: bytes | bytearray) -> Clusters:
    """Return the clusters of `body` that are not zeros; one that is short, at the disk's end, is filled up with zeros."""
    clusters: Clusters = []
    for start in range(0, len(body), CLUSTER):
        cluster = body[start : start + CLUSTER]  # a copy, which is compared at once; a view would be compared byte by byte
        if cluster != _ZEROS[: len(cluster)]:
            clusters.append((first + start // CLUSTER, cluster.ljust(CLUSTER, b"\0")))
    return clusters
