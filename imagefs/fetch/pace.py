"""This module decides how many requests a store is given at once, and when it is left alone; it does no I/O and knows no clock of its own."""

import collections
from typing import Final

MOST: Final = 24
"""Requests in flight at first, and at most."""

LEAST: Final = 2
"""Requests in flight that a store gets however busy it says it is."""

SETTLE: Final = 1.0
"""Seconds after the limit was halved during which more refusals say nothing new: those requests were sent before."""

HOLD: Final = 10.0
"""Seconds after which more is tried again although the last step brought nothing."""

FAILURES: Final = 5
WINDOW: Final = 10.0
"""So many failures within so many seconds open the circuit breaker."""

COOL: Final = 5.0
"""Seconds since the last failure after which an open breaker closes."""


class Pace:
    """How many requests may be in flight. It begins at the top, since a boot is over before a slow start would be.

    Additive increase while that helps, halved when the store says that it is busy: one store serves a rack of nodes, and this is how they
    share it. Invariant: LEAST <= limit <= MOST.
    """

    def __init__(self, most: int = MOST, least: int = LEAST) -> None:
        """Take the bounds."""
        self.limit = most
        """Requests that may be in flight now."""
        self._most = most
        self._least = least
        self._halved_at = float("-inf")
        self._hold_until = float("-inf")
        self._begun: float | None = None  # of the interval that is being measured: one limit's worth of requests
        self._count = 0
        self._bytes = 0
        self._rate = 0.0  # bytes/s of the interval before it

    def finished(self, size: int, now: float) -> None:
        """Note a request that brought `size` bytes."""
        if self.limit >= self._most:
            return
        if self._begun is None:
            self._begin(now)
            return
        self._count += 1
        self._bytes += size
        if self._count < self.limit or now <= self._begun:
            return
        rate = self._bytes / (now - self._begun)
        grew, self._rate = rate > self._rate, rate
        if grew or now >= self._hold_until:
            self.limit += 1
            self._hold_until = now + HOLD
        self._begin(now)

    def busy(self, now: float) -> bool:
        """Note that the store asked for less; return whether the limit was halved for it."""
        if now - self._halved_at < SETTLE:
            return False
        self._halved_at = now
        self.limit = max(self._least, self.limit // 2)
        self._rate, self._begun = 0.0, None
        return True

    def _begin(self, now: float) -> None:
        self._begun, self._count, self._bytes = now, 0, 0


class Breaker:
    """Tells when a store fails so much that only what a reader waits for is worth asking it for."""

    def __init__(self) -> None:
        self._failures: collections.deque[float] = collections.deque(maxlen=FAILURES)
        self._open_until = float("-inf")

    def failed(self, now: float) -> None:
        """Note a request that failed."""
        self._failures.append(now)
        if len(self._failures) == FAILURES and now - self._failures[0] <= WINDOW:
            self._open_until = now + COOL

    def pause(self, now: float) -> float:
        """Return the seconds for which it stays open; 0: it is closed."""
        return max(0.0, self._open_until - now)
