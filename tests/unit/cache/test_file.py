"""The two files of a cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.cache import unit_map
from imagefs.cache.directory import CacheDirectory, cache_name
from imagefs.cache.file import UnitFile
from imagefs.cache.unit_map import ABSENT, DATA, ENTRY, ZERO, MapHeader, entry_offset
from imagefs.units import UNIT
from tests.support.caching import IMAGE
from tests.support.fetched import noise

UNITS = 40
SIZE = UNITS * UNIT - 1000
NAME = cache_name(IMAGE, "stored", "v1")


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """The directory of the cache."""
    return tmp_path / "cache" / NAME


@pytest.fixture
def file(tmp_path: Path, where: Path) -> Iterator[UnitFile]:
    """An empty cache of 40 units, the last one short."""
    (tmp_path / "cache").mkdir()
    opened = CacheDirectory(tmp_path / "cache").open(NAME, MapHeader(IMAGE, "stored", "v1", SIZE, 77))
    yield opened
    opened.close()


def test_units_are_where_their_offset_is(file: UnitFile) -> None:
    """Stored units are read back at their own offsets, zero units as zeros, and only data takes room."""
    before = file.allocated()
    assert file.store(3, noise(UNIT)) == DATA
    assert file.store(4, bytes(UNIT)) == ZERO
    assert file.store(UNITS - 1, noise(UNIT - 1000)) == DATA
    assert file.read(3 * UNIT + 5, 10) == noise(UNIT)[5:15]
    assert file.read(4 * UNIT, UNIT) == bytes(UNIT)
    assert file.examine([3, 4, 5, UNITS - 1], ()).states == {3: DATA, 4: ZERO, 5: ABSENT, UNITS - 1: DATA}
    assert file.count_present() == 3
    assert file.allocated() - before <= 2 * UNIT + 4096


def test_absent_units_of_a_map_page(file: UnitFile) -> None:
    """One look at a page of the map tells all units that are absent."""
    file.store(7, noise(UNIT))
    assert file.examine([7], [0]).absent == [unit for unit in range(UNITS) if unit != 7]


def _flip_data(where: Path) -> None:
    with (where / "units").open("r+b") as units:
        units.seek(3 * UNIT + 100)
        byte = units.read(1)[0]
        units.seek(3 * UNIT + 100)
        units.write(bytes([byte ^ 1]))


def _zero_data(where: Path) -> None:
    with (where / "units").open("r+b") as units:
        units.seek(3 * UNIT)
        units.write(bytes(4096))


def _swap_entries(where: Path) -> None:
    with (where / "map").open("r+b") as entries:
        entries.seek(entry_offset(3))
        three, four = entries.read(ENTRY), entries.read(ENTRY)
        entries.seek(entry_offset(3))
        entries.write(four + three)


def _tear_entry(where: Path) -> None:
    with (where / "map").open("r+b") as entries:
        entries.seek(entry_offset(3) + 4)
        entries.write(bytes(4))


def _swap_units_with_entries(where: Path) -> None:
    _swap_entries(where)
    with (where / "units").open("r+b") as units:
        units.seek(3 * UNIT)
        three, four = units.read(UNIT), units.read(UNIT)
        units.seek(3 * UNIT)
        units.write(four + three)


def _cut_short(where: Path) -> None:
    os.truncate(where / "units", 3 * UNIT + 5)


@pytest.mark.parametrize("damage", [_flip_data, _zero_data, _swap_entries, _tear_entry, _swap_units_with_entries, _cut_short])
def test_damage_is_found_and_erased(file: UnitFile, where: Path, damage: object) -> None:
    """A unit that is not what its entry says is found at first touch, erased, and can be stored again."""
    file.store(3, noise(UNIT, 3))
    file.store(4, noise(UNIT, 4))
    assert callable(damage)
    damage(where)
    found = file.examine([3], ())
    assert found.damaged == [3]
    assert found.states == {3: ABSENT}
    assert file.examine([3], ()).damaged == []
    file.store(3, noise(UNIT, 3))
    assert file.examine([3], ()).states == {3: DATA}


def test_garbage_under_a_zero_unit(file: UnitFile, where: Path) -> None:
    """Bytes where a hole should be are damage, and storing the zero unit again makes the hole."""
    file.store(3, bytes(UNIT))
    _flip_data(where)
    assert file.examine([3], ()).damaged == [3]
    assert file.store(3, bytes(UNIT)) == ZERO
    assert file.read(3 * UNIT, UNIT) == bytes(UNIT)


def test_erase_gives_room_back(file: UnitFile) -> None:
    """Erased units are absent, their room and that of an empty page of the map is free, and their neighbours stay."""
    empty = file.allocated()
    for unit in range(UNITS):
        file.store(unit, noise(UNIT if unit < UNITS - 1 else UNIT - 1000))
    assert file.erase(range(16)) == 16
    assert file.examine([0, 15, 16], ()).states == {0: ABSENT, 15: ABSENT, 16: DATA}
    assert file.data_regions(0, 10) == [1, 2]
    assert file.erase(range(16, UNITS)) == UNITS - 16
    assert file.allocated() <= empty
    assert file.erase(range(UNITS)) == 0


def test_data_regions(file: UnitFile) -> None:
    """Regions with bytes are found in order, from any region on, as many as asked for."""
    for unit in (0, 17, 18, UNITS - 1):
        file.store(unit, noise(UNIT if unit < UNITS - 1 else UNIT - 1000))
    assert file.data_regions(0, 10) == [0, 1, 2]
    assert file.data_regions(1, 1) == [1]
    assert file.data_regions(3, 5) == []


def test_failed_store_leaves_the_unit_absent(file: UnitFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full after half of a unit, nothing of it counts."""
    real = os.pwrite

    def half(descriptor: int, body: bytes, offset: int) -> int:
        return real(descriptor, body[:4096], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="No space"):
        file.store(3, noise(UNIT))
    monkeypatch.undo()
    assert file.examine([3], ()).states == {3: ABSENT}
    assert file.data_regions(0, 9) == []


def test_read_past_the_end_of_a_short_file(file: UnitFile, where: Path) -> None:
    """Bytes that are missing are an error and not silence."""
    os.truncate(where / "units", 10)
    with pytest.raises(OSError, match="early"):
        file.read(0, 20)


def test_unreadable_units_are_damage(file: UnitFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sector that cannot be read is fetched again."""
    file.store(3, noise(UNIT))

    def fail(descriptor: int, length: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    found = file.examine([3], [0])
    assert found.damaged == [3]
    assert found.absent == []


def test_groups() -> None:
    """512 entries share a page of the map, and the header has one of its own."""
    assert unit_map.entry_offset(0) == 4096
    assert unit_map.groups_of(range(500, 520)) == range(2)
    assert unit_map.group_of(511) == 0
