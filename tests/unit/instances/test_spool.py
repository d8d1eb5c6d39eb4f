"""The temporary file of a new image: what was written reads back, all else is zeros, and nothing of it outlives its descriptor."""

import gc
import os
import random
from pathlib import Path

import pytest

from imagefs.holes import allocated_bytes
from imagefs.instances.spool import Spool
from imagefs.units import GIB, KIB, MIB, TIB, UNIT


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


def on_disk(spool: Spool) -> bytes:
    """Return what the file itself holds."""
    return os.pread(spool._file, 8 * MIB, 0)


def test_what_was_written_reads_back(tmp_path: Path, encrypted: bool) -> None:
    """Units in any order, a short one last, holes between: a reader gets them all, in pieces of any length."""
    spool = Spool(tmp_path, encrypted=encrypted)
    chance = random.Random(1)
    expected = bytearray(40 * UNIT + 1000)
    for unit, length in ((3, UNIT), (1, 2 * UNIT), (7, 5 * UNIT), (30, UNIT), (30, UNIT), (40, 1000)):
        body = chance.randbytes(length)
        expected[unit * UNIT : unit * UNIT + length] = body
        spool.write_at(unit * UNIT, body)
    assert spool.size == len(expected)
    for length in (1, 511, 4096, 65_536, 100_001, MIB, -1):
        reader, found = spool.reader(), b""
        while piece := reader.read(length if length != 1 else 70_000):
            found += piece
        same = found == expected
        assert same
    reader = spool.reader()
    for offset in (0, 1, UNIT - 1, 3 * UNIT + 17, 39 * UNIT + 65_535, len(expected) - 5, len(expected), len(expected) + 9):
        reader.seek(offset)
        assert reader.read(70) == expected[offset : offset + 70]
    spool.close()


def test_readers_do_not_disturb_each_other(tmp_path: Path, encrypted: bool) -> None:
    """Each begins at the start, also after another one was read and closed."""
    spool = Spool(tmp_path, encrypted=encrypted)
    spool.write_at(0, b"a" * UNIT + b"b" * UNIT)
    one, other = spool.reader(), spool.reader()
    assert one.read(UNIT + 1)[-2:] == b"ab"
    assert other.read(3) == b"aaa"
    one.close()
    assert other.read(3) == b"aaa"
    assert spool.reader().read(2) == b"aa"
    assert spool.reader().seek(0, os.SEEK_END) == 2 * UNIT
    spool.close()


def test_no_name_is_ever_there(tmp_path: Path, encrypted: bool) -> None:
    """The directory stays empty, and the room is given back when the spool is closed or forgotten, reader or not."""
    spool = Spool(tmp_path, encrypted=encrypted)
    spool.write_at(0, b"x" * UNIT)
    assert list(tmp_path.iterdir()) == []
    descriptor = spool._file
    assert os.fstat(descriptor).st_nlink == 0
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    spool.close()
    spool.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    forgotten = Spool(tmp_path, encrypted=encrypted)
    descriptor = forgotten._file
    reader = forgotten.reader()
    del forgotten, reader
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_filesystem_without_nameless_files_does_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without O_TMPFILE the name is removed at once."""
    opened = os.open

    def without(path: Path, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", without)
    spool = Spool(tmp_path)
    monkeypatch.undo()
    spool.write_at(0, b"there")
    assert spool.reader().read() == b"there"
    assert list(tmp_path.iterdir()) == []
    spool.close()


def test_an_encrypted_spool_has_no_plain_bytes(tmp_path: Path) -> None:
    """Nothing of what was written is in the file, equal blocks do not look equal, and two spools of the same bytes differ."""
    canary = b"the guest's own words " * 3000
    spools = [Spool(tmp_path, encrypted=True) for _ in range(2)]
    for spool in spools:
        spool.write_at(0, canary[:UNIT])
        spool.write_at(2 * UNIT, b"z" * UNIT)
    one, other = map(on_disk, spools)
    assert b"guest" not in one
    assert one[:4096] != other[:4096]
    assert len({one[offset : offset + 4096] for offset in range(2 * UNIT, 3 * UNIT, 4096)}) == 16
    plain = Spool(tmp_path)
    plain.write_at(0, canary[:UNIT])
    assert b"guest" in on_disk(plain)
    for spool in (*spools, plain):
        spool.close()


def test_holes_take_no_room_and_no_reading(tmp_path: Path, encrypted: bool) -> None:
    """A spool of terabytes with one unit in it is one unit, and zeros come without a look at the file."""
    spool = Spool(tmp_path, encrypted=encrypted)
    spool.extend(16 * TIB)
    spool.write_at(100 * GIB, b"y" * UNIT)
    spool.extend(3)
    assert spool.size == 16 * TIB
    assert allocated_bytes(spool._file) <= 2 * UNIT
    reader = spool.reader()
    for offset, expected in ((0, b"\0\0"), (100 * GIB - 1, b"\0y"), (100 * GIB + UNIT - 1, b"y\0"), (16 * TIB - 1, b"\0")):
        reader.seek(offset)
        assert reader.read(2) == expected
    spool._fetch = lambda target, offset: pytest.fail("a hole was read")  # type: ignore[method-assign]
    reader.seek(200 * GIB)
    assert reader.read(MIB) == bytes(MIB)
    assert sum(map(len, spool._written.values())) == 16 * KIB
    spool.close()


def test_only_whole_units_are_written(tmp_path: Path) -> None:
    """An offset within a unit is a mistake of the caller."""
    spool = Spool(tmp_path)
    with pytest.raises(ValueError, match="not the start of a unit"):
        spool.write_at(4096, b"x")
    spool.close()
