"""Tests of snapshots on a real mount: the point in time, the image that comes of it, and guests that write on meanwhile."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_images import expect
from tests.support.mounted import Mounted, mounted, run_imagefs, start_mount, take_down, write_config
from tests.support.pictures import MIB, disk_bytes, write_qcow2, write_raw

pytestmark = [pytest.mark.mount, pytest.mark.qemu]
SIZE = 8 * MIB
SNAPSHOT = "user.imagefs.snapshot"
FLAVORS = '[flavors."f"]\nvcpus = 1\nram = 64\ndisk = 0\n'


def new_mount(directory: Path, extra: str = "") -> Path:
    """Write a configuration and store an image named base of `SIZE` bytes; return the configuration."""
    config = write_config(directory, extra=FLAVORS + extra)
    raw = write_raw(directory / "base.raw", disk_bytes(SIZE))
    qcow2 = write_qcow2(directory / "base.qcow2", raw, "-c")
    properties = ("--property", "hw_disk_bus=virtio", "--property", "img_signature=abc", "--property", "cache_in_nova=true", "--min-ram", "32")
    run_imagefs(config, "image", "create", "base", "--file", str(qcow2), "--public", *properties)
    return config


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    """A mount with the image base."""
    with mounted(tmp_path, new_mount(tmp_path)) as made:
        yield made


def make(mount: Mounted, name: str, image: str = "base", **choices: str) -> Path:
    """Make an instance by plain file operations."""
    path = mount.mountpoint / "instances" / name
    path.mkdir()
    for key, value in choices.items():
        os.setxattr(path, f"user.{key}", value.encode())
    os.setxattr(path, "user.image", image.encode())
    return path


def request(path: Path, name: str, **more: object) -> None:
    """Ask for a snapshot."""
    os.setxattr(path, SNAPSHOT, json.dumps({"name": name, **more}).encode())


def state(path: Path) -> dict[str, Any]:
    """Return what the mount says of the snapshot."""
    found: dict[str, Any] = json.loads(os.getxattr(path, SNAPSHOT))
    return found


def finished(path: Path, status: str = "active") -> dict[str, Any]:
    """Wait until the snapshot is stored, or has failed, and return what the mount says."""
    deadline = time.monotonic() + 120
    while (found := state(path))["status"] in ("queued", "saving"):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert found["status"] == status, found
    return found


def merged(mount: Mounted, path: Path) -> Path:
    """Wait until the disk has one layer again; return the directory of its files."""
    directory = mount.state / "instances" / os.getxattr(path, "user.instance_uuid").decode()
    deadline = time.monotonic() + 60
    while list(directory.glob("vda@*")):
        assert time.monotonic() < deadline, list(directory.iterdir())
        time.sleep(0.05)
    return directory


def patch(path: Path, offset: int, body: bytes) -> None:
    """Write into a disk and make it durable."""
    with path.open("r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), body, offset)
        os.fsync(disk.fileno())


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_snapshot_shows_the_disk_as_it_was(mount: Mounted, tmp_path: Path, disk_format: str) -> None:
    """What was written before is in the new image, what is written after is not; the image is sound; an instance of it boots from that disk."""
    web1 = make(mount, "web1", flavor="f")
    expected = bytearray(disk_bytes(SIZE))
    expected[12_345:22_345] = b"before" * 1666 + b"1234"
    patch(web1 / "vda", 12_345, bytes(expected[12_345:22_345]))
    request(web1, "web1-before", disk_format=disk_format)
    patch(web1 / "vda", 12_345, b"after!" * 1000)
    patch(web1 / "vda", 5 * MIB, b"later" * 10_000)
    found = finished(web1)
    image = mount.mountpoint / "images" / found["id"]
    assert found["done"] == found["total"] == image.stat().st_size
    assert found["error"] is None
    assert os.getxattr(image, "user.disk_format").decode() == disk_format
    assert (mount.mountpoint / "raw" / found["id"]).read_bytes() == expected
    stored = next((tmp_path / "store").glob(f"{found['id']}/data"))
    subprocess.run(["qemu-img", "compare", "-f", disk_format, "-F", "raw", stored, mount.mountpoint / "raw" / found["id"]], check=True)
    if disk_format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", stored], check=True)
    web2 = make(mount, "web2", "web1-before")
    assert (web2 / "vda").read_bytes() == expected
    expected[12_345:18_345] = b"after!" * 1000
    expected[5 * MIB : 5 * MIB + 50_000] = b"later" * 10_000
    assert (web1 / "vda").read_bytes() == expected
    merged(mount, web1)
    os.posix_fadvise(fd := os.open(web1 / "vda", os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert (web1 / "vda").read_bytes() == expected


def test_snapshot_has_novas_properties(mount: Mounted) -> None:
    """The image carries what Nova writes, inherits what is inheritable, is private, and needs a disk as large as its instance's."""
    web1 = make(mount, "web1", flavor="f")
    request(web1, "shot", properties={"note": "mine"})
    found = finished(web1)
    image = mount.mountpoint / "images" / found["id"]
    shown = {name.removeprefix("user."): os.getxattr(image, name).decode() for name in os.listxattr(image)}
    base = Path(os.readlink(mount.mountpoint / "names" / "base")).name
    assert shown["name"] == "shot"
    assert shown["instance_uuid"] == os.getxattr(web1, "user.instance_uuid").decode()
    assert shown["base_image_ref"] == base
    assert shown["image_type"] == "snapshot"
    assert shown["image_state"] == "available"
    assert shown["hw_disk_bus"] == "virtio"
    assert shown["note"] == "mine"
    assert shown["visibility"] == "private"
    assert (shown["min_disk"], shown["min_ram"]) == ("1", "32")
    assert not {"img_signature", "cache_in_nova"} & shown.keys()


def test_writers_go_on_while_a_snapshot_is_taken_and_merged(mount: Mounted) -> None:
    """Direct writes of numbered blocks go on through three snapshots; each image has a prefix of them, and the disk has them all."""
    web1 = make(mount, "web1", flavor="f")
    (web1 / "vda").read_bytes()
    ending = threading.Event()
    written: list[int] = []
    errors: list[BaseException] = []

    def write() -> None:
        import mmap

        page = mmap.mmap(-1, 4096)
        chance = random.Random(4)
        fd = os.open(web1 / "vda", os.O_RDWR | os.O_DIRECT)
        try:
            while not ending.is_set():
                block = chance.randrange(SIZE // 4096)
                page[:] = (b"%08d" % len(written)) * 512
                os.pwrite(fd, page, block * 4096)
                written.append(block)
        except BaseException as error:
            errors.append(error)
        finally:
            os.close(fd)

    writer = threading.Thread(target=write)
    writer.start()
    shots: list[tuple[int, int, str]] = []
    try:
        for number in range(3):
            before = len(written)
            request(web1, f"shot{number}")
            shots.append((before, len(written), finished(web1)["id"]))
    finally:
        ending.set()
        writer.join()
    assert errors == []
    original = disk_bytes(SIZE)

    def after(count: int) -> bytearray:
        disk = bytearray(original)
        for number, block in enumerate(written[:count]):
            disk[block * 4096 : block * 4096 + 4096] = (b"%08d" % number) * 512
        return disk

    for before, at_most, image_id in shots:
        shown = (mount.mountpoint / "raw" / image_id).read_bytes()
        assert any(shown == after(count) for count in range(before, at_most + 2)), (before, at_most)
    merged(mount, web1)
    assert (web1 / "vda").read_bytes() == after(len(written))
    assert len(written) > 100


def test_fio_verifies_what_it_wrote_through_snapshots(mount: Mounted, tmp_path: Path) -> None:
    """Direct requests of many sizes, sixteen at once, read back right, whatever snapshots are taken and merged meanwhile."""
    web1 = make(mount, "web1", flavor="f")
    command = f"fio --name=verify --filename={web1 / 'vda'} --rw=randrw --bsrange=512-64k --direct=1 --size={SIZE} --loops=8 --iodepth=16"
    options = ["--ioengine=libaio", "--verify=crc32c", "--verify_fatal=1", "--output-format=terse"]
    number = 0
    with (tmp_path / "fio.log").open("w+") as log, subprocess.Popen([*command.split(), *options], cwd=tmp_path, stdout=log, stderr=log) as fio:
        while fio.poll() is None:
            request(web1, f"shot{number}")
            finished(web1)
            number += 1
    assert fio.returncode == 0, (tmp_path / "fio.log").read_text()
    assert number >= 2


def test_requests_that_cannot_be_are_refused_with_a_reason(mount: Mounted) -> None:
    """A request before there are disks, one that is no JSON object, with unknown keys or wrong values, and one beside another are refused."""
    new = mount.mountpoint / "instances" / "new"
    new.mkdir()
    expect(errno.EINVAL, request, new, "x")
    web1 = make(mount, "web1", flavor="f")
    for value in (b"", b"{", b"[]", b"{}", b'{"name": 1}', b'{"name": "a", "format": "qcow2"}', b'{"name": "a", "disk_format": "vmdk"}'):
        expect(errno.EINVAL, os.setxattr, web1, SNAPSHOT, value)
        assert os.getxattr(web1, "user.imagefs.error")
    assert SNAPSHOT not in os.listxattr(web1)
    assert os.listdir(mount.mountpoint / "images") == [Path(os.readlink(mount.mountpoint / "names" / "base")).name]


def test_instance_stays_while_its_snapshot_is_stored_and_goes_after(mount: Mounted) -> None:
    """Rmdir is EBUSY with a reason while a snapshot is stored; once it is active the instance goes, merged or not, and the image stays."""
    web1 = make(mount, "web1", flavor="f")
    patch(web1 / "vda", 0, b"x" * MIB)
    request(web1, "shot", disk_format="raw")
    with contextlib.suppress(OSError):  # unless it was quicker
        os.rmdir(web1)
        assert state(web1)["status"] == "active"
    if web1.exists():
        image = finished(web1)["id"]
        web1.rmdir()
        assert (mount.mountpoint / "raw" / image).read_bytes()[:MIB] == b"x" * MIB
    assert list((mount.state / "instances").iterdir()) == []
    assert list((mount.state / "trash").iterdir()) == []


def test_snapshot_goes_on_after_the_daemon_was_killed(tmp_path: Path) -> None:
    """Kill -9 while a snapshot is stored: the next daemon stores it, as the disk was then, and merges; nothing half is left in the store."""
    config = new_mount(tmp_path)
    mount = start_mount(tmp_path, config)
    try:
        web1 = make(mount, "web1", flavor="f")
        expected = bytearray(disk_bytes(SIZE))
        expected[:MIB] = b"before" * 174762 + b"1234"
        patch(web1 / "vda", 0, bytes(expected[:MIB]))
        request(web1, "shot")
        patch(web1 / "vda", 0, b"after!" * 100)
        mount.process.send_signal(signal.SIGKILL)
        mount.process.wait()
    finally:
        take_down(mount)
    with mounted(tmp_path, config) as mount:
        found = finished(web1)
        assert (mount.mountpoint / "raw" / found["id"]).read_bytes() == expected
        expected[:600] = b"after!" * 100
        assert (web1 / "vda").read_bytes() == expected
        merged(mount, web1)
        assert (web1 / "vda").read_bytes() == expected
        assert len(os.listdir(mount.mountpoint / "images")) == 2
        assert len([path for path in (tmp_path / "store").iterdir() if path.is_dir()]) == 2


def test_encrypted_instance_leaves_no_plain_bytes(mount: Mounted) -> None:
    """Nothing that was written stands in the state directory, before or after a snapshot, which must be allowed; deletion leaves no key."""
    canary = random.Random(9).randbytes(4096)
    web1 = make(mount, "web1", flavor="f", encrypted="true")
    assert os.getxattr(web1, "user.encrypted") == b"true"
    patch(web1 / "vda", 3 * 4096, canary)
    expect(errno.EPERM, request, web1, "shot")
    assert "allow_plain" in os.getxattr(web1, "user.imagefs.error").decode()
    request(web1, "shot", allow_plain=True)
    patch(web1 / "vda", 7 * 4096, canary)
    found = finished(web1)
    directory = merged(mount, web1)
    assert (mount.mountpoint / "raw" / found["id"]).read_bytes()[3 * 4096 : 4 * 4096] == canary
    assert (web1 / "vda").read_bytes()[7 * 4096 : 8 * 4096] == canary
    keys = [path.read_bytes() for path in directory.glob("*.key")]
    assert len(keys) == 1
    for path in (path for path in mount.state.rglob("*") if path.is_file() and "cache" not in path.parts):
        body = path.read_bytes()
        assert canary[:64] not in body
        assert canary[-64:] not in body
    web1.rmdir()
    wrapped = keys[0][24 + 16 :]
    for path in (path for path in mount.state.rglob("*") if path.is_file()):
        assert wrapped not in path.read_bytes()


def test_snapshot_without_room_fails_and_the_disk_goes_on(tmp_path: Path) -> None:
    """In a full state directory a snapshot is refused, or killed with a reason; the image is not there, and the disk is as it was."""
    config = new_mount(tmp_path, extra="")
    state_directory = tmp_path / "state"
    state_directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={48 * MIB}", "none", state_directory], check=True)
    try:
        mount = start_mount(tmp_path, config)
        try:
            web1 = make(mount, "web1", flavor="f")
            body = random.Random(3).randbytes(6 * MIB)
            patch(web1 / "vda", 0, body)
            used = os.statvfs(state_directory)
            filler = state_directory / "filler"
            filler.write_bytes(bytes(used.f_bavail * used.f_frsize - 2 * MIB))
            request(web1, "shot")
            found = finished(web1, "killed")
            assert "room" in found["error"] or "space" in found["error"]
            filler.unlink()
            assert (web1 / "vda").read_bytes()[: 6 * MIB] == body
            assert len(os.listdir(mount.mountpoint / "images")) == 1
            request(web1, "again")
            assert (mount.mountpoint / "raw" / finished(web1)["id"]).read_bytes()[: 6 * MIB] == body
            assert mount.alive()
        finally:
            take_down(mount)
    finally:
        subprocess.run(["umount", state_directory], check=True)
