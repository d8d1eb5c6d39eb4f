"""This module is the disk cache as a whole: it opens the cache of each image version, and makes room when the budget is used up."""

import contextlib
import logging
import secrets
import weakref
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.budget import PAGE, Account, Budget
from imagefs.cache.cache import UnitCache
from imagefs.cache.demand import Demand
from imagefs.cache.directory import CacheDirectory, ClosedCache, cache_name
from imagefs.cache.eviction import Clock, Sparing
from imagefs.cache.file import UnitFile
from imagefs.cache.filler import UnitFiller
from imagefs.cache.invariants import require
from imagefs.cache.mark import Mark
from imagefs.cache.memory import Memory
from imagefs.cache.sharing import Sharing
from imagefs.cache.shelf import Shelf
from imagefs.cache.status import CacheStatus, describe_closed, describe_open
from imagefs.cache.unit_map import MapHeader, header_version
from imagefs.cache.use_record import Use
from imagefs.errors import InvalidInput
from imagefs.reflinks import can_share
from imagefs.store.record import is_image_id
from imagefs.threads import Lane
from imagefs.units import MIB, UNIT, unit_count
from imagefs.urgency import Urgency

log = logging.getLogger(__name__)

TEND_SECONDS: Final = 15.0
"""Seconds between two looks at everything. What is read again later than this after it came is read again; a boot is over by then twice."""

UNSHARED: Final = 65_536
"""Units of one cache that wait to be looked at for equal ones; of more than that the oldest are passed over."""

LEAST_FREED: Final = 4 * MIB
"""Bytes to free at least when something has to go and the budget is large: one eviction then pays for several fills."""


class _Opened:
    """An open cache: a weak hold on its shelf, and what to close when the shelf is gone."""

    def __init__(self, shelf: Shelf, file: UnitFile | None, account: Account | None, use: Use) -> None:
        self.shelf = weakref.ref(shelf)
        self.name = shelf.name
        self.file = file
        self.account = account
        self.use = use
        self.noted_kept = frozenset(use.kept)


class CacheRoot:
    """All caches below one directory. Used on the event loop only, by one process at a time (the state directory's lock).

    A cache is open as long as somebody holds a UnitCache of it or a fill of it runs; then its files are closed.

    When room is needed, these go, in this order:
    1. of caches that are not open, the one that was used longest ago first, what is not to be kept: also for what nobody waits for;
    2. regions of open ones, by the clock, but for those to be kept: also for what is fetched ahead of a reader;
    3. and only for a reader who waits: closed caches as a whole, regions to be kept, and pinned caches, closed and then open.

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
        self._sharing: Sharing | None = None
        self._pinned: Collection[str] = frozenset()
        self.demand = Demand()
        """Who waits for bytes from the store, of all caches."""

    @property
    def pinned(self) -> Collection[str]:
        """Ids of images whose caches go last. May be set, also while they are open."""
        return self._pinned

    @pinned.setter
    def pinned(self, pinned: Collection[str]) -> None:
        self._pinned = pinned
        for key, opened in self._opened.items():
            if (shelf := opened.shelf()) is not None:
                shelf.pinned = _image_of(key) in pinned

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
        if await threads.run(Lane.DISK, can_share, self._directory.path):
            self._sharing = Sharing(self._directory)
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
        return UnitCache(shelf, filler, nursery, self._memory, self.demand)

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

    def names(self, image_id: str | None = None) -> list[str]:
        """Return the names of the caches that are on the disk, or of those of one image, in order."""
        found = {key for key, opened in self._opened.items() if opened.file is not None} | self._closed.keys() | self._changing.keys()
        return sorted(name for name in found if image_id in (None, _image_of(name)))

    async def shelf(self, name: str) -> Shelf | None:
        """Return what there is of the cache of this name, which is opened if need be and stays open as long as the shelf is held.

        None if there is none with files, or none that can be read: that one is begun anew when its image is opened. Safe to cancel.
        """
        while True:
            while (event := self._changing.get(name)) is not None:
                await event.wait()
            opened = self._opened.get(name)
            shelf = opened.shelf() if opened is not None else None
            if shelf is not None:
                return shelf if shelf.file is not None else None
            if opened is not None:
                self._retire(name, opened)
            if name not in self._closed:
                return None
            header = await threads.run(Lane.DISK, self._directory.header, name)
            if header is None:
                return None
            if name in self._closed and name not in self._changing:  # else it was opened or removed meanwhile
                found = await self._open_shelf(name, header, header.image_id)
                return found if found.file is not None else None

    async def mark(self, image_id: str, space: str, version: str) -> Mark | None:
        """Return the mark of a complete cache of an image's bytes, without opening it; None if it is not known to be complete."""
        name = cache_name(image_id, space, version)
        opened = self._opened.get(name)
        if opened is not None and opened.shelf() is not None:
            return opened.file.mark if opened.file is not None else None
        return await threads.run(Lane.DISK, self._directory.mark, name) if name in self._closed else None

    async def prune(self, image_id: str | None = None, *, cold: bool = False) -> int:
        """Remove all caches, or those of one image, that are not open and not pinned; return the bytes freed.

        `cold` takes from those that are open what was not read lately, too. Safe to cancel between two caches.
        """
        freed = 0
        for cache in self._oldest(pinned=False):
            if image_id in (None, cache.image_id):
                freed += await self._remove(cache)
        if cold:
            shelves = [shelf for shelf in self._shelves() if image_id is None or _image_of(self._key_of(shelf)) == image_id]
            freed += await Clock().free_untouched(shelves)
        return freed

    async def status(self, names: Collection[str] | None = None) -> list[CacheStatus]:
        """Return what there is to say of all caches, or of those with such a name, in the order of their names.

        Of those that are open it is known; of the others a page of the map is read, in a thread.
        """
        closed = [cache for cache in self._closed.values() if names is None or cache.name in names]
        found = await threads.run(Lane.DISK, describe_closed, self._directory, closed, self._pinned)
        for key, opened in list(self._opened.items()):
            shelf = opened.shelf()
            if shelf is not None and opened.file is not None and (names is None or key in names):
                found.append(describe_open(key, shelf, opened.file))
        return sorted(found, key=lambda cache: cache.name)

    async def tend(self) -> None:
        """Keep the caches in order until cancelled: let them age, keep the floor, and note what a daemon that is killed should have noted.

        Never raises anything else.
        """
        while True:
            await trio.sleep(TEND_SECONDS)
            try:
                for shelf in self._shelves():
                    shelf.age()
                await self._budget.trim()
                await self._note_use()
                await self._share()
            except Exception:
                log.exception("the cache was not tended to")

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
            file, account, use = await self._open_files(key, header, name, closed)
            shelf = Shelf(
                f"image {name} ({key})", header.size, self._memory, (file, account) if file is not None and account is not None else None, use
            )
            shelf.pinned = header.image_id in self._pinned
            opened = self._opened[key] = _Opened(shelf, file, account, use)
        finally:
            self._changing.pop(key).set()
        token = trio.lowlevel.current_trio_token()

        def gone() -> None:
            # Where and when the last reference goes is not for us to say; what follows belongs on the loop.
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._retire, key, opened)

        weakref.finalize(shelf, gone).atexit = False
        return shelf

    async def _open_files(self, key: str, header: MapHeader, name: str, closed: ClosedCache | None) -> tuple[UnitFile | None, Account | None, Use]:
        """Return the files, their account and what is in them; (None, None, nothing) if there is no room or no disk."""
        account = self._budget.open_account()
        try:
            # What is there already has its room; something new has its fixed cost charged by now, and needs a page for its header.
            if self._usable and (closed is not None or await account.reserve(PAGE)):
                file, use = await threads.run(Lane.DISK, self._open_blocking, key, header)
                if closed is not None:
                    self._budget.change_closed(-closed.allocated)
                account.settle(account.in_flight)
                account.measure_by(file.allocated)
                return file, account, use
        except OSError as error:
            log.warning("nothing of an image can be cached image=%s cache=%s error=%s", name, key, error)
        except BaseException:
            self._budget.close_account(account)
            raise
        self._budget.close_account(account)
        if closed is not None:
            self._closed[key] = closed
        return None, None, Use()

    def _open_blocking(self, key: str, header: MapHeader) -> tuple[UnitFile, Use]:
        file = self._directory.open(key, header)
        file.read_mark()
        if self._sharing is not None:
            file.stored = deque(maxlen=UNSHARED)
        try:
            return file, Use.of(file.begin_use())
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
            with contextlib.suppress(OSError):  # then its units are counted when it is opened again
                opened.file.note_use(opened.use.record(closed=True))
            if self._sharing is not None:
                self._sharing.remember(key, opened.file)
            opened.file.close()
            self._budget.close_account(opened.account)
            self._closed[key] = closed = self._directory.measure(key)
            self._budget.change_closed(closed.allocated)

    async def _make_room(self, needed: int, urgency: Urgency) -> int:
        """Free about `needed` bytes, more where that pays and harms nobody; return how many: 0 if nothing may go."""
        wanted = max(needed, min(LEAST_FREED, self._budget.limit // 16))
        freed = await self._shrink_oldest(wanted)
        if freed < wanted and urgency is not Urgency.IDLE:
            freed += await self._clock.free(self._shelves(), wanted - freed, sparing=Sparing.KEPT)
        if urgency is not Urgency.DEMAND:
            return freed
        if freed < needed:
            freed += await self._remove_oldest(needed - freed, pinned=False)
        if freed < needed:
            freed += await self._clock.free(self._shelves(), needed - freed, sparing=Sparing.PINNED)
        if not freed:
            freed += await self._remove_oldest(needed, pinned=True)
        if not freed:
            freed += await self._clock.free(self._shelves(), needed, sparing=Sparing.NOTHING)
        return freed

    async def _shrink_oldest(self, wanted: int) -> int:
        """Free about `wanted` bytes of closed caches that are not pinned, but for what they want to keep; return how many."""
        freed = 0
        for cache in self._oldest(pinned=False):
            if freed >= wanted:
                break
            if not cache.shrunk and self._closed.pop(cache.name, None) is not None:
                self._changing[cache.name] = trio.Event()
                left: ClosedCache | None = cache
                try:
                    with trio.CancelScope(shield=True):
                        left = await threads.run(Lane.DISK, self._directory.shrink, cache, wanted - freed)
                finally:
                    if left is not None:
                        self._closed[cache.name] = left
                    self._changing.pop(cache.name).set()
                difference = cache.allocated - (left.allocated if left is not None else 0)
                self._budget.change_closed(-difference)
                freed += difference
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

    async def _note_use(self) -> None:
        """Note what regions are to be kept, where that has changed: a daemon that is killed notes nothing any more."""
        for opened in list(self._opened.values()):
            shelf, kept = opened.shelf(), frozenset(opened.use.kept)
            if shelf is not None and shelf.file is not None and kept != opened.noted_kept:
                opened.noted_kept = kept
                await threads.run(Lane.DISK, _note_use, shelf)

    async def _share(self) -> None:
        """Let equal units share their blocks, where the filesystem can do that."""
        if self._sharing is not None:
            shelves = self._shelves()  # which keeps their files open
            files = [(key, opened.file) for key, opened in self._opened.items() if opened.file is not None and opened.shelf() in shelves]
            closed = sorted(self._closed.values(), key=lambda cache: -cache.modified)
            await self._sharing.work(files, [cache.name for cache in closed])

    def _key_of(self, shelf: Shelf) -> str:
        return next((key for key, opened in self._opened.items() if opened.shelf() is shelf), "")

    def _shelves(self) -> list[Shelf]:
        """Return the shelves that are open now; holding them keeps their files open."""
        return [shelf for opened in self._opened.values() if (shelf := opened.shelf()) is not None and shelf.file is not None]


def _image_of(key: str) -> str:
    """Return the id of the image that a cache is of."""
    return key.partition("/")[0]


def _note_use(shelf: Shelf) -> None:
    """Note what an open cache wants to keep. Blocks; what cannot be written is noted when the cache is closed."""
    with contextlib.suppress(OSError):
        shelf.note_use()
