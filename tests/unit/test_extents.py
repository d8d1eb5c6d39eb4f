"""The arithmetic of extents."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from imagefs.extents import Extents, clipped, joined, widened

drawn = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 30)), max_size=12).map(
    lambda pairs: sorted((start, start + length) for start, length in pairs)
)


def covered(extents: Extents) -> set[int]:
    """Return the bytes that extents have."""
    return {byte for start, stop in extents for byte in range(start, stop)}


@given(drawn)
def test_joined_extents_are_the_same_bytes_and_apart(extents: Extents) -> None:
    """In order, none empty, no two of them touching."""
    found = joined(extents)
    assert covered(found) == covered(extents)
    assert all(start < stop for start, stop in found)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(found))


@given(drawn, st.integers(1, 40))
def test_widened_extents_are_whole_steps(extents: Extents, step: int) -> None:
    """Just the steps that are touched."""
    found = widened(joined(extents), step)
    touched = {byte // step for byte in covered(extents)}
    assert all(start % step == 0 and stop % step == 0 for start, stop in found)
    assert covered(found) == {byte for number in touched for byte in range(number * step, (number + 1) * step)}


@given(drawn, st.integers(0, 200), st.integers(0, 60))
def test_clipped_extents_are_what_is_within(extents: Extents, start: int, length: int) -> None:
    """Nothing outside, nothing empty."""
    found = clipped(extents, start, start + length)
    assert covered(found) == covered(extents) & set(range(start, start + length))
