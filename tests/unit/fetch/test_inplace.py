"""A local object, read where it lies."""

import os
from pathlib import Path

import pytest

from imagefs.errors import ImageRefused, StoreUnavailable, VersionChanged, WrongBytes
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.inplace import InPlaceSource
from imagefs.fetch.stored import StoredObject
from imagefs.units import UNIT
from tests.support.fetched import Piece, ScriptedObject, hash_tree, noise


class Local:
    """A file with its digests, and what opens it in place."""

    def __init__(self, path: Path, content: bytes, *, digests: bool = True) -> None:
        self.path = path
        self.content = content
        path.write_bytes(content)
        self.object = ScriptedObject(content, path=path)
        tree, leaves = hash_tree(content)
        self.stored = StoredObject(self.object, UnitDigests(tree, len(content), lambda page: leaves, "debian") if digests else None, RetryPolicy())

    def open(self) -> InPlaceSource:
        return InPlaceSource(self.stored)


@pytest.fixture
def local(tmp_path: Path) -> Local:
    """Three units and a bit of noise in a file."""
    return Local(tmp_path / "object", noise(3 * UNIT + 1000))


async def test_first_touch_proves_then_hits_are_inline(local: Local) -> None:
    """The first read of a unit takes a thread, and from then on it is there without waiting."""
    source = local.open()
    assert source.read_nowait(100, 50) is None
    assert await source.read(100, 50) == local.content[100:150]
    assert source.read_nowait(100, 50) == local.content[100:150]
    assert source.read_nowait(UNIT - 10, 20) is None
    assert await source.read(UNIT - 10, 20) == local.content[UNIT - 10 : UNIT + 10]
    assert source.read_nowait(UNIT - 10, 20) == local.content[UNIT - 10 : UNIT + 10]
    source.close()


@pytest.mark.parametrize(("offset", "length"), [(0, 10**6), (3 * UNIT, UNIT), (3 * UNIT + 999, 5), (3 * UNIT + 1000, 5), (10**9, 1), (0, 0)])
async def test_edges(local: Local, offset: int, length: int) -> None:
    """Reads are cut at the end, and empty past it."""
    source = local.open()
    assert await source.read(offset, length) == local.content[offset : offset + length]
    assert source.size == len(local.content)


async def test_wrong_unit_is_refused_and_others_are_served(local: Local) -> None:
    """A unit whose bytes fail their digest is never served, its neighbours are."""
    with local.path.open("r+b") as file:
        file.seek(UNIT + 5)
        file.write(b"?" if local.content[UNIT + 5] != ord("?") else b"!")
    source = local.open()
    with pytest.raises(WrongBytes, match="unit 1"):
        await source.read(UNIT, 10)
    assert await source.read(0, 10) == local.content[:10]
    assert source.read_nowait(UNIT, 10) is None
    with pytest.raises(WrongBytes):
        await source.read(0, 3 * UNIT)


async def test_changed_file_is_refused(local: Local) -> None:
    """Once somebody has written to the file, nothing is read from it any more, not even what was proved."""
    source = local.open()
    await source.read(0, 10)
    os.utime(local.path, ns=(1, 1))
    assert source.read_nowait(0, 10) is None
    with pytest.raises(VersionChanged, match="has changed"):
        await source.read(0, 10)


async def test_truncated_file_is_refused(local: Local) -> None:
    """A file that lost its end is a changed file."""
    source = local.open()
    os.truncate(local.path, UNIT)
    with pytest.raises(VersionChanged):
        await source.read(2 * UNIT, 10)


async def test_replaced_file_goes_on_with_the_old_bytes(local: Local) -> None:
    """A file that was replaced by rename is still there, and still the pinned version, for who has it open."""
    source = local.open()
    other = local.path.with_name("other")
    other.write_bytes(bytes(len(local.content)))
    other.rename(local.path)
    assert await source.read(0, 10) == local.content[:10]


def test_other_version_at_open(local: Local) -> None:
    """A file that is not the version that the store pinned is not opened."""
    local.object.script = lambda attempt, offset, length: [VersionChanged("another one")]
    with pytest.raises(VersionChanged):
        local.open()


def test_replaced_while_opening(local: Local) -> None:
    """What is opened must be what the store vouched for."""

    def replace(attempt: int, offset: int, length: int) -> list[Piece] | None:
        local.path.unlink()
        local.path.write_bytes(local.content)
        os.utime(local.path, ns=(1, 1))
        return None

    local.object.script = replace
    with pytest.raises(VersionChanged, match="replaced"):
        local.open()


def test_no_file(local: Local, tmp_path: Path) -> None:
    """A missing file, a directory, and an object that is not local are told apart."""
    local.path.unlink()
    with pytest.raises(StoreUnavailable, match="cannot open"):
        local.open()
    local.path.mkdir()
    with pytest.raises(StoreUnavailable, match="not a regular file"):
        local.open()
    with pytest.raises(ImageRefused, match="no local file"):
        InPlaceSource(StoredObject(ScriptedObject(b"x"), None, RetryPolicy()))


async def test_sparse_file(tmp_path: Path) -> None:
    """Holes read as zeros and are proved like other bytes."""
    path = tmp_path / "sparse"
    content = bytes(4 * UNIT) + noise(UNIT) + bytes(UNIT)
    local = Local(path, content)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(len(content))
        file.seek(4 * UNIT)
        file.write(content[4 * UNIT : 5 * UNIT])
    source = local.open()
    assert await source.read(0, len(content)) == content
    assert path.stat().st_blocks * 512 < len(content)


async def test_without_digests_hits_need_a_first_touch_only(tmp_path: Path) -> None:
    """Where nothing can prove the bytes they are served as they are."""
    local = Local(tmp_path / "object", noise(2 * UNIT), digests=False)
    source = local.open()
    assert await source.read(UNIT, 10) == local.content[UNIT : UNIT + 10]
    assert source.read_nowait(UNIT, 10) == local.content[UNIT : UNIT + 10]


async def test_filesystem_without_nowait(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RWF_NOWAIT is not supported a hit is a plain read, and it is asked for once."""
    source = local.open()
    await source.read(0, 10)
    real = os.preadv
    refused = []

    def refuse(descriptor: int, buffers: tuple[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            refused.append(offset)
            raise OSError(95, "Operation not supported")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refuse)
    assert source.read_nowait(0, 10) == local.content[:10]
    assert source.read_nowait(5, 10) == local.content[5:15]
    assert refused == [0]


async def test_extents_are_units_that_are_no_holes(tmp_path: Path) -> None:
    """Holes are left out, and the rest is cut to the range; nothing is proved or read for it."""
    content = noise(UNIT) + bytes(3 * UNIT) + noise(UNIT + 100)
    local = Local(tmp_path / "object", content)
    descriptor = os.open(local.path, os.O_RDWR)
    os.truncate(descriptor, 0)
    os.truncate(descriptor, len(content))
    os.pwrite(descriptor, content[:UNIT], 0)
    os.pwrite(descriptor, content[4 * UNIT :], 4 * UNIT)
    os.close(descriptor)
    source = local.open()
    assert await source.extents(0, 10 * UNIT) == [(0, UNIT), (4 * UNIT, len(content))]
    assert await source.extents(10, 4 * UNIT) == [(10, UNIT), (4 * UNIT, 4 * UNIT + 10)]
    assert await source.extents(UNIT, 3 * UNIT) == await source.extents(len(content), 10) == await source.extents(0, 0) == []
    assert source.cached_bytes == 0
    source.close()


async def test_extents_of_a_file_that_has_changed_are_refused(local: Local) -> None:
    """Where the holes of other bytes are says nothing about these."""
    source = local.open()
    with local.path.open("r+b") as file:
        file.truncate(0)
        file.truncate(len(local.content))
    os.utime(local.path, ns=(1, 1))
    with pytest.raises(VersionChanged, match="changed since it was opened"):
        await source.extents(0, UNIT)
    source.close()


async def test_extents_that_the_filesystem_cannot_tell_are_unavailable(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """An I/O error of the filesystem is told with the file."""
    source = local.open()

    def broken(fd: int, start: int, stop: int) -> list[tuple[int, int]]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("imagefs.fetch.inplace.data_ranges", broken)
    with pytest.raises(StoreUnavailable, match="cannot tell the holes of"):
        await source.extents(0, UNIT)
    source.close()
