"""This module decides when a broken fetch is tried again, and when that ends; it does no I/O and does not sleep."""

import dataclasses
import random
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds that only ever grow."""

Chance = Callable[[], float]
"""A number from 0 up to, not including, 1; another one at each call."""


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on trying, and how long to pause between tries; all in seconds.

    A pause is drawn evenly from nothing up to a ceiling that grows with each failure in a row ("full jitter"), so that a
    rack of nodes that lost one store does not come back to it in step.
    """

    deadline: float = 60.0
    """Without progress for this long the fetch fails, and a guest that QEMU runs with `rerror=stop` is paused instead of seeing an error."""
    first: float = 0.1
    factor: float = 2.0
    cap: float = 5.0

    def ceiling(self, failures: int) -> float:
        """Return the longest pause after `failures` failures in a row (1 or more)."""
        # The exponent is bounded because a float overflows at 2 ** 1024.
        return min(self.cap, self.first * self.factor ** min(failures - 1, 64))


class Retries:
    """The tries of one fetch. Not shared between threads.

    Invariant: `failures` counts the failures since the last progress, and no pause ends after the deadline.
    """

    def __init__(self, policy: RetryPolicy, clock: Clock = time.monotonic, chance: Chance = random.random) -> None:
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._since = clock()
        self.failures = 0
        """Failures in a row."""

    def progressed(self) -> None:
        """Note that bytes arrived: the deadline and the pauses begin anew."""
        self._since = self._clock()
        self.failures = 0

    def stalled(self) -> float:
        """Return the seconds since the last progress."""
        return self._clock() - self._since

    def next_pause(self, asked: float = 0.0) -> float | None:
        """Note a failure; return the seconds to pause before the next try, or None if it would begin past the deadline.

        `asked` is for how long the store wants to be left alone: the pause is no shorter.
        """
        self.failures += 1
        pause = asked + self._chance() * self._policy.ceiling(self.failures)
        return None if self.stalled() + pause >= self._policy.deadline else pause
