"""Tests of instances by plain file operations on a real mount."""

import errno
import mmap
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import QCOW2_ID, RAW_ID, World
from tests.mount.test_images import expect

pytestmark = pytest.mark.mount
GIB = 1024**3


@pytest.fixture
def web1(world: World) -> Iterator[Path]:
    """An instance of the compressed image with flavor small: vda of 1 GiB, vdb of 1 GiB."""
    path = world.root / "instances" / "web1"
    path.mkdir()
    os.setxattr(path, "user.flavor", b"small")
    os.setxattr(path, "user.image", b"packed")
    yield path
    if path.exists():
        path.rmdir()


def test_instance_is_made_by_mkdir_and_setfattr(web1: Path, world: World) -> None:
    """Mkdir and two setfattr give an active instance with the flavor's disks, 0700 and 0600, owned by the caller."""
    assert sorted(os.listdir(web1)) == ["vda", "vdb"]
    assert stat.S_IMODE(web1.stat().st_mode) == 0o700
    for disk in ("vda", "vdb"):
        found = (web1 / disk).stat()
        assert found.st_size == GIB
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert found.st_blocks == 0
    shown = {name: os.getxattr(web1, name).decode() for name in os.listxattr(web1)}
    assert shown["user.status"] == "active"
    assert shown["user.flavor"] == "small"
    assert shown["user.image_id"] == QCOW2_ID
    assert len(shown["user.instance_uuid"]) == 36
    assert shown["user.created_at"].endswith("Z")


def test_vda_shows_the_image_and_keeps_writes_to_itself(web1: Path, world: World) -> None:
    """Vda reads as the image, zeros behind it; writes stay in it and the image stays as it was."""
    with (web1 / "vda").open("r+b", buffering=0) as vda:
        assert vda.read(300_000) == world.disk[:300_000]
        assert os.pread(vda.fileno(), 8192, len(world.disk) - 4096) == world.disk[-4096:] + bytes(4096)
        os.pwrite(vda.fileno(), b"guest" * 1000, 12_345)
        os.pwrite(vda.fileno(), b"end", GIB - 3)
        os.fsync(vda.fileno())
        expected = bytearray(world.disk[:65536])
        expected[12_345 : 12_345 + 5000] = b"guest" * 1000
        assert os.pread(vda.fileno(), 65536, 0) == bytes(expected)
        assert os.pread(vda.fileno(), 10, GIB - 3) == b"end"
    assert (web1 / "vda").stat().st_blocks > 0
    assert (world.root / "raw" / QCOW2_ID).read_bytes() == world.disk


def test_vdb_is_empty(web1: Path) -> None:
    """Vdb begins as zeros."""
    with (web1 / "vdb").open("rb", buffering=0) as vdb:
        assert vdb.read(1_000_000) == bytes(1_000_000)
        assert os.pread(vdb.fileno(), 4096, GIB - 4096) == bytes(4096)


def test_disks_have_a_fixed_size(web1: Path) -> None:
    """Writing past the end is ENOSPC and changes nothing; truncate and unlink are EPERM."""
    with (web1 / "vda").open("r+b", buffering=0) as vda:
        expect(errno.ENOSPC, os.pwrite, vda.fileno(), b"x" * 8192, GIB - 4096)
        expect(errno.ENOSPC, os.pwrite, vda.fileno(), b"x", GIB)
        expect(errno.ENOSPC, os.pwrite, vda.fileno(), b"x", 2**50)
        assert os.pread(vda.fileno(), 4097, GIB - 4096) == bytes(4096)
    expect(errno.EPERM, os.truncate, web1 / "vda", 0)
    expect(errno.EPERM, os.truncate, web1 / "vda", GIB)
    expect(errno.EPERM, os.unlink, web1 / "vda")
    expect(errno.EPERM, os.open, web1 / "new", os.O_CREAT | os.O_WRONLY)
    expect(errno.EPERM, os.mkdir, web1 / "new")
    assert (web1 / "vda").stat().st_size == GIB


@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC | os.O_CREAT])
def test_opening_a_disk_never_truncates_it(web1: Path, flags: int) -> None:
    """O_TRUNC is EPERM like truncate(2), and what another process has mapped and not yet written back stays."""
    with (web1 / "vda").open("r+b") as vda, mmap.mmap(vda.fileno(), 1024 * 1024) as mapped:
        mapped[:5] = b"guest"
        expect(errno.EPERM, os.open, web1 / "vda", flags)
        assert mapped[:5] == b"guest"
        assert (web1 / "vda").stat().st_size == GIB
        os.close(os.open(web1 / "vda", os.O_RDWR | os.O_CREAT))  # nothing to truncate: O_CREAT alone opens what is there


def test_rmdir_is_refused_while_a_disk_is_open(web1: Path) -> None:
    """Rmdir is EBUSY while a disk is open, and removes the instance whole once it is closed."""
    with (web1 / "vda").open("r+b", buffering=0):
        expect(errno.EBUSY, os.rmdir, web1)
        assert (web1 / "vda").exists()
    web1.rmdir()
    expect(errno.ENOENT, os.stat, web1)


def test_flavor_and_image_are_fixed_once_there_are_disks(web1: Path) -> None:
    """user.flavor and user.image are EBUSY on an active instance."""
    expect(errno.EBUSY, os.setxattr, web1, "user.flavor", b"same")
    expect(errno.EBUSY, os.setxattr, web1, "user.image", b"plain")
    expect(errno.EPERM, os.setxattr, web1, "user.status", b"new")
    expect(errno.EPERM, os.removexattr, web1, "user.flavor")
    expect(errno.ENODATA, os.removexattr, web1, "user.nothing")


@pytest.mark.parametrize(
    ("flavor", "image", "reason"),
    [
        ("small", "nothing", "no image with the id or name 'nothing'"),
        ("same", "packed", "needs 128 MiB of memory"),
    ],
)
def test_refused_image_leaves_the_reason(world: World, flavor: str, image: str, reason: str) -> None:
    """An image that is unknown or does not fit is EINVAL, with the reason in user.imagefs.error and no disk made."""
    path = world.root / "instances" / "refused"
    path.mkdir()
    try:
        os.setxattr(path, "user.flavor", flavor.encode())
        expect(errno.EINVAL, os.setxattr, path, "user.image", image.encode())
        assert reason in os.getxattr(path, "user.imagefs.error").decode()
        assert os.listdir(path) == []
        assert os.getxattr(path, "user.status") == b"new"
    finally:
        path.rmdir()


def test_unknown_flavor_is_refused(world: World) -> None:
    """An unknown flavor is EINVAL and the reason names those that there are."""
    path = world.root / "instances" / "refused"
    path.mkdir()
    try:
        expect(errno.EINVAL, os.setxattr, path, "user.flavor", b"nothing")
        assert "m1.small" in os.getxattr(path, "user.imagefs.error").decode()
    finally:
        path.rmdir()


@pytest.mark.parametrize(
    ("name", "value", "number", "reason"),
    [
        ("user.flavor", b"x" * 65536, errno.EINVAL, "65536 bytes"),
        ("user.image", b"\xff", errno.EINVAL, "not UTF-8"),
        ("user.status", b"active", errno.EPERM, "user.status"),
    ],
)
def test_refused_attribute_leaves_a_reason_that_can_be_read(world: World, name: str, value: bytes, number: int, reason: str) -> None:
    """Whatever value is refused, user.imagefs.error says why, in no more than an attribute holds."""
    path = world.root / "instances" / "refused"
    path.mkdir()
    try:
        expect(number, os.setxattr, path, name, value)
        assert reason in os.getxattr(path, "user.imagefs.error").decode()
    finally:
        path.rmdir()


def test_without_a_flavor_vda_has_the_images_size(world: World) -> None:
    """An instance without a flavor has a vda of the image's virtual size and no vdb."""
    path = world.root / "instances" / "plain"
    path.mkdir()
    try:
        os.setxattr(path, "user.image", RAW_ID.encode())
        assert os.listdir(path) == ["vda"]
        assert (path / "vda").stat().st_size == len(world.disk)
        assert (path / "vda").read_bytes() == world.disk
    finally:
        path.rmdir()


def test_names_of_instances(world: World) -> None:
    """A name that exists is EEXIST, one with control characters EINVAL, files and links are EPERM."""
    parent = world.root / "instances"
    (parent / "twice").mkdir()
    try:
        expect(errno.EEXIST, os.mkdir, parent / "twice")
        expect(errno.EINVAL, os.mkdir, parent / "bad\nname")
        assert "printable" in os.getxattr(parent, "user.imagefs.error").decode()
        expect(errno.EINVAL, os.mkdir, os.fsencode(parent) + b"/\xff\xfe")
        assert "UTF-8" in os.getxattr(parent, "user.imagefs.error").decode()
        expect(errno.EPERM, os.open, parent / "file", os.O_CREAT | os.O_WRONLY)
        expect(errno.EISDIR, os.unlink, parent / "twice")
        expect(errno.EPERM, os.rename, parent / "twice", parent / "other")
        expect(errno.ENAMETOOLONG, os.mkdir, parent / ("n" * 256))
        (parent / ("n" * 255)).mkdir()
        (parent / ("n" * 255)).rmdir()
    finally:
        (parent / "twice").rmdir()
    expect(errno.ENOENT, os.rmdir, parent / "twice")


def test_owner_and_mode_of_disks_persist_in_their_record(web1: Path) -> None:
    """chown, chmod and root's trusted.* attributes of disks work, and user.* attributes of disks do not exist."""
    vda = web1 / "vda"
    os.chown(vda, 1234, 1235)
    vda.chmod(0o640)
    os.setxattr(vda, "trusted.libvirt.security.dac", b"+0:+0")
    assert os.access(vda, os.R_OK | os.W_OK)
    assert not os.access(vda, os.X_OK)
    found = vda.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1235, 0o640)
    assert os.getxattr(vda, "trusted.libvirt.security.dac") == b"+0:+0"
    os.removexattr(vda, "trusted.libvirt.security.dac")
    assert os.listxattr(vda) == []
    expect(errno.EPERM, os.setxattr, vda, "user.note", b"x")
    expect(errno.EINVAL, os.setxattr, vda, b"trusted.\xff", b"x")
    assert os.listxattr(vda) == []


def test_direct_and_mapped_io(web1: Path) -> None:
    """O_DIRECT writes and mmap writes reach the same disk."""
    room = mmap.mmap(-1, 65536)
    room.write(b"D" * 65536)
    direct = os.open(web1 / "vda", os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwritev(direct, [room], 131072) == 65536
    finally:
        os.close(direct)
    with (web1 / "vda").open("r+b") as vda, mmap.mmap(vda.fileno(), 1024 * 1024) as mapped:
        assert mapped[131072 : 131072 + 65536] == b"D" * 65536
        mapped[200_000:200_005] = b"mmap!"
        mapped.flush()
    with (web1 / "vda").open("rb", buffering=0) as again:
        assert os.pread(again.fileno(), 5, 200_000) == b"mmap!"


@pytest.mark.parametrize("disk", ["vda", "vdb"])
def test_random_writes_match_a_model(web1: Path, world: World, disk: str) -> None:
    """Random writes and reads of all alignments match a byte array, over closing and opening again."""
    span = 4 * 1024 * 1024
    model = bytearray(world.disk[:span]) if disk == "vda" else bytearray(span)
    chance = random.Random(7)
    for _ in range(4):
        with (web1 / disk).open("r+b", buffering=0) as file:
            for _ in range(60):
                offset, length = chance.randrange(span - 70_000), chance.choice([1, 100, 4096, 5000, 65536])
                body = chance.choice([chance.randbytes(length), bytes(length)])
                os.pwrite(file.fileno(), body, offset)
                model[offset : offset + length] = body
                offset = chance.randrange(span - 70_000)
                assert os.pread(file.fileno(), 70_000, offset) == bytes(model[offset : offset + 70_000])
            if chance.random() < 0.5:
                os.fdatasync(file.fileno())
    with (web1 / disk).open("rb", buffering=0) as file:
        assert b"".join(os.pread(file.fileno(), 65536, at) for at in range(0, span, 65536)) == bytes(model)


def test_qemu_io_patterns_through_cache_none(web1: Path) -> None:
    """qemu-io writes, zeroes, queues and flushes with O_DIRECT, and finds its patterns again; a wrong pattern is noticed."""
    steps = [
        "write -P 0xa5 0 1M",
        "write -P 0x5a 1M 64k",
        "write -z 256k 128k",
        "aio_write -P 7 16M 128k",
        "aio_write -P 8 17M 4k",
        "aio_flush",
        "flush",
        "writev -P 9 20M 4k 8k 64k",
        "read -P 0xa5 0 256k",
        "read -P 0 256k 128k",
        "read -P 0xa5 384k 640k",
        "read -P 0x5a 1M 64k",
        "read -P 7 16M 128k",
        "read -P 8 17M 4k",
        "read -P 9 20M 76k",
        "discard 2M 1M",
    ]
    arguments = [word for step in steps for word in ("-c", step)]
    done = subprocess.run(["qemu-io", "-f", "raw", "-t", "none", *arguments, web1 / "vda"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verification failed" not in done.stdout
    wrong = subprocess.run(
        ["qemu-io", "-f", "raw", "-r", "-c", "read -P 1 0 4k", web1 / "vda"], capture_output=True, text=True, timeout=60, check=False
    )
    assert wrong.returncode == 1


def test_qemu_locks_the_disk(web1: Path) -> None:
    """While one QEMU has vda, QEMU's image locking refuses it to a second one."""
    qemu = ["qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-serial", "none", "-S", "-drive", f"file={web1 / 'vda'},format=raw,if=virtio"]
    first = subprocess.Popen([*qemu, "-monitor", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        while "QEMU" not in first.stdout.readline():  # its monitor greets once the disks are open
            assert first.poll() is None
        second = subprocess.run([*qemu, "-monitor", "none"], capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert "lock" in second.stderr
    finally:
        first.communicate("quit\n", timeout=30)


def test_fio_verifies_what_it_wrote(web1: Path, tmp_path: Path) -> None:
    """Fio's random direct writes at depth 16 with checksums verify without an error."""
    done = subprocess.run(
        [
            "fio",
            "--name=v",
            f"--filename={web1 / 'vda'}",
            "--rw=randrw",
            "--ioengine=libaio",
            "--direct=1",
            "--iodepth=16",
            "--bs=4k",
            "--size=32m",
            "--fsync=64",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--randseed=3",
            "--output-format=terse",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
