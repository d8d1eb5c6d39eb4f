"""This module is an open qcow2 image: its header and its tables, which are read through a source of the stored bytes.

"Where is it" is answered here; "fetch it" is for `filler` (compressed clusters, remote stores) and `disk` (local files).
"""

from typing import Final

import trio

from imagefs.errors import ImageRefused
from imagefs.extents import Extents, joined
from imagefs.image.qcow2.header import HEADER_BYTES, Qcow2Header, parse_header
from imagefs.image.qcow2.tables import TABLE_BUDGET, Extent, Kind, TablePage, Tables
from imagefs.source import Source
from imagefs.units import align_down

_WALK_CLUSTERS: Final = 1024
"""Clusters looked at without letting others run: half a millisecond."""


async def open_image(stored: Source, name: str, budget: int = TABLE_BUDGET) -> "Qcow2Image":
    """Read the header of the image whose stored bytes are `stored` and return the image; `name` is for messages.

    The caller has inspected the image (`image.inspect`). `budget` bounds the tables kept in memory, in bytes. Raises
    ImageRefused, and a StoreError if the bytes cannot be had. Safe to cancel.
    """
    head = bytes(await stored.read(0, HEADER_BYTES))
    return Qcow2Image(parse_header(head, stored.size, name), stored, name, budget)


class Qcow2Image:
    """A qcow2 image's geometry. Used from the event loop only."""

    def __init__(self, header: Qcow2Header, stored: Source, name: str, budget: int = TABLE_BUDGET) -> None:
        """Take the accepted header and the stored bytes, which the tables are read from; see `open_image`."""
        self.header = header
        self.name = name
        self.stored_size = stored.size
        self._stored = stored
        self._tables = Tables(header, stored.size, budget)

    @property
    def size(self) -> int:
        """Bytes in the virtual disk."""
        return self.header.size

    def data_offset(self, guest_offset: int, length: int) -> int:
        """Return where a range within the disk lies in the stored bytes if it is one run of data, -1 if that takes `extents`."""
        return self._tables.data_offset(guest_offset, length)

    def extents_nowait(self, guest_offset: int, length: int) -> list[Extent] | None:
        """Return the extents of a range within the disk (some MiB at most), or None if a table page must be waited for."""
        extents, missing = self._tables.locate(guest_offset, length)
        while missing is not None:
            body = self._stored.read_nowait(*missing)
            if body is None:
                return None
            self._add(missing, body)
            more, missing = self._continue(extents, guest_offset, length)
            extents += more
        return extents

    async def extents(self, guest_offset: int, length: int) -> list[Extent]:
        """Return the extents of a range within the disk (some MiB at most), in order and without gaps, fetching table pages.

        Damaged entries are extents of kind REFUSED, so that the clusters around them stay readable. Raises a StoreError if a
        page cannot be had. Safe to cancel.
        """
        extents, missing = self._tables.locate(guest_offset, length)
        while missing is not None:
            # Another task may read the same page meanwhile; adding a page twice is harmless. What was located before the
            # await stays true: the stored bytes never change.
            self._add(missing, await self._stored.read(*missing))
            more, missing = self._continue(extents, guest_offset, length)
            extents += more
        return extents

    async def nonzero(self, guest_offset: int, length: int) -> Extents:
        """Return what of a range may hold other than zeros: clusters with data, and those whose tables are damaged. Of any length.

        See `extents` for what it fetches and raises.
        """
        found: Extents = []
        stop = min(guest_offset + length, self.size)
        step = _WALK_CLUSTERS << self.header.cluster_bits
        while guest_offset < stop:
            end = min(stop, align_down(guest_offset, step) + step)
            located = await self.extents(guest_offset, end - guest_offset)
            found += [(one.guest_offset, one.guest_offset + one.length) for one in located if one.kind is not Kind.ZERO]
            await trio.lowlevel.checkpoint()  # with the tables at hand nothing else lets others run
            guest_offset = end
        return joined(found)

    def refusal(self, extent: Extent) -> ImageRefused:
        """Return the error for a read of an extent of kind REFUSED."""
        return self.damaged(extent.guest_offset, extent.reason)

    def damaged(self, guest_offset: int, reason: str) -> ImageRefused:
        """Return the error for a read at `guest_offset` bytes, where `reason` makes the image unreadable."""
        return ImageRefused(f"image {self.name}: damaged at guest offset {guest_offset}: {reason}; run qemu-img check, or upload it again")

    def _continue(self, extents: list[Extent], guest_offset: int, length: int) -> tuple[list[Extent], TablePage | None]:
        done = extents[-1].guest_offset + extents[-1].length if extents else guest_offset
        return self._tables.locate(done, guest_offset + length - done)

    def _add(self, page: TablePage, body: bytes | bytearray) -> None:
        if len(body) != page.length:
            raise ImageRefused(f"image {self.name}: {len(body)} of {page.length} bytes of a table at {page.host_offset}: it was cut; upload it again")
        self._tables.add(page, body)
