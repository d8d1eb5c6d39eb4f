"""This module says when hydration may go on: never while a reader waits for a fetch, and never faster than its rate."""

import math
import random
from collections.abc import Callable
from typing import Final

import trio

from imagefs.cache.demand import Demand

SILENCE: Final = 30.0
"""Seconds without a miss on the node after which hydration begins in mode idle, as SOCI's snapshotter does: a boot is over by then."""
JITTER: Final = 5.0
"""Seconds that the silence is longer at most, drawn anew for each pause: a rack of nodes that booted together need not ask a store together."""
SETTLE: Final = 0.25
"""Seconds without a miss that are enough in mode full: a guest that reads in a chain of misses is between two of them for that long."""
HEAD_START: Final = 3.0
"""Seconds after an opening that belong to what a boot reads, in mode full: the image's boot profile is fetched by then."""


def quiet_in(now: float, demand: Demand, since: float, silence: float) -> float:
    """Return the seconds until nobody has missed anything for `silence` seconds, if nobody does; 0 or less: it is quiet now.

    Time before `since` does not count as silence.
    """
    if demand.under_way:
        return silence
    return max(demand.last, since) + silence - now


class Pace:
    """Holds up hydration. Used on the event loop only; several tasks may share one: their rate is one."""

    def __init__(self, demand: Demand, rate: int, *, idle: bool, chance: Callable[[], float] = random.random) -> None:
        """Take who waits, the bytes per second that hydration may bring, and whether it is for idle times only. `chance` gives 0 to below 1."""
        self._demand = demand
        self._rate = rate
        self._idle = idle
        self._chance = chance
        self._silence = self._drawn()
        self._next = 0.0  # when the bytes that were let pass are paid for
        self._since = -math.inf

    def begin(self) -> None:
        """Take this moment for one when the node was busy: an image was opened."""
        self._since = trio.current_time() + (0.0 if self._idle else HEAD_START)

    async def turn(self, amount: int) -> None:
        """Return when `amount` more bytes may be brought. Safe to cancel."""
        await self._quiet()
        now = trio.current_time()
        start = max(now, self._next)
        self._next = start + amount / self._rate
        if start > now:
            await trio.sleep_until(start)
            await self._quiet()  # somebody may have come meanwhile

    async def _quiet(self) -> None:
        await trio.lowlevel.checkpoint()
        while (pause := quiet_in(trio.current_time(), self._demand, self._since, self._silence)) > 0:
            self._silence = self._drawn()
            await trio.sleep(pause)

    def _drawn(self) -> float:
        return SILENCE + JITTER * self._chance() if self._idle else SETTLE
