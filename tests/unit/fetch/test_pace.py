"""How many requests a store is given at once."""

import hypothesis.strategies as st
from hypothesis import given

from imagefs.fetch.pace import COOL, FAILURES, HOLD, LEAST, MOST, SETTLE, WINDOW, Breaker, Pace


def interval(pace: Pace, start: float, rate: float) -> float:
    """Finish one limit's worth of requests of 1 MB at `rate` bytes/s after the one that begins the interval; return when."""
    now = start
    pace.finished(1_000_000, now)
    for _ in range(pace.limit):
        now += 1_000_000 / rate
        pace.finished(1_000_000, now)
    return now


def test_it_begins_at_the_top() -> None:
    """A boot is over before a slow start would be."""
    assert Pace().limit == MOST


def test_a_busy_store_gets_half_and_then_more_step_by_step() -> None:
    """Halved once for the refusals of one moment; one more with each interval in which more came through."""
    pace = Pace()
    assert pace.busy(100.0)
    assert not pace.busy(100.0 + SETTLE / 2)
    assert pace.limit == MOST // 2
    now = 200.0
    for step in range(1, 5):
        now = interval(pace, now + 0.001, 1e6 * step)
        assert pace.limit == MOST // 2 + step
    assert pace.busy(now + 10)
    assert pace.limit == (MOST // 2 + 4) // 2


def test_what_brings_nothing_is_not_tried_again_at_once() -> None:
    """An interval that was no faster than the one before adds nothing, until some time has passed."""
    pace = Pace()
    pace.busy(0.0)
    now = interval(pace, 10.0, 1e8)
    assert pace.limit == MOST // 2 + 1
    for _ in range(3):
        now = interval(pace, now + 0.001, 0.9e8)
    assert pace.limit == MOST // 2 + 1
    interval(pace, now + HOLD + 1, 0.8e8)
    assert pace.limit == MOST // 2 + 2


@given(events=st.lists(st.tuples(st.floats(0.0, 20.0), st.one_of(st.none(), st.integers(0, 10**9))), max_size=200))
def test_the_limit_stays_within_its_bounds(events: list[tuple[float, int | None]]) -> None:
    """Whatever is finished or refused, whenever."""
    pace, now = Pace(), 0.0
    for pause, size in events:
        now += pause
        if size is None:
            pace.busy(now)
        else:
            pace.finished(size, now)
        assert LEAST <= pace.limit <= MOST


def test_the_breaker_opens_after_failures_in_a_row_of_seconds() -> None:
    """Five failures within ten seconds open it, until it has been quiet for five."""
    breaker = Breaker()
    for now in range(FAILURES - 1):
        breaker.failed(float(now))
        assert breaker.pause(float(now)) == 0.0
    breaker.failed(4.0)
    assert breaker.pause(4.0) == COOL
    breaker.failed(6.0)
    assert breaker.pause(8.0) == COOL - 2
    assert breaker.pause(6.0 + COOL) == 0.0


def test_rare_failures_leave_it_closed() -> None:
    """One request in a while that fails is no reason to stop."""
    breaker = Breaker()
    for index in range(50):
        breaker.failed(index * (WINDOW / (FAILURES - 1) + 0.1))
        assert breaker.pause(index * (WINDOW / (FAILURES - 1) + 0.1)) == 0.0
