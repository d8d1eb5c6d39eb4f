"""Tests of the stored form of an instance's record."""

import base64
from pathlib import Path

import msgspec
import pytest

from imagefs.disks.record import DiskRecord
from imagefs.errors import StateDamaged
from imagefs.flavors import make_flavor
from imagefs.instances.record import BaseImage, Choices, Firmware, InstanceRecord, Maker, encode, read_record

RECORD = InstanceRecord(
    "6a0c0d0e-0000-4000-8000-000000000001",
    "web1",
    1000,
    1000,
    0o700,
    "2026-01-01T00:00:00Z",
    flavor=make_flavor("m1.tiny", vcpus=1, ram=512, disk=1),
    image=BaseImage("6a0c0d0e-0000-4000-8000-000000000002", "v1", 4096),
    disks=(DiskRecord("vda", 1024**3, 1000, 1000, xattrs={"trusted.a": b"\0\xff"}),),
)


FULL = msgspec.structs.replace(
    RECORD,
    choices=Choices(ephemeral="1,2", ephemeral_format="xfs", encrypted=True, user_data=b"\0\xff", meta_data="{}", config_drive="disk"),
    maker=Maker("me", "ours", ("member",)),
    firmware=Firmware("/code.fd", True),
    disks=(*RECORD.disks, DiskRecord("nvram.fd", 4096, 1000, 1000, kind="nvram", encrypted=True, layers=("nvram", "nvram@1"), merging=True)),
    volumes={"vdc": "db1", "vdd": "/dev/sdz"},
)


@pytest.mark.parametrize("record", [RECORD, FULL])
def test_record_comes_back_as_it_was(tmp_path: Path, record: InstanceRecord) -> None:
    """What is encoded is decoded to the same record."""
    path = tmp_path / "instance"
    path.write_bytes(encode(record))
    assert read_record(path) == record


def test_record_of_version_1_is_read(tmp_path: Path) -> None:
    """Bytes that the first version wrote are read by every later one."""
    path = tmp_path / "instance"
    path.write_bytes(base64.b64decode(VERSION_1))
    assert read_record(path) == RECORD


@pytest.mark.parametrize("position", [0, 9, 13, 17, 21, 30, -1])
def test_any_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    """A bit that flipped anywhere, header or content, makes the record damaged, never another record."""
    body = bytearray(encode(RECORD))
    body[position] ^= 4
    path = tmp_path / "instance"
    path.write_bytes(body)
    with pytest.raises(StateDamaged, match="instance"):
        read_record(path)


def test_record_that_was_cut_is_noticed(tmp_path: Path) -> None:
    """Any shorter file is damaged."""
    body = encode(RECORD)
    path = tmp_path / "instance"
    for length in (0, 10, 24, len(body) // 2, len(body) - 1):
        path.write_bytes(body[:length])
        with pytest.raises(StateDamaged):
            read_record(path)


VERSION_1 = (
    "SU1GU0lOU1QBAAAAsAEAAJuzK4Av44ZDeyJ1dWlkIjoiNmEwYzBkMGUtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMDAxIiwibmFtZSI6IndlYjEiLCJ1aWQi"
    "OjEwMDAsImdpZCI6MTAwMCwibW9kZSI6NDQ4LCJjcmVhdGVkX2F0IjoiMjAyNi0wMS0wMVQwMDowMDowMFoiLCJmbGF2b3IiOnsiaWQiOiIxIiwibmFtZSI6"
    "Im0xLnRpbnkiLCJ2Y3B1cyI6MSwicmFtIjo1MTIsImRpc2siOjEsImVwaGVtZXJhbCI6MCwic3dhcCI6MCwiaXNfcHVibGljIjp0cnVlfSwiaW1hZ2VfaWQi"
    "OiI2YTBjMGQwZS0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDIiLCJkYXRhX3ZlcnNpb24iOiJ2MSIsInZpcnR1YWxfc2l6ZSI6NDA5NiwiZGlza3MiOlt7"
    "Im5hbWUiOiJ2ZGEiLCJzaXplIjoxMDczNzQxODI0LCJ1aWQiOjEwMDAsImdpZCI6MTAwMCwibW9kZSI6Mzg0LCJ4YXR0cnMiOnsidHJ1c3RlZC5hIjoiQVA4"
    "PSJ9fV19"
)
