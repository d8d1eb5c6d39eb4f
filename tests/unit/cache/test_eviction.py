"""Which regions go."""

from imagefs.cache.eviction import select
from imagefs.cache.shelf import CREDIT


def always(region: int) -> bool:
    return True


def never(region: int) -> bool:
    return False


def test_untouched_regions_go_first() -> None:
    """Touched regions are spared once, and marked as seen."""
    touched = bytearray([1, 0, 1, 0, 0])
    assert select([0, 1, 2, 3, 4], touched, bytearray(5), never, always, 2) == ([1, 3], 4)
    assert touched == bytearray([0, 0, 0, 0, 0])
    assert select([0, 1], touched, bytearray(5), never, always, 9) == ([0, 1], 2)


def test_regions_in_use_are_passed_over() -> None:
    """A region that may not move keeps its mark and its credit."""
    touched, credit = bytearray([1, 0, 0]), bytearray([2, 2, 0])
    assert select([0, 1, 2], touched, credit, always, lambda region: region == 2, 1) == ([2], 3)
    assert touched == bytearray([1, 0, 0])
    assert credit == bytearray([2, 2, 0])


def test_the_hand_stops_where_enough_is_found() -> None:
    """The next turn begins behind the last victim."""
    assert select([5, 7, 9], bytearray(10), bytearray(10), never, always, 1) == ([5], 7)
    assert select([9], bytearray(10), bytearray(10), never, always, 1) == ([9], 10)


def test_reading_again_earns_turns() -> None:
    """Each turn in which an old region was read earns one without being read, up to a limit; a young region earns nothing."""
    touched, credit = bytearray(2), bytearray(2)
    for _ in range(CREDIT + 2):
        touched[:] = b"\1\1"
        assert select([0, 1], touched, credit, lambda region: region == 0, always, 2) == ([], 2)
    assert credit == bytearray([CREDIT, 0])
    turns = [select([0, 1], touched, credit, always, always, 2)[0] for _ in range(CREDIT + 1)]
    assert turns == [[1]] * CREDIT + [[0, 1]]
