"""How extents become requests."""

from imagefs.image.qcow2.plan import FETCH_UNITS, Fetch, Piece, plan_fetches, stored_units
from imagefs.image.qcow2.tables import Extent, Kind
from imagefs.units import KIB, MIB, UNIT


def compressed(guest: int, host: int, length: int) -> Extent:
    return Extent(guest * UNIT, UNIT, Kind.COMPRESSED, host, length)


def test_plan_has_nothing_for_zeros() -> None:
    """Zeros and refused extents need no request."""
    extents = [Extent(0, UNIT, Kind.ZERO), Extent(UNIT, UNIT, Kind.REFUSED, reason="bad")]
    assert plan_fetches(extents, UNIT) == []
    assert stored_units(extents) == set()


def test_plan_cuts_data_at_stored_units() -> None:
    """A data extent is one piece for each stored unit, up to where the file ends."""
    (fetch,) = plan_fetches([Extent(1000, 3 * UNIT, Kind.DATA, UNIT + 1000, 70_000)], UNIT)
    assert fetch == Fetch(
        1,
        2,
        [
            Piece(UNIT + 1000, UNIT - 1000, 1000, UNIT - 1000, compressed=False, skip=0),
            Piece(2 * UNIT, 71_000 - UNIT, UNIT, 71_000 - UNIT, compressed=False, skip=0),
        ],
    )


def test_plan_joins_near_ranges() -> None:
    """Ranges with a gap of one stored unit or less share a request; others do not. Host order counts, not guest order."""
    near = [compressed(3, 5 * UNIT, 1000), compressed(1, 7 * UNIT + 5, 1000)]
    far = [compressed(2, 10 * UNIT, 1000)]
    assert [(fetch.first_unit, fetch.last_unit, len(fetch.pieces)) for fetch in plan_fetches(far + near, UNIT)] == [(5, 7, 2), (10, 10, 1)]


def test_plan_bounds_requests() -> None:
    """No request is longer than 2 MiB, and together they bring everything once."""
    fetches = plan_fetches([Extent(0, 5 * MIB, Kind.DATA, 0, 5 * MIB)], UNIT)
    assert [(fetch.first_unit, fetch.last_unit) for fetch in fetches] == [(0, 31), (32, 63), (64, 79)]
    assert all(fetch.last_unit - fetch.first_unit < FETCH_UNITS for fetch in fetches)


def test_plan_never_splits_a_compressed_cluster() -> None:
    """A cluster that takes more than 2 MiB compressed is one request."""
    extents = [Extent(0, 2 * MIB, Kind.COMPRESSED, 100, 3 * MIB), Extent(2 * MIB, 10, Kind.COMPRESSED, 100 + 3 * MIB, 900)]
    assert [len(fetch.pieces) for fetch in plan_fetches(extents, 2 * MIB)] == [1, 1]


def test_plan_skips_to_the_part_of_a_cluster() -> None:
    """When less than a cluster is wanted, the piece says where in the cluster it begins."""
    (fetch,) = plan_fetches([Extent(5 * UNIT, UNIT, Kind.COMPRESSED, 9999, 50 * KIB)], 2 * MIB)
    assert fetch.pieces == [Piece(9999, 50 * KIB, 5 * UNIT, UNIT, compressed=True, skip=5 * UNIT)]


def test_stored_units_are_those_with_bytes_in_them() -> None:
    """Every stored unit that an extent touches counts, and none between extents."""
    assert stored_units([compressed(0, 3 * UNIT - 1, 2), compressed(1, 100, UNIT - 100)]) == {0, 2, 3}
