"""This module is the arithmetic of the hash tree over an image's stored bytes; it does no I/O.

A unit is 64 KiB of stored bytes (the last one may be short); its digest is the SHA-256 of those bytes, 32 bytes raw. The object
`digests` is the digests of all units in order. A page is 1024 digests (32 KiB of `digests`, for 64 MiB of stored bytes; the
last one may be short), and the image's record holds the hex SHA-256 of each page, so that any unit can be proved by fetching
one page. An image of no bytes has no units and no pages.
"""

import hashlib
from typing import Final

from imagefs.errors import WrongBytes
from imagefs.store.record import HashTree
from imagefs.units import UNIT, unit_count

ALGORITHM: Final = "sha256"
DIGEST: Final = 32
"""Bytes in one digest."""
PAGE_UNITS: Final = 1024
"""Units in a page: 32 KiB to fetch for the proof of any unit of 64 MiB, and 1 TiB needs a record of about 1 MiB."""


def digest_of(unit: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte digest of one unit's bytes."""
    return hashlib.sha256(unit).digest()


def page_of(unit: int) -> int:
    """Return the number of the page that holds unit number `unit`'s digest."""
    return unit // PAGE_UNITS


def page_range(size: int, page: int) -> tuple[int, int]:
    """Return (offset, length), in bytes of `digests`, of page number `page` of an image of `size` bytes; length is 0 past the last."""
    first = page * PAGE_UNITS
    count = min(PAGE_UNITS, unit_count(size) - first)
    return first * DIGEST, max(count, 0) * DIGEST


def digest_in_page(page_body: bytes, unit: int) -> bytes:
    """Return unit number `unit`'s digest out of the bytes of its page."""
    start = unit % PAGE_UNITS * DIGEST
    return page_body[start : start + DIGEST]


def usable(tree: HashTree, size: int) -> bool:
    """Tell whether this imagefs can verify an image of `size` bytes by `tree`: the known algorithm and sizes, and one hash for each page."""
    known = tree.algorithm == ALGORITHM and tree.unit == UNIT and tree.page_units == PAGE_UNITS
    return known and len(tree.pages) == -(-unit_count(size) // PAGE_UNITS)


def verify_page(tree: HashTree, size: int, page: int, body: bytes, origin: str) -> None:
    """Return if `body` is page number `page` of the digests of an image of `size` bytes. Raises WrongBytes, naming `origin`."""
    _, length = page_range(size, page)
    if page >= len(tree.pages) or len(body) != length:
        raise WrongBytes(f"{origin}: page {page} of the digests has {len(body)} bytes, not {length}")
    if hashlib.sha256(body).hexdigest() != tree.pages[page]:
        raise WrongBytes(f"{origin}: page {page} of the digests is not the one that the image's record names")


def verify_unit(page_body: bytes, unit: int, body: bytes | bytearray | memoryview, origin: str) -> None:
    """Return if `body` has the digest that the verified page `page_body` holds for unit number `unit`. Raises WrongBytes, naming `origin`."""
    if digest_of(body) != digest_in_page(page_body, unit):
        raise WrongBytes(f"{origin}: the bytes at offset {unit * UNIT} ({len(body)} bytes) fail their SHA-256")


class TreeBuilder:
    """Builds `digests` and the tree from an image's bytes, given in order in pieces of any size.

    Invariant: what was given = the units whose digests were made + less than one unit inside the running hash.
    """

    def __init__(self) -> None:
        self._unit = hashlib.sha256()
        self._filled = 0  # bytes inside the running hash of the present unit
        self._digests = bytearray()  # not yet taken
        self._page = hashlib.sha256()
        self._page_count = 0  # digests inside the running hash of the present page
        self._pages: list[str] = []

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Add the next bytes of the image."""
        view = memoryview(piece)
        while view:
            part = view[: UNIT - self._filled]
            self._unit.update(part)
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == UNIT:
                self._end_unit()

    def take_digests(self) -> bytes:
        """Return the digests made since the last call, and forget them: a terabyte has half a gigabyte of digests."""
        taken = bytes(self._digests)
        self._digests.clear()
        return taken

    def finish(self) -> tuple[bytes, HashTree]:
        """End the image and return the digests not yet taken, and the tree. Call it once, last."""
        if self._filled:
            self._end_unit()
        if self._page_count:
            self._end_page()
        return self.take_digests(), HashTree(algorithm=ALGORITHM, unit=UNIT, page_units=PAGE_UNITS, pages=tuple(self._pages))

    def _end_unit(self) -> None:
        digest = self._unit.digest()
        self._digests += digest
        self._page.update(digest)
        self._page_count += 1
        self._unit, self._filled = hashlib.sha256(), 0
        if self._page_count == PAGE_UNITS:
            self._end_page()

    def _end_page(self) -> None:
        self._pages.append(self._page.hexdigest())
        self._page, self._page_count = hashlib.sha256(), 0
