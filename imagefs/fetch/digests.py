"""This module proves units of an image's stored bytes by their digests, fetching pages of digests as they are needed."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from imagefs.errors import NotFound, WrongBytes
from imagefs.store import tree
from imagefs.store.record import HashTree
from imagefs.units import UNIT

PAGES_KEPT: Final = 64
"""Pages of digests kept per image: 2 MiB of memory, which prove 4 GiB of image."""

_ZERO_UNIT: Final = tree.digest_of(bytes(UNIT))

LoadPage = Callable[[int], bytes]
"""Fetches one page of digests, unverified; blocks; raises StoreErrors, and NotFound if the store has none."""


class UnitDigests:
    """The digests of one image's units. Thread-safe; every method may block while a page is fetched.

    Invariant: every page that is kept was verified against the tree, which the image's record carries.
    """

    def __init__(self, hash_tree: HashTree, size: int, load_page: LoadPage, name: str) -> None:
        """Take the tree of an image of `size` bytes, what fetches its pages, and the image's name for messages.

        Raises WrongBytes if the tree cannot be the tree of such an image: without it no byte could be proved.
        """
        self.name = name
        self._tree = hash_tree
        self._size = size
        self._load_page = load_page
        self._zero_tail = tree.digest_of(bytes(size % UNIT))  # what a short last unit of zeros has
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()  # around _pages, held for no I/O
        self._loading = threading.Lock()  # one page at a time: a cold boot's 16 fetches all want the same one
        if not tree.usable(hash_tree, size):
            raise WrongBytes(
                f"image {name}: its hash tree ({hash_tree.algorithm}, units of {hash_tree.unit} bytes, {len(hash_tree.pages)} pages) does not fit "
                f"its {size} bytes, so they cannot be verified; import the image again"
            )

    def verify(self, unit: int, body: bytes) -> None:
        """Return if `body` is unit number `unit` of the image. Raises WrongBytes, naming image, unit and offset, and StoreErrors."""
        page = self._page(tree.page_of(unit))
        tree.verify_unit(page, unit, body, f"image {self.name}, unit {unit}")

    def is_zero(self, unit: int) -> bool:
        """Tell whether unit number `unit` of the image is proved to be all zeros, by its digest alone. Raises WrongBytes and StoreErrors."""
        page = self._page(tree.page_of(unit))
        return tree.digest_in_page(page, unit) == (_ZERO_UNIT if (unit + 1) * UNIT <= self._size else self._zero_tail)

    def _page(self, page: int) -> bytes:
        body = self._kept(page)
        if body is not None:
            return body
        with self._loading:
            body = self._kept(page)
            if body is None:
                body = self._load(page)
            return body

    def _kept(self, page: int) -> bytes | None:
        with self._lock:
            body = self._pages.get(page)
            if body is not None:
                self._pages.move_to_end(page)
            return body

    def _load(self, page: int) -> bytes:
        try:
            body = self._load_page(page)
        except NotFound as error:
            raise WrongBytes(f"image {self.name}: the store has lost its digests, so its bytes cannot be verified: {error}") from error
        tree.verify_page(self._tree, self._size, page, body, f"image {self.name}")
        with self._lock:
            self._pages[page] = body
            while len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)
        return body
