"""Tests of what is attached: sizes of block devices come from the kernel's account, and the device is never opened."""

import os
from pathlib import Path

import pytest

from imagefs.instances import attachments
from imagefs.instances.attachments import Attachments
from imagefs.statedir import StateDirectory
from imagefs.volumes.registry import Volumes


def test_size_of_a_block_device_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted in sectors of 512 bytes; a device that is gone, or was never attached, has none."""
    known = Attachments(Volumes(StateDirectory(tmp_path / "state")))
    monkeypatch.setattr(attachments, "SYSFS", tmp_path)
    monkeypatch.setattr(attachments, "_device_number", lambda path: os.makedev(8, 17))
    (tmp_path / "8:17").mkdir()
    (tmp_path / "8:17" / "size").write_text("4096\n")
    assert known.size_of("/dev/sdb1") == 0
    known.attach("/dev/sdb1", "web1")
    assert known.size_of("/dev/sdb1") == 4096 * 512
    (tmp_path / "8:17" / "size").unlink()
    assert known.size_of("/dev/sdb1") == 0
