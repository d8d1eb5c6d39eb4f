"""Fixtures: a mount over a file store with a raw and a compressed qcow2 image of the same disk."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.pictures import MIB, disk_bytes, write_qcow2, write_raw

RAW_ID = "11111111-1111-4111-8111-111111111111"
QCOW2_ID = "22222222-2222-4222-8222-222222222222"


@dataclasses.dataclass
class World:
    """A mount, and what its images hold."""

    mount: Mounted
    disk: bytes
    raw_file: Path
    qcow2_file: Path

    @property
    def root(self) -> Path:
        """The mount point."""
        return self.mount.mountpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A mount for the tests of one module, with flavors of one GiB and below."""
    directory = tmp_path_factory.mktemp("world")
    config = write_config(
        directory, extra='[flavors."small"]\nvcpus = 1\nram = 512\ndisk = 1\nephemeral = 1\n[flavors."same"]\nvcpus = 1\nram = 64\ndisk = 0\n'
    )
    disk = disk_bytes(9 * MIB + 4096)
    raw_file = write_raw(directory / "disk.raw", disk)
    qcow2_file = write_qcow2(directory / "disk.qcow2", raw_file, "-c")
    create = ("image", "create", "--public")
    run_imagefs(
        config, *create, "--id", RAW_ID, "--disk-format", "raw", "--property", "hw_disk_bus=virtio", "--tag", "t1", "--file", str(raw_file), "plain"
    )
    run_imagefs(config, *create, "--id", QCOW2_ID, "--min-ram", "128", "--file", str(qcow2_file), "packed")
    with mounted(directory, config) as mount:
        yield World(mount, disk, raw_file, qcow2_file)
