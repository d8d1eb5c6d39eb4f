"""This module is the disk cache as a whole: it opens the cache of each image version, and makes room when the budget is used up."""

import contextlib
import logging
import secrets
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.budget import PAGE, Account, Budget
from imagefs.cache.cache import UnitCache
from imagefs.cache.directory import CacheDirectory, ClosedCache, cache_name
from imagefs.cache.eviction import Clock
from imagefs.cache.file import UnitFile
from imagefs.cache.filler import UnitFiller
from imagefs.cache.invariants import require
from imagefs.cache.memory import Memory
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import MapHeader, header_version
from imagefs.errors import InvalidInput
from imagefs.store.record import is_image_id
from imagefs.threads import Lane
from imagefs.units import MIB, UNIT, unit_count

log = logging.getLogger(__name__)

LEAST_FREED: Final = 4 * MIB
"""Bytes to free at least when something has to go and the budget is large: one eviction then pays for several fills."""


class _Opened:
    """An open cache: a weak hold on its shelf, and what to close when the shelf is gone."""

    def __init__(self, shelf: Shelf, file: UnitFile | None, account: Account | None) -> None:
        self.shelf = weakref.ref(shelf)
        self.name = shelf.name
        self.file = file
        self.account = account


class CacheRoot:
    """All caches below one directory. Used on the event loop only, by one process at a time (the state directory's lock).

    A cache is open as long as somebody holds a UnitCache of it or a fill of it runs; then its files are closed, and it is
    the first to go when room is needed.

    Invariants: files on the disk are those of a cache that is open, closed, or in `_changing` (being opened or removed), and of
    one of these only; no two shelves have the same files.
    """

    def __init__(self, path: Path, budget: Budget, memory: Memory) -> None:
        """Take the directory, made by `start` if it is not there, and what bounds the caches' disk and memory."""
        self._directory = CacheDirectory(path)
        self._budget = budget
        self._memory = memory
        self._clock = Clock()
        self._opened: dict[str, _Opened] = {}
        self._closed: dict[str, ClosedCache] = {}
        self._changing: dict[str, trio.Event] = {}
        self._usable = False
        self.pinned: Collection[str] = frozenset()
        """Ids of images whose caches go last."""

    async def start(self) -> None:
        """See what an earlier run left, in time for the number of images, and bring it within the budget. Call it once.

        A directory that cannot be used means that nothing is stored: that is logged, and images are served all the same.
        """
        try:
            caches, other = await threads.run(Lane.DISK, self._directory.scan)
        except OSError as error:
            log.warning("the cache's directory cannot be used, so nothing is cached path=%s error=%s", self._directory.path, error)
            return
        self._closed = {cache.name: cache for cache in caches}
        self._budget.change_closed(other + sum(cache.allocated for cache in caches))
        self._budget.attach(self._directory.path, self._make_room)
        self._usable = True
        await self._budget.trim()

    async def open(self, image_id: str, space: str, version: str, filler: UnitFiller, nursery: trio.Nursery, *, name: str) -> UnitCache:
        """Return the cache of an image's bytes of one version, in the address space `space` ("stored", "guest").

        `filler` brings what is missing, in tasks of `nursery`; `name` is what messages call the image. Never fails because
        of the disk: what cannot be stored is served all the same.
        """
        if not is_image_id(image_id):
            raise InvalidInput(f"image {name}: '{image_id}' is not an image id, so nothing can be cached for it")
        key = cache_name(image_id, space, version)
        while (event := self._changing.get(key)) is not None:
            await event.wait()
        opened = self._opened.get(key)
        shelf = opened.shelf() if opened is not None else None
        if shelf is None:
            if opened is not None:
                self._retire(key, opened)
            header = MapHeader(image_id, space, header_version(version), filler.size, secrets.randbits(32))
            shelf = await self._open_shelf(key, header, name)
        return UnitCache(shelf, filler, nursery, self._memory)

    async def cached_bytes(self, image_id: str, space: str, version: str, size: int) -> int:
        """Return how many of an address space's `size` bytes are cached, without opening anything; by the map alone if it is not open."""
        key = cache_name(image_id, space, version)
        opened = self._opened.get(key)
        shelf = opened.shelf() if opened is not None else None
        if shelf is not None:
            return min(size, shelf.present * UNIT)
        if key not in self._closed:
            return 0
        return min(size, UNIT * await threads.run(Lane.DISK, self._directory.count_present, key, unit_count(size)))

    async def prune(self) -> int:
        """Remove all caches that are not open and not pinned; return the bytes freed."""
        freed = 0
        for cache in self._oldest(pinned=False):
            freed += await self._remove(cache)
        return freed

    def close(self) -> None:
        """Close all files. No read or fill may be under way or follow."""
        for key, opened in list(self._opened.items()):
            self._retire(key, opened)
        self._usable = False

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises."""
        with_files = {key for key, opened in self._opened.items() if opened.file is not None}
        require(not with_files & self._closed.keys(), "no cache is open and closed")
        require(not self._changing.keys() & (with_files | self._closed.keys()), "a cache that is changing is neither open nor closed")
        self._budget.check_invariants()
        self._memory.check_invariants()

    async def _open_shelf(self, key: str, header: MapHeader, name: str) -> Shelf:
        """Open the files, or do without them, and register the shelf under `key`."""
        self._changing[key] = trio.Event()
        closed = self._closed.pop(key, None)
        try:
            file, account, present = await self._open_files(key, header, name, closed)
            shelf = Shelf(
                f"image {name} ({key})", header.size, self._memory, (file, account) if file is not None and account is not None else None, present
            )
            opened = self._opened[key] = _Opened(shelf, file, account)
        finally:
            self._changing.pop(key).set()
        token = trio.lowlevel.current_trio_token()

        def gone() -> None:
            # Where and when the last reference goes is not for us to say; what follows belongs on the loop.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._retire, key, opened)

        weakref.finalize(shelf, gone).atexit = False
        return shelf

    async def _open_files(self, key: str, header: MapHeader, name: str, closed: ClosedCache | None) -> tuple[UnitFile | None, Account | None, int]:
        """Return the files, their account and the number of units in them; (None, None, 0) if there is no room or no disk."""
        account = self._budget.open_account()
        try:
            # What is there already has its room; something new has its fixed cost charged by now, and needs a page for its header.
            if self._usable and (closed is not None or await account.reserve(PAGE)):
                file, present = await threads.run(Lane.DISK, self._open_blocking, key, header)
                if closed is not None:
                    self._budget.change_closed(-closed.allocated)
                account.settle(account.in_flight)
                account.measure_by(file.allocated)
                return file, account, present
        except OSError as error:
            log.warning("nothing of an image can be cached image=%s cache=%s error=%s", name, key, error)
        except BaseException:
            self._budget.close_account(account)
            raise
        self._budget.close_account(account)
        if closed is not None:
            self._closed[key] = closed
        return None, None, 0

    def _open_blocking(self, key: str, header: MapHeader) -> tuple[UnitFile, int]:
        file = self._directory.open(key, header)
        try:
            return file, file.count_present()
        except OSError:
            file.close()
            raise

    def _retire(self, key: str, opened: _Opened) -> None:
        """Close a cache that nobody uses any more; it counts as closed from now on."""
        if self._opened.get(key) is not opened:
            return
        del self._opened[key]
        self._memory.forget(opened.name)
        if opened.file is not None and opened.account is not None:
            opened.file.close()
            self._budget.close_account(opened.account)
            self._closed[key] = closed = self._directory.measure(key)
            self._budget.change_closed(closed.allocated)

    async def _make_room(self, wanted: int) -> int:
        """Free about `wanted` bytes, more where that pays; return how many: 0 if nothing is left to evict."""
        wanted = max(wanted, min(LEAST_FREED, self._budget.limit // 16))
        freed = await self._remove_oldest(wanted, pinned=False)
        for sparing in (True, False):
            if freed < wanted:
                freed += await self._clock.free(self._shelves(), wanted - freed, sparing=sparing)
        if not freed:
            freed += await self._remove_oldest(wanted, pinned=True)
        return freed

    async def _remove_oldest(self, wanted: int, *, pinned: bool) -> int:
        freed = 0
        for cache in self._oldest(pinned=pinned):
            if freed >= wanted:
                break
            freed += await self._remove(cache)
        return freed

    async def _remove(self, cache: ClosedCache) -> int:
        """Remove a cache unless it was opened meanwhile; return the bytes freed."""
        if self._closed.pop(cache.name, None) is None:
            return 0
        self._changing[cache.name] = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                await threads.run(Lane.DISK, self._directory.remove, cache.name)
        finally:
            self._changing.pop(cache.name).set()
        self._budget.change_closed(-cache.allocated)
        return cache.allocated

    def _oldest(self, *, pinned: bool) -> list[ClosedCache]:
        caches = [cache for cache in self._closed.values() if (cache.image_id in self.pinned) is pinned]
        return sorted(caches, key=lambda cache: cache.modified)

    def _shelves(self) -> list[Shelf]:
        """Return the shelves that are open now; holding them keeps their files open."""
        return [shelf for opened in self._opened.values() if (shelf := opened.shelf()) is not None and shelf.file is not None]
