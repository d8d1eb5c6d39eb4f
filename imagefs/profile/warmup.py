"""This module guesses what a guest reads first of a disk that nobody has booted from yet, and finds it in few round trips.

The guess itself is the plan of `forecast`. Here it is given its bytes, within bounds: places that it wants are read all at once, in whole
units and no windows around them, before the guest's own requests for them come.
"""

import math
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import Final

import trio

from imagefs import threads
from imagefs.errors import ImagefsError, ImageRefused
from imagefs.extents import Extents, joined
from imagefs.profile.forecast import forecast
from imagefs.profile.replay import is_cached
from imagefs.profile.rounds import Place, Plan, Round
from imagefs.source import Source
from imagefs.threads import Lane
from imagefs.units import MIB, UNIT, align_down, align_up
from imagefs.urgency import Urgency

PIECE: Final = MIB
"""Bytes of the longest extent: the most that one fill of the cache takes."""

_IN_FLIGHT: Final = 16
_MAX_ROUNDS: Final = 200
_MAX_STRUCTURE: Final = 128 * MIB
"""Bytes that are read for one guess: structure takes 6 MiB for 1,000 files of interest, the parts of programs that name libraries 30 MiB more."""

_MAX_ROUND: Final = 16 * MIB
"""Bytes that are read in one round: what a guess has in memory."""

_MAX_WANTED: Final = 20_000
"""Places that a round may want; what is above them stays without an answer."""

_SECONDS: Final = 60.0
"""After this long no more structure is read: the boot that this is for is over, or waits for what cannot be had."""

_PER_ROUND: Final = 6 * MIB
"""Bytes that are handed out before the next round of structure: more than a link of 1 Gb/s brings in the 30 ms of a round trip, so that it never
idles, and little enough that the structure, which tells what else is needed, does not wait behind a whole kernel."""


async def warm_extents(disk: Source, budget: int) -> AsyncGenerator[tuple[int, int], None]:
    """Yield (offset, length) in bytes of what a boot of the disk probably reads, in order of likely use: whole units, none twice, at most PIECE long.

    What is read of the disk's structure on the way counts against the budget (bytes) too, is not yielded, and is in the cache afterwards. Content
    that makes no sense is left out; StoreErrors of the disk are raised. Safe to cancel and to close.
    """
    told = _Told(disk.size, budget)
    plan = forecast(disk.size)
    deadline = trio.current_time() + _SECONDS
    asked = await _advance(plan, None)
    for _ in range(_MAX_ROUNDS):
        if asked is None or trio.current_time() > deadline:
            break
        told.add(asked.likely)
        for extent in told.some(_PER_ROUND):
            yield extent
        asked = await _advance(plan, await _read_all(disk, asked.wanted[:_MAX_WANTED], told))
    if asked is not None:
        told.add(asked.likely)
    for extent in told.some(budget):
        yield extent


async def _advance(plan: Plan[None], answers: list[bytes] | None) -> Round | None:
    """Return the plan's next round, None at its end. In a thread: what is parsed is anybody's, and may take long without being of any use."""
    return await threads.run(Lane.GUESS, _step, plan, answers, abandon=True)


def _step(plan: Plan[None], answers: list[bytes] | None) -> Round | None:
    try:
        return next(plan) if answers is None else plan.send(answers)
    except StopIteration:
        return None


class _Told:
    """What was told already, in units, so that nothing is told twice and the budget holds; and what is still to be told."""

    def __init__(self, size: int, budget: int) -> None:
        self._size = size
        self._left = budget
        self._structure = min(budget, _MAX_STRUCTURE)
        self._units: set[int] = set()
        self._waiting: deque[tuple[int, int]] = deque()

    def add(self, places: Iterable[Place]) -> None:
        """Take places that are likely read; what is new of them waits to be told, each round's in order of the disk."""
        fresh: set[int] = set()
        for place in places:
            for unit in self._span(place):
                if unit not in self._units and self._left >= (length := min(UNIT, self._size - unit * UNIT)):
                    self._left -= length
                    self._units.add(unit)
                    fresh.add(unit)
        self._waiting.extend(self._pieces(joined((unit, unit + 1) for unit in sorted(fresh))))

    def structure(self, places: Iterable[Place]) -> Extents:
        """Return the extents, in bytes, to read for these places; what is beyond the bounds is left out."""
        units: set[int] = set()
        for place in places:
            for unit in self._span(place):
                if unit in units or self._structure < UNIT or len(units) * UNIT >= _MAX_ROUND:
                    continue
                if unit not in self._units:
                    if self._left < UNIT:
                        continue
                    self._left -= UNIT
                    self._units.add(unit)
                self._structure -= UNIT
                units.add(unit)
        return [(offset, offset + length) for offset, length in self._pieces(joined((unit, unit + 1) for unit in sorted(units)))]

    def some(self, limit: int) -> Iterable[tuple[int, int]]:
        """Yield what waits, up to `limit` bytes."""
        while self._waiting and limit > 0:
            extent = self._waiting.popleft()
            limit -= extent[1]
            yield extent

    def _span(self, place: Place) -> range:
        """Return the units of a place, cut to the disk."""
        start, stop = max(0, place[0]), min(place[0] + place[1], self._size)
        return range(start // UNIT, math.ceil(stop / UNIT)) if start < stop else range(0)

    def _pieces(self, extents: Extents) -> Iterable[tuple[int, int]]:
        for first, last in extents:
            for start in range(first * UNIT, last * UNIT, PIECE):
                yield start, min(PIECE, last * UNIT - start, self._size - start)


async def _read_all(disk: Source, places: tuple[Place, ...], told: _Told) -> list[bytes]:
    """Return the bytes of the places, read in parallel; none for those that are outside, beyond the bounds or refused. Raises StoreErrors."""
    if not places:
        return []
    extents = told.structure(places)
    bodies: dict[int, bytes] = {}
    failures: list[ImagefsError] = []
    slots = trio.CapacityLimiter(_IN_FLIGHT)

    async def read(start: int, stop: int) -> None:
        async with slots:
            try:
                body = disk.read_nowait(start, stop - start)
                if body is None:
                    if is_cached(disk):
                        await disk.prefetch(start, stop - start, Urgency.DEMAND)  # these units, where a read brings a window around them
                    body = await disk.read(start, stop - start)
            except ImageRefused:
                return
            except ImagefsError as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
                return
        for at in range(0, len(body), UNIT):
            bodies[start + at] = bytes(body[at : at + UNIT])

    async with trio.open_nursery() as nursery:
        for start, stop in extents:
            nursery.start_soon(read, start, stop)
    if failures:
        raise failures[0]
    return [_collected(bodies, place) for place in places]


def _collected(bodies: dict[int, bytes], place: Place) -> bytes:
    """Return what was read of a place, up to the first unit that was not."""
    offset, length = place
    if offset < 0 or length <= 0:
        return b""
    parts = []
    for start in range(align_down(offset, UNIT), align_up(offset + length, UNIT), UNIT):
        body = bodies.get(start)
        if body is None:
            break
        parts.append(body[max(0, offset - start) : offset + length - start])
        if len(body) < UNIT:
            break
    return b"".join(parts)
