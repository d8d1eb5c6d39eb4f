"""What of a stretch is brought, and in which parts."""

from hypothesis import given
from hypothesis import strategies as st

from imagefs.extents import Extents, joined
from imagefs.hydration.plan import PART, length_of, parts, split
from imagefs.units import MIB, UNIT


def test_parts_end_where_no_cluster_is_cut() -> None:
    """Parts are cut at multiples of their size, whatever they begin at."""
    assert list(parts([(PART - UNIT, PART + UNIT), (3 * PART, 5 * PART + 7)])) == [
        (PART - UNIT, PART),
        (PART, PART + UNIT),
        (3 * PART, 4 * PART),
        (4 * PART, 5 * PART),
        (5 * PART, 5 * PART + 7),
    ]


def test_a_unit_with_anything_in_it_is_fetched() -> None:
    """One byte that may not be zero makes its whole unit wanted; the last unit of a disk is short."""
    size = 4 * UNIT + 100
    wanted, zeros = split([(0, 2 * UNIT), (3 * UNIT, size)], [(UNIT + 5, UNIT + 6), (4 * UNIT + 99, size)], size)
    assert wanted == [(UNIT, 2 * UNIT), (4 * UNIT, size)]
    assert zeros == [(0, UNIT), (3 * UNIT, 4 * UNIT)]


EXTENTS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)).map(lambda pair: (min(pair), max(pair)))).map(
    lambda found: joined(sorted((start * UNIT, stop * UNIT) for start, stop in found))
)


@given(EXTENTS, EXTENTS)
def test_nothing_is_lost_by_splitting(missing: Extents, nonzero: Extents) -> None:
    """What is missing is wanted or zeros, each of it once, and wanted wherever there may be anything."""
    wanted, zeros = split(missing, nonzero, 4 * MIB)
    assert joined(sorted([*wanted, *zeros])) == missing
    assert length_of(wanted) + length_of(zeros) == length_of(missing)
    units = {unit for start, stop in nonzero for unit in range(start // UNIT, stop // UNIT)}
    assert all((unit in units) for start, stop in wanted for unit in range(start // UNIT, stop // UNIT))
    assert not any((unit in units) for start, stop in zeros for unit in range(start // UNIT, stop // UNIT))
