"""This module brings the missing units of one cache: fills that readers wait for, and fills ahead of them, which wait for their turn first."""

import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

import trio

from imagefs.cache.budget import fill_cost, unit_cost
from imagefs.cache.demand import Demand
from imagefs.cache.filler import UnitFiller
from imagefs.cache.flight import Blame, Fill, Flight
from imagefs.cache.geometry import FILL_UNITS, plan_fill
from imagefs.cache.memory import Hold, Memory
from imagefs.cache.shelf import Shelf
from imagefs.cache.unit_map import ABSENT, DATA
from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError, StoreUnavailable
from imagefs.fetch.traffic import Turn
from imagefs.units import UNIT
from imagefs.urgency import Urgency

log = logging.getLogger(__name__)

PARTS: Final = 4
"""Fills that what is read ahead of a stream is cut into, if they have FILL_UNITS or more then."""

LARGEST_UNITS: Final = 64
"""Units of one fill ahead at most: 4 MiB, half of what the link holds, so that its last unit is not far from the first."""

WAITED: Final = 256
"""Flights of one prefetch that are not waited for; then the first ones are."""

_FILLING: ContextVar[bool] = ContextVar("filling", default=False)
"""Whether this task works for a fill. What such a task reads, the tables of an image, is filled without a turn and beyond the memory's limit:
to wait for either would be to wait for the fill that holds it."""

_Held = tuple[Turn, Hold]


class Supply:
    """What fills the units of one shelf. Used on the event loop only.

    Invariant: fills belong to the cache and not to who caused them; a unit that is on its way has its turn and its memory already, unless a
    reader waits for it.
    """

    def __init__(self, shelf: Shelf, filler: UnitFiller, nursery: trio.Nursery, memory: Memory, demand: Demand) -> None:
        """Take the shelf, what fills it, where fills run, the memory they are counted in, and who waits for them."""
        self._shelf = shelf
        self._filler = filler
        self._nursery = nursery
        self._memory = memory
        self._demand = demand

    async def bring(self, units: range, window_end: int) -> dict[int, bytes]:
        """Return when every unit is in the file or in the result, which has those that could not be stored. More come, up to `window_end`.

        The caller is `reading` the units. Raises the error of the fill that should have brought one. A unit that only shared a fill with a
        damaged one gets a second fill, of its own.
        """
        shelf = self._shelf
        loose: dict[int, bytes] = {}
        second: set[int] = set()
        pending = list(units)
        while pending := [unit for unit in pending if shelf.states[unit] < DATA and unit not in loose]:
            await shelf.examine(pending)
            flights = self._board(pending, window_end, loose)
            _hurry(flights, at_once=_FILLING.get())
            for unit, flight in flights.items():
                if not flight.landed:
                    with self._demand.waiting():
                        await flight.wait()
                if flight.blame is Blame.NEIGHBOUR and unit not in second:
                    second.add(unit)
                    continue
                flight.check()
                if flight.body is not None:
                    loose[unit] = flight.body
        return loose

    def ahead(self, units: range) -> None:
        """Begin to bring units that no reader waits for yet. Never raises: whoever reads them hears of what is wrong."""
        with contextlib.suppress(RuntimeError):  # the nursery is closed: the daemon is ending
            self._nursery.start_soon(self._bring_ahead, units)

    async def prefetch(self, units: range, urgency: Urgency, largest: int = FILL_UNITS, *, guessed: bool = False) -> None:
        """Return when all units are here that were missing, in fills of `largest` units at most; nothing where nothing is stored.

        `guessed`: nobody has asked for it; it is only counted as something else.

        Each fill takes its turn and its memory before its units are on their way, so that a reader who wants one of them meanwhile does not
        wait behind all that is to come. Safe to cancel: fills under way go on. Raises the error of a fill.
        """
        shelf = self._shelf
        waited: deque[Flight] = deque()
        position = units.start
        while shelf.file is not None and position < units.stop:
            part = range(position, min(position + largest - position % largest, units.stop))
            await shelf.learn(part)
            while run := self._next_run(position, part.stop, waited):
                position = run.start
                turn = await self._filler.turn(urgency)
                try:
                    hold = await self._memory.take(len(run) * UNIT, urgency)
                except BaseException:
                    turn.release()
                    raise
                run = self._next_run(position, min(run.stop, part.stop), waited)
                if run:
                    waited.extend(self._start_fill(run, urgency, (turn, hold)).values())
                    position = run.stop
                    if guessed:
                        COUNTERS.readahead_bytes += len(run) * UNIT
                    elif urgency is Urgency.AHEAD:
                        COUNTERS.prefetch_bytes += len(run) * UNIT
                else:
                    turn.release()
                    hold.release()
            position = part.stop
            await _check(waited, WAITED)
        await _check(waited, 0)

    async def _bring_ahead(self, units: range) -> None:
        largest = min(LARGEST_UNITS, max(FILL_UNITS, len(units) // PARTS))
        try:
            await self.prefetch(units, Urgency.AHEAD, largest, guessed=True)
        except ImagefsError as error:
            log.debug("read-ahead ended early cache=%s first=%d count=%d error=%s", self._shelf.name, units.start, len(units), error)
        except Exception:
            log.exception("read-ahead failed unexpectedly cache=%s first=%d count=%d", self._shelf.name, units.start, len(units))

    def _next_run(self, first: int, stop: int, coming: deque[Flight]) -> range:
        """Return the first run of units from `first` on that are missing for sure; flights of those before it are added to `coming`."""
        shelf = self._shelf
        while first < stop and not shelf.is_missing(first):
            flight = shelf.flights.get(first)
            if flight is not None and not (coming and coming[-1] is flight):
                coming.append(flight)
            first += 1
        end = first
        while end < stop and shelf.is_missing(end):
            end += 1
        return range(first, end)

    def _board(self, pending: list[int], window_end: int, loose: dict[int, bytes]) -> dict[int, Flight]:
        """Return the flights of pending units, starting the fills that are missing; units that are in memory go to `loose`."""
        shelf = self._shelf
        flights: dict[int, Flight] = {}
        for unit in pending:
            if shelf.is_missing(unit):
                planned = plan_fill(unit, window_end, self._filler.plan(unit), shelf.unit_count, shelf.is_missing)
                flights[unit] = self._start_fill(planned, Urgency.DEMAND, None)[unit]
            elif (flight := shelf.flights.get(unit)) is not None:
                flights[unit] = flight
            elif shelf.states[unit] == ABSENT and (body := shelf.loose(unit)) is not None:
                loose[unit] = body
        return flights

    def _start_fill(self, units: range, urgency: Urgency, held: _Held | None) -> dict[int, Flight]:
        """Start a fill of missing units, in the nursery: it outlives who caused it. Return their flights. What is `held` is given back by it."""
        shelf = self._shelf
        fill = Fill(units, shelf.size, shelf.name, shelf.publish)
        flights = {unit: Flight(fill) for unit in units}
        shelf.flights.update(flights)
        try:
            self._nursery.start_soon(self._fill, fill, urgency, held)
        except RuntimeError as error:  # the nursery is closed
            for slot in held or ():
                slot.release()
            self._land(fill, StoreUnavailable(f"{shelf.name}: not fetched, because imagefs is ending: {error}"))
        return flights

    async def _fill(self, fill: Fill, urgency: Urgency, held: _Held | None) -> None:
        """Run one fill. Only cancellation leaves here as an exception; readers get everything else."""
        units, shelf = fill.units, self._shelf
        what = f"{shelf.name}: units {units.start} to {units.stop - 1}"
        error: ImagefsError = StoreUnavailable(f"{what}: the fetch was given up")
        begun = trio.current_time()
        try:
            with contextlib.ExitStack() as stack:
                for slot in held or ():
                    stack.enter_context(slot)
                if held is None:
                    await self._admit(stack, fill)
                if shelf.file is not None and shelf.account is not None and await shelf.account.reserve(fill_cost(units), urgency):
                    fill.file = shelf.file
                with _filling():
                    await self._filler.fill(units.start, len(units), fill.deliver, urgency)
            error = StoreUnavailable(f"{what}: the fetch ended without all of them")
        except ImagefsError as failure:
            error = failure
        except Exception as failure:
            log.exception("a fill failed unexpectedly cache=%s first=%d count=%d", shelf.name, units.start, len(units))
            error = ImagefsError(f"{what}: cannot be filled: {failure!r}")
        finally:
            fill.publish_all()
            self._land(fill, error)
        if urgency is Urgency.DEMAND:
            COUNTERS.demand_fills += 1
            COUNTERS.demand_fill_seconds += trio.current_time() - begun

    async def _admit(self, stack: contextlib.ExitStack, fill: Fill) -> None:
        """Let a fill begin that a reader waits for: at once if that reader is a fill, or as soon as one of them needs it, too."""
        amount = len(fill.units) * UNIT
        if not _FILLING.get():
            with fill.admission:
                stack.enter_context(await self._filler.turn(Urgency.DEMAND))
                stack.enter_context(await self._memory.take(amount))
                return
        stack.enter_context(self._memory.exceed(amount))

    def _land(self, fill: Fill, error: ImagefsError) -> None:
        """Land what a filler that has ended did not bring, with its error; what it brought has landed as it was published."""
        shelf = self._shelf
        undelivered = fill.undelivered(error)
        for unit, blame in undelivered:
            shelf.flights.pop(unit).land(error=error, blame=blame)
        if fill.file is not None and shelf.account is not None:
            shelf.account.release(unit_cost(len(undelivered)))
            # The map's pages are charged until the next measurement, which sees what was really written.
            shelf.account.settle(fill_cost(fill.units) - unit_cost(len(fill.units)))


@contextlib.contextmanager
def _filling() -> Iterator[None]:
    """Say for the time of the block that this task, and those it starts, work for a fill."""
    token = _FILLING.set(True)
    try:
        yield
    finally:
        _FILLING.reset(token)


def _hurry(flights: dict[int, Flight], *, at_once: bool) -> None:
    """Say that a reader waits for all of these flights; `at_once`: it is a fill, and what they wait for themselves may be what it holds."""
    fills: dict[Fill, list[int]] = {}
    for unit, flight in flights.items():
        if flight.fill is not None:
            fills.setdefault(flight.fill, []).append(unit)
    for fill, units in fills.items():
        fill.want(units)
        if at_once:
            fill.admission.cancel()


async def _check(flights: deque[Flight], most: int) -> None:
    """Wait until `most` of the flights are left, from the first on, and raise what one of those landed with."""
    while len(flights) > most:
        flight = flights.popleft()
        if not flight.landed:
            await flight.wait()
        flight.check()
