"""When hydration may go on."""

import math

import pytest
import trio
from trio.testing import MockClock

from imagefs.cache.demand import Demand
from imagefs.hydration.pace import JITTER, SILENCE, Pace, quiet_in
from imagefs.units import MIB


@pytest.mark.parametrize(
    ("now", "last", "since", "expected"),
    [(100.0, -math.inf, -math.inf, -math.inf), (100.0, 90.0, -math.inf, 20.0), (100.0, 70.0, -math.inf, 0.0), (100.0, 10.0, 99.0, 29.0)],
)
def test_silence_is_counted_from_the_last_disturbance(now: float, last: float, since: float, expected: float) -> None:
    """Misses and openings disturb alike; before the first one it is quiet."""
    demand = Demand()
    demand.last = last
    assert quiet_in(now, demand, since, 30.0) == expected


def test_it_is_not_quiet_while_somebody_waits() -> None:
    """A miss that takes minutes is no silence."""
    demand = Demand()
    demand.under_way = 1
    assert quiet_in(1e6, demand, -math.inf, 30.0) > 0


async def test_demand_is_counted(autojump_clock: MockClock) -> None:
    """Misses overlap; their begin and their end are both disturbances, also where one fails."""
    demand = Demand()
    await trio.sleep(5)
    with demand.waiting(), demand.waiting():
        assert demand.under_way == 2
        assert demand.last == trio.current_time()
        await trio.sleep(7)
    assert (demand.under_way, demand.last) == (0, trio.current_time())
    with pytest.raises(KeyError), demand.waiting():
        raise KeyError
    assert demand.under_way == 0


async def test_several_share_one_rate(autojump_clock: MockClock) -> None:
    """Four tasks bring together no more than the rate."""
    pace = Pace(Demand(), MIB, idle=False)
    begun = trio.current_time()

    async def bring() -> None:
        for _ in range(5):
            await pace.turn(MIB)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(bring)
    assert trio.current_time() - begun == pytest.approx(19)


async def test_what_was_saved_up_is_not_spent_at_once(autojump_clock: MockClock) -> None:
    """After an hour of nothing the rate is what it was."""
    pace = Pace(Demand(), MIB, idle=False)
    await pace.turn(MIB)
    await trio.sleep(3600)
    begun = trio.current_time()
    for _ in range(3):
        await pace.turn(MIB)
    assert trio.current_time() - begun == pytest.approx(2)


async def test_who_came_while_it_was_paid_for_goes_first(autojump_clock: MockClock) -> None:
    """A reader who begins to wait while hydration waits for its rate is waited for, too."""
    demand = Demand()
    pace = Pace(demand, MIB, idle=False)
    await pace.turn(10 * MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.turn, MIB)
        await trio.sleep(9)
        with demand.waiting():
            await trio.sleep(100)
            released = trio.current_time()
    assert trio.current_time() > released


async def test_jitter_lengthens_the_silence(autojump_clock: MockClock) -> None:
    """Nodes that were disturbed at once do not begin at once."""
    begun = []
    for chance in (0.0, 0.5):
        pace = Pace(Demand(), MIB, idle=True, chance=lambda chance=chance: chance)  # type: ignore[misc]
        pace.begin()
        start = trio.current_time()
        await pace.turn(0)
        begun.append(trio.current_time() - start)
    assert begun == [pytest.approx(SILENCE), pytest.approx(SILENCE + JITTER / 2)]
