"""This module proves a complete cache: that its bytes are those that the image's record names."""

import logging
from collections.abc import Callable
from typing import Final

from imagefs import threads
from imagefs.cache.geometry import unit_span
from imagefs.cache.mark import Checked, Mark
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import DATA
from imagefs.cache.whole import mark_complete, prove_all
from imagefs.errors import ImageRefused, WrongBytes
from imagefs.hydration.decoded import DecodedProof
from imagefs.hydration.image import HydratedImage
from imagefs.hydration.pace import Pace
from imagefs.hydration.reading import STEP, Unsettled, read_politely
from imagefs.hydration.whole_hash import WholeHash, whole_hashes
from imagefs.threads import Lane

log = logging.getLogger(__name__)

PASSES: Final = 2
"""Times that the object is read before it is called wrong: a bit that flipped on the way heals, one in the store does not."""


async def prove(image: HydratedImage, pace: Pace) -> Mark | None:
    """Mark the image's disk as complete, after comparing it with what its record says; None if the cache is not complete, or not any more.

    With unit digests nothing is read again: no unit was served or stored that its digest did not prove, and what was decoded was decoded
    from such units. Since then the checksums of the cache tell. Without them the hash of the whole image decides; without any the mark says so.
    Raises WrongBytes if the bytes are wrong, and StoreErrors if the object is read and cannot be had. Safe to cancel.
    """
    shelf = image.disk.shelf
    file = shelf.file
    if file is None or await threads.run(Lane.DISK, file.count_present) < shelf.unit_count:
        return None
    losses = file.losses
    mark = Mark(file.seed, shelf.unit_count, image.data_version, Checked.NOTHING)
    wanted = next(iter(whole_hashes(image.record)), None)
    try:
        if image.record.tree is not None:
            mark = Mark(file.seed, shelf.unit_count, image.data_version, Checked.DIGESTS)
        elif wanted is not None and await _compared(image, wanted, pace):
            mark = Mark(file.seed, shelf.unit_count, image.data_version, Checked.HASH, wanted.algorithm, wanted.value)
    except Unsettled as error:
        log.info("a complete cache is compared again later, because it changed meanwhile image=%s error=%s", image.record.id, error)
        return None
    except WrongBytes:
        if file.losses != losses or shelf.file is None:  # then what is missing may be all that is wrong
            log.info("a cache that lost units meanwhile is compared again later image=%s", image.record.id)
            return None
        raise
    return mark if await mark_complete(shelf, mark, losses) else None


async def _compared(image: HydratedImage, wanted: WholeHash, pace: Pace) -> bool:
    """Return whether the bytes could be compared with the hash; if so they have it. Raises WrongBytes, Unsettled, StoreErrors."""
    if not image.is_decoded:
        await _compare_stored(image, wanted, pace)
        return True
    try:
        for last in (False,) * (PASSES - 1) + (True,):
            try:
                await DecodedProof(image, wanted, pace).run()
                break
            except WrongBytes as error:
                if last:
                    raise
                log.warning("an image's bytes seem to be wrong, and are read once more to be sure image=%s error=%s", image.record.id, error)
    except ImageRefused as error:
        log.warning("a complete cache cannot be compared with the image's hash image=%s error=%s", image.record.id, error)
        return False
    return True


async def _compare_stored(image: HydratedImage, wanted: WholeHash, pace: Pace) -> None:
    """Hash what is cached of the stored bytes. Raises WrongBytes, Unsettled."""
    shelf = image.disk.shelf
    whole = wanted.begin()
    for offset in range(0, shelf.size, STEP):
        length = min(STEP, shelf.size - offset)
        await pace.turn(length)
        units = unit_span(offset, length)
        await shelf.examine(units)
        with shelf.reading(units):
            if min(shelf.states[units.start : units.stop]) < DATA:
                raise Unsettled(f"{image.name}: of the units {units.start} to {units.stop - 1} some are not cached any more")
            await threads.run(Lane.DISK, _add, shelf, offset, length, whole.update)
    if whole.hexdigest() == wanted.value:
        return
    if await prove_all(shelf):
        raise Unsettled(f"{image.name}: units on the disk were damaged")
    raise WrongBytes(
        f"{image.name}: the bytes that the store gave have the {wanted.algorithm} {whole.hexdigest()}, not {wanted.value} as its record says: "
        "see whether imagefs image verify says so too, and upload it again"
    )


def _add(shelf: Shelf, offset: int, length: int, update: Callable[[bytearray], None]) -> None:
    file = shelf.file
    if file is None:
        raise Unsettled("its cache was given up")
    update(read_politely(file, offset, length))
