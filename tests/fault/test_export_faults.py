"""Disks under a new image's temporary file that are full, broken or slow: the reason is told, and nothing wrong is ever stored."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Literal

import pytest

from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.instances.flatten import flatten
from imagefs.instances.spool import Spool
from imagefs.overlay.calls import CALLS, Calls
from imagefs.store.intake import Intake
from imagefs.units import MIB, UNIT
from tests.support.qcow2 import FileSource, pattern

SIZE = 6 * MIB
Format = Literal["qcow2", "raw"]


@dataclasses.dataclass
class Disk:
    """Calls on a disk of which the write number `at` fails with `number`; 0 for a write of nothing, -1 for one that goes in small parts."""

    number: int
    at: int = 0
    writes: int = 0

    def calls(self) -> Calls:
        return dataclasses.replace(CALLS, pwrite=self._pwrite)

    def _pwrite(self, fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        self.writes += 1
        if self.number == -1:
            return os.pwrite(fd, memoryview(body)[:5000], offset)
        if self.writes > self.at:
            if self.number:
                raise OSError(self.number, os.strerror(self.number))
            return 0 if self.writes > self.at + 1 else os.pwrite(fd, memoryview(body)[:100], offset)
        return os.pwrite(fd, body, offset)


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    """A disk with data."""
    path = tmp_path / "disk"
    path.write_bytes(pattern(SIZE))
    return FileSource(path)


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, NoSpace, "its filesystem is full; make room there"),
        (errno.EDQUOT, NoSpace, "its filesystem is full; make room there"),
        (errno.EFBIG, NoSpace, "choose disk_format qcow2"),
        (errno.EIO, ImagefsError, "Input/output error"),
        (0, ImagefsError, "wrote nothing"),
    ],
)
async def test_a_write_that_fails_is_explained(
    tmp_path: Path, source: FileSource, disk_format: Format, at: int, number: int, kind: type[ImagefsError], words: str
) -> None:
    """The first write or a later one: the message says which file, why, and what to do where something can be done."""
    (tmp_path / "state").mkdir()
    spool = Spool(tmp_path / "state", calls=Disk(number, at).calls())
    with pytest.raises(kind, match=words) as found:
        await flatten(source, disk_format, spool, lambda done, total: None)
    assert str(tmp_path / "state") in str(found.value)
    assert type(found.value) is kind
    spool.close()
    assert list((tmp_path / "state").iterdir()) == []


async def test_short_writes_are_gone_on_with(tmp_path: Path, source: FileSource) -> None:
    """A disk that takes 5,000 bytes at a time gets them all."""
    spool = Spool(tmp_path, encrypted=True, calls=Disk(-1).calls())
    assert await flatten(source, "raw", spool, lambda done, total: None) == SIZE
    same = spool.reader().read() == pattern(SIZE)
    assert same
    spool.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, ImagefsError)])
def test_a_file_that_cannot_be_made_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ImagefsError]) -> None:
    """Also on a filesystem that needs a name for it, which is not left there if it cannot be removed."""

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind, match=f"temporary file in {tmp_path} for the new image cannot be made"):
        Spool(tmp_path)


def test_a_name_that_cannot_be_removed_is_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that would outlive the daemon is not written to, and its descriptor is closed."""
    opened = os.open
    made: list[int] = []

    def without(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        made.append(opened(path, flags, mode))
        return made[-1]

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "open", without)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ImagefsError, match="cannot be made: Input/output error"):
        Spool(tmp_path)
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("how", ["error", "short"])
def test_a_spool_that_cannot_be_read_back_stores_nothing(tmp_path: Path, encrypted: bool, how: str) -> None:
    """An I/O error, and a file that somebody has cut: whoever stores the image is told, and gets no zeros instead."""

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        if how == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return 0

    spool = Spool(tmp_path, encrypted=encrypted, calls=dataclasses.replace(CALLS, preadv=preadv))
    spool.write_at(UNIT, b"x" * UNIT)
    reader = spool.reader()
    assert reader.read(UNIT) == bytes(UNIT)
    with pytest.raises(OSError, match="Input/output error" if how == "error" else "ends at 65536"):
        reader.read(UNIT)
    with Intake(spool.reader(), spool.size) as intake, pytest.raises(InvalidInput, match="the image's source cannot be read at byte"):
        intake.read()
    spool.close()
