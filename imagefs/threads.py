"""This module is the one door to worker threads: named lanes, each with its own limit.

Lanes keep one kind of work from starving another: a store that hangs holds FETCH threads, never the DISK threads that
serve bytes which are already here.
"""

import enum
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@enum.unique
class Lane(enum.Enum):
    """What a thread is for, and how many may run at once: no two numbers are the same, or two lanes would be one."""

    STORE = 16
    """Records, listings and other small requests to the store; they change nothing. Abandoned on cancellation."""
    KERNEL = 2
    """Requests to the mount itself, which waits for this very process. Abandoned on cancellation."""
    TABLES = 8
    """Fetches of image tables that a FETCH thread's work waits for; its own lane, so that they cannot wait for each other."""
    FETCH = 24
    """Fetches of image data: one ranged GET each."""
    DISK = 32
    """Reads, writes and flushes of files in the state directory and of local stores."""
    UPLOAD = 4
    """New images on their way into the store: each holds its thread for as long as that takes. Its end is waited for, so that nothing of an
    upload that was broken off is left behind."""
    PACK = 3
    """Compression of snapshots: few, since guests want the processors too."""
    IDENTITY = 6
    """Questions to the host's user database, which may be across the network and hang. Abandoned on cancellation."""
    CALLER = 5
    """Looks at paths that a caller named, which may lie on a filesystem of the caller's that hangs. They change nothing. Abandoned on
    cancellation."""


_ABANDONED: Final = frozenset({Lane.STORE, Lane.KERNEL, Lane.IDENTITY, Lane.CALLER})
_limiters = {lane: trio.CapacityLimiter(lane.value) for lane in Lane}


async def run(lane: Lane, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run blocking `work(*args)` in a thread of `lane` and return its result.

    On cancellation this still waits for the thread, so that no write goes on behind its owner's back. Only what writes nothing
    is left to itself then: a store that hangs must not keep the daemon from ending.
    """
    options: dict[str, Any] = {"abandon_on_cancel": lane in _ABANDONED}  # the stubs of trio that pyfuse3 brings do not know it
    return await trio.to_thread.run_sync(work, *args, limiter=_limiters[lane], **options)


def busy() -> dict[str, int]:
    """Return how many threads each lane uses now, by lower-case lane name."""
    return {lane.name.lower(): limiter.borrowed_tokens for lane, limiter in _limiters.items()}
