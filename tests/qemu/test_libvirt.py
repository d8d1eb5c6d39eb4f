"""A real libvirtd runs guests whose disks are on the mount: it changes their owners and puts them back, and QEMU locks them."""

import grp
import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.libvirt import Libvirt, libvirt
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.pictures import MIB, write_qcow2, write_raw
from tests.support.user import open_the_way
from tools.node import Failed

pytestmark = [pytest.mark.mount, pytest.mark.qemu]
CONFIG = """allow_other = true
[flavors."small"]
vcpus = 1
ram = 64
disk = 0
ephemeral = 1
[[identity.map]]
user = "libvirt-qemu"
roles = ["member", "reader"]
"""
"""Of the images libvirt's user needs to see those under direct disks, which QEMU opens itself."""
OWNER = (1234, 2345)
UEFI = {"hw_firmware_type": "uefi", "hw_machine_type": "q35"}
REMEMBERED = ("trusted.libvirt.security.dac", "trusted.libvirt.security.ref_dac")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with images for a BIOS and for UEFI from which nothing boots."""
    config = write_config(tmp_path, extra=CONFIG)
    image = write_qcow2(tmp_path / "empty.qcow2", write_raw(tmp_path / "empty.raw", bytes(MIB)))
    for name, properties in (("bios", {}), ("uefi", UEFI)):
        words = [word for key, value in properties.items() for word in ("--property", f"{key}={value}")]
        run_imagefs(config, "image", "create", name, "--file", str(image), "--public", *words)
    open_the_way(tmp_path)
    with mounted(tmp_path, config) as made:
        yield made


@pytest.fixture
def daemon(mount: Mounted) -> Iterator[Libvirt]:
    """A libvirtd that sees the mount."""
    with libvirt(mount.mountpoint) as started:
        yield started


def make(mount: Mounted, name: str, image: str, **choices: str) -> Path:
    """Make an instance whose disks belong to a user, and let libvirt's user pass through it."""
    directory = mount.mountpoint / "instances" / name
    directory.mkdir()
    for key, value in {"flavor": "small", **choices, "image": image}.items():
        os.setxattr(directory, f"user.{key}", value.encode())
    directory.chmod(0o711)
    for disk in directory.iterdir():
        os.chown(disk, *OWNER)
    return directory


def define(mount: Mounted, daemon: Libvirt, name: str, directory: Path) -> None:
    """Define the domain as imagefs says it."""
    file = directory / f"{name}.xml"
    file.write_text(mount.imagefs("instance", "libvirt", name, "--accel", "tcg").stdout)
    daemon.virsh("define", str(file))


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the owner and group of each disk."""
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}


def remembered(disk: Path) -> dict[str, str]:
    """Return what libvirt has noted on a disk of its owner and its users."""
    return {name: os.getxattr(disk, name).decode() for name in os.listxattr(disk) if name in REMEMBERED}


@pytest.mark.parametrize(
    ("image", "choices", "disks"),
    [
        ("bios", {}, {"vda", "vdb"}),
        ("uefi", {"user_data": "#!/bin/sh\n", "config_drive": "disk"}, {"nvram.fd", "vda", "vdb", "vdz"}),
    ],
    ids=["bios", "uefi"],
)
def test_owners_are_changed_for_the_guest_and_put_back(
    mount: Mounted, daemon: Libvirt, tmp_path: Path, image: str, choices: dict[str, str], disks: set[str]
) -> None:
    """All disks belong to libvirt's user while the guest runs, libvirt notes on them whose they were, and afterwards they are theirs again."""
    guests = (pwd.getpwnam("libvirt-qemu").pw_uid, grp.getgrnam("libvirt-qemu").gr_gid)
    directory = make(mount, "web1", image, **choices)
    before = owners(directory)
    assert before == dict.fromkeys(disks, OWNER)
    define(mount, daemon, "web1", tmp_path)
    daemon.virsh("start", "web1")
    assert daemon.state("web1") == "running"
    assert owners(directory) == dict.fromkeys(disks, guests)
    for disk in disks - {"vdz"}:  # libvirt notes nothing on what is read-only: several guests may have it
        assert remembered(directory / disk) == dict(zip(REMEMBERED, (f"+{OWNER[0]}:+{OWNER[1]}", "1"), strict=True)), disk
    with pytest.raises(OSError, match="busy"):
        directory.rmdir()
    daemon.virsh("destroy", "web1")
    assert {name: owner for name, owner in owners(directory).items() if name != "vdz"} == dict.fromkeys(disks - {"vdz"}, OWNER)
    assert not any(remembered(directory / disk) for disk in disks)
    daemon.virsh("undefine", "web1", "--keep-nvram")
    assert daemon.virsh("list", "--all", "--name").split() == []


def test_a_disk_has_one_guest(mount: Mounted, daemon: Libvirt, tmp_path: Path) -> None:
    """QEMU's lock on the image holds on the mount: a second domain with the same disk is refused while the first runs, and starts afterwards."""
    directory = make(mount, "web1", "bios")
    define(mount, daemon, "web1", tmp_path)
    xml = (tmp_path / "web1.xml").read_text()
    uuid = os.getxattr(directory, "user.instance_uuid").decode()
    (tmp_path / "web2.xml").write_text(xml.replace("<name>web1<", "<name>web2<").replace(uuid, "1c3c3a57-5dbd-4f5c-8f0b-7b54a0c1a2f3"))
    daemon.virsh("define", str(tmp_path / "web2.xml"))
    daemon.virsh("start", "web1")
    with pytest.raises(Failed, match='Failed to get "write" lock'):
        daemon.virsh("start", "web2")
    assert (daemon.state("web1"), daemon.state("web2")) == ("running", "shut off")
    daemon.virsh("destroy", "web1")
    daemon.virsh("start", "web2")
    assert daemon.state("web2") == "running"


def test_attached_volumes_and_direct_disks_run_too(mount: Mounted, daemon: Libvirt, tmp_path: Path) -> None:
    """The user of libvirt's guests reaches a volume through the mount, and a direct disk's file and its base outside the instance's directory."""
    guests = pwd.getpwnam("libvirt-qemu").pw_uid
    volume = mount.mountpoint / "volumes" / "db1"
    with volume.open("wb") as file:
        file.truncate(MIB)
    directory = make(mount, "web1", "bios", disk_format="qcow2")
    (directory / "vdc").symlink_to("../../volumes/db1")
    define(mount, daemon, "web1", tmp_path)
    daemon.virsh("start", "web1")
    disks = json.loads(os.getxattr(directory, "user.imagefs.disks"))
    assert [(disk["name"], disk["kind"], disk["format"]) for disk in disks] == [
        ("vda", "root", "qcow2"), ("vdb", "ephemeral", "raw"), ("vdc", "volume", "raw"),
    ]  # fmt: skip
    assert {volume.stat().st_uid, *(uid for uid, _ in owners(directory).values())} == {guests}
    daemon.virsh("destroy", "web1")
    assert {volume.stat().st_uid, *(uid for uid, _ in owners(directory).values())} == {0, OWNER[0]}
