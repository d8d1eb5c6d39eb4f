"""Tests on a real mount of the disks that an instance may have besides vda: ephemeral ones, swap, firmware variables, a config drive, volumes,
and direct disks.
"""

import errno
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.test_images import expect
from tests.mount.test_snapshots import SIZE, finished, make, patch, request
from tests.support.mounted import Mounted, mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import disk_bytes, write_raw
from tests.support.user import open_the_way, user

pytestmark = pytest.mark.mount
GIB = 1024**3
FLAVORS = '[flavors."full"]\nvcpus = 1\nram = 64\ndisk = 0\nephemeral = 3\nswap = 16\n'


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with a BIOS image named base and a UEFI image named uefi, of the same bytes."""
    open_the_way(tmp_path)
    extra = 'allow_other = true\n[instances]\nmode = "1777"\n[identity]\ndefault_roles = ["member", "reader"]\ndefault_project = "p"\n'
    config = write_config(tmp_path, extra=extra + FLAVORS)
    raw = write_raw(tmp_path / "base.raw", disk_bytes(SIZE))
    create = ("image", "create", "--disk-format", "raw", "--public", "--file", str(raw))
    run_imagefs(config, *create, "base")
    run_imagefs(config, *create, "uefi", "--property", "hw_firmware_type=uefi")
    with mounted(tmp_path, config) as made:
        yield made


def blkid(path: Path, tag: str) -> str:
    """Return what blkid says of a filesystem."""
    return subprocess.run(["/sbin/blkid", "-p", "-s", tag, "-o", "value", path], capture_output=True, text=True, check=True).stdout.strip()


def content(iso: Path, name: str) -> bytes:
    """Return a file of a config drive."""
    return subprocess.run(["isoinfo", "-i", iso, "-R", "-x", f"/openstack/latest/{name}"], capture_output=True, check=True).stdout


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "vfat"])
def test_ephemeral_disks_and_swap_are_formatted(mount: Mounted, filesystem: str) -> None:
    """Several ephemeral disks have the filesystem and labels that were asked for and are sparse; swap comes after them."""
    path = make(mount, "web1", flavor="full", ephemeral="2,1", ephemeral_format=filesystem)
    assert sorted(os.listdir(path)) == ["vda", "vdb", "vdc", "vdd"]
    for number, (name, size) in enumerate((("vdb", 2 * GIB), ("vdc", GIB))):
        assert (path / name).stat().st_size == size
        assert blkid(path / name, "TYPE") == filesystem
        assert blkid(path / name, "LABEL").lower() == f"ephemeral{number}"
        assert (path / name).stat().st_blocks * 512 < size / 10
    assert blkid(path / "vdd", "TYPE") == "swap"
    assert (path / "vdd").stat().st_size == 16 * 1024**2
    disks = json.loads(os.getxattr(path, "user.imagefs.disks"))
    assert [(disk["name"], disk["kind"]) for disk in disks] == [("vda", "root"), ("vdb", "ephemeral"), ("vdc", "ephemeral"), ("vdd", "swap")]


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"ephemeral": "4"}, "the flavor has 3"),
        ({"ephemeral": "x"}, "GiB"),
        ({"ephemeral_format": "ntfs"}, "none, ext4, xfs, vfat"),
        ({"encrypted": "maybe"}, "true or false"),
        ({"disk_format": "vmdk"}, "raw, qcow2"),
        ({"meta_data": "[]"}, "object"),
        ({"disk_format": "qcow2", "encrypted": "true"}, "cannot encrypt"),
    ],
)
def test_choices_that_cannot_be_are_refused(mount: Mounted, choices: dict[str, str], reason: str) -> None:
    """A wrong choice is EINVAL with the reason, at once or when the image is set, and nothing is made."""
    with pytest.raises(OSError) as caught:
        make(mount, "web1", flavor="full", **choices)
    assert caught.value.errno == errno.EINVAL
    path = mount.mountpoint / "instances" / "web1"
    assert reason in os.getxattr(path, "user.imagefs.error").decode()
    assert os.listdir(path) == []


def test_uefi_instances_have_their_own_variables(mount: Mounted) -> None:
    """nvram.fd begins as the template, is written by its guest alone, and persists; a BIOS image has none."""
    one, two = make(mount, "one", "uefi"), make(mount, "two", "uefi")
    template = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
    assert (one / "nvram.fd").read_bytes() == template
    assert os.getxattr(one, "user.firmware_code") == b"/usr/share/OVMF/OVMF_CODE_4M.fd"
    assert os.getxattr(one, "user.secure_boot") == b"false"
    patch(one / "nvram.fd", 100, b"variables")
    assert (one / "nvram.fd").read_bytes()[100:109] == b"variables"
    assert (two / "nvram.fd").read_bytes() == template
    expect(errno.EPERM, os.truncate, one / "nvram.fd", 0)
    expect(errno.EPERM, os.unlink, one / "nvram.fd")
    assert "nvram.fd" not in os.listdir(make(mount, "bios"))


def test_config_drive_holds_what_was_given(mount: Mounted) -> None:
    """Vdz is an ISO 9660 with the user's data and the metadata; it cannot be written by its owner."""
    path = make(mount, "web1", user_data="#!/bin/sh\necho hi\n", meta_data='{"meta": {"a": "b"}}', config_drive="disk")
    assert blkid(path / "vdz", "LABEL") == "config-2"
    assert stat.S_IMODE((path / "vdz").stat().st_mode) == 0o400
    assert content(path / "vdz", "user_data") == b"#!/bin/sh\necho hi\n"
    metadata = json.loads(content(path / "vdz", "meta_data.json"))
    assert metadata["uuid"] == os.getxattr(path, "user.instance_uuid").decode()
    assert metadata["meta"] == {"a": "b"}
    disks = json.loads(os.getxattr(path, "user.imagefs.disks"))
    assert (disks[-1]["name"], disks[-1]["kind"], disks[-1]["device"]) == ("vdz", "config", "disk")


def test_volumes_are_attached_by_links(mount: Mounted) -> None:
    """Ln -s attaches to one instance at a time, reads and writes go through, and neither rm of the link nor rmdir touches the volume."""
    volume = mount.mountpoint / "volumes" / "db1"
    subprocess.run(["truncate", "-s", "1G", volume], check=True)
    web1, web2 = make(mount, "web1"), make(mount, "web2")
    for name in ("vda", "vdb", "vde1", "other", "vdA"):
        expect(errno.EEXIST if name == "vda" else errno.EINVAL, os.symlink, "../../volumes/db1", web1 / name)
    for target, number in (
        ("../../volumes/none", errno.ENOENT),
        ("/etc/passwd", errno.EINVAL),
        ("../vda", errno.EINVAL),
        ("/dev/null", errno.EINVAL),
    ):
        expect(number, os.symlink, target, web1 / "vdc")
    os.symlink("../../volumes/db1", web1 / "vdc")
    assert os.readlink(web1 / "vdc") == "../../volumes/db1"
    assert os.getxattr(volume, "user.attached_to") == b"web1"
    expect(errno.EBUSY, os.symlink, "../../volumes/db1", web2 / "vdd")
    expect(errno.EBUSY, os.symlink, "../../volumes/db1", web1 / "vdd")
    expect(errno.EBUSY, os.unlink, volume)
    patch(web1 / "vdc", 12345, b"durable")
    with (web1 / "vdc").open("rb"):
        expect(errno.EBUSY, os.unlink, web1 / "vdc")
        expect(errno.EBUSY, os.rmdir, web1)
    os.unlink(web1 / "vdc")
    os.symlink(f"{mount.mountpoint}/volumes/db1", web2 / "vdd")
    web2.rmdir()
    assert "user.attached_to" not in os.listxattr(volume)
    with volume.open("rb") as file:
        assert os.pread(file.fileno(), 7, 12345) == b"durable"
    os.symlink("../../volumes/db1", web1 / "vdz")
    web1.rmdir()
    volume.unlink()
    assert list((mount.state / "volumes").iterdir()) == []


def test_attachments_outlive_the_daemon(tmp_path: Path) -> None:
    """After kill -9 volumes are attached where they were, with what was written to them."""
    config = write_config(tmp_path, extra=FLAVORS)
    raw = write_raw(tmp_path / "base.raw", disk_bytes(SIZE))
    run_imagefs(config, "image", "create", "--disk-format", "raw", "--file", str(raw), "base")
    mount = start_mount(tmp_path, config)
    try:
        os.truncate(os.open(mount.mountpoint / "volumes" / "db1", os.O_CREAT | os.O_WRONLY), GIB)
        web1 = make(mount, "web1")
        os.symlink("../../volumes/db1", web1 / "vdc")
        descriptor = os.open(web1 / "vdc", os.O_WRONLY)
        os.pwrite(descriptor, b"kept", 4096)
        mount.process.send_signal(signal.SIGKILL)
        mount.process.wait()
        expect(errno.ENOTCONN, os.close, descriptor)
    finally:
        take_down(mount)
    with mounted(tmp_path, config) as mount:
        assert os.getxattr(mount.mountpoint / "volumes" / "db1", "user.attached_to") == b"web1"
        with (web1 / "vdc").open("rb") as file:
            assert os.pread(file.fileno(), 4, 4096) == b"kept"
        expect(errno.EBUSY, os.unlink, mount.mountpoint / "volumes" / "db1")


def test_another_users_volume_cannot_be_attached(mount: Mounted) -> None:
    """Who may not write to a volume cannot attach it, nor anything below /dev."""
    os.truncate(os.open(mount.mountpoint / "volumes" / "roots", os.O_CREAT | os.O_WRONLY), GIB)
    with user(4321, 4321) as stranger:
        path = str(mount.mountpoint / "instances" / "his")
        stranger.call("mkdir", path)
        assert stranger.errno("symlink", "../../volumes/roots", f"{path}/vdc") == errno.EACCES
        assert stranger.errno("symlink", "/dev/loop0", f"{path}/vdc") == errno.EPERM
        assert stranger.call("listdir", path) == []


def test_admins_attach_block_devices(mount: Mounted) -> None:
    """A block device is attached by its path, to one instance at a time under whatever name, is not opened for that, and comes back by rm."""
    names = [Path(f"/dev/imagefs-test-{os.getpid()}-{number}") for number in range(2)]
    try:
        for name in names:
            os.mknod(name, stat.S_IFBLK | 0o600, os.makedev(259, 1048575))  # a number that no device has: opening it would fail
        web1, web2 = make(mount, "web1"), make(mount, "web2")
        os.symlink(names[0], web1 / "vdc")
        assert os.readlink(web1 / "vdc") == str(names[0])
        disks = json.loads(os.getxattr(web1, "user.imagefs.disks"))
        assert (disks[-1]["kind"], disks[-1]["path"], disks[-1]["size"]) == ("volume", str(names[0]), 0)
        expect(errno.EBUSY, os.symlink, names[1], web2 / "vdc")
        os.unlink(web1 / "vdc")
        os.symlink(names[1], web2 / "vdc")
        web2.rmdir()
        os.symlink(names[0], web1 / "vdd")
    finally:
        for name in names:
            name.unlink(missing_ok=True)


def test_direct_disk_is_a_local_qcow2_of_its_owner(mount: Mounted) -> None:
    """Vda leads to a qcow2 over raw/<id> that its owner alone can open; the state directory stays closed; rmdir removes it unless it is open."""
    with user(4321, 4321) as owner, user(4322, 4322) as stranger:
        path = mount.mountpoint / "instances" / "web1"
        owner.call("mkdir", str(path))
        owner.call("setxattr", str(path), "user.disk_format", b"qcow2")
        owner.call("setxattr", str(path), "user.image", b"base")
        target = Path(os.readlink(path / "vda"))
        assert owner.errno("open", str(path / "vda"), os.O_RDWR) == 0
        assert stranger.errno("open", str(target), os.O_RDONLY) == errno.EACCES
        for closed in (mount.state, mount.state / "instances", mount.state / "direct"):
            assert stranger.errno("listdir", str(closed)) == errno.EACCES
    info = json.loads(subprocess.run(["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", target], capture_output=True, check=True).stdout)
    assert info["backing-filename-format"] == "raw"
    assert info["full-backing-filename"].startswith(str(mount.mountpoint / "raw"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x77 1M 64k", "-c", "flush", target], check=True, capture_output=True)
    with target.open("rb"):
        expect(errno.EBUSY, os.rmdir, path)
        expect(errno.EBUSY, request, path, "busy")
        assert "qmp" in os.getxattr(path, "user.imagefs.error").decode()
    request(path, "shot")
    found = finished(path)
    expected = bytearray(disk_bytes(SIZE))
    expected[1024**2 : 1024**2 + 65536] = b"\x77" * 65536
    assert (mount.mountpoint / "raw" / found["id"]).read_bytes() == expected
    time.sleep(0.1)
    path.rmdir()
    assert not target.exists()
    assert list((mount.state / "direct").iterdir()) == []


def test_new_disks_never_show_what_deleted_ones_held(mount: Mounted) -> None:
    """Of fifty disks written in full and deleted one after the other, nothing is in the state directory or in the next disk."""
    canary = b"CANARY-OF-THE-TENANT-BEFORE" * 200
    for number in range(50):
        path = make(mount, f"i{number}", flavor="full")
        with (path / "vdb").open("r+b", buffering=0) as disk:
            assert canary[:27] not in disk.read(2 * 1024**2)
            for offset in range(0, 1024**2, 65536):
                os.pwrite(disk.fileno(), canary, offset)
        path.rmdir()
    left = [path for path in mount.state.rglob("*") if path.is_file() and "cache" not in path.parts]
    assert not any(canary[:27] in path.read_bytes() for path in left)
