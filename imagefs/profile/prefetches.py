"""This module is what somebody asked to be brought into the cache, and how far that is."""

import contextlib
from collections.abc import Callable
from typing import Final, Literal

from imagefs.catalog import CatalogImage
from imagefs.errors import NoSpace
from imagefs.profile.boots import Boots
from imagefs.profile.replay import Cached, bring, everything, is_cached
from imagefs.source import Source
from imagefs.units import format_size

What = Literal["boot", "all"]
REMEMBERED: Final = 4096
"""Images of which is remembered that they were brought."""


class Prefetches:
    """The prefetches of a mount that were asked for. Used on the event loop."""

    def __init__(self, boots: Boots) -> None:
        """Take what knows boots."""
        self._boots = boots
        self._states: dict[tuple[str, str], str] = {}

    def state(self, image: CatalogImage) -> str:
        """Return "none", "boot 12345/67890" or "all 12345/67890" in bytes while one is under way, "done" after one that came to its end."""
        return self._states.get((image.record.id, image.data_version), "none")

    def forget(self, image: CatalogImage) -> None:
        """Let go of an image that is gone, or has other bytes by now."""
        self._states.pop((image.record.id, image.data_version), None)

    async def run(self, image: CatalogImage, face: Source, what: What) -> None:
        """Bring what a boot of the image reads, or all of a face of it. Safe to cancel.

        Raises StoreErrors, ImageRefused, and NoSpace for all of an image that the cache cannot hold.
        """
        key = (image.record.id, image.data_version)

        def show(done: int, wanted: int) -> None:
            self._states[key] = f"{what} {done}/{wanted}"

        state = "none"
        try:
            if is_cached(face):
                show(0, face.size)
                await (self._boots.bring(image, face, show) if what == "boot" else self._bring_all(image, face, show))
            state = "done"  # what is not cached is read where it lies
        finally:
            self._states.pop(key, None)
            if state == "done":
                self._states[key] = state
            while len(self._states) > REMEMBERED:
                del self._states[next(iter(self._states))]

    async def _bring_all(self, image: CatalogImage, face: Cached, show: Callable[[int, int], None]) -> None:
        if face.size > self._boots.room:
            raise NoSpace(
                f"image {image.record.id} cannot be brought as a whole: it has {format_size(face.size)}, and the cache may take "
                f"{format_size(self._boots.room)}: raise [cache] size"
            )
        done = 0

        def count(length: int) -> None:
            nonlocal done
            done += length
            show(done, face.size)

        async with contextlib.aclosing(everything(face, count)) as ranges:
            await bring(face.prefetch, ranges, count)
