"""Ranges, units, windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.cache.geometry import (
    FILL_UNITS,
    FREE_UNITS,
    assemble,
    clipped,
    missing_runs,
    plan_fill,
    region_units,
    regions_of,
    unit_length,
    unit_span,
)
from imagefs.cache.unit_map import ABSENT, DATA, GROUP, UNKNOWN, ZERO
from imagefs.units import UNIT
from tests.support.fetched import noise


@pytest.mark.parametrize(("offset", "length", "size", "expected"), [(0, 10, 20, 10), (15, 10, 20, 5), (20, 1, 20, 0), (99, 1, 20, 0), (0, 5, 0, 0)])
def test_clipped(offset: int, length: int, size: int, expected: int) -> None:
    """A range is cut at the end, and nothing past it."""
    assert clipped(offset, length, size) == expected


def test_spans() -> None:
    """A range touches the units of its first and of its last byte, and all between."""
    assert unit_span(0, 1) == range(1)
    assert unit_span(UNIT - 1, 2) == range(2)
    assert unit_span(UNIT, UNIT) == range(1, 2)
    assert regions_of(range(15, 17)) == range(2)
    assert region_units(1, 20) == range(16, 20)
    assert unit_length(1, UNIT + 5) == 5


def plan(unit: int, *, wanted_end: int = 0, free: tuple[int, int] | None = None, count: int = 1000, present: tuple[int, ...] = ()) -> range:
    """Return what is planned where the units `present` are there."""
    return plan_fill(unit, wanted_end, free if free is not None else (unit, 1), count, lambda other: other not in present)


def test_a_miss_fetches_what_is_wanted() -> None:
    """From the missing unit to the end of what the reader and its window want, never back, 1 MiB at most."""
    assert plan(5, wanted_end=12) == range(5, 12)
    assert plan(5) == range(5, 6)
    assert plan(5, wanted_end=100) == range(5, 5 + FILL_UNITS)


def test_what_is_there_is_not_fetched_again() -> None:
    """The run ends before a unit that is present or on its way."""
    assert plan(1, present=(4,), wanted_end=8) == range(1, 4)
    assert plan(1, present=(2,), wanted_end=8) == range(1, 2)


def test_the_end_of_the_image() -> None:
    """Nothing past the last unit is asked for."""
    assert plan(9, count=11, wanted_end=16) == range(9, 11)


def test_what_comes_for_free_is_taken() -> None:
    """Units that the same cluster holds are filled too, before the missing one as well, as far as they are missing."""
    assert plan(5, free=(0, 32)) == range(32)
    assert plan(5, free=(0, 32), present=(2,)) == range(3, 32)


@given(
    unit=st.integers(0, 299),
    wanted_end=st.integers(0, 400),
    free_before=st.integers(0, 99),
    free_after=st.integers(1, 99),
    count=st.integers(300, 320),
    present=st.sets(st.integers(0, 320)),
)
def test_plans_keep_their_promise(unit: int, wanted_end: int, free_before: int, free_after: int, count: int, present: set[int]) -> None:
    """Every plan has the missing unit, is within the image and bounded, and has no unit that is there."""
    present.discard(unit)
    planned = plan_fill(unit, wanted_end, (unit - free_before, free_before + free_after), count, lambda other: other not in present)
    assert unit in planned
    assert planned.start >= 0
    assert planned.stop <= count
    assert len(planned) <= 2 * FREE_UNITS
    assert planned.stop - unit <= max(FREE_UNITS, FILL_UNITS)
    assert not present & set(planned)


def test_missing_runs() -> None:
    """Absent units are missing; those that nobody looked at are too, unless their page of the map was read: then they are on the disk."""
    states = bytes([UNKNOWN, ABSENT, DATA, ABSENT, ABSENT, ZERO, UNKNOWN])
    assert missing_runs(states, GROUP - 3, ()) == [range(GROUP - 3, GROUP - 1), range(GROUP, GROUP + 2), range(GROUP + 3, GROUP + 4)]
    assert missing_runs(states, GROUP - 3, {0}) == [range(GROUP - 2, GROUP - 1), range(GROUP, GROUP + 2), range(GROUP + 3, GROUP + 4)]
    assert missing_runs(states, GROUP - 3, {0, 1}) == [range(GROUP - 2, GROUP - 1), range(GROUP, GROUP + 2)]
    assert missing_runs(b"", 5, ()) == []


@given(offset=st.integers(0, 6 * UNIT), length=st.integers(1, 4 * UNIT), loose=st.sets(st.integers(0, 9)))
def test_assemble(offset: int, length: int, loose: set[int]) -> None:
    """Units in memory and bytes from the file make the range, and the file is asked for nothing that is in memory."""
    content = noise(10 * UNIT)

    def read(start: int, count: int) -> bytes:
        assert count > 0
        assert not loose & set(unit_span(start, count))
        return content[start : start + count]

    bodies = {unit: content[unit * UNIT : (unit + 1) * UNIT] for unit in loose}
    assert assemble(offset, length, bodies, read) == content[offset : offset + length]
