"""This module is what there is to say of each cache, for who looks after them."""

import dataclasses
import time
from collections.abc import Collection, Iterable

from imagefs.cache.directory import CacheDirectory, ClosedCache
from imagefs.cache.file import UnitFile
from imagefs.cache.mark import Mark
from imagefs.cache.shelf import Shelf
from imagefs.units import UNIT


@dataclasses.dataclass(frozen=True, slots=True)
class CacheStatus:
    """What there is to say of one cache; sizes in bytes, `last_used` in Unix seconds."""

    name: str
    image_id: str
    space: str
    size: int
    cached: int
    allocated: int
    pinned: bool
    open: bool
    last_used: float
    mark: Mark | None = None
    """What its bytes were compared with, once all of them were here; None if that has not been done."""

    @property
    def complete(self) -> bool:
        """Whether all units are here, as far as the map tells."""
        return self.cached >= self.size


def describe_closed(directory: CacheDirectory, caches: Iterable[ClosedCache], pinned: Collection[str]) -> list[CacheStatus]:
    """Describe caches that are not open. Blocks; one that cannot be read, or is gone by now, is left out."""
    found = []
    for cache in caches:
        if (described := directory.describe(cache.name)) is not None:
            header, present = described
            cached, mark = min(header.size, present * UNIT), directory.mark(cache.name)
            is_pinned = cache.image_id in pinned
            found.append(
                CacheStatus(cache.name, cache.image_id, header.space, header.size, cached, cache.allocated, is_pinned, False, cache.modified, mark)
            )
    return found


def describe_open(name: str, shelf: Shelf, file: UnitFile) -> CacheStatus:
    """Describe a cache that is open: it is in use now."""
    image_id, _, rest = name.partition("/")
    cached, allocated, space = min(shelf.size, shelf.present * UNIT), file.allocated(), rest.partition("-")[0]
    return CacheStatus(name, image_id, space, shelf.size, cached, allocated, shelf.pinned, True, time.time(), file.mark)
