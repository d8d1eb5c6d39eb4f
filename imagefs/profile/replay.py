"""This module brings ranges of a disk ahead of who will read them: some at a time, in the order given."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final, Protocol, Self, TypeGuard

import trio

from imagefs.errors import ImagefsError
from imagefs.extents import Extents
from imagefs.source import Source
from imagefs.units import GIB, MIB
from imagefs.urgency import Urgency

IN_FLIGHT: Final = 16
"""Fetches under way at once: 16 streams of 256 KiB fill 1 Gb/s at 30 ms to the first byte. They have threads and connections of their own."""
PIECE: Final = MIB
"""Bytes of one fetch where all of a disk is brought: the most that one fill of the cache takes."""


Fetch = Callable[[int, int], Awaitable[object]]
"""Brings a range, given by its offset and length."""


class Cached(Source, Protocol):
    """A disk that is cached here: what a replay needs of imagefs.cache.cache.UnitCache."""

    async def prefetch(self, offset: int, length: int, urgency: Urgency = Urgency.AHEAD) -> None:
        """Bring a range here. Raises StoreErrors, ImageRefused."""
        ...

    def is_here(self, offset: int, length: int) -> bool:
        """Tell whether a range is here, as far as is known without looking at the disk."""
        ...

    async def missing_extents(self, offset: int, length: int) -> Extents:
        """Return what of a range is neither here nor on its way."""
        ...

    def keep(self, offset: int, length: int) -> None:
        """Evict a range last."""
        ...

    def foreseen(self) -> AbstractContextManager[None]:
        """Guess nothing for the time of the block from what is read: what will be wanted is known."""
        ...


def is_cached(source: Source | None) -> TypeGuard[Cached]:
    """Tell whether bytes of a source can be brought ahead; what is read in place is here already."""
    return source is not None and hasattr(source, "prefetch")


async def bring(fetch: Fetch, ranges: AsyncIterator[tuple[int, int]], brought: Callable[[int], None]) -> None:
    """Fetch ranges (offset, length), IN_FLIGHT at a time, in their order; `brought` is called with the bytes of each that is here.

    The first failure ends it, once the others under way have been cancelled: ImagefsErrors of `fetch`. Safe to cancel; what `ranges` holds is
    for the caller to close.
    """
    failures: list[ImagefsError] = []
    turn = trio.Lock()

    async def work() -> None:
        try:
            while True:
                async with turn:  # an asynchronous generator serves one at a time
                    offset, length = await anext(ranges)
                await fetch(offset, length)
                brought(length)
        except StopAsyncIteration:
            return
        except ImagefsError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(work)
    if failures:
        raise failures[0]


class Each:
    """Ranges that are known already, for `bring`: an iterator, which needs no closing."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Take the ranges."""
        self._ranges = iter(ranges)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, int]:
        for extent in self._ranges:
            return extent
        raise StopAsyncIteration


async def everything(disk: Source, skipped: Callable[[int], None]) -> AsyncGenerator[tuple[int, int], None]:
    """Yield (offset, length) of all that may hold other than zeros, in pieces; `skipped` is called with the bytes of what does not."""
    for start in range(0, disk.size, GIB):
        window = min(GIB, disk.size - start)
        extents = await disk.extents(start, window)
        skipped(window - sum(stop - first for first, stop in extents))
        for first, stop in extents:
            for offset in range(first, stop, PIECE):
                yield offset, min(PIECE, stop - offset)
