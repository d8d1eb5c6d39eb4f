"""Whose turn it is to ask the store."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imagefs.counters import COUNTERS
from imagefs.errors import StoreBusy, StoreUnavailable
from imagefs.fetch.pace import FAILURES, MOST
from imagefs.fetch.patience import LEAST, SAVED
from imagefs.fetch.traffic import LEAST_DEMAND, SLOTS, Traffic, Turn
from imagefs.urgency import Urgency
from tests.support.fetched import FakeClock

DEMAND, AHEAD, IDLE = Urgency


async def take(traffic: Traffic, urgency: Urgency, count: int) -> list[Turn]:
    return [await traffic.turn(urgency) for _ in range(count)]


class Waiter:
    """Wait for a turn in a nursery; `turn` is there once it is got."""

    def __init__(self, nursery: trio.Nursery, traffic: Traffic, urgency: Urgency) -> None:
        self.turn: Turn | None = None
        nursery.start_soon(self._wait, traffic, urgency)

    async def _wait(self, traffic: Traffic, urgency: Urgency) -> None:
        self.turn = await traffic.turn(urgency)


async def test_readers_do_not_wait_for_what_nobody_waits_for(nursery: trio.Nursery) -> None:
    """With all turns ahead taken, and more of them wanted, a reader gets its own at once; the others wait their turn in order."""
    traffic = Traffic()
    ahead = await take(traffic, AHEAD, SLOTS[AHEAD])
    waiting = [Waiter(nursery, traffic, AHEAD) for _ in range(3)]
    await wait_all_tasks_blocked()
    assert all(waiter.turn is None for waiter in waiting)
    demand = await take(traffic, DEMAND, SLOTS[DEMAND])
    assert traffic.running(DEMAND) == SLOTS[DEMAND]
    late = Waiter(nursery, traffic, DEMAND)
    await wait_all_tasks_blocked()
    assert late.turn is None
    demand[0].release()
    await wait_all_tasks_blocked()
    assert late.turn is not None
    for turn in demand[1:]:
        turn.release()
    ahead[0].release()
    await wait_all_tasks_blocked()
    assert [waiter.turn is not None for waiter in waiting].count(True) == 1


async def test_all_together_keep_within_what_the_store_is_given(nursery: trio.Nursery) -> None:
    """What nobody waits for fills up what readers leave of the limit, and no more."""
    traffic = Traffic()
    await take(traffic, DEMAND, MOST - 2)
    first, second, third = (Waiter(nursery, traffic, AHEAD) for _ in range(3))
    await wait_all_tasks_blocked()
    assert [waiter.turn is not None for waiter in (first, second, third)].count(True) == 2


async def test_idle_work_waits_while_readers_do(nursery: trio.Nursery) -> None:
    """Hydration begins nothing while something demanded runs, and lets what is fetched ahead go first."""
    traffic = Traffic()
    reader = await traffic.turn(DEMAND)
    idle = Waiter(nursery, traffic, IDLE)
    await wait_all_tasks_blocked()
    assert idle.turn is None
    with reader:
        pass
    reader.release()
    await wait_all_tasks_blocked()
    assert idle.turn is not None
    assert traffic.running(IDLE) == 1
    assert traffic.running(DEMAND) == 0


async def test_who_gives_up_leaves_no_gap() -> None:
    """A wait that is cancelled takes no turn with it, also when the turn came at the same moment."""
    traffic = Traffic()
    turns = await take(traffic, IDLE, SLOTS[IDLE])
    with trio.move_on_after(0.01):
        await traffic.turn(IDLE)
    for turn in turns:
        turn.release()
    assert traffic.running(IDLE) == 0

    async def use() -> None:
        with await traffic.turn(IDLE):
            await trio.sleep_forever()

    blocker = await traffic.turn(DEMAND)
    async with trio.open_nursery() as both:
        both.start_soon(use)
        await wait_all_tasks_blocked()
        blocker.release()
        both.cancel_scope.cancel()
    assert traffic.running(IDLE) == 0


async def test_a_busy_store_gets_less(nursery: trio.Nursery) -> None:
    """A refusal halves what is asked at once, and is counted; readers keep a few."""
    clock = FakeClock()
    traffic = Traffic(clock)
    slowdowns = COUNTERS.slowdowns
    for _ in range(6):
        traffic.failed(StoreBusy("slow down"))
        clock.now += 20
    assert traffic.limit == 2
    assert COUNTERS.slowdowns == slowdowns + 6
    await take(traffic, DEMAND, LEAST_DEMAND)
    reader, ahead = Waiter(nursery, traffic, DEMAND), Waiter(nursery, traffic, AHEAD)
    await wait_all_tasks_blocked()
    assert reader.turn is None
    assert ahead.turn is None
    nursery.cancel_scope.cancel()


async def test_a_store_that_wants_to_be_left_alone_is(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Retry-After holds for what nobody waits for; it goes on by itself afterwards, although nothing else happens."""
    clock = FakeClock()
    traffic = Traffic(clock)
    traffic.failed(StoreBusy("slow down", 7.0))
    assert traffic.pause() == 7.0
    ahead = Waiter(nursery, traffic, AHEAD)
    await traffic.turn(DEMAND)
    await wait_all_tasks_blocked()
    assert ahead.turn is None
    clock.now += 7
    mock_clock.jump(2.0)
    await wait_all_tasks_blocked()
    assert ahead.turn is not None


async def test_the_breaker_stops_what_nobody_waits_for(nursery: trio.Nursery) -> None:
    """After five failures in ten seconds prefetch and hydration pause; readers go on."""
    traffic = Traffic(FakeClock())
    for _ in range(FAILURES):
        traffic.failed(StoreUnavailable("away"))
    waiting = [Waiter(nursery, traffic, AHEAD), Waiter(nursery, traffic, IDLE), Waiter(nursery, traffic, DEMAND)]
    await wait_all_tasks_blocked()
    assert [waiter.turn is not None for waiter in waiting] == [False, False, True]
    nursery.cancel_scope.cancel()


def test_second_requests() -> None:
    """Readers may use all that was saved up, what is fetched ahead half of it, hydration nothing."""
    traffic = Traffic()
    assert not traffic.may_try_twice(IDLE)
    assert [traffic.may_try_twice(AHEAD) for _ in range(4)].count(True) == SAVED / 2
    assert [traffic.may_try_twice(DEMAND) for _ in range(4)].count(True) == SAVED / 2
    for _ in range(20):
        traffic.asked()
    assert traffic.may_try_twice(DEMAND)


@pytest.mark.parametrize(("first_unit", "gap", "patience"), [(0.01, 0.01, (LEAST, LEAST)), (1.0, None, (3.0, 3.0)), (0.01, 0.5, (LEAST, 1.5))])
def test_patience(first_unit: float, gap: float | None, patience: tuple[float, float]) -> None:
    """It is that of what is waited for: the first unit, or the next one."""
    traffic = Traffic()
    stored = COUNTERS.store_bytes
    traffic.ended(1000, first_unit, gap)
    traffic.ended(500, None, None)
    assert (traffic.patience(begun=False), traffic.patience(begun=True)) == patience
    assert COUNTERS.store_bytes == stored + 1500
