"""How long to wait before asking a second time."""

import hypothesis.strategies as st
from hypothesis import given

from imagefs.fetch.patience import FACTOR, LEAST, SAVED, SHARE, SecondTries, Usual


def test_patience_follows_what_was_usual() -> None:
    """Three times the slow end of the last requests, and never less than the least; one straggler in a hundred does not count."""
    usual = Usual()
    assert usual.patience == LEAST
    for _ in range(99):
        usual.note(0.03)
    usual.note(10.0)
    assert usual.patience == LEAST
    for _ in range(200):
        usual.note(0.4)
    assert usual.patience == FACTOR * 0.4


def test_the_first_few_count_at_once() -> None:
    """A store that is slow from the start is not asked twice for everything."""
    usual = Usual()
    usual.note(1.0)
    assert usual.patience == FACTOR * 1.0


@given(taken=st.lists(st.booleans(), max_size=2000))
def test_second_tries_are_a_share(taken: list[bool]) -> None:
    """Of n requests no more than 5 % and what was saved up are asked twice."""
    tries = SecondTries()
    second = 0
    for first, wants in enumerate(taken, 1):
        tries.earn()
        second += wants and tries.take()
        assert second <= first * SHARE + SAVED


def test_some_can_be_left_for_others() -> None:
    """Who must leave a part of what was saved gets none of it."""
    tries = SecondTries()
    got = 0
    while tries.take(left=2.0):
        got += 1
    assert got == SAVED - 2
    assert tries.take()
