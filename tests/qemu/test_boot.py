"""The main job, as a test: a real guest boots from its vda over a real S3 server, and writes to it."""

import os
import shlex
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.mounted import mounted, run_imagefs, write_config
from tests.support.seaweed import Seaweed
from tools.boot import boot
from tools.node import guest_image, image_info

pytestmark = [pytest.mark.mount, pytest.mark.s3, pytest.mark.qemu, pytest.mark.boot]


def test_guest_boots_twice_from_its_vda(tmp_path: Path, aws_keys: Seaweed) -> None:
    """The guest boots and counts the boots on its disk; the first fetches under a tenth of the disk, the second little; the image stays."""
    guest = guest_image()
    virtual_size = image_info(guest)["virtual-size"]
    extra = f'[store.s3]\nendpoint_url = "{aws_keys.endpoint_url}"\nregion = "us-east-1"\n'
    config = write_config(tmp_path, store=f"s3://images/boot-{uuid.uuid4()}", extra=extra)
    run_imagefs(config, "image", "create", "guest", "--file", str(guest), "--property", "hw_machine_type=pc", "--property", "hw_disk_bus=virtio")
    with mounted(tmp_path, config) as mount:
        mount.imagefs("instance", "create", "web1", "--image", "guest", "--flavor", "m1.small")
        assert (mount.mountpoint / "instances" / "web1" / "vda").stat().st_size == 20 * 1024**3
        command = shlex.split(mount.imagefs("instance", "qemu", "web1", "--accel", "tcg").stdout)
        first = boot(command, tmp_path / "first.log")
        assert (first.number, first.marker_lines) == (1, 1)
        fetched = mount.stats()["store_bytes"]
        assert 0 < fetched < virtual_size / 10
        second = boot(command, tmp_path / "second.log")
        assert (second.number, second.marker_lines) == (2, 2)
        assert mount.stats()["store_bytes"] - fetched < fetched / 4
        mount.imagefs("instance", "delete", "web1")
        assert os.listdir(mount.mountpoint / "instances") == []
        image = Path(os.readlink(mount.mountpoint / "names" / "guest")).name
        subprocess.run(["cmp", mount.mountpoint / "images" / image, guest], check=True, timeout=300)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", mount.mountpoint / "raw" / image, guest], check=True, timeout=300)
