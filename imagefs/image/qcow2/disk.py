"""This module reads a qcow2 image of a local store in place: data where the file has it, only compressed clusters from a cache."""

import itertools
from collections.abc import Iterator

from imagefs.extents import Extents
from imagefs.image.qcow2.image import Qcow2Image
from imagefs.image.qcow2.tables import Extent, Kind
from imagefs.source import Source
from imagefs.units import MIB, align_down

_STEP = 4 * MIB
"""Guest bytes located at a time, so that the memory of a walk stays bounded whatever is asked for."""


class Qcow2Disk(Source):
    """The guest's bytes of one image.

    Uncompressed data is read from `stored` at its host offset and never copied elsewhere; compressed clusters are read from
    `decoded`, a cache in guest address space with a `Qcow2Filler`, which is left empty where data is not compressed.
    """

    def __init__(self, image: Qcow2Image, stored: Source, decoded: Source) -> None:
        """Take the open image, its stored bytes (a local file) and its decoded guest bytes (a cache)."""
        self.decoded = decoded
        self._image = image
        self._stored = stored
        self._size = image.size

    @property
    def size(self) -> int:
        """Bytes in the virtual disk."""
        return self._size

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return the bytes if tables and data are at hand, else None. See `Source`."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        if length > _STEP:
            return None
        host_offset = self._image.data_offset(offset, length)
        if host_offset >= 0:
            return self._stored.read_nowait(host_offset, length)
        extents = self._image.extents_nowait(offset, length)
        if extents is None:
            return None
        if len(extents) == 1:
            return self._part_nowait(extents[0])
        parts = []
        for extent in _joined(extents):
            part = self._part_nowait(extent)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return the bytes. See `Source`."""
        end = min(offset + length, self._size)
        parts: list[bytes | bytearray] = []
        while offset < end:
            stop = min(end, align_down(offset, _STEP) + _STEP)
            extents = await self._image.extents(offset, stop - offset)
            parts += [await self._part(extent) for extent in _joined(extents)]
            offset = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says, by the L1 and L2 tables; compressed clusters are not inflated."""
        return await self._image.nonzero(offset, length)

    def _part_nowait(self, extent: Extent) -> bytes | bytearray | None:
        """Return an extent's bytes, or None if they must be waited for; a REFUSED extent is left to `read`."""
        if extent.kind is Kind.DATA:
            body = self._stored.read_nowait(extent.host_offset, extent.host_length)
            return body if body is None else _pad(body, extent)
        if extent.kind is Kind.ZERO:
            return bytes(extent.length)
        if extent.kind is Kind.COMPRESSED:
            return self.decoded.read_nowait(extent.guest_offset, extent.length)
        return None

    async def _part(self, extent: Extent) -> bytes | bytearray:
        if extent.kind is Kind.DATA:
            return _pad(await self._stored.read(extent.host_offset, extent.host_length), extent)
        if extent.kind is Kind.ZERO:
            return bytes(extent.length)
        if extent.kind is Kind.COMPRESSED:
            return await self.decoded.read(extent.guest_offset, extent.length)
        raise self._image.refusal(extent)


def _joined(extents: list[Extent]) -> Iterator[Extent]:
    """Yield the extents with each run of compressed clusters as one, since it takes one read of the cache."""
    for is_compressed, run in itertools.groupby(extents, key=lambda extent: extent.kind is Kind.COMPRESSED):
        if is_compressed:
            clusters = list(run)
            yield clusters[0]._replace(length=sum(extent.length for extent in clusters))
        else:
            yield from run


def _pad(body: bytes | bytearray, extent: Extent) -> bytes | bytearray:
    """Return a data extent's bytes with the zeros behind the file's end."""
    missing = extent.length - extent.host_length
    return body + bytes(missing) if missing else body
