"""This module examines what is cached, and what is in the store, when somebody asks for it."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Final

import trio

from imagefs import threads
from imagefs.cache.root import CacheRoot
from imagefs.cache.shelf import Shelf
from imagefs.cache.whole import READER_PAUSE, prove_again
from imagefs.errors import WrongBytes
from imagefs.fetch.stored import StoredObject
from imagefs.hydration.stream import stream
from imagefs.hydration.whole_hash import whole_hashes
from imagefs.store.record import ImageRecord
from imagefs.threads import Lane
from imagefs.units import UNIT

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called on the event loop with the bytes that are done and all that there are to do. What it raises ends the work."""

PATIENCE: Final = 100
"""Times that a region is looked at in which somebody is always reading, before it is passed over."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheVerified:
    """What an examination of caches found: units that were compared, those of them that were damaged, and are not there any more, and regions of
    1 MiB that were not compared, because somebody was at them all the time.
    """

    caches: int = 0
    checked: int = 0
    damaged: int = 0
    busy: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ImageVerified:
    """An image whose bytes in the store are right: how many they are, and what they were compared with ("size", "unit digests", "sha512")."""

    size: int
    compared: tuple[str, ...]


async def verify_cached(root: CacheRoot, image_id: str | None, progress: Progress) -> CacheVerified:
    """Compare all cached units, or those of one image, with their checksums; damaged ones are erased, and fetched again when they are read.

    Also of caches that are not open. 1 MiB at a time in a DISK thread, beside readers. Safe to cancel: what was compared is compared.
    """
    names = root.names(image_id)
    total = sum(cache.cached for cache in await root.status(names))
    found = CacheVerified()
    for name in names:
        shelf = await root.shelf(name)
        if shelf is not None:
            before = found

            def advance(checked: int, damaged: int, busy: int, before: CacheVerified = before) -> CacheVerified:
                after = CacheVerified(before.caches + 1, before.checked + checked, before.damaged + damaged, before.busy + busy)
                progress(min(after.checked * UNIT, total), total)
                return after

            found = await _verify_shelf(shelf, advance)
    progress(total, total)
    return found


async def verify_image(stored: StoredObject, record: ImageRecord, progress: Progress) -> ImageVerified:
    """Read all of an image's bytes from the store and compare them with what its record says. Nothing of it is cached, nothing evicted.

    Raises WrongBytes that says what differs, and where the first wrong bytes are if unit digests tell; and StoreErrors. Safe to cancel.
    """
    name = stored.name
    if record.size is not None and record.size != stored.size:
        raise WrongBytes(f"{name}: the store has {stored.size} bytes of it, and its record says {record.size}: upload it again")
    hashes = [(wanted, wanted.begin()) for wanted in whole_hashes(record)]
    done = 0

    async def take(first_unit: int, bodies: list[bytes]) -> None:
        nonlocal done
        joined = b"".join(bodies)
        for _, running in hashes:
            await threads.run(Lane.DISK, running.update, joined)
        done += len(joined)
        progress(done, stored.size)

    async def at_once(amount: int) -> None:
        await trio.lowlevel.checkpoint()

    await stream(stored, take, at_once)  # which compares each unit with its digest, where there are any
    for wanted, running in hashes:
        if running.hexdigest() != wanted.value:
            raise WrongBytes(
                f"{name}: its bytes in the store have the {wanted.algorithm} {running.hexdigest()}, "
                f"not {wanted.value} as its record says: upload it again"
            )
    size = ("size",) if record.size is not None else ()
    digests = ("unit digests",) if record.tree is not None else ()
    return ImageVerified(stored.size, (*size, *digests, *(wanted.algorithm for wanted, _ in hashes)))


async def _verify_shelf(shelf: Shelf, advance: Callable[[int, int, int], CacheVerified]) -> CacheVerified:
    """Compare the units of one cache. It may grow and shrink meanwhile."""
    checked = damaged = busy = region = tries = 0
    while (file := shelf.file) is not None:
        try:
            there = await threads.run(Lane.DISK, file.present_regions, region, 1)
        except OSError as error:
            log.warning("cannot see what a cache holds cache=%s error=%s", shelf.name, error)
            break
        if not there:
            break
        region = there[0]
        compared = await prove_again(shelf, region)
        if compared is None and tries < PATIENCE:
            tries += 1
            await trio.sleep(READER_PAUSE)
            continue
        busy += compared is None
        checked, damaged = checked + (compared or (0, 0))[0], damaged + (compared or (0, 0))[1]
        region, tries = region + 1, 0
        advance(checked, damaged, busy)
    return advance(checked, damaged, busy)
