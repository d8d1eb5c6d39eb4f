"""Pauses between tries, and when they end."""

import pytest

from imagefs.fetch.backoff import Retries, RetryPolicy
from tests.support.fetched import FakeClock


def test_pauses_grow_to_the_cap() -> None:
    """The longest pause doubles with each failure in a row and stops at the cap."""
    policy = RetryPolicy(first=0.1, factor=2.0, cap=5.0)
    ceilings = [policy.ceiling(failures) for failures in (1, 2, 3, 6, 7, 10_000)]
    assert ceilings == pytest.approx([0.1, 0.2, 0.4, 3.2, 5.0, 5.0])


def test_jitter_is_full() -> None:
    """A pause is the drawn chance times the ceiling: all of it may fall away."""
    chances = iter([0.0, 0.5, 0.999])
    retries = Retries(RetryPolicy(), FakeClock(), lambda: next(chances))
    assert [retries.next_pause() for _ in range(3)] == pytest.approx([0.0, 0.1, 0.3996])


def test_deadline_counts_from_the_last_progress() -> None:
    """Tries end when a pause would reach the deadline, and progress begins both anew."""
    clock = FakeClock()
    retries = Retries(RetryPolicy(deadline=10.0, cap=4.0), clock, lambda: 1.0)
    clock.now = 9.0
    retries.next_pause()
    retries.progressed()
    clock.now = 18.8
    assert retries.next_pause() == pytest.approx(0.1)
    assert retries.stalled() == pytest.approx(9.8)
    assert retries.next_pause() is None


def test_progress_forgets_failures() -> None:
    """After progress the next pause is short again."""
    retries = Retries(RetryPolicy(), FakeClock(), lambda: 1.0)
    for _ in range(5):
        retries.next_pause()
    retries.progressed()
    assert retries.next_pause() == pytest.approx(0.1)
