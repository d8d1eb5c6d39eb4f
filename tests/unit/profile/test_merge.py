"""What several boots say together, how it is fetched, and what is no boot."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.profile.merge import FETCH_UNITS, LEAST_UNITS, SWEEP_UNITS, Score, boot_set, fetches, is_known, merged, rubbish, score
from imagefs.profile.record import BOOT_UNITS, KEPT_BOOTS
from imagefs.units import MIB, UNIT, unit_count
from tests.support.booting import DISK, boot, scattered

DISK_UNITS = unit_count(DISK)


def test_the_newest_five_boots_of_all_are_kept_once() -> None:
    """Boots of two profiles are put together by their names and times; the oldest go."""
    found = [boot([number], recorded_at=number) for number in range(8)]
    assert merged([*found[:5], *found[2:], *found[6:]]) == tuple(found[3:])
    assert merged([]) == ()
    assert len(merged(found)) == KEPT_BOOTS


def test_one_boot_counts_as_it_is() -> None:
    """Of a single boot all units are expected again, in its order."""
    assert boot_set([boot([9, 3, 4])]) == (9, 3, 4)
    assert boot_set([]) == ()


def test_units_of_two_boots_are_expected_in_the_order_of_the_newest() -> None:
    """What one boot alone has read is left out; what the newest has not comes after what it has."""
    oldest, middle, newest = boot([1, 2, 3, 4, 5]), boot([5, 4, 8, 2]), boot([4, 9, 1])
    assert boot_set([oldest, middle, newest]) == (4, 1, 5, 2)
    assert boot_set([oldest, middle]) == (5, 4, 2)


def test_no_more_is_expected_than_a_boot_may_have() -> None:
    """Five boots that agree pairwise on more than 512 MiB give 512 MiB."""
    one, other = boot(range(BOOT_UNITS)), boot(range(BOOT_UNITS, 2 * BOOT_UNITS))
    assert len(boot_set([one, other, one, other])) == BOOT_UNITS


def test_neighbours_are_fetched_together_when_the_first_is_due() -> None:
    """A fetch comes at the place of its earliest unit; a gap of one unit is not bridged."""
    assert fetches([100, 7, 5, 101, 6, 9], DISK) == [(100 * UNIT, 2 * UNIT), (5 * UNIT, 3 * UNIT), (9 * UNIT, UNIT)]


@given(st.lists(st.integers(0, 300), unique=True), st.integers(1, UNIT))
def test_fetches_bring_each_unit_once_and_nothing_else(units: list[int], tail: int) -> None:
    """Fetches cover exactly the units, none twice, 1 MiB at most, and end with the disk."""
    size = 300 * UNIT + tail
    found = fetches(units, size)
    assert all(0 < length <= MIB and offset % UNIT == 0 and offset + length <= size for offset, length in found)
    covered = [unit for offset, length in found for unit in range(offset // UNIT, -(-(offset + length) // UNIT))]
    assert sorted(covered) == sorted(units)
    rank = {unit: position for position, unit in enumerate(units)}
    due = [min(rank[unit] for unit in range(offset // UNIT, -(-(offset + length) // UNIT))) for offset, length in found]
    assert due == sorted(due)


def test_a_long_run_is_cut_into_fetches() -> None:
    """40 units in a row are three fetches."""
    assert [length // UNIT for _, length in fetches(range(40), DISK)] == [FETCH_UNITS, FETCH_UNITS, 8]


def test_a_score_counts_what_was_right_missing_and_wasted() -> None:
    """Of 1 to 5 that were read 3 to 9 were here."""
    assert score(range(1, 6), range(3, 10)) == Score(covered=3, missed=2, wasted=4)
    assert score([], []) == Score(0, 0, 0)


def test_a_boot_that_says_nothing_new_need_not_be_kept() -> None:
    """That is so when the profile is full, and the boot is as it says within half a per cent read more, and one less."""
    usual = scattered(1000)
    full = [boot(usual, recorded_at=number) for number in range(KEPT_BOOTS)]
    assert is_known(usual, full)
    assert is_known([*usual, 1], full)
    assert is_known(usual[9:], full)
    assert not is_known(usual[11:], full)
    assert not is_known([*usual, *range(1, 18, 2)], full)
    assert not is_known(usual, full[1:])


def test_a_glance_at_a_disk_is_no_boot() -> None:
    """Less than 2 MiB: a partition table, a superblock."""
    assert "only 1.9 MiB were read" in str(rubbish(scattered(LEAST_UNITS - 1), DISK_UNITS))
    assert rubbish(scattered(LEAST_UNITS), DISK_UNITS) is None


@pytest.mark.parametrize("disorder", [1, 4, 16])
def test_a_copy_of_a_disk_is_no_boot(disorder: int) -> None:
    """Reading from one end to the other, forwards or backwards, also with requests that overtake each other."""
    chance = random.Random(disorder)
    units: list[int] = []
    for first in range(5000, 5000 + 4 * SWEEP_UNITS, disorder):
        units += chance.sample(range(first, first + disorder), disorder)
    assert "as a copy does" in str(rubbish(units, DISK_UNITS))
    assert "as a copy does" in str(rubbish(units[::-1], DISK_UNITS))


def test_a_boot_that_loads_large_files_is_a_boot() -> None:
    """A kernel and an initrd of 120 MiB in a row make four fifths of this boot, and it is one all the same."""
    loaded = [*scattered(100), *range(20_000, 22_000)]
    assert rubbish([*loaded, *scattered(400, step=41)], DISK_UNITS) is None


def test_reading_all_of_a_small_disk_is_no_boot() -> None:
    """In any order; of a disk that is smaller than a boot is, that is nothing to refuse."""
    units = random.Random(1).sample(range(1000), 950)
    assert rubbish(units, 1000) == "the whole disk was read"
    assert rubbish(units[:880], 1000) is None
    assert rubbish(range(100), 100) is None
