"""This module keeps the disk cache within its budget: room is reserved before a byte is written, and made where there is none."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from imagefs.cache.invariants import require
from imagefs.cache.unit_map import groups_of
from imagefs.units import MIB, UNIT
from imagefs.urgency import Urgency

PAGE: Final = 4096
"""A page of a map, and the filesystem's block."""

MARGIN: Final = 64
"""One byte more for each 64 of units and maps: what the filesystem adds for its extents (12 to 24 bytes for each unit that lies alone)."""

OPEN_COST: Final = 10 * PAGE
"""An open cache without a unit: two directories, a block of extents for each of two files, the map's header, and spare."""

FLOOR_INTERVAL: Final = 16 * MIB
"""Bytes admitted between two looks at the filesystem's free space: others fill the disk too, but `statvfs` is not for each unit."""


def unit_cost(count: int) -> int:
    """Return the bytes reserved for `count` units."""
    return count * (UNIT + UNIT // MARGIN)


def fill_cost(units: range) -> int:
    """Return the bytes reserved for storing `units` (one or more): the units and each page of the map that gets entries."""
    return unit_cost(len(units)) + len(groups_of(units)) * PAGE


class Account:
    """What one open cache has of the budget, in bytes. Used on the event loop only.

    Invariant: `charged` is never below what `du` shows of the cache; `in_flight` of it is reserved and not yet written.
    """

    def __init__(self, budget: "Budget") -> None:
        """Take the budget. Until `measure_by`, the account is that of a cache whose files are being made."""
        self._budget = budget
        self._measure: Callable[[], int] = lambda: 0
        self.charged = 0
        self.in_flight = 0

    def measure_by(self, measure: Callable[[], int]) -> None:
        """Take what tells, without waiting, the bytes that the cache's files take, and charge those."""
        self._measure = measure
        self.remeasure()

    async def reserve(self, cost: int, urgency: Urgency = Urgency.DEMAND) -> bool:
        """Reserve `cost` bytes, making room first if need be; return whether there is room. Safe to cancel.

        What may go for it depends on the urgency: see `CacheRoot`.
        """
        return await self._budget.reserve(self, cost, urgency)

    def add(self, cost: int) -> None:
        """Reserve without asking: the budget's part of reserving."""
        self.charged += cost
        self.in_flight += cost

    def settle(self, cost: int) -> None:
        """Note that reserved bytes were written."""
        self.in_flight -= cost

    def release(self, cost: int) -> None:
        """Give back reserved bytes that will not be written."""
        self.in_flight -= cost
        self.charged -= cost
        self._budget.used -= cost

    def remeasure(self) -> int:
        """Charge what the files take, and what is in flight, in place of the sum of reservations; return the bytes that this frees.

        A unit that was written and not yet settled is counted twice for the moment: too much is safe, too little is not.
        """
        measured = self._measure()
        before, self.charged = self.charged, measured + measured // MARGIN + OPEN_COST + self.in_flight
        self._budget.used += self.charged - before
        self._budget.look_again()
        return before - self.charged


class Budget:
    """The bytes that all caches may take on their filesystem. Used on the event loop only.

    Invariants: `used` = `closed` + what the open accounts are charged; a reservation that is granted keeps `used` within
    the limit, and leaves the filesystem's free space above the floor as far as it is known.
    """

    def __init__(self, limit: int, *, floor_bytes: int = 0, floor_fraction: float = 0.0) -> None:
        """Take the limit, and how much of the filesystem must stay free: bytes or a fraction, whichever is more."""
        self.limit = limit
        self.used = 0
        self.closed = 0
        """Bytes of directories that are not open, and of the cache directory itself."""
        self._floor_bytes = floor_bytes
        self._floor_fraction = floor_fraction
        self._path: Path | None = None
        self._free_cap: int | None = None  # what `used` may be without touching the floor
        self._admitted = 0  # since free space was looked at
        self._accounts: set[Account] = set()
        self._evicting = trio.Lock()
        self._make_room: Callable[[int, Urgency], Awaitable[int]] | None = None

    def attach(self, path: Path, make_room: Callable[[int, Urgency], Awaitable[int]]) -> None:
        """Take the directory on the filesystem that the floor is about, and what frees about that many bytes and returns how many.

        It is told how urgent it is: little goes for what nobody waits for.
        """
        self._path = path
        self._make_room = make_room
        self._look()

    def open_account(self) -> Account:
        """Return an account for a cache that is being opened, charged with what one without units takes, whether that fits or not."""
        account = Account(self)
        self._accounts.add(account)
        account.remeasure()
        return account

    def close_account(self, account: Account) -> None:
        """End an account; its cache's bytes count as `closed` from now on only if `change_closed` says so."""
        self._accounts.discard(account)
        self.used -= account.charged
        self.look_again()

    def change_closed(self, difference: int) -> None:
        """Note that closed directories grew by `difference` bytes (below 0: shrank)."""
        self.closed += difference
        self.used += difference
        self.look_again()

    def look_again(self) -> None:
        """Look at the filesystem before anything more is admitted: `used` fell, and perhaps only because less had been written than was charged.

        What may be used was found for the sum as it was; without another look the difference would be given away once more.
        """
        self._admitted = FLOOR_INTERVAL

    def shortage(self, cost: int = 0) -> int:
        """Return the bytes that must be freed before `cost` more fit; 0 or less: they fit."""
        if self._admitted >= FLOOR_INTERVAL:
            self._look()
        cap = self.limit if self._free_cap is None else min(self.limit, self._free_cap)
        return self.used + cost - cap

    def try_reserve(self, account: Account, cost: int) -> bool:
        """Charge `cost` to the account if it fits now."""
        if self.shortage(cost) > 0:
            return False
        account.add(cost)
        self.used += cost
        self._admitted += cost
        return True

    async def reserve(self, account: Account, cost: int, urgency: Urgency = Urgency.DEMAND) -> bool:
        """Charge `cost` to the account, making room first if need be; return whether there is room. Safe to cancel."""
        if self.try_reserve(account, cost):
            return True
        if cost > self.limit:
            return False
        # One at a time: two that make room for themselves would each evict for both.
        async with self._evicting:
            while not self.try_reserve(account, cost):
                if not await self._free(cost, urgency):
                    return False
        return True

    async def trim(self) -> None:
        """Make room until what is used is within the limit and the floor is kept, as far as there is something to evict.

        For others who fill the disk: who stores nothing new looks at the floor here only.
        """
        async with self._evicting:
            self._look()
            while self.shortage() > 0 and await self._free(0, Urgency.DEMAND):
                pass

    def check_invariants(self) -> None:
        """Raise AssertionError unless the class keeps its promises."""
        require(self.used == self.closed + sum(account.charged for account in self._accounts), "`used` is the sum of its parts")
        require(all(0 <= account.in_flight <= account.charged for account in self._accounts), "what is in flight is charged")

    async def _free(self, cost: int, urgency: Urgency) -> bool:
        """Free at least something towards `cost`; return whether that was possible."""
        # Reservations are upper bounds; what was really written may be less.
        for account in self._accounts:
            account.remeasure()
        self._look()
        missing = self.shortage(cost)
        if missing <= 0:
            return True
        return self._make_room is not None and await self._make_room(missing, urgency) > 0

    def _look(self) -> None:
        """Learn how much of the filesystem is free. One system call on a local disk: it does not wait."""
        self._admitted = 0
        if self._path is None or not (self._floor_bytes or self._floor_fraction):
            return
        status = os.statvfs(self._path)
        floor = max(self._floor_bytes, int(status.f_blocks * status.f_frsize * self._floor_fraction))
        # Reserved bytes that are not yet written look free here; they are part of `used` already.
        unwritten = sum(account.in_flight for account in self._accounts)
        self._free_cap = self.used + status.f_bavail * status.f_frsize - floor - unwritten
