"""This module brings the rest of images that are in use into the cache, when nobody waits for anything, and has complete ones proved.

One task for the node, one image at a time, the one that was opened last before others, a stretch of it at a time. What is there is told by
the cache's map, so nothing is done twice, also after a restart. Only free room is filled: nothing is evicted for what nobody asked for.
"""

import collections
import logging
import math
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Final, Literal

import trio

from imagefs.cache.budget import Budget, fill_cost
from imagefs.cache.demand import Demand
from imagefs.cache.geometry import unit_span
from imagefs.cache.whole import discard, put_zeros
from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError, ImageRefused, NoSpace, StoreUnavailable, WrongBytes
from imagefs.hydration.image import HydratedImage, Key
from imagefs.hydration.pace import Pace
from imagefs.hydration.plan import STRETCH, length_of, parts, split
from imagefs.hydration.proof import prove
from imagefs.hydration.verdict import Verdict
from imagefs.urgency import Urgency

log = logging.getLogger(__name__)

Mode = Literal["off", "idle", "full"]

IN_FLIGHT: Final = 4
"""Parts at a time."""
SPARE_PART: Final = 16
"""One part in this many of the budget is left to readers. It is more than one eviction frees, or hydration would fill what a reader had to
have evicted, for the next one to evict it again."""
PAUSE: Final = 5.0
"""Seconds until a store that is down is asked again; twice as long each time, up to PAUSE_LIMIT."""
PAUSE_LIMIT: Final = 60.0
AGAIN: Final = 60.0
"""Seconds until an image is looked at again for which there was no room, or which lost units meanwhile."""


class _Candidate:
    """An image that somebody opened since the mount, and how far it is."""

    def __init__(self, image: HydratedImage) -> None:
        self.image = weakref.ref(image)
        self.at = 0
        self.not_before = -math.inf
        self.ended = False
        """Whether there is nothing to do any more: it is proved, refused, or cannot be had."""
        self.damaged: ImagefsError | None = None
        """Why some of it cannot be had."""
        self.pauses = 0


class _NoRoom(Exception):
    """The budget has no room to spare."""


class Hydrator:
    """Used on the event loop only. Images are held weakly: they belong to the library."""

    def __init__(self, mode: Mode, limit: int, rate: int, budget: Budget, demand: Demand, *, chance: Callable[[], float] = random.random) -> None:
        """Take when to hydrate, the stored bytes of the largest image that is hydrated in mode idle, and bytes per second for the node."""
        self._mode = mode
        self._limit = limit
        self._budget = budget
        self._pace = Pace(demand, rate, idle=mode == "idle", chance=chance)
        self._candidates: collections.OrderedDict[Key, _Candidate] = collections.OrderedDict()
        self._verdicts: weakref.WeakValueDictionary[Key, Verdict] = weakref.WeakValueDictionary()
        self._refused: dict[Key, Verdict] = {}
        self._news = trio.Event()

    def verdict(self, key: Key) -> Verdict:
        """Return what is known of an image's bytes: the same object for all who open it. A refusal is kept until the image is gone."""
        return self._verdicts.setdefault(key, Verdict())

    def consider(self, image: HydratedImage) -> None:
        """Note that somebody opened the image's disk."""
        if self._mode == "off" or (self._mode == "idle" and image.object.size > self._limit):
            return
        known = self._candidates.get(image.key)
        if known is None:
            self._candidates[image.key] = _Candidate(image)
            self._pace.begin()
        else:
            known.image = weakref.ref(image)
            self._candidates.move_to_end(image.key)
        self._news.set()

    def forget(self, key: Key) -> None:
        """Let go of an image that is gone."""
        self._candidates.pop(key, None)
        self._refused.pop(key, None)
        self._verdicts.pop(key, None)

    async def run(self) -> None:
        """Hydrate until cancelled. Never raises anything else."""
        while self._mode != "off":
            try:
                await self._step()
            except Exception:  # whatever it is, guests are running
                log.exception("hydration failed unexpectedly, and goes on")
                await trio.sleep(AGAIN)

    async def _step(self) -> None:
        """Do a stretch of the image whose turn it is, or wait until there is one."""
        found = self._next()
        if isinstance(found, float):
            with trio.move_on_at(found):
                await self._news.wait()
            self._news = trio.Event()
            return
        candidate, image = found
        candidate.not_before = trio.current_time() + AGAIN  # should anything unforeseen end this
        await self._advance(candidate, image)

    def _next(self) -> tuple[_Candidate, HydratedImage] | float:
        """Return the image whose turn it is, or the time (trio's) at which there may be one."""
        now, wake = trio.current_time(), math.inf
        for key, candidate in reversed(list(self._candidates.items())):
            image = candidate.image()
            if image is None:
                del self._candidates[key]
            elif not candidate.ended and candidate.not_before <= now:
                return candidate, image
            elif not candidate.ended:
                wake = min(wake, candidate.not_before)
        return wake

    async def _advance(self, candidate: _Candidate, image: HydratedImage) -> None:
        """Do one stretch, or prove the image if that was the last one; decide when to go on with it."""
        wait, pauses, candidate.pauses = 0.0, candidate.pauses, 0
        try:
            if image.disk.shelf.file is not None and image.disk.shelf.file.mark is not None:
                candidate.ended = True
            elif candidate.at < image.disk.size:
                await self._stretch(candidate, image)
            else:
                candidate.at = 0
                wait = await self._finish(candidate, image)
        except _NoRoom:
            candidate.at, wait = 0, AGAIN
        except OSError as error:
            candidate.at, wait = 0, AGAIN
            log.warning("an image cannot be hydrated now, because the disk takes no more image=%s error=%s", image.record.id, error)
        except (StoreUnavailable, NoSpace) as error:
            candidate.pauses = pauses + 1
            wait = min(PAUSE * 2.0 ** min(pauses, 16), PAUSE_LIMIT)
            log.info("hydration pauses, because the store is not to be had image=%s seconds=%.0f error=%s", image.record.id, wait, error)
        except ImagefsError as error:
            candidate.ended = True
            log.warning("an image is not hydrated, until the next mount image=%s error=%s", image.record.id, error)
        candidate.not_before = trio.current_time() + wait if wait else -math.inf

    async def _stretch(self, candidate: _Candidate, image: HydratedImage) -> None:
        """Bring what is missing of the next stretch. Raises _NoRoom, OSError, ImagefsErrors."""
        cache, offset = image.disk, candidate.at
        length = min(STRETCH, cache.size - offset)
        if cache.shelf.file is None:
            raise _NoRoom
        missing = await cache.missing_extents(offset, length)
        if missing:
            await self._pace.turn(0)
            wanted, zeros = split(missing, await cache.extents(offset, length), cache.size)
            for start, stop in zeros:
                if not self._room(0) or not await put_zeros(cache.shelf, unit_span(start, stop - start)):
                    raise _NoRoom
            await self._bring(candidate, image, parts(wanted))
        candidate.at = offset + length

    async def _bring(self, candidate: _Candidate, image: HydratedImage, wanted: Iterator[tuple[int, int]]) -> None:
        """Bring parts, some at a time. The first failure that is not about a part alone stops it, and is raised."""
        failures: list[Exception] = []

        async def bring() -> None:
            for start, stop in wanted:
                if failures:
                    return
                try:
                    await self._bring_part(image, start, stop - start)
                except (ImageRefused, WrongBytes) as error:
                    candidate.damaged = error  # about these bytes alone: the rest is as useful as ever
                except (ImagefsError, _NoRoom) as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(bring)
        if failures:
            raise failures[0]

    async def _bring_part(self, image: HydratedImage, start: int, length: int) -> None:
        cache = image.disk
        missing = length_of(cache.missing(start, length))
        if not missing:
            return  # a reader was faster
        await self._pace.turn(missing)
        image.verdict.check()
        if self._candidates.get(image.key) is None or not self._room(fill_cost(unit_span(start, length))):
            raise _NoRoom
        await cache.prefetch(start, length, Urgency.IDLE)
        left = length_of(cache.missing(start, length))
        COUNTERS.hydrated_bytes += max(0, missing - left)
        if left:  # the disk did not take it, or it was evicted at once: more would fare no better
            cache.shelf.forget_loose()  # nobody reads it, and as long as it is in memory it would not be fetched again for the disk
            raise _NoRoom

    def _room(self, cost: int) -> bool:
        """Tell whether there is room for so many bytes that nobody else will miss."""
        return self._budget.shortage(cost + self._budget.limit // SPARE_PART) <= 0

    async def _finish(self, candidate: _Candidate, image: HydratedImage) -> float:
        """Prove an image of which nothing is missing; return the seconds after which it is to be looked at again. Raises StoreErrors."""
        if candidate.damaged is not None:
            candidate.ended = True
            log.warning("an image cannot be cached completely image=%s error=%s", image.record.id, candidate.damaged)
            return 0.0
        try:
            mark = await prove(image, self._pace)
        except WrongBytes as error:
            candidate.ended = True
            await self._refuse(image, error)
            return 0.0
        if mark is None:
            return AGAIN
        candidate.ended = True
        COUNTERS.images_completed += 1
        log.info("an image is cached completely image=%s bytes=%d checked=%s", image.record.id, image.disk.size, mark.algorithm or mark.checked.value)
        return 0.0

    async def _refuse(self, image: HydratedImage, error: WrongBytes) -> None:
        """Serve nothing of the image any more, and drop what is cached of it."""
        image.verdict.refusal = error
        self._refused[image.key] = image.verdict
        log.error("an image is refused, because its bytes are not those that its record names image=%s error=%s", image.record.id, error)
        for cache in (image.disk, image.stored) if image.is_decoded else (image.disk,):
            await discard(cache.shelf)
        COUNTERS.images_failed_verification += 1  # last: who sees it counted is served no byte of it any more
