"""Copies that a real QEMU makes of a disk while it is written to."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.qmp.backup import Backup, backup
from imagefs.qmp.channel import Channel
from imagefs.qmp.monitor import Monitor
from imagefs.qmp.unix import connect
from imagefs.units import MIB

pytestmark = pytest.mark.qemu

SIZE = 64 * MIB
Drive = Callable[[Path], tuple[str, ...]]


def create(path: Path, *options: str, size: int = SIZE) -> Path:
    """Make a qcow2 file."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)], check=True)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A direct disk: a qcow2 file over a raw image, with a few bytes of its own."""
    with (tmp_path / "image").open("wb") as image:
        image.write(b"image" * 1000)
        image.truncate(SIZE)
    path = create(tmp_path / "vda.qcow2", "-F", "raw", "-b", str(tmp_path / "image"))
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x11 1M 64k", path], check=True, capture_output=True)
    return path


@contextlib.contextmanager
def machine(directory: Path, *drive: str) -> Iterator[Path]:
    """Run a machine that is stopped, with a disk as the options say, and give its QMP socket."""
    socket = directory / "qmp.sock"
    command = ["qemu-system-x86_64", "-S", "-accel", "tcg", "-m", "32", "-nodefaults", "-no-user-config", "-display", "none"]
    child = subprocess.Popen([*command, *drive, "-qmp", f"unix:{socket},server=on,wait=off"])
    try:
        while not socket.is_socket():
            assert child.poll() is None, "QEMU ended"
            time.sleep(0.05)
        yield socket
    finally:
        child.kill()
        child.wait()
        socket.unlink(missing_ok=True)


def plainly(disk: Path) -> tuple[str, ...]:
    return ("-drive", f"file={disk},format=qcow2,if=none,id=d0", "-device", "virtio-blk-pci,id=disk0,drive=d0")


def by_nodes(disk: Path) -> tuple[str, ...]:
    return (
        *("-blockdev", f"driver=file,node-name=file0,filename={disk}"),
        *("-blockdev", "driver=qcow2,node-name=d0,file=file0,discard=unmap,lazy-refcounts=on"),
        *("-device", "virtio-blk-pci,id=disk0,drive=d0"),
    )


def by_filters(disk: Path) -> tuple[str, ...]:
    return (
        *("-object", "throttle-group,id=limits"),
        *("-blockdev", f"driver=qcow2,node-name=format0,file.driver=file,file.filename={disk},cache-clean-interval=7"),
        *("-blockdev", "driver=throttle,node-name=d0,throttle-group=limits,file=format0"),
        *("-device", "virtio-blk-pci,id=disk0,drive=d0"),
    )


async def write_as_guest(copy: Backup) -> None:
    """Have the machine write to its disk as its guest would: where it has blocks of its own, and where it has none."""
    for what in ("-P 0x22 1M 4k", "-P 0x33 0 4k", "-P 0x44 32M 1M"):
        found = await copy._monitor.execute(
            "human-monitor-command", {"command-line": f'qemu-io -d /machine/peripheral/disk0/virtio-backend "write {what}"'}
        )
        assert found == ""


async def ask(socket: Path, command: str, **arguments: object) -> object:
    """Give a command in a session of its own."""
    monitor = await Monitor.connect(socket, 0)
    try:
        return await monitor.execute(command, arguments)
    finally:
        await monitor.aclose()


def as_raw(path: Path) -> bytes:
    """Return the bytes of a qcow2 file's disk."""
    raw = path.with_name(f"{path.name}.raw")
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


def is_sound(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=False).returncode == 0


def nodes_and_jobs(nodes: object, jobs: object) -> tuple[list[str], object]:
    assert isinstance(nodes, list)
    return [node["node-name"] for node in nodes if node["node-name"].startswith("imagefs")], jobs


@pytest.mark.parametrize("drive", [plainly, by_nodes, by_filters])
async def test_a_copy_is_of_the_moment_it_began(tmp_path: Path, disk: Path, drive: Drive) -> None:
    """What the guest writes later is not in it, and all else is: its own blocks, the image's, and zeros that take no room."""
    before = as_raw(disk)
    target = create(tmp_path / "target.qcow2")
    (tmp_path / "vda").symlink_to(disk)
    seen: list[tuple[int, int]] = []
    with machine(tmp_path, *drive(tmp_path / "vda")) as socket:
        async with backup(socket, 0, disk, target) as copy:
            await write_as_guest(copy)
            await copy.completed(lambda done, total: seen.append((done, total)))
            assert as_raw(target) == before
        assert nodes_and_jobs(await ask(socket, "query-named-block-nodes", flat=True), await ask(socket, "query-jobs")) == ([], [])
    assert as_raw(disk) != before
    assert is_sound(target)
    assert target.stat().st_blocks * 512 < MIB
    assert seen[-1][0] == seen[-1][1] > 0


async def test_a_copy_that_is_broken_off_leaves_the_machine_as_it_was(tmp_path: Path, disk: Path) -> None:
    """No job and no node stays, and the next copy works."""
    target = create(tmp_path / "target.qcow2")
    with machine(tmp_path, *plainly(disk)) as socket:
        with trio.CancelScope() as scope:
            async with backup(socket, 0, disk, target):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert nodes_and_jobs(await ask(socket, "query-named-block-nodes", flat=True), await ask(socket, "query-jobs")) == ([], [])
        again = create(tmp_path / "again.qcow2")
        async with backup(socket, 0, disk, again) as copy:
            await copy.completed(lambda *_: None)
    assert as_raw(again) == as_raw(disk)


async def test_a_target_that_was_used_is_an_error(tmp_path: Path, disk: Path) -> None:
    """What is in the target already cannot be written over in compressed form, and no mixture is called complete."""
    target = create(tmp_path / "target.qcow2")
    with machine(tmp_path, *plainly(disk)) as socket:
        async with backup(socket, 0, disk, target) as copy:
            await copy.completed(lambda *_: None)
        async with backup(socket, 0, disk, target) as copy:
            with pytest.raises(ImagefsError, match="failed in QEMU: Input/output error"):
                await copy.completed(lambda *_: None)


async def test_a_target_of_another_size_is_an_error(tmp_path: Path, disk: Path) -> None:
    """QEMU's own reason is told when the target cannot take the disk."""
    small = create(tmp_path / "target.qcow2", size=MIB)
    with machine(tmp_path, *plainly(disk)) as socket, pytest.raises(ImagefsError, match="blockdev-backup failed: "):
        async with backup(socket, 0, disk, small):
            pytest.fail("it started")


async def test_another_machines_disk_is_refused(tmp_path: Path, disk: Path) -> None:
    """A socket of a guest that does not run from the disk gives no copy of another's."""
    with machine(tmp_path, *plainly(create(tmp_path / "other.qcow2"))) as socket, pytest.raises(InvalidInput, match="does not have"):
        async with backup(socket, 0, disk, tmp_path / "target"):
            pytest.fail("it started")


async def test_a_disk_that_was_opened_as_raw_is_refused(tmp_path: Path, disk: Path) -> None:
    """Such a guest sees the qcow2 file itself, and a copy of that would be a disk in a disk."""
    drive = ("-drive", f"file={disk},format=raw,if=none,id=d0", "-device", "virtio-blk-pci,id=disk0,drive=d0")
    with machine(tmp_path, *drive) as socket, pytest.raises(InvalidInput, match="start the guest with format=qcow2"):
        async with backup(socket, 0, disk, tmp_path / "target"):
            pytest.fail("it started")


async def test_a_second_client_hears_that_there_is_a_first(tmp_path: Path, disk: Path) -> None:
    """QEMU talks to one client at a time, and the message says so."""
    with machine(tmp_path, *plainly(disk)) as socket:
        first = await Monitor.connect(socket, 0)
        second = Monitor(Channel(await connect(socket, 0, "QMP socket"), "QMP socket"))
        with pytest.raises(ImagefsError, match="is another one connected"):
            await second.greet(0.3)
        await second.aclose()
        await first.aclose()
