"""Which regions go."""

from imagefs.cache.eviction import select


def test_untouched_regions_go_first() -> None:
    """Touched regions are spared once, and marked as seen."""
    touched = bytearray([1, 0, 1, 0, 0])
    assert select([0, 1, 2, 3, 4], touched, lambda region: True, 2) == ([1, 3], 4)
    assert touched == bytearray([0, 0, 0, 0, 0])
    assert select([0, 1], touched, lambda region: True, 9) == ([0, 1], 2)


def test_regions_in_use_are_passed_over() -> None:
    """A region that may not move keeps its mark."""
    touched = bytearray([1, 0, 0])
    assert select([0, 1, 2], touched, lambda region: region == 2, 1) == ([2], 3)
    assert touched == bytearray([1, 0, 0])


def test_the_hand_stops_where_enough_is_found() -> None:
    """The next turn begins behind the last victim."""
    assert select([5, 7, 9], bytearray(10), lambda region: True, 1) == ([5], 7)
    assert select([9], bytearray(10), lambda region: True, 1) == ([9], 10)
