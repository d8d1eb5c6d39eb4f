"""This module is the one door to worker threads: named lanes, each with its own limit.

Lanes keep one kind of work from starving another: a store that hangs holds FETCH threads, never the DISK threads that
serve bytes which are already here.
"""

import enum
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import trio

from imagefs.urgency import Urgency

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
    """Fetches of image data that a reader waits for: one ranged GET each."""
    AHEAD = 20
    """Fetches of what a reader will probably want. Of their own, so that what is wanted now does not wait behind them."""
    IDLE = 7
    """Fetches of what nobody waits for."""
    DISK = 32
    """Reads, writes and flushes of files in the state directory and of local stores."""
    UPLOAD = 4
    """New images on their way into the store: each holds its thread for as long as that takes. Its end is waited for, so that nothing of an
    upload that was broken off is left behind."""
    PACK = 3
    """Compression of snapshots: few, since guests want the processors too."""
    GUESS = 1
    """What a guest will read, worked out from its filesystem: parsing, one step at a time, since guests want the processors too."""
    IDENTITY = 6
    """Questions to the host's user database, which may be across the network and hang. Abandoned on cancellation."""
    CALLER = 5
    """Looks at paths that a caller named, which may lie on a filesystem of the caller's that hangs. They change nothing. Abandoned on
    cancellation."""


FETCH_LANES: Final = {Urgency.DEMAND: Lane.FETCH, Urgency.AHEAD: Lane.AHEAD, Urgency.IDLE: Lane.IDLE}
"""The lane in which something of each urgency is fetched."""

_ABANDONED: Final = frozenset({Lane.STORE, Lane.KERNEL, Lane.IDENTITY, Lane.CALLER})
_Limiters = dict[Lane, trio.CapacityLimiter]
_limiters: trio.lowlevel.RunVar[_Limiters] = trio.lowlevel.RunVar("limiters")
"""Those of one event loop. A thread that is left to itself and outlives its loop never gives its place back."""
_latest: list[_Limiters] = []


def _limiters_of_this_loop() -> _Limiters:
    try:
        return _limiters.get()
    except LookupError:
        limiters = {lane: trio.CapacityLimiter(lane.value) for lane in Lane}
        _limiters.set(limiters)
        _latest[:] = [limiters]
        return limiters


async def run(lane: Lane, work: Callable[[*Ts], T], *args: *Ts, abandon: bool = False) -> T:
    """Run blocking `work(*args)` in a thread of `lane` and return its result.

    On cancellation this still waits for the thread, so that no write goes on behind its owner's back. Only what writes nothing
    is left to itself then: a store that hangs must not keep the daemon from ending. `abandon` says so of one piece of work in
    a lane of which that is not so; until it ends it keeps its place in the lane.
    """
    options: dict[str, Any] = {"abandon_on_cancel": abandon or lane in _ABANDONED}  # the stubs of trio that pyfuse3 brings do not know it
    return await trio.to_thread.run_sync(work, *args, limiter=_limiters_of_this_loop()[lane], **options)


def busy() -> dict[str, int]:
    """Return how many threads each lane uses now, by lower-case lane name. In a thread without an event loop: those of the last one."""
    try:
        limiters = _limiters_of_this_loop()
    except RuntimeError:
        limiters = _latest[0] if _latest else {}
    return {lane.name.lower(): limiters[lane].borrowed_tokens if limiters else 0 for lane in Lane}
