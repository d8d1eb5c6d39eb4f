"""What is fetched beside and ahead of a miss."""

import hypothesis.strategies as st
from hypothesis import given

from imagefs.cache.readahead import (
    AHEAD_UNITS,
    BACK_UNITS,
    ENDLESS_UNITS,
    FIRST_UNITS,
    FORWARD_UNITS,
    LARGEST_UNITS,
    MARK_UNITS,
    STREAM_UNITS,
    STREAMS,
    WINDOW_LIMIT,
    ReadAhead,
    Step,
)

COUNT = 100_000


class Reader:
    """Reads units through a ReadAhead whose guesses come true at once."""

    def __init__(self, count: int = COUNT) -> None:
        self.policy = ReadAhead(count)
        self.count = count
        self.here: set[int] = set()
        self.marks: set[int] = set()
        self.misses = 0

    def read(self, first: int, stop: int) -> Step | None:
        """Read units; return what the policy said, None if it was not asked."""
        units = range(first, stop)
        missed = not self.here.issuperset(units)
        if not missed and self.marks.isdisjoint(units):
            return None
        self.misses += missed
        self.marks.difference_update(units)
        step = self.policy.seen(units, missed)
        for part in (step.window if missed else range(0), *step.ahead):
            self.here.update(part)
        self.marks.update(step.marks)
        return step

    @property
    def fetched(self) -> int:
        return len(self.here)


def test_a_lone_miss_fetches_little() -> None:
    """256 KiB around it, aligned: from the miss on in its own request, what lies before beside it."""
    step = ReadAhead(COUNT).seen(range(1001, 1002), missed=True)
    assert step.window == range(1001, 1004)
    assert step.ahead == [range(1000, 1001)]
    assert FIRST_UNITS == 4


def test_misses_close_together_fetch_more() -> None:
    """The second miss in a block of 2 MiB takes an aligned window twice as large, which is the largest; other blocks know nothing of it."""
    policy = ReadAhead(COUNT)
    policy.seen(range(64, 65), missed=True)
    assert policy.seen(range(90, 91), missed=True).window == range(90, 96)
    assert policy.seen(range(80, 81), missed=True).window == range(80, 80 + LARGEST_UNITS)
    assert policy.seen(range(200, 201), missed=True).window == range(200, 204)


def test_the_end_of_the_image() -> None:
    """Nothing past the last unit is asked for."""
    step = ReadAhead(10).seen(range(9, 10), missed=True)
    assert step == Step(range(9, 10), [range(8, 9)], [])


def test_a_stream_is_read_ahead_by_more_and_more() -> None:
    """Reads of 1 MiB one after the other: from the second on there is something ahead, in the end 32 MiB and never more; nothing is missed."""
    reader = Reader()
    ahead = []
    for first in range(0, 200 * 16, 16):
        reader.read(first, first + 16)
        ahead.append(max(reader.here) + 1 - (first + 16))
    assert reader.misses == 1
    assert ahead[1] >= 16
    assert max(ahead) <= AHEAD_UNITS
    assert min(ahead[ENDLESS_UNITS // 16 + 1 :]) >= AHEAD_UNITS // 2


def test_the_end_of_a_boot_file_is_not_overrun_by_much() -> None:
    """A kernel or initrd of 16 MiB is read ahead by half of what was read of it at most."""
    reader = Reader()
    for first in range(0, 16 * 16, 8):
        reader.read(first, first + 8)
    assert reader.fetched <= 24 * 16 + 16


def test_small_reads_of_a_stream_are_hits_but_for_the_marks() -> None:
    """A stream of single units misses a few times at first; later the policy hears of it at one unit in four, and nothing is missed."""
    reader = Reader()
    asked = [first for first in range(4000) if reader.read(first, first + 1) is not None]
    assert reader.misses <= 8
    assert len(asked) <= 4000 // MARK_UNITS + 16
    assert reader.fetched <= 4000 + AHEAD_UNITS


def test_a_stream_may_be_out_of_order() -> None:
    """Reads that swap places within 256 KiB back and 512 KiB ahead are one stream: the kernel sends them so."""
    reader = Reader()
    for first in range(0, 64 * 16, 8):
        # Pairs of reads: the second half first.
        reader.read(first + 4, first + 8)
        reader.read(first, first + 4)
    assert reader.misses <= 8


def test_random_reads_fetch_their_windows_only() -> None:
    """Reads far from each other never become a stream: 256 KiB each."""
    reader = Reader()
    for index in range(500):
        reader.read(index * 199, index * 199 + 1)
    assert reader.misses == 500
    assert reader.fetched <= 500 * FIRST_UNITS


def test_several_streams() -> None:
    """As many streams as are followed at once, in turns, are each read ahead."""
    reader = Reader()
    starts = range(0, STREAMS * 5000, 5000)
    for step in range(0, 800, 16):
        for start in starts:
            reader.read(start + step, start + step + 16)
    assert reader.misses == STREAMS


def test_a_stream_that_jumps_is_trusted_less() -> None:
    """A reader that skips from file to file is read ahead by less than one that goes straight on."""
    straight, jumping = Reader(), Reader()
    for index in range(40):
        straight.read(index * 8, index * 8 + 8)
        jumping.read(index * 24, index * 24 + 8)
    assert max(straight.here) - 40 * 8 > max(jumping.here) - 40 * 24


@given(
    count=st.integers(1, 5000),
    reads=st.lists(st.tuples(st.integers(0, 4999), st.integers(1, 20)), max_size=60),
    sequential=st.booleans(),
)
def test_promises(count: int, reads: list[tuple[int, int]], sequential: bool) -> None:
    """Whatever is read: what is asked for lies within the image, ranges do not overlap, and no stream is further ahead than it may be."""
    policy = ReadAhead(count)
    position = 0
    for start, length in reads:
        first = min(position if sequential else start, count - 1)
        units = range(first, min(first + length, count))
        position = units.stop % count
        for missed in (True, False):
            step = policy.seen(units, missed)
            assert step.window.start == units.start
            assert units.stop <= step.window.stop <= max(units.stop, units.start + WINDOW_LIMIT)
            assert missed or step.window == units
            asked = [unit for part in step.ahead for unit in part]
            assert len(set(asked)) == len(asked)
            assert not set(asked) & set(step.window)
            assert all(0 <= unit < min(count, units.stop + AHEAD_UNITS + LARGEST_UNITS + FORWARD_UNITS + BACK_UNITS) for unit in asked)
            assert set(step.marks) <= set(asked) | set(step.window)
            assert all(unit % MARK_UNITS == 0 and unit >= units.stop for unit in step.marks)


def test_no_stream_no_reading_ahead() -> None:
    """Less than 1 MiB in a row is no stream."""
    policy = ReadAhead(COUNT)
    for unit in range(1000, 1000 + STREAM_UNITS - 1):
        step = policy.seen(range(unit, unit + 1), missed=False)
        assert step.ahead == []
    assert policy.seen(range(1000 + STREAM_UNITS - 1, 1000 + STREAM_UNITS), missed=False).ahead
