"""This module is what readers of a cache wait for, and the receiving end of a filler's deliveries."""

import copy
import dataclasses
import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import trio

from imagefs.cache.file import ZEROS, UnitFile
from imagefs.cache.geometry import unit_length
from imagefs.cache.unit_map import ABSENT
from imagefs.errors import ImagefsError, ImageRefused, WrongBytes

BATCH: Final = 16
"""Units that nobody waits for which are published together: 1 MiB, the largest read."""


class Blame(enum.Enum):
    """What a failed fill's error says about one of its units."""

    OWN = enum.auto()
    """The error is about this unit, or about all: its readers fail."""
    NEIGHBOUR = enum.auto()
    """The error is about the bytes of another unit: a reader may try again for this one alone."""


class Flight:
    """Something that is happening to one unit or more: a fill, an examination, an eviction. Who wants one of the units waits for it.

    Invariant: it lands once; with bytes only if the unit could not be stored, with an error only if it could not be had.
    """

    __slots__ = ("_landed", "blame", "body", "error", "fill")

    def __init__(self, fill: "Fill | None" = None) -> None:
        """Take the fill that it belongs to, if it is one."""
        self.fill = fill
        self._landed = trio.Event()
        self.body: bytes | None = None
        self.error: ImagefsError | None = None
        self.blame = Blame.OWN

    def land(self, body: bytes | None = None, error: ImagefsError | None = None, blame: Blame = Blame.OWN) -> None:
        """End the flight and wake all who wait."""
        self.body, self.error, self.blame = body, error, blame
        self._landed.set()

    @property
    def landed(self) -> bool:
        """Whether it has ended."""
        return self._landed.is_set()

    async def wait(self) -> None:
        """Return when it has landed. Safe to cancel: the flight goes on."""
        await self._landed.wait()

    def check(self) -> None:
        """Raise the error that it landed with, if any: a copy for each reader, since a traceback grows with each raise."""
        if self.error is not None:
            raise copy.copy(self.error) from self.error


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """A unit that was delivered, on its way from the delivering thread to the event loop."""

    unit: int
    body: bytes
    state: int
    """DATA or ZERO: what it was stored as; ABSENT: it was not stored."""
    reserved: bool
    """Whether there was room for it in the budget."""
    failure: OSError | None
    """Why it could not be stored although there was room."""


class Fill:
    """The receiving end of one call of a filler: checks units, stores them if there is room, and has them published.

    Invariants: each of `units` is delivered once at most; `delivered` grows in the delivering threads, and is read on the
    loop once the filler has returned; publishing follows on the loop, in the order of delivery.
    """

    def __init__(self, units: range, size: int, name: str, publish: Callable[[Arrival], None]) -> None:
        """Take the units, the size of the address space and its name, and where units go. Call it on the event loop."""
        self.units = units
        self.delivered: set[int] = set()
        self.file: UnitFile | None = None
        """Where units are stored; None as long as there is no room for them."""
        self.admission = trio.CancelScope()
        """What it waits in for a turn and for memory. Cancelled, it goes on without them."""
        self._size = size
        self._name = name
        self._publish = publish
        self._token = trio.lowlevel.current_trio_token()
        self._arrivals: deque[Arrival] = deque()
        self._woken = False
        self._wanted: list[set[int]] = []

    def want(self, units: Iterable[int]) -> None:
        """Take units that one reader waits for: when the last of them is delivered, all are published at once. Call it on the event loop."""
        wanted = set(units)
        self._wanted.append(wanted)
        # In this order, which is that of `deliver` reversed: what a thread had delivered before it could see the reader is published here.
        wanted -= self.delivered
        self.publish_all()

    def publish_all(self) -> None:
        """Have all published that was delivered. Called on the event loop, also by the deliveries themselves."""
        self._woken = False  # first: what is delivered from here on wakes the loop again
        while self._arrivals:
            self._publish(self._arrivals.popleft())

    def deliver(self, unit: int, body: bytes | None) -> None:
        """Take a unit from the filler (filler.Deliver). Raises WrongBytes if it has not the length that a unit must have."""
        if unit not in self.units or unit in self.delivered:
            return
        length = unit_length(unit, self._size)
        if body is None:
            body = ZEROS[:length]
        elif len(body) != length:
            raise WrongBytes(f"{self._name}: unit {unit} came with {len(body)} bytes, not {length}")
        state, failure = ABSENT, None
        if self.file is not None:
            try:
                state = self.file.store(unit, body)
            except OSError as error:
                failure = error
        self._arrivals.append(Arrival(unit, body, state, self.file is not None, failure))
        self.delivered.add(unit)  # only now: see `want`
        # To wake the loop for each unit took as much of a processor as to fetch and prove it.
        if (self._is_awaited(unit) or len(self._arrivals) >= BATCH) and not self._woken:
            self._woken = True
            self._token.run_sync_soon(self.publish_all)

    def _is_awaited(self, unit: int) -> bool:
        """Tell whether the delivery of `unit` was the last that some reader waited for."""
        awaited = False
        for wanted in self._wanted:
            if unit in wanted:
                wanted.discard(unit)
                awaited = awaited or not wanted
        return awaited

    def undelivered(self, error: ImagefsError) -> list[tuple[int, Blame]]:
        """Return the units that did not come, and what `error`, with which the filler ended, says about each.

        Damage is in certain bytes: where units come in order, in those of the first one that is missing.
        """
        missing = [unit for unit in self.units if unit not in self.delivered]
        local = isinstance(error, WrongBytes | ImageRefused)
        return [(unit, Blame.NEIGHBOUR if local and unit != missing[0] else Blame.OWN) for unit in missing]
