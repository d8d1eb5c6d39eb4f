"""The cache's directory: what is found, what is refused, what goes."""

import logging
import os
import stat
from pathlib import Path

import pytest

from imagefs.cache.directory import CacheDirectory, cache_name, disk_usage
from imagefs.cache.unit_map import DATA, UNKNOWN, MapHeader
from imagefs.units import UNIT
from tests.support.caching import IMAGE, OTHER_IMAGE
from tests.support.fetched import noise

NAME = cache_name(IMAGE, "stored", "v1")
HEADER = MapHeader(IMAGE, "stored", "v1", 4 * UNIT, 99)


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    """An empty cache directory."""
    subject = CacheDirectory(tmp_path / "cache")
    subject.scan()
    return subject


def filled(directory: CacheDirectory, name: str = NAME, header: MapHeader = HEADER) -> Path:
    """Make a cache with one unit and return its directory."""
    file = directory.open(name, header)
    file.store(1, noise(UNIT))
    file.close()
    return directory.path / name


def state_of_unit_1(directory: CacheDirectory, header: MapHeader = HEADER) -> int:
    """Return the state of unit 1 after opening the cache again."""
    file = directory.open(NAME, header)
    try:
        return file.examine([1], ()).states[1]
    finally:
        file.close()


def test_names() -> None:
    """The version is in the name by its hash, so that any version makes a name."""
    assert cache_name(IMAGE, "stored", "v1") == f"{IMAGE}/stored-3bfc269594ef649228e9a74bab00f042"
    assert "/" not in cache_name(IMAGE, "guest", "../../etc").partition("/")[2]


def test_a_cache_survives_closing(directory: CacheDirectory) -> None:
    """What was stored is there after opening again, with modes that keep others out."""
    where = filled(directory)
    assert state_of_unit_1(directory) == DATA
    for part in (directory.path, where.parent, where):
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
    for part in (where / "units", where / "map"):
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert (where / "units").stat().st_size == 4 * UNIT


@pytest.mark.parametrize(
    "header",
    [
        MapHeader(OTHER_IMAGE, "stored", "v1", 4 * UNIT, 99),
        MapHeader(IMAGE, "guest", "v1", 4 * UNIT, 99),
        MapHeader(IMAGE, "stored", "v2", 4 * UNIT, 99),
        MapHeader(IMAGE, "stored", "v1", 5 * UNIT, 99),
    ],
)
def test_a_cache_of_something_else_is_begun_anew(directory: CacheDirectory, header: MapHeader, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes of another image, space, version or size are never taken for these."""
    filled(directory)
    assert state_of_unit_1(directory, header) != DATA
    assert "begun anew" in caplog.text


def _truncate_map(where: Path) -> None:
    os.truncate(where / "map", 10)


def _flip_header(where: Path) -> None:
    with (where / "map").open("r+b") as file:
        file.seek(30)
        file.write(b"!")


def _remove_units(where: Path) -> None:
    (where / "units").unlink()


def _link_units(where: Path) -> None:
    (where / "units").rename(where.parent.parent.parent / "elsewhere")
    (where / "units").symlink_to(where.parent.parent.parent / "elsewhere")


def _pipe(where: Path) -> None:
    (where / "map").unlink()
    os.mkfifo(where / "map")


def _directory_for_file(where: Path) -> None:
    (where / "map").unlink()
    (where / "map").mkdir()


def _file_for_directory(where: Path) -> None:
    where.rename(where.with_name("guest-" + "0" * 32))
    where.write_bytes(b"garbage")


def _link_for_image(where: Path) -> None:
    where.parent.rename(where.parent.parent.parent / "moved")
    where.parent.symlink_to(where.parent.parent.parent / "moved")


@pytest.mark.parametrize(
    "damage",
    [_truncate_map, _flip_header, _remove_units, _link_units, _pipe, _directory_for_file, _file_for_directory, _link_for_image],
)
def test_damage_is_never_fatal(directory: CacheDirectory, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that is damaged, or something else by that name, is removed with a warning, and the cache works; no link is followed."""
    where = filled(directory)
    assert callable(damage)
    damage(where)
    assert state_of_unit_1(directory) != DATA
    assert "begun anew" in caplog.text
    outside = directory.path.parent / "elsewhere"
    assert not outside.exists() or outside.stat().st_size == 4 * UNIT
    filled(directory)
    assert state_of_unit_1(directory) == DATA


@pytest.mark.parametrize("name", ["units", "map"])
def test_files_that_lost_their_end(directory: CacheDirectory, name: str) -> None:
    """After a power loss a file may be short: it gets its size back, and what is not there is absent or damaged, not wrong."""
    where = filled(directory)
    os.truncate(where / name, 4096)
    assert state_of_unit_1(directory) not in (DATA, UNKNOWN)
    assert (where / "units").stat().st_size == 4 * UNIT


def test_scan_lists_and_cleans(directory: CacheDirectory, caplog: pytest.LogCaptureFixture) -> None:
    """A start finds caches with their size and age, removes what a removal left and garbage in an image's directory, and leaves strangers alone."""
    where = filled(directory)
    filled(directory, cache_name(OTHER_IMAGE, "stored", "v1"), MapHeader(OTHER_IMAGE, "stored", "v1", 4 * UNIT, 99))
    os.utime(where / "map", (1000, 1000))
    half_removed = filled(directory, cache_name(IMAGE, "stored", "v2"), MapHeader(IMAGE, "stored", "v2", 4 * UNIT, 99))
    (half_removed / "map").unlink()
    (where.parent / "junk").write_bytes(b"x")
    (directory.path / "stranger").write_bytes(b"x" * 5000)
    (directory.path / "11111111-2222-3333-4444-777777777777").mkdir()
    caches, other = directory.scan()
    assert [(cache.image_id, cache.modified == 1000) for cache in caches] == [(IMAGE, True), (OTHER_IMAGE, False)]
    assert all(cache.allocated >= UNIT for cache in caches)
    assert other >= 8192
    assert sorted(path.name for path in directory.path.iterdir()) == [IMAGE, OTHER_IMAGE, "stranger"]
    assert "stranger" in caplog.text
    assert sum(cache.allocated for cache in caches) + other >= disk_usage(directory.path)


def test_remove(directory: CacheDirectory) -> None:
    """Nothing of a removed cache stays, nor of its image's directory; removing it again is no error."""
    filled(directory)
    directory.remove(NAME)
    directory.remove(NAME)
    assert list(directory.path.iterdir()) == []


def test_removal_that_fails_is_logged(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that does not let go of files is a warning, and the next start tries again."""
    filled(directory)

    def refuse(path: Path) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        directory.remove(NAME)
    assert "cannot remove" in caplog.text
    monkeypatch.undo()
    assert directory.scan()[0] == []
    assert list(directory.path.iterdir()) == []
