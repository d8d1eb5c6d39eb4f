"""This module knows whether any reader of the node waits for a fetch, so that what nobody waits for keeps out of the way."""

import contextlib
import math
from collections.abc import Iterator

import trio


class Demand:
    """The readers of all caches of one daemon that wait for bytes from the store. Used on the event loop only.

    Invariant: `under_way` is the number of `waiting` blocks that are entered and not left.
    """

    __slots__ = ("last", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        """Misses that are being waited for now."""
        self.last = -math.inf
        """When one last began or ended, in trio's seconds."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count one miss for the time of the block."""
        self.under_way += 1
        self.last = trio.current_time()
        try:
            yield
        finally:
            self.under_way -= 1
            self.last = trio.current_time()
