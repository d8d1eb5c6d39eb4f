"""The pure part of the link simulator: bandwidth in virtual time, and which requests go wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.faults import BURST, Counts, Faults, Kind, Lot, Pace


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=100), st.floats(0, 0.004))
def test_a_pace_is_never_faster_than_its_rate_but_for_one_burst(lengths: list[int], late: float) -> None:
    """Whoever waits as long as told, or a little longer, gets the rate."""
    pace, now = Pace(125_000_000.0), 1000.0
    for length in lengths:
        now += pace.wait(now) + (late if pace.wait(now) else 0.0)
        assert pace.is_free(now)
        pace.pass_on(length, now)
    end = pace.free_at
    assert sum(lengths) / pace.rate <= end - 1000.0 + BURST + 1e-6


def test_a_late_sleeper_still_gets_the_full_rate() -> None:
    """Waking up 2 ms late each time costs nothing over many chunks."""
    pace, now = Pace(100_000_000.0), 0.0
    for _ in range(1000):
        now += pace.wait(now) + 0.002
        pace.pass_on(500_000, now)
    assert now == pytest.approx(1000 * 0.005, rel=0.01)


def test_a_link_that_was_idle_does_not_save_up_bandwidth() -> None:
    """After an hour without traffic no more than a burst comes free."""
    pace = Pace(1_000_000.0)
    pace.pass_on(1000, 0.0)
    pace.pass_on(1_000_000, 3600.0)
    assert pace.wait(3600.0) == pytest.approx(1.0 - BURST)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_shares_are_exact_over_many_requests(share: float) -> None:
    """Of 1000 requests exactly the share goes wrong, whatever the share is."""
    lot = Lot(Faults(stall=share))
    assert sum(lot.draw() is Kind.STALL for _ in range(1000)) == 1000 * share


def test_the_first_of_one_percent_is_in_the_midst_of_the_first_hundred() -> None:
    """A boot of some hundred requests meets one."""
    lot = Lot(Faults(stall=0.01))
    assert [number for number in range(1, 201) if lot.draw()] == [50, 150]


def test_without_faults_nothing_goes_wrong() -> None:
    """No share, no fault, however long it goes on."""
    lot = Lot(Faults())
    assert not any(lot.draw() for _ in range(1000))


def test_two_kinds_of_faults_do_not_swallow_each_other() -> None:
    """Each kind has its share though one request has one fault at most."""
    lot = Lot(Faults(slow_down=0.5, reset=0.25))
    drawn = [lot.draw() for _ in range(400)]
    assert drawn.count(Kind.SLOW_DOWN) == 200
    assert drawn.count(Kind.RESET) >= 99


def test_counts_are_subtracted_one_by_one() -> None:
    """What passed since a moment."""
    assert Counts(10, 9, 8, 7, 6, 5) - Counts(1, 2, 3, 4, 5, 5) == Counts(9, 7, 5, 3, 1, 0)
