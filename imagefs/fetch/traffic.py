"""This module is all that one node fetches from one store: who may ask now, how it has been answering, and what that says of the next request."""

import collections
import math
import threading
import time
from types import TracebackType
from typing import Final, Self

import trio

from imagefs.counters import COUNTERS
from imagefs.errors import StoreBusy, StoreUnavailable
from imagefs.fetch.backoff import Clock
from imagefs.fetch.pace import Breaker, Pace
from imagefs.fetch.patience import SAVED, SecondTries, Usual
from imagefs.urgency import Urgency

SLOTS: Final = {Urgency.DEMAND: 24, Urgency.AHEAD: 16, Urgency.IDLE: 4}
"""Fills of each urgency at once, as long as the store does not ask for less."""

LEAST_DEMAND: Final = 4
"""Fills that readers wait for which go on however busy the store is."""

LOOK: Final = 1.0
"""Seconds after which who waits for a slot looks again: what stands in the way may have passed without anybody saying so."""


class Turn:
    """One slot of one urgency, held until `release` or the end of a `with` block. Used on the event loop only."""

    __slots__ = ("_traffic", "_urgency")

    def __init__(self, traffic: "Traffic", urgency: Urgency) -> None:
        """Made by `Traffic.turn`."""
        self._traffic: Traffic | None = traffic
        self._urgency = urgency

    def release(self) -> None:
        """Give the slot back; more than once does no harm."""
        traffic, self._traffic = self._traffic, None
        if traffic is not None:
            traffic.give_back(self._urgency)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class Traffic:
    """The requests for image data to one store. Turns are taken on the event loop; the rest is thread-safe.

    Invariants: what a reader waits for never waits for a turn of another urgency; nothing of IDLE starts while something of DEMAND runs or
    while something of AHEAD waits.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        """`clock` is for tests."""
        self._clock = clock
        self._running = dict.fromkeys(Urgency, 0)
        self._queues: dict[Urgency, collections.deque[trio.Event]] = {urgency: collections.deque() for urgency in Urgency}
        self._lock = threading.Lock()  # around all below, held for no I/O
        self._pace = Pace()
        self._breaker = Breaker()
        self._first_units = Usual()
        self._gaps = Usual()
        self._second_tries = SecondTries()
        self._resume_at = -math.inf  # the store said when to come back

    @property
    def limit(self) -> int:
        """Requests that the store is given at once now."""
        return self._pace.limit

    def running(self, urgency: Urgency) -> int:
        """Return how many turns of an urgency are held."""
        return self._running[urgency]

    async def turn(self, urgency: Urgency) -> Turn:
        """Wait until something of this urgency may be fetched, in order within the urgency. Safe to cancel."""
        await trio.lowlevel.checkpoint_if_cancelled()
        queue = self._queues[urgency]
        if not queue and self._may_start(urgency):
            self._running[urgency] += 1
            return Turn(self, urgency)
        called = trio.Event()
        queue.append(called)
        try:
            while not called.is_set():
                with trio.move_on_after(LOOK):
                    await called.wait()
                self._call()
        except BaseException:
            if called.is_set():
                self.give_back(urgency)
            else:
                queue.remove(called)
            raise
        return Turn(self, urgency)

    def give_back(self, urgency: Urgency) -> None:
        """End a turn, and call who waits: the work of `Turn.release`."""
        self._running[urgency] -= 1
        self._call()

    def pause(self) -> float:
        """Return the seconds for which only what readers wait for is fetched: the store fails, or asked to be left alone."""
        now = self._clock()
        with self._lock:
            return max(self._breaker.pause(now), self._resume_at - now, 0.0)

    def patience(self, *, begun: bool) -> float:
        """Return the seconds without a byte after which a request is worth a second one: before its first unit, or (`begun`) between two."""
        with self._lock:
            return max(self._gaps.patience, self._first_units.patience) if begun else self._first_units.patience

    def may_try_twice(self, urgency: Urgency) -> bool:
        """Tell whether a second request may be sent for one that has stalled, and count it. Readers are left a part of what was saved up."""
        if urgency is Urgency.IDLE:
            return False
        with self._lock:
            return self._second_tries.take(0.0 if urgency is Urgency.DEMAND else SAVED / 2)

    def asked(self) -> None:
        """Note a request that is being sent."""
        with self._lock:
            COUNTERS.store_data_requests += 1
            self._second_tries.earn()

    def ended(self, size: int, first_unit: float | None, gap: float | None) -> None:
        """Note a request that is over: the bytes it brought, the seconds until its first unit, and the longest ones between two; None: no such."""
        now = self._clock()
        with self._lock:
            COUNTERS.store_bytes += size
            if first_unit is not None:
                self._first_units.note(first_unit)
            if gap is not None:
                self._gaps.note(gap)
            self._pace.finished(size, now)

    def failed(self, error: StoreUnavailable) -> None:
        """Note a request that failed."""
        now = self._clock()
        with self._lock:
            self._breaker.failed(now)
            if isinstance(error, StoreBusy):
                self._resume_at = max(self._resume_at, now + error.retry_after)
                COUNTERS.slowdowns += self._pace.busy(now)

    def _may_start(self, urgency: Urgency) -> bool:
        running, limit = self._running, self._pace.limit
        if running[urgency] >= SLOTS[urgency]:
            return False
        if urgency is Urgency.DEMAND:
            return running[urgency] < max(limit, LEAST_DEMAND)
        if sum(running.values()) >= limit or self.pause():
            return False
        return urgency is Urgency.AHEAD or not (running[Urgency.DEMAND] or self._queues[Urgency.DEMAND] or self._queues[Urgency.AHEAD])

    def _call(self) -> None:
        """Let those begin that may, the most urgent first."""
        for urgency, queue in self._queues.items():
            while queue and self._may_start(urgency):
                self._running[urgency] += 1
                queue.popleft().set()
