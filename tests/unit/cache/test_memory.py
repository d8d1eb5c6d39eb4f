"""The bound on memory."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.cache.memory import KEPT_FRACTION, Memory
from imagefs.urgency import Urgency


async def test_fills_wait_for_room_in_order(nursery: trio.Nursery) -> None:
    """No more than the limit is held, and a large fill is not overtaken by small ones."""
    memory = Memory(100)
    order: list[int] = []
    gates = {amount: trio.Event() for amount in (60, 90, 11)}

    async def hold(amount: int) -> None:
        with await memory.take(amount):
            order.append(amount)
            memory.check_invariants()
            await gates[amount].wait()

    for amount in (60, 90, 11):
        nursery.start_soon(hold, amount)
        await wait_all_tasks_blocked()
    assert order == [60]
    gates[60].set()
    await wait_all_tasks_blocked()
    assert order == [60, 90]
    gates[90].set()
    await wait_all_tasks_blocked()
    assert order == [60, 90, 11]
    gates[11].set()
    await wait_all_tasks_blocked()
    assert memory.in_flight == 0


async def test_readers_have_a_part_of_their_own(nursery: trio.Nursery) -> None:
    """What nobody waits for leaves room for readers, lets them go first where both wait, and more than its part counts as that."""
    memory = Memory(100)
    ahead = await memory.take(1000, Urgency.AHEAD)
    assert memory.in_flight == 50
    order: list[Urgency] = []

    async def hold(urgency: Urgency, amount: int) -> None:
        with await memory.take(amount, urgency):
            order.append(urgency)
            await trio.lowlevel.checkpoint()

    for urgency, amount in ((Urgency.IDLE, 50), (Urgency.AHEAD, 50), (Urgency.DEMAND, 40), (Urgency.DEMAND, 100)):
        nursery.start_soon(hold, urgency, amount)
        await wait_all_tasks_blocked()
    assert order == [Urgency.DEMAND]  # the one for which there is room beside the others' part
    ahead.release()
    ahead.release()
    await wait_all_tasks_blocked()
    assert order == [Urgency.DEMAND, Urgency.DEMAND, Urgency.AHEAD, Urgency.IDLE]
    memory.check_invariants()
    assert memory.in_flight == 0


async def test_what_a_fill_needs_itself_does_not_wait() -> None:
    """A fill that holds all of the memory gets more for the tables that it has to read first."""
    memory = Memory(100)
    with await memory.take(100), memory.exceed(30):
        assert memory.in_flight == 130
        memory.check_invariants()
    assert memory.in_flight == 0


async def test_who_gives_up_while_it_waits_holds_up_nobody(nursery: trio.Nursery) -> None:
    """A large one that is cancelled lets the small ones behind it go on."""
    memory = Memory(100)
    first = await memory.take(60)
    done = trio.Event()

    async def small() -> None:
        with await memory.take(10):
            done.set()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(memory.take, 90)
            await wait_all_tasks_blocked()
            nursery.start_soon(small)
            await wait_all_tasks_blocked()
            assert not done.is_set()
            scope.cancel()
    await done.wait()
    first.release()
    memory.check_invariants()


async def test_more_than_all_is_all() -> None:
    """A fill larger than the limit waits for all of it instead of for ever."""
    memory = Memory(100)
    with await memory.take(1000):
        assert memory.in_flight == 100
    assert memory.in_flight == 0


async def test_cancelled_and_failed_holders_give_back(nursery: trio.Nursery) -> None:
    """Room comes back from who is cancelled while it waits, and from who fails."""
    memory = Memory(100)
    with pytest.raises(KeyError), await memory.take(100):
        raise KeyError
    with await memory.take(100):
        with trio.move_on_after(0):
            with await memory.take(1):
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
