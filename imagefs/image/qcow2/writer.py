"""This module writes a qcow2 image from its first cluster to its last: version 3, 64 KiB clusters, 16-bit refcounts, no backing file.

Whole host clusters are written, one after the other, but for the header and the refcount blocks. Clusters of zeros are left out, and so is
the L2 table of 512 MiB of them. Refcount block n counts host clusters n * 32768 and on, and is the first of them itself (block 0 is behind the
header), so that it can be written as soon as the next one begins, and the memory that this takes does not grow with the image.
"""

import struct
import sys
from array import array
from typing import Final, Protocol

from imagefs.errors import InvalidInput
from imagefs.image.qcow2.header import MAGIC, MAX_VIRTUAL_SIZE
from imagefs.units import KIB, align_up, format_size

CLUSTER: Final = 64 * KIB
"""Bytes in a cluster: QEMU's default, and imagefs's unit."""

_CLUSTER_BITS: Final = 16
_TABLE_BITS: Final = _CLUSTER_BITS - 3
_TABLE_ENTRIES: Final = 1 << _TABLE_BITS
"""Entries of an L2 table, which is one cluster of 64-bit numbers: 512 MiB of the disk."""
_GROUP: Final = CLUSTER // 2
"""Host clusters that one refcount block counts, which is one cluster of 16-bit numbers: 2 GiB of the file. The smallest stream that deflate
makes of a cluster has 64 bytes, so that no count comes near 65535."""
_SECTOR: Final = 512
_SECTORS_SHIFT: Final = 62 - (_CLUSTER_BITS - 8)
_COPIED: Final = 1 << 63
_COMPRESSED: Final = 1 << 62
_REFCOUNT_ORDER: Final = 4
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")


class Output(Protocol):
    """Where an image is written to."""

    def write_at(self, offset: int, body: bytes | bytearray | memoryview) -> None:
        """Write all of `body` at `offset`, both of them multiples of a cluster. Blocks. Raises what says that it cannot."""
        ...


def virtual_size(size: int) -> int:
    """Return the bytes of the disk in an image that a disk of `size` bytes is written to: QEMU has disks of whole sectors of 512 bytes only."""
    return align_up(size, _SECTOR)


class Qcow2Writer:
    """Writes one image. Used by one thread at a time.

    Invariants: host clusters below `_next` are in use or given up for good; the counts of groups before the present one are written; of an
    image without `finish` nothing can be used. Memory: an L2 table, a refcount block, a host cluster, and 16 bytes or so for each
    512 MiB of the disk that have data.
    """

    def __init__(self, output: Output, size: int) -> None:
        """Begin an image of a disk of `size` bytes; nothing is written yet. Raises InvalidInput for a disk that is too large."""
        if size > MAX_VIRTUAL_SIZE:
            raise InvalidInput(f"a disk of {size} bytes cannot be written as qcow2: {format_size(MAX_VIRTUAL_SIZE)} are the most")
        self._output = output
        self._size = virtual_size(size)
        self._next = 2  # behind the header and the first refcount block
        self._counts = array("H", bytes(CLUSTER))
        self._counts[0] = self._counts[1] = 1
        self._l1: dict[int, int] = {}
        self._table = array("Q", bytes(CLUSTER))
        self._table_number = -1
        self._last = -1
        self._open_cluster = 0  # the host cluster that compressed ones are being put into; 0: none
        self._open_body = bytearray()

    def put(self, cluster: int, body: bytes | bytearray | memoryview) -> None:
        """Take guest cluster number `cluster`: its CLUSTER bytes as they are, or fewer: what `deflate` made of them.

        Clusters come in rising order; those that never come are zeros. Of the last one of the disk what is behind its end is zeros. Raises what
        the output raises, and nothing can be put after that.
        """
        if not self._last < cluster < -(-self._size // CLUSTER) or not 0 < len(body) <= CLUSTER:
            raise ValueError(f"cluster {cluster} with {len(body)} bytes behind cluster {self._last} of a disk of {self._size} bytes")
        self._last = cluster
        table, slot = divmod(cluster, _TABLE_ENTRIES)
        if table != self._table_number:
            self._end_table()
            self._table_number = table
        self._table[slot] = self._put_plain(body) if len(body) == CLUSTER else self._put_packed(body)

    def finish(self) -> int:
        """Write the tables and the header and return the bytes of the whole file. Call it once, last. Raises what the output raises."""
        self._end_table()
        self._end_open()
        l1_size = -(-self._size // (CLUSTER * _TABLE_ENTRIES))
        l1 = array("Q", bytes(align_up(l1_size * 8, CLUSTER)))
        for number, offset in self._l1.items():
            l1[number] = offset | _COPIED
        l1_offset = self._put_table(l1)
        # One entry for each group that there is when the table itself has its place.
        blocks = array("Q", bytes(align_up((self._next // _GROUP + 2) * 8, CLUSTER)))
        offset = self._allocate(len(blocks) * 8 // CLUSTER)
        for group in range((self._next - 1) // _GROUP + 1):
            blocks[group] = _block_place(group) * CLUSTER
        self._output.write_at(offset, _big_endian(blocks))
        self._end_counts()
        header = _HEADER.pack(
            *(MAGIC, 3, 0, 0, _CLUSTER_BITS, self._size, 0, l1_size, l1_offset, offset, len(blocks) * 8 // CLUSTER, 0, 0),
            *(0, 0, 0, _REFCOUNT_ORDER, _HEADER.size),
        )
        self._output.write_at(0, header.ljust(CLUSTER, b"\0"))
        return self._next * CLUSTER

    def _put_plain(self, body: bytes | bytearray | memoryview) -> int:
        """Write a cluster as it is and return its L2 entry."""
        offset = self._allocate(1)
        self._output.write_at(offset, body)
        return offset | _COPIED

    def _put_packed(self, body: bytes | bytearray | memoryview) -> int:
        """Put a compressed cluster behind the one before, into the next host cluster too if that is adjacent, and return its L2 entry."""
        room = CLUSTER - len(self._open_body)
        if not self._open_cluster or (len(body) > room and (self._next != self._open_cluster + 1 or self._next % _GROUP == 0)):
            self._end_open()
            self._begin_open()
            room = CLUSTER
        offset = self._open_cluster * CLUSTER + len(self._open_body)
        self._counts[self._open_cluster % _GROUP] += 1
        self._open_body += body[:room]
        if len(body) > room:
            self._end_open()
            self._begin_open()
            self._counts[self._open_cluster % _GROUP] += 1
            self._open_body += body[room:]
        if len(self._open_body) == CLUSTER:
            self._end_open()
        sectors = (offset + len(body) - 1) // _SECTOR - offset // _SECTOR
        return offset | sectors << _SECTORS_SHIFT | _COMPRESSED

    def _begin_open(self) -> None:
        self._open_cluster = self._allocate(1) // CLUSTER
        self._counts[self._open_cluster % _GROUP] = 0  # each compressed cluster in it will count

    def _end_open(self) -> None:
        if self._open_cluster:
            self._output.write_at(self._open_cluster * CLUSTER, self._open_body.ljust(CLUSTER, b"\0"))
            self._open_cluster, self._open_body = 0, bytearray()

    def _end_table(self) -> None:
        """Write the present L2 table; the next one begins empty."""
        if self._table_number >= 0:
            self._l1[self._table_number] = self._put_table(self._table)
            self._table = array("Q", bytes(CLUSTER))
            self._table_number = -1

    def _put_table(self, table: "array[int]") -> int:
        """Write a table of whole clusters and return where it is."""
        offset = self._allocate(len(table) * 8 // CLUSTER)
        if table:
            self._output.write_at(offset, _big_endian(table))
        return offset

    def _allocate(self, count: int) -> int:
        """Return the offset of `count` host clusters in a row, each counted once; fewer than a group has."""
        if self._next % _GROUP + count > _GROUP:
            self._next = align_up(self._next, _GROUP)  # the rest of the group stays free
        if self._next % _GROUP == 0:
            # What is open may be of the group before: its counts are complete, since nothing can reach over the block from there.
            self._end_open()
            self._end_counts()
            self._counts = array("H", bytes(CLUSTER))
            self._counts[0] = 1
            self._next += 1
        first, self._next = self._next, self._next + count
        for cluster in range(first, first + count):
            self._counts[cluster % _GROUP] = 1
        return first * CLUSTER

    def _end_counts(self) -> None:
        """Write the refcount block of the group of the last cluster in use."""
        self._output.write_at(_block_place((self._next - 1) // _GROUP) * CLUSTER, _big_endian(self._counts))


def _block_place(group: int) -> int:
    """Return the host cluster of a group's refcount block."""
    return group * _GROUP if group else 1


def _big_endian(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":
        return numbers.tobytes()
    swapped = numbers[:]
    swapped.byteswap()
    return swapped.tobytes()
