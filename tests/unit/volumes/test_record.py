"""Tests of a volume's record as it lies on the disk."""

from pathlib import Path

import pytest

from imagefs.disks.record import DiskRecord
from imagefs.errors import StateDamaged
from imagefs.sealed import seal
from imagefs.volumes.record import MAGIC, VERSION, VolumeRecord, encode, read_record

RECORD = VolumeRecord("11111111-1111-4111-8111-111111111111", "db1", "2026-01-01T00:00:00Z", DiskRecord("disk", 4096, 5, 6, kind="volume"))
COMMITTED = (
    bytes.fromhex("494d4653564f4c5501000000e80000005b621a94c931165e")
    + b'{"uuid":"11111111-1111-4111-8111-111111111111","name":"db1","created_at":"2026-01-01T00:00:00Z"'
    b',"disk":{"name":"disk","size":4096,"uid":5,"gid":6,"mode":384,"xattrs":{},"kind":"volume","encrypted":false,"layers":[],"merging":false}}'
)


def test_record_comes_back(tmp_path: Path) -> None:
    """What is written is what is read."""
    path = tmp_path / "volume"
    path.write_bytes(encode(RECORD))
    assert read_record(path) == RECORD


def test_the_form_on_the_disk_does_not_change(tmp_path: Path) -> None:
    """A record that an earlier version wrote is read: these bytes are fixed."""
    (tmp_path / "volume").write_bytes(COMMITTED)
    assert read_record(tmp_path / "volume") == RECORD


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (COMMITTED[:-1], "checksum"),
        (COMMITTED.replace(b"4096", b"4097"), "checksum"),
        (seal(b"IMFSINST", VERSION, b"{}"), "magic"),
        (seal(MAGIC, VERSION + 1, b"{}"), "version"),
        (seal(MAGIC, VERSION, b"{}"), "missing"),
        (seal(MAGIC, VERSION, b"\xff"), "malformed|invalid"),
        (b"", "cut short"),
    ],
)
def test_damaged_record_is_refused(tmp_path: Path, body: bytes, reason: str) -> None:
    """Whatever is wrong with a record, it is told apart from a good one."""
    (tmp_path / "volume").write_bytes(body)
    with pytest.raises(StateDamaged, match=reason):
        read_record(tmp_path / "volume")
