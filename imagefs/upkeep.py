"""This module is what admins ask of the cache: to pin images, to bring them before they are wanted, to prune what is there and to verify it.

Who may ask is the caller's to check (`files.image`, `files.fixed`). Work that takes long goes on in the daemon's nursery: whoever asked looks
at its state, and an error stays there to be read.
"""

import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

import msgspec
import trio

from imagefs.cache.pins import Pins
from imagefs.cache.root import CacheRoot
from imagefs.cache.status import CacheStatus
from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import Busy, ImagefsError, InvalidInput
from imagefs.library import Library
from imagefs.sight import Sight
from imagefs.store.record import is_image_id

log = logging.getLogger(__name__)

PREFETCHES: Final = 1024
"""Prefetches that may be under way at once: each waits for its turn in memory."""
RESULTS: Final = 64
"""Callers whose last job is remembered."""

What = Literal["boot", "all"]
Key = tuple[str, str]
Verb = Literal["prune", "verify"]


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A job as it was asked for: of all images or of one, and whether pruning takes what is cold of caches in use too."""

    verb: Verb
    image_id: str | None = None
    cold: bool = False

    @classmethod
    def parse(cls, text: bytes) -> "Order":
        """Return what "prune", "prune all" or "verify", each with or without an image's id behind it, asks for. Raises InvalidInput."""
        words = text.decode(errors="replace").split()
        verb: Verb
        match words:
            case ["prune", *rest]:
                verb = "prune"
            case ["verify", *rest]:
                verb = "verify"
            case _:
                rest, verb = ["?", "?"], "prune"
        cold = verb == "prune" and rest[:1] == ["all"]
        rest = rest[1:] if cold else rest
        if len(rest) > 1 or not all(map(is_image_id, rest)):
            raise InvalidInput("user.imagefs.cache: write prune, prune all or verify, and behind it the id of an image if it is about one")
        return cls(verb, rest[0] if rest else None, cold)


class Job(msgspec.Struct):
    """A job and what has come of it so far; bytes for `freed`, `done` and `total`, units for `checked` and `damaged`."""

    job: str
    image: str | None
    state: Literal["running", "done", "failed"] = "running"
    done: int = 0
    total: int = 0
    freed: int | None = None
    checked: int | None = None
    damaged: int | None = None
    error: str | None = None


class Upkeep:
    """The upkeep of one mount's cache. Used on the event loop only.

    Invariant: tasks that are started here end without an exception, whatever happens.
    """

    def __init__(self, catalog: Catalog, library: Library, cache: CacheRoot, pins: Pins, nursery: trio.Nursery) -> None:
        """Take what there is; work goes on in `nursery`. Pins that were loaded are in force from now on."""
        self._catalog = catalog
        self._library = library
        self._cache = cache
        self._pins = pins
        self._nursery = nursery
        self._prefetches: dict[Key, tuple[trio.CancelScope, What]] = {}
        self._failed: dict[Key, str] = {}
        self._jobs: dict[int, Job] = {}
        self._running: Job | None = None
        self._pin_what_is_there()
        catalog.watchers.append(lambda old, new: self._pin_what_is_there())

    # -- pins -----------------------------------------------------------------------------------

    def pinned(self, image: CatalogImage) -> bool:
        """Tell whether the image is pinned."""
        return image.record.id in self._pins.ids

    async def pin(self, image: CatalogImage, pinned: bool) -> None:
        """Evict the image's caches last from now on, also after a restart; or no longer. Raises NoSpace, QuotaExceeded: all is as before."""
        await self._pins.change(image.record.id, pinned, lambda image_id: image_id in self._catalog.snapshot.images)
        self._pin_what_is_there()

    def _pin_what_is_there(self) -> None:
        """An image that is gone from the store needs no cache: its pin counts for nothing, and again if it comes back."""
        self._cache.pinned = self._pins.ids & self._catalog.snapshot.images.keys()

    # -- prefetches -----------------------------------------------------------------------------

    def prefetch(self, image: CatalogImage, what: What, failed: Callable[[Exception], None]) -> None:
        """Begin to bring what a boot of the image reads, or all of it; one that is under way for the image gives way to it.

        An error is given to `failed`. Raises Busy if too many are under way.
        """
        key = _key(image)
        self.end_prefetch(image)
        if len(self._prefetches) >= PREFETCHES:
            raise Busy(f"image {image.record.id}: {PREFETCHES} prefetches are under way: wait until some are done")
        scope = trio.CancelScope()
        self._prefetches[key] = scope, what
        self._nursery.start_soon(self._prefetch, image, what, scope, failed, name=f"prefetch {image.record.id}")

    def end_prefetch(self, image: CatalogImage) -> None:
        """End the image's prefetch, if there is one; what it brought stays."""
        self._failed.pop(_key(image), None)
        running = self._prefetches.pop(_key(image), None)
        if running is not None:
            running[0].cancel()

    def prefetch_state(self, image: CatalogImage) -> str:
        """Return "none", "boot 12345/67890" or "all 12345/67890" in bytes while it runs (0/0: not known yet), "done" or "failed"."""
        key = _key(image)
        if key in self._failed:
            return "failed"
        state = self._library.prefetch_state(image)
        running = self._prefetches.get(key)
        return f"{running[1]} 0/0" if running is not None and state in ("none", "done") else state

    async def _prefetch(self, image: CatalogImage, what: What, scope: trio.CancelScope, failed: Callable[[Exception], None]) -> None:
        key = _key(image)
        error: Exception | None = None
        try:
            with scope:
                await self._library.prefetch(image, what)
        except ImagefsError as failure:
            error = failure
        except Exception as failure:
            log.exception("a prefetch failed unexpectedly image=%s", image.record.id)
            error = ImagefsError(f"image {image.record.id}: not prefetched: {failure!r}")
        finally:
            ours = self._prefetches.get(key, (None,))[0] is scope
            if ours:
                del self._prefetches[key]
        if error is not None and ours:
            log.warning("a prefetch failed image=%s error=%s", image.record.id, error)
            self._failed[key] = str(error)
            while len(self._failed) > PREFETCHES:
                del self._failed[next(iter(self._failed))]
            failed(error)

    # -- jobs -----------------------------------------------------------------------------------

    def start(self, uid: int, order: Order) -> None:
        """Begin a job for a user; `result` tells how far it is. Raises Busy while another one runs."""
        if self._running is not None:
            raise Busy(f"user.imagefs.cache: a {self._running.job} is under way: wait until it is done")
        job = self._running = Job(order.verb, order.image_id)
        self._jobs.pop(uid, None)
        self._jobs[uid] = job
        while len(self._jobs) > RESULTS:
            del self._jobs[next(iter(self._jobs))]
        self._nursery.start_soon(self._work, order, job, name=f"cache {order.verb}")

    def result(self, uid: int) -> bytes | None:
        """Return a user's last job as JSON; None if there is none."""
        job = self._jobs.get(uid)
        return msgspec.json.encode(job) if job is not None else None

    async def _work(self, order: Order, job: Job) -> None:
        work: dict[Verb, Callable[[Order, Job], Awaitable[None]]] = {"prune": self._prune, "verify": self._verify}
        try:
            await work[order.verb](order, job)
        except ImagefsError as failure:
            job.state, job.error = "failed", str(failure)
        except Exception as failure:
            log.exception("a job failed unexpectedly job=%s", order.verb)
            job.state, job.error = "failed", f"{order.verb}: {failure!r}"
        else:
            job.state = "done"
        finally:
            self._running = None

    async def _prune(self, order: Order, job: Job) -> None:
        job.freed = await self._cache.prune(order.image_id, cold=order.cold)

    async def _verify(self, order: Order, job: Job) -> None:
        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total

        found = await self._library.verify_cached(order.image_id, progress)
        job.checked, job.damaged = found.checked, found.damaged

    # -- what is there --------------------------------------------------------------------------

    async def listing(self, sight: Sight) -> bytes:
        """Return a line of JSON for each cache of an image that the identity sees; admins see those of images that are gone, too."""
        images, admin = self._catalog.snapshot.images, sight.access.is_admin(sight.identity)
        lines = []
        for cache in await self._cache.status():
            image = images.get(cache.image_id)
            if sight.sees(image) if image is not None else admin:
                lines.append(_line(cache, image))
        return "".join(lines).encode()


def _key(image: CatalogImage) -> Key:
    return image.record.id, image.data_version


def _line(cache: CacheStatus, image: CatalogImage | None) -> str:
    """Return a cache as a line of JSON; `image` is None if the store has it no more."""
    fields = {
        "image": cache.image_id,
        "name": image.record.name if image is not None else None,
        "space": cache.space,
        "size": cache.size,
        "cached": cache.cached,
        "allocated": cache.allocated,
        "pinned": cache.pinned,
        "open": cache.open,
        "complete": cache.complete,
        "verified": cache.mark is not None and cache.mark.verified,
        "last_used": int(cache.last_used),
    }
    return json.dumps(fields, ensure_ascii=True) + "\n"
