"""This module proves a complete cache of decoded bytes by the hash of the stored bytes, in one pass over the object in the store.

    the image's tables say where each cluster lies -> the object passes by in order: it is hashed, the tables that were used are compared with
    what stands there, each cluster is decoded once more and compared with what is cached -> the hash has to be the one that the record names

So nothing has to be believed but the hash: had a table, a cluster or the decoder gone wrong when the cache was filled, or anything on the
disk since, it shows. The object is read a second time for that; to keep what was fetched until then would take as much disk again, and a
digest noted at each fetch would say nothing about what was decoded from it.

In memory are 16 MiB of the object in flight, the bytes of one cluster and of what passes by, and the places of some thousand clusters: the
tables are walked again for each stretch of the object that has more.
"""

import hashlib
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.geometry import unit_span
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import DATA, ZERO
from imagefs.cache.whole import prove_all
from imagefs.errors import ImageRefused, WrongBytes
from imagefs.extents import Extents
from imagefs.hydration.image import HydratedImage
from imagefs.hydration.pace import Pace
from imagefs.hydration.reading import STEP, Unsettled, read_politely
from imagefs.hydration.stream import stream
from imagefs.hydration.whole_hash import WholeHash
from imagefs.hydration.window import Window
from imagefs.image.qcow2.image import Qcow2Image, open_image
from imagefs.image.qcow2.inflate import InflateError, inflate
from imagefs.image.qcow2.plan import Piece, plan_fetches
from imagefs.image.qcow2.tables import Kind
from imagefs.source import Source
from imagefs.threads import Lane
from imagefs.units import UNIT, align_down, unit_count

PIECES: Final = 32768
"""Pieces kept at a time: 2 GiB of clusters of 64 KiB, in up to 20 MiB of memory while they are gathered."""
TABLE_PAGES: Final = 65536
"""Pages of tables that may be noted: those of a disk of 32 TiB with the usual clusters, or of 128 GiB with clusters of 4 KiB."""
_WALK_CLUSTERS: Final = 256
"""Clusters looked at without letting others run: a millisecond."""
_ZEROS: Final = bytes(STEP)
_DIGEST_SIZE: Final = 16


class NotedTables:
    """A Source over stored bytes that remembers what was read of them: where, how much, and a digest."""

    def __init__(self, stored: Source) -> None:
        """Take the stored bytes."""
        self._stored = stored
        self.pages: dict[tuple[int, int], bytes] = {}
        """Digests by (offset, length)."""

    @property
    def size(self) -> int:
        """Bytes in the object."""
        return self._stored.size

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says: never, so that `read` sees all that is read."""
        return None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says. Raises Unsettled if other bytes were read there before, ImageRefused if there are too many pages to remember."""
        body = await self._stored.read(offset, length)
        digest = digest_of(body)
        if self.pages.setdefault((offset, len(body)), digest) != digest:
            raise Unsettled(f"the tables at offset {offset} are not what they were a moment ago")
        if len(self.pages) > TABLE_PAGES:
            raise ImageRefused(f"its tables have more than {TABLE_PAGES} pages")
        return body

    async def extents(self, offset: int, length: int) -> Extents:
        """As Source says."""
        return await self._stored.extents(offset, length)


class DecodedProof:
    """One pass. Used on the event loop only, once."""

    def __init__(self, image: HydratedImage, wanted: WholeHash, pace: Pace, pieces: int = PIECES) -> None:
        """Take the image, whose disk's cache is complete, the hash of its stored bytes, and what holds the pass up."""
        self._image = image
        self._shelf: Shelf = image.disk.shelf
        self._wanted = wanted
        self._hash = wanted.begin()
        self._pace = pace
        self._capacity = pieces
        self._tables = NotedTables(image.stored)
        self._pages: list[tuple[tuple[int, int], bytes]] = []  # noted, and not passed by yet; the next one last
        self._window = Window(0, pieces)
        self._next = 0  # in the window: the first piece that was not compared
        self._passing = bytearray()
        self._passing_offset = 0
        self._layout: Qcow2Image

    async def run(self) -> None:
        """Return if all that is cached is what the hash proves.

        Raises WrongBytes if it is not, Unsettled if the cache changed meanwhile, ImageRefused if that cannot be found out, and StoreErrors.
        Safe to cancel.
        """
        self._layout = await open_image(self._tables, self._image.name)
        await self._find_pieces(0)
        self._pages = sorted(self._tables.pages.items(), reverse=True)
        await stream(self._image.object, self._take, self._pace.turn)
        if self._next < len(self._window.pieces) or self._window.end is not None or self._pages:
            raise Unsettled(f"{self._image.name}: clusters lie behind the end of the stored bytes")
        if self._hash.hexdigest() != self._wanted.value:
            raise WrongBytes(
                f"{self._image.name}: the bytes in the store have the {self._wanted.algorithm} {self._hash.hexdigest()}, "
                f"not {self._wanted.value} as its record says: upload it again"
            )

    async def _find_pieces(self, start: int) -> None:
        """Walk the tables for the pieces that lie next in the stored bytes, from `start` on; the first time compare what is zeros."""
        window = Window(start, self._capacity)
        header, size = self._layout.header, self._layout.size
        step = _WALK_CLUSTERS << header.cluster_bits
        offset = 0
        while offset < size:
            stop = min(size, align_down(offset, step) + step)
            extents = await self._layout.extents(offset, stop - offset)
            window.add(piece for fetch in plan_fetches(extents, header.cluster_size) for piece in fetch.pieces)
            if start == 0:
                for extent in extents:
                    if extent.kind is Kind.REFUSED:
                        raise Unsettled(f"{self._image.name}: cached, although it cannot be read: {extent.reason}")
                    first = extent.guest_offset + (extent.host_length if extent.kind is Kind.DATA else 0)
                    if extent.kind in (Kind.ZERO, Kind.DATA) and first < extent.guest_offset + extent.length:
                        await self._compare_zeros(first, extent.guest_offset + extent.length)
            offset = stop
            await trio.lowlevel.checkpoint()  # with the tables at hand nothing else lets others run
        window.close()
        self._window, self._next = window, 0

    async def _compare_zeros(self, start: int, stop: int) -> None:
        """Compare a range that reads as zeros. Whole units of zeros are known by their states, once these were proved."""
        size = self._layout.size
        first, last = unit_count(start), unit_count(size) if stop == size else stop // UNIT
        ranges = [(start, stop)]
        if first < last and self._shelf.states.count(ZERO, first, last) == last - first:
            ranges = [(start, min(first * UNIT, stop)), (max(start, last * UNIT), stop)]
        for low, high in ranges:
            for offset in range(low, high, STEP):
                length = min(STEP, high - offset)
                await self._examine(unit_span(offset, length))
                if not await threads.run(Lane.DISK, self._is_zeros, offset, length):
                    await self._differs(offset, "they are not zeros, as the image's tables say")

    async def _take(self, first_unit: int, bodies: list[bytes]) -> None:
        """Hash the next units of the object, and compare what is made from stored bytes up to their end."""
        del first_unit  # they come in order
        joined = b"".join(bodies)
        await threads.run(Lane.DISK, self._hash.update, joined)
        self._passing += joined
        end = self._passing_offset + len(self._passing)
        while True:
            pages = self._due_pages(end)
            pieces = self._due_pieces(end)
            for piece in pieces:
                await self._examine(unit_span(piece.guest_offset, piece.length))
            reason = await threads.run(Lane.DISK, self._compare, pages, pieces)
            if reason:
                await self._differs(pieces[0].guest_offset if pieces else 0, reason)
            if self._next < len(self._window.pieces) or self._window.end is None:
                break
            await self._find_pieces(self._window.end)
        self._let_pass(end)

    def _due_pages(self, end: int) -> list[tuple[tuple[int, int], bytes]]:
        due = []
        while self._pages and sum(self._pages[-1][0]) <= end:
            due.append(self._pages.pop())
        return due

    def _due_pieces(self, end: int) -> list[Piece]:
        first, pieces = self._next, self._window.pieces
        while self._next < len(pieces) and pieces[self._next].host_offset + pieces[self._next].host_length <= end:
            self._next += 1
        return pieces[first : self._next]

    def _let_pass(self, end: int) -> None:
        """Forget the bytes that nothing needs any more: what is needed next begins in the last cluster or table page."""
        needed = [end]
        if self._pages:
            needed.append(self._pages[-1][0][0])
        if self._next < len(self._window.pieces):
            needed.append(self._window.pieces[self._next].host_offset)
        keep = min(needed)
        del self._passing[: keep - self._passing_offset]
        self._passing_offset = keep

    async def _examine(self, units: range) -> None:
        """See to it that units are here, and proved by their checksums. Raises Unsettled."""
        states = self._shelf.states
        if min(states[units.start : units.stop], default=ZERO) < DATA:
            await self._shelf.examine(units)
            if min(states[units.start : units.stop]) < DATA:
                raise Unsettled(f"{self._image.name}: of the units {units.start} to {units.stop - 1} some are not cached any more")

    def _compare(self, pages: list[tuple[tuple[int, int], bytes]], pieces: list[Piece]) -> str:
        """Return how what is cached differs from what the stored bytes give; empty if it does not. Blocks; runs in a thread."""
        for (offset, length), digest in pages:
            if digest_of(self._passed(offset, length)) != digest:
                return f"the tables that were read at offset {offset} of the stored bytes are others there"
        header = self._layout.header
        file = self._shelf.file
        if file is None:
            raise Unsettled(f"{self._image.name}: its cache was given up")
        for piece in pieces:
            body: bytes | bytearray = self._passed(piece.host_offset, piece.host_length)
            if piece.compressed:
                try:
                    body = inflate(header.compression, bytes(body), header.cluster_size)[piece.skip : piece.skip + piece.length]
                except InflateError as error:
                    return f"the compressed cluster at offset {piece.host_offset} of the stored bytes: {error}"
            if read_politely(file, piece.guest_offset, piece.length) != body:
                return f"the {piece.length} bytes at offset {piece.guest_offset} are not what offset {piece.host_offset} of the stored bytes gives"
        return ""

    def _passed(self, offset: int, length: int) -> bytearray:
        start = offset - self._passing_offset
        return self._passing[start : start + length]

    def _is_zeros(self, offset: int, length: int) -> bool:
        file = self._shelf.file
        if file is None:
            raise Unsettled(f"{self._image.name}: its cache was given up")
        return read_politely(file, offset, length) == _ZEROS[:length]

    async def _differs(self, offset: int, reason: str) -> None:
        """Raise WrongBytes, or Unsettled if it is the disk that has lost what it was given."""
        if await prove_all(self._shelf):
            raise Unsettled(f"{self._image.name}: units on the disk were damaged")
        raise WrongBytes(f"{self._image.name}: what was fetched of it is wrong at offset {offset} of its disk: {reason}")


def digest_of(body: bytes | bytearray) -> bytes:
    """Return what tells a page of tables from another one: against the hash of the whole image a forger has nothing to gain by a collision."""
    return hashlib.blake2b(body, digest_size=_DIGEST_SIZE).digest()
