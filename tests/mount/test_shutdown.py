"""Tests of how a mount ends by a signal, and of what one guest's waiting means to the others."""

import contextlib
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.fuse.server import BACKGROUND_REQUESTS
from tests.support.mounted import Mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, disk_bytes

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def fusectl() -> Path:
    """Where the kernel's settings of FUSE connections are; systemd mounts it, a bare machine does not."""
    connections = Path("/sys/fs/fuse/connections")
    if "/sys/fs/fuse/connections fusectl" not in Path("/proc/self/mounts").read_text():
        subprocess.run(["mount", "-t", "fusectl", "none", connections], check=True)
    return connections


@pytest.fixture
def mount(tmp_path: Path, fusectl: Path) -> Iterator[Mounted]:
    """A mount with an instance `i` of an image of 4 MiB."""
    config = write_config(tmp_path)
    source = tmp_path / "disk.raw"
    source.write_bytes(disk_bytes(4 * MIB))
    run_imagefs(config, "image", "create", "disk", "--disk-format", "raw", "--file", str(source))
    mount = start_mount(tmp_path, config)
    try:
        (mount.mountpoint / "instances" / "i").mkdir()
        os.setxattr(mount.mountpoint / "instances" / "i", "user.image", b"disk")
        yield mount
    finally:
        take_down(mount)


def test_sigterm_keeps_what_was_written_through_a_mapping(mount: Mounted) -> None:
    """SIGTERM with an open disk unmounts and ends soon; what was written by write(2) and by mmap is there at the next mount."""
    path = mount.mountpoint / "instances" / "i" / "vda"
    descriptor = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(descriptor, 65536, offset=MIB) as mapping:
            mapping[:6] = b"mapped"
            os.pwrite(descriptor, b"written", 2 * MIB)
            mount.process.send_signal(signal.SIGTERM)
            mount.process.send_signal(signal.SIGTERM)
            assert mount.process.wait(20) == 0
    finally:
        with contextlib.suppress(OSError):  # nobody answers it any more
            os.close(descriptor)
    again = start_mount(mount.mountpoint.parent, mount.config)
    try:
        body = path.read_bytes()
    finally:
        take_down(again)
    assert body[MIB : MIB + 6] == b"mapped"
    assert body[2 * MIB : 2 * MIB + 7] == b"written"


def test_kernel_sends_more_than_its_default(mount: Mounted, fusectl: Path) -> None:
    """The kernel is told to send many reads at once, so that a dozen that wait for one image do not stop every disk."""
    connection = fusectl / str(os.minor(mount.mountpoint.stat().st_dev))
    assert int((connection / "max_background").read_text()) == BACKGROUND_REQUESTS
