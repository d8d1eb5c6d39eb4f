"""This module fetches something a second time when the first request stalls: whoever brings a part first delivers it, and nobody twice.

A store that lets one request in a hundred wait for seconds would otherwise let each boot wait: it makes hundreds of them.
"""

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVarTuple

import trio

from imagefs import threads
from imagefs.counters import COUNTERS
from imagefs.fetch.traffic import Traffic
from imagefs.threads import FETCH_LANES, Lane
from imagefs.urgency import Urgency

Ts = TypeVarTuple("Ts")


class Race:
    """One thing to fetch, and the one or two attempts at it, each in a thread of its own.

    Invariants: the work of a part is done once, whoever gets there first; none is begun or under way after `run` has returned. An attempt that
    lost is left to itself then: it ends at its next unit, or when its connection times out, and what it brings is dropped.
    """

    def __init__(self, traffic: Traffic, urgency: Urgency) -> None:
        """Take the store's traffic, which says how long to wait, and how urgent the thing is."""
        self._traffic = traffic
        self._urgency = urgency
        self._lock = threading.Lock()
        self._over = False
        self._done: set[int] = set()
        self._begun = False
        self._moved_at = time.monotonic()
        self._running = 0
        self._failures: list[Exception] = []
        self._won = False

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do for an attempt."""
        return self._over

    def moved(self) -> None:
        """Note that bytes came. Call it in the attempts' threads."""
        self._begun = True
        self._moved_at = time.monotonic()

    def once(self, part: int, work: Callable[[*Ts], object], *args: *Ts) -> None:
        """Do the work of a part unless that was done, or the race is over; raises what it raises. Call it in the attempts' threads."""
        self.moved()
        with self._lock:
            if not self._over and part not in self._done:
                self._done.add(part)
                work(*args)

    def left(self, parts: Iterable[int]) -> list[int]:
        """Return those of `parts` that nobody has done yet."""
        with self._lock:
            return [part for part in parts if part not in self._done]

    async def run(self, attempt: Callable[["Race"], object]) -> None:
        """Call `attempt(race)` in a thread, and a second time beside the first if that stalls; return when one of them has returned.

        Raises what the first one raises if all do. On cancellation the attempts are left to themselves.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._start(nursery, attempt, second=False)
                await self._watch()
                COUNTERS.hedged_requests += 1
                self._start(nursery, attempt, second=True)
        finally:
            await self._end()
        if not self._won:
            raise self._failures[0]

    async def _watch(self) -> None:
        """Return when a second attempt is due, and allowed."""
        while True:
            patience = self._traffic.patience(begun=self._begun)
            rest = self._moved_at + patience - time.monotonic()
            if rest > 0:
                await trio.sleep(rest)
            elif self._traffic.may_try_twice(self._urgency):
                return
            else:
                await trio.sleep(patience)

    def _start(self, nursery: trio.Nursery, attempt: Callable[["Race"], object], *, second: bool) -> None:
        self._running += 1
        nursery.start_soon(self._try, nursery.cancel_scope, attempt, second)

    async def _try(self, scope: trio.CancelScope, attempt: Callable[["Race"], object], second: bool) -> None:
        """Run one attempt; the race is over when it returns, or when it was the last one that could."""
        try:
            await threads.run(FETCH_LANES[self._urgency], attempt, self, abandon=True)
        except Exception as error:
            self._failures.append(error)
        else:
            self._won = True
            COUNTERS.hedges_won += second
        self._running -= 1
        if self._won or not self._running:
            scope.cancel()

    async def _end(self) -> None:
        """Return when no part's work is under way, and none will begin."""
        if self._lock.acquire(blocking=False):
            self._over = True
            self._lock.release()
            return
        with trio.CancelScope(shield=True):
            await threads.run(Lane.DISK, self._end_blocking)

    def _end_blocking(self) -> None:
        with self._lock:
            self._over = True
