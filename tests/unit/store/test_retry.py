"""The retries of small requests."""

import pytest

from imagefs.errors import StoreRefused, StoreUnavailable
from imagefs.store.retry import DEADLINE, TRIES, SmallRetry


class Work:
    """Fails a number of times, then returns; every call takes `seconds` of a made-up clock."""

    def __init__(self, failures: int, seconds: float = 0.0) -> None:
        self.failures = failures
        self.seconds = seconds
        self.calls = 0
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> str:
        self.calls += 1
        self.now += self.seconds
        if self.calls <= self.failures:
            raise StoreUnavailable(f"failure {self.calls}")
        return "done"

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def retry(self) -> SmallRetry:
        return SmallRetry(sleep=self.sleep, clock=lambda: self.now, chance=lambda: 1.0)


def test_what_succeeds_is_not_repeated() -> None:
    """Work that returns is called once."""
    work = Work(0)
    assert work.retry()(work) == "done"
    assert (work.calls, work.slept) == (1, [])


def test_delays_double() -> None:
    """Each delay is at most twice the one before, and chance takes its share of it."""
    work = Work(TRIES - 1)
    assert work.retry()(work) == "done"
    assert work.slept == [0.1, 0.2, 0.4, 0.8]


def test_the_last_error_is_raised_after_the_last_try() -> None:
    """Work that always fails is called TRIES times."""
    work = Work(99)
    with pytest.raises(StoreUnavailable, match=f"failure {TRIES}"):
        work.retry()(work)
    assert work.calls == TRIES


def test_no_try_begins_after_the_deadline() -> None:
    """Slow failures end the retries early."""
    work = Work(99, seconds=DEADLINE * 0.6)
    with pytest.raises(StoreUnavailable, match="failure 2"):
        work.retry()(work)
    assert work.calls == 2


def test_a_refusal_is_not_repeated() -> None:
    """Only StoreUnavailable is tried again."""
    calls = []

    def refuse() -> None:
        calls.append(1)
        raise StoreRefused("no")

    with pytest.raises(StoreRefused):
        SmallRetry(sleep=lambda _: None)(refuse)
    assert len(calls) == 1
