"""This module retries small requests to a store: full jitter, a few tries, one deadline. Image data is retried by `fetch`, by range."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from imagefs.counters import COUNTERS
from imagefs.errors import StoreUnavailable

T = TypeVar("T")

TRIES: Final = 5
DEADLINE: Final = 10.0
"""Seconds after which no new try begins: a listing or a record that takes longer is an error the caller should hear of."""
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 2.0


class SmallRetry:
    """Calls work again when the store is unavailable. Time and chance are parameters, for tests."""

    def __init__(
        self,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._chance = chance

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work()` returns; repeat it while it raises StoreUnavailable, TRIES times at most and for DEADLINE seconds.

        Raises the last StoreUnavailable, and anything else at once.
        """
        end = self._clock() + DEADLINE
        attempt = 0
        while True:
            try:
                return work()
            except StoreUnavailable:
                delay = self._chance() * min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)
                attempt += 1
                if attempt == TRIES or self._clock() + delay >= end:
                    raise
            COUNTERS.store_retries += 1
            self._sleep(delay)
