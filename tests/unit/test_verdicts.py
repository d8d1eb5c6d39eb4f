"""Tests of a few bits for each of many things."""

from imagefs.verdicts import Verdicts


def test_bits_are_kept_for_each_number() -> None:
    """What was added is there, what was not is 0."""
    verdicts = Verdicts()
    verdicts.add(5, 1)
    verdicts.add(5, 4)
    verdicts.add(1_000_000, 2)
    assert [verdicts.of(number) for number in (4, 5, 6, 1_000_000, 7_000_000)] == [0, 5, 0, 2, 0]


def test_what_is_mostly_of_things_gone_is_forgotten() -> None:
    """Room is taken for what there is, not for all that ever was; as long as it is not much more, nothing is forgotten."""
    verdicts = Verdicts()
    for number in range(0, 64 * 2000, 64):
        verdicts.add(number, 1)
    verdicts.trim(64 * 2000)
    assert verdicts.of(64) == 1
    verdicts.trim(10)
    assert verdicts.of(64) == 0
