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

PATIENCE: Final = 0.3
"""Seconds after which a page that another thread fetches is fetched once more: 32 KiB take no longer, unless that request has stalled."""

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
        self._lock = threading.Lock()  # around _pages and _loading, held for no I/O
        self._loading: dict[int, threading.Event] = {}  # pages on their way: a cold boot's 16 fetches may all want the same one
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
        return self._proves_zero(self._page(tree.page_of(unit)), unit)

    def missing_pages(self, first_unit: int, count: int) -> list[int]:
        """Return the pages that prove `count` (1 or more) units and are neither kept nor on their way. Does not wait."""
        pages = range(tree.page_of(first_unit), tree.page_of(first_unit + count - 1) + 1)
        with self._lock:
            return [page for page in pages if page not in self._pages and page not in self._loading]

    def load(self, page: int) -> None:
        """Fetch a page unless it is kept. Raises WrongBytes and StoreErrors."""
        self._page(page)

    def known_zeros(self, first_unit: int, count: int) -> list[int]:
        """Return those of `count` units that pages which are kept prove to be all zeros. Does not wait."""
        return [unit for unit in range(first_unit, first_unit + count) if (page := self._kept(tree.page_of(unit))) and self._proves_zero(page, unit)]

    def _proves_zero(self, page_body: bytes, unit: int) -> bool:
        return tree.digest_in_page(page_body, unit) == (_ZERO_UNIT if (unit + 1) * UNIT <= self._size else self._zero_tail)

    def _page(self, page: int) -> bytes:
        """Return a page. Who wants one that is on its way waits for it, but not for ever: then it is asked for once more."""
        while (body := self._kept(page)) is None:
            with self._lock:
                coming = self._loading.get(page)
                if coming is None:
                    mine = self._loading[page] = threading.Event()
            if coming is None:
                return self._load(page, mine)
            if not coming.wait(PATIENCE):
                with self._lock:
                    if self._loading.get(page) is coming:
                        del self._loading[page]
        return body

    def _kept(self, page: int) -> bytes | None:
        with self._lock:
            body = self._pages.get(page)
            if body is not None:
                self._pages.move_to_end(page)
            return body

    def _load(self, page: int, mine: threading.Event) -> bytes:
        """Fetch a page, and wake who waits for it: to find it, or to try for themselves."""
        try:
            body = self._load_page(page)
            tree.verify_page(self._tree, self._size, page, body, f"image {self.name}")
        except NotFound as error:
            raise WrongBytes(f"image {self.name}: the store has lost its digests, so its bytes cannot be verified: {error}") from error
        else:
            with self._lock:
                self._pages[page] = body
                while len(self._pages) > PAGES_KEPT:
                    self._pages.popitem(last=False)
            return body
        finally:
            with self._lock:
                if self._loading.get(page) is mine:
                    del self._loading[page]
            mine.set()
