"""Room: reserved before it is used."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.budget import FLOOR_INTERVAL, OPEN_COST, PAGE, Budget, fill_cost, unit_cost
from imagefs.units import KIB, MIB, UNIT
from imagefs.urgency import Urgency


class Disk:
    """Files of a cache as the budget measures them."""

    def __init__(self) -> None:
        self.allocated = 0

    def __call__(self) -> int:
        return self.allocated


def test_costs() -> None:
    """A fill costs its units with a margin, and a page for each page of the map."""
    assert unit_cost(2) == 2 * (UNIT + KIB)
    assert fill_cost(range(8)) == unit_cost(8) + PAGE
    assert fill_cost(range(508, 516)) == unit_cost(8) + 2 * PAGE


def test_reservations_stay_within_the_limit() -> None:
    """What fits is charged at once, what does not is refused."""
    budget = Budget(OPEN_COST + 100)
    account = budget.open_account()
    assert budget.try_reserve(account, 60)
    assert not budget.try_reserve(account, 41)
    assert budget.try_reserve(account, 40)
    account.settle(50)
    account.release(50)
    assert budget.try_reserve(account, 50)
    budget.check_invariants()
    budget.close_account(account)
    assert budget.used == 0


def test_measuring_replaces_reservations() -> None:
    """After a measurement what was written counts as it is, with its margin, and what is in flight as reserved."""
    budget, disk = Budget(MIB), Disk()
    account = budget.open_account()
    account.measure_by(disk)
    assert budget.try_reserve(account, 500)
    account.settle(400)
    disk.allocated = 6400
    assert account.remeasure() == 500 - 6500 - 100
    assert account.charged == 6500 + OPEN_COST + 100
    budget.check_invariants()


async def test_room_is_made() -> None:
    """A reservation that does not fit evicts first, by what is missing."""
    budget = Budget(1000 + OPEN_COST)
    account = budget.open_account()
    wanted: list[int] = []

    async def make_room(amount: int, urgency: Urgency) -> int:
        wanted.append(amount)
        await trio.lowlevel.checkpoint()
        budget.change_closed(-300)
        return 300

    budget.attach(Path("/"), make_room)
    budget.change_closed(900)
    assert await budget.reserve(account, 300)
    assert wanted == [200]
    assert await budget.reserve(account, 400)
    assert wanted == [200, 300]
    budget.check_invariants()


async def test_no_room_to_make() -> None:
    """When nothing is left to evict the answer is no, and what can never fit evicts nothing."""
    budget = Budget(1000 + OPEN_COST)
    account = budget.open_account()
    calls: list[int] = []

    async def make_room(amount: int, urgency: Urgency) -> int:
        calls.append(amount)
        await trio.lowlevel.checkpoint()
        return 0

    budget.attach(Path("/"), make_room)
    assert not await budget.reserve(account, 1001)
    assert not await budget.reserve(account, 10**9)
    assert len(calls) == 1
    await budget.trim()
    assert len(calls) == 1


async def test_one_eviction_at_a_time(nursery: trio.Nursery) -> None:
    """Two that need room do not both evict for it."""
    budget = Budget(OPEN_COST + 100)
    account = budget.open_account()
    running = most = 0

    async def make_room(amount: int, urgency: Urgency) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.lowlevel.checkpoint()
        running -= 1
        budget.change_closed(-50)
        return 50

    budget.attach(Path("/"), make_room)
    budget.change_closed(100)
    for _ in range(2):
        nursery.start_soon(budget.reserve, account, 50)
    await wait_all_tasks_blocked()
    assert most == 1
    assert account.in_flight == 100


async def test_free_space_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache grows only as far as the filesystem keeps its floor free, looked at now and then and not each time."""
    free = 100 * MIB
    looks = 0

    def statvfs(path: Path) -> SimpleNamespace:
        nonlocal looks
        looks += 1
        return SimpleNamespace(f_blocks=1000 * MIB // KIB, f_frsize=KIB, f_bavail=free // KIB)

    async def make_room(amount: int, urgency: Urgency) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    monkeypatch.setattr(os, "statvfs", statvfs)
    budget = Budget(10**12, floor_bytes=10 * MIB, floor_fraction=0.05)
    budget.attach(Path("/"), make_room)
    account = budget.open_account()
    account.measure_by(lambda: 0)
    while await budget.reserve(account, MIB):
        assert account.in_flight <= 50 * MIB
    assert account.in_flight >= 49 * MIB
    assert looks <= 4 + 50 * MIB // FLOOR_INTERVAL
    free -= 20 * MIB
    await budget.trim()
    assert budget.shortage() > 0


def test_floor_holds_when_less_was_written_than_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was charged beyond that is free once only: it may not be given away when it is not charged any more."""
    size, floor, written = 100 * MIB, 10 * MIB, 80 * MIB  # others filled most of it

    def statvfs(path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_blocks=size // KIB, f_frsize=KIB, f_bavail=(size - written) // KIB)

    async def no_room(amount: int, urgency: Urgency) -> int:
        await trio.lowlevel.checkpoint()
        return 0

    monkeypatch.setattr(os, "statvfs", statvfs)
    budget = Budget(10**12, floor_bytes=floor)
    account = budget.open_account()
    empty = [budget.open_account() for _ in range(100)]
    budget.attach(Path("/"), no_room)
    for other in empty:
        budget.close_account(other)
    while budget.try_reserve(account, unit_cost(1)):
        written += UNIT
        account.settle(unit_cost(1))
    assert size - floor - 32 * UNIT < written <= size - floor
