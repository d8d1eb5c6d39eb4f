"""The bound on memory."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.memory import KEPT_FRACTION, Memory


async def test_fills_wait_for_room_in_order(nursery: trio.Nursery) -> None:
    """No more than the limit is held, and a large fill is not overtaken by small ones."""
    memory = Memory(100)
    order: list[int] = []
    gates = {amount: trio.Event() for amount in (60, 90, 10)}

    async def hold(amount: int) -> None:
        async with memory.hold(amount):
            order.append(amount)
            memory.check_invariants()
            await gates[amount].wait()

    for amount in (60, 90, 10):
        nursery.start_soon(hold, amount)
        await wait_all_tasks_blocked()
    assert order == [60]
    gates[60].set()
    await wait_all_tasks_blocked()
    assert order == [60, 90, 10]
    gates[90].set()
    gates[10].set()
    await wait_all_tasks_blocked()
    assert memory.in_flight == 0


async def test_more_than_all_is_all() -> None:
    """A fill larger than the limit waits for all of it instead of for ever."""
    memory = Memory(100)
    async with memory.hold(1000):
        assert memory.in_flight == 100
    assert memory.in_flight == 0


async def test_cancelled_and_failed_holders_give_back(nursery: trio.Nursery) -> None:
    """Room comes back from who is cancelled while it waits, and from who fails."""
    memory = Memory(100)
    with pytest.raises(KeyError):
        async with memory.hold(100):
            raise KeyError
    async with memory.hold(100):
        with trio.move_on_after(0):
            async with memory.hold(1):
                raise AssertionError("there is no room")
    assert memory.in_flight == 0


def test_kept_units_are_bounded() -> None:
    """The oldest units go first, and an owner's go with it."""
    memory = Memory(100 * KEPT_FRACTION)
    for unit in range(5):
        memory.keep("a", unit, bytes(30))
    memory.keep("b", 0, bytes(10))
    memory.check_invariants()
    assert memory.kept("a", 1) is None
    assert memory.kept("a", 2) == bytes(30)
    memory.keep("a", 2, bytes(5))
    memory.forget("a")
    memory.check_invariants()
    assert memory.kept("a", 4) is None
    assert memory.kept("b", 0) == bytes(10)


def test_a_unit_larger_than_all_is_not_kept() -> None:
    """With no memory to spare nothing is kept."""
    memory = Memory(10)
    memory.keep("a", 0, bytes(1000))
    assert memory.kept("a", 0) is None
    memory.check_invariants()
