"""Tests of a mount whose state directory is on a full disk: refused with ENOSPC, nothing half made, nothing lost."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, disk_bytes

pytestmark = pytest.mark.mount
ROOM = 24 * MIB


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with its state on a filesystem of 24 MiB, and an image of 4 MiB."""
    config = write_config(tmp_path, cache="0")
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", state], check=True)
    try:
        source = tmp_path / "disk.raw"
        source.write_bytes(disk_bytes(4 * MIB))
        run_imagefs(config, "image", "create", "disk", "--disk-format", "raw", "--file", str(source))
        mount = start_mount(tmp_path, config)
        try:
            yield mount
            assert mount.alive()
        finally:
            take_down(mount)
    finally:
        subprocess.run(["umount", state], check=True)


def fill(directory: Path) -> Path:
    """Use up a filesystem and return the file that does it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler


def refused(operation: object, *arguments: object) -> None:
    """Assert that an operation fails with ENOSPC."""
    assert callable(operation)
    with pytest.raises(OSError) as caught:
        operation(*arguments)
    assert caught.value.errno == errno.ENOSPC


def test_instance_is_made_whole_or_not_at_all(cramped: Mounted) -> None:
    """On a full disk mkdir and user.image are ENOSPC with a reason and leave nothing; with room again they work."""
    instances = cramped.mountpoint / "instances"
    (instances / "early").mkdir()
    filler = fill(cramped.state)
    refused(os.mkdir, instances / "late")
    assert "room" in os.getxattr(instances, "user.imagefs.error").decode()
    refused(os.setxattr, instances / "early", "user.image", b"disk")
    assert os.listdir(instances / "early") == []
    assert os.listdir(instances) == ["early"]
    filler.unlink()
    os.setxattr(instances / "early", "user.image", b"disk")
    assert os.listdir(instances / "early") == ["vda"]
    (instances / "late").mkdir()
    assert len(list((cramped.state / "instances").iterdir())) == 2


def test_write_that_finds_no_room_changes_nothing(cramped: Mounted) -> None:
    """A write on a full host disk is ENOSPC, what was there stays readable, and the same write succeeds once there is room."""
    path = cramped.mountpoint / "instances" / "i"
    path.mkdir()
    os.setxattr(path, "user.image", b"disk")
    disk = disk_bytes(4 * MIB)
    descriptor = os.open(path / "vda", os.O_RDWR)
    try:
        assert os.pwrite(descriptor, b"kept" * 1024, 0) == 4096
        filler = fill(cramped.state)
        refused(os.pwrite, descriptor, b"lost" * 16384, MIB)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(descriptor, 4096, 0) == b"kept" * 1024
        assert os.pread(descriptor, 65536, MIB) == disk[MIB : MIB + 65536]
        filler.unlink()
        assert os.pwrite(descriptor, b"here" * 16384, MIB) == 65536
        os.fsync(descriptor)
        assert os.pread(descriptor, 65536, MIB) == b"here" * 16384
    finally:
        os.close(descriptor)


def test_instance_can_be_removed_from_a_full_disk(cramped: Mounted) -> None:
    """Rmdir needs no room, and gives back what the disks took."""
    path = cramped.mountpoint / "instances" / "i"
    path.mkdir()
    os.setxattr(path, "user.image", b"disk")
    with (path / "vda").open("r+b", buffering=0) as vda:
        vda.write(os.urandom(2 * MIB))
    fill(cramped.state)
    path.rmdir()
    assert list((cramped.state / "instances").iterdir()) == []
    assert list((cramped.state / "trash").iterdir()) == []
    host = os.statvfs(cramped.state)
    assert host.f_bavail * host.f_frsize >= 2 * MIB


def test_holes_are_read_on_a_full_disk(cramped: Mounted) -> None:
    """Of what was never written not a page is in the state directory, and reading it needs none: a mapping would end the daemon there."""
    empty = cramped.mountpoint / "volumes" / "empty"
    empty.touch()
    os.truncate(empty, 256 * MIB)
    with empty.open("rb", buffering=0) as volume:
        fill(cramped.state)
        assert os.pread(volume.fileno(), MIB, 100 * MIB) == bytes(MIB)
