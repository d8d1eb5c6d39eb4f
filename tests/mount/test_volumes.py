"""Tests of volumes by plain file operations on a real mount."""

import contextlib
import errno
import mmap
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.test_images import expect
from tests.support.mounted import Mounted, mounted, start_mount, take_down, write_config
from tests.support.user import open_the_way, user

pytestmark = pytest.mark.mount
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4
CONFIG = """allow_other = true
[instances]
mode = "1777"
[identity]
default_roles = ["reader"]
[[identity.map]]
uid = 4711
roles = ["member", "reader"]
project_id = "p1"
[flavors.gold]
vcpus = 1
ram = 64
disk = 1
is_public = false
projects = ["p1"]
"""
ALICE, BOB = 4711, 4712


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount on which everybody may make volumes."""
    directory = tmp_path_factory.mktemp("volumes")
    open_the_way(directory)
    with mounted(directory, write_config(directory, extra=CONFIG)) as found:
        yield found


@pytest.fixture
def volumes(mount: Mounted) -> Iterator[Path]:
    """The directory of the volumes; what a test leaves there goes after it."""
    path = mount.mountpoint / "volumes"
    yield path
    for left in path.iterdir():
        left.unlink()


def shell(command: str, directory: Path, *, status: int = 0) -> str:
    """Run a line of a shell in a directory and return what it said."""
    done = subprocess.run(["sh", "-c", command], cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_volume_is_made_and_grown_by_truncate(volumes: Path) -> None:
    """Truncate makes a volume, and makes it longer; it belongs to its maker, takes no room, and is listed."""
    shell("umask 0; truncate -s 10G db1", volumes)
    found = (volumes / "db1").stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_uid) == (10 * GIB, 0o600, os.getuid())
    assert found.st_blocks * 512 < MIB
    shell("truncate -s +1G db1", volumes)
    assert (volumes / "db1").stat().st_size == 11 * GIB
    assert os.listdir(volumes) == ["db1"]
    shell("touch empty", volumes)
    assert (volumes / "empty").read_bytes() == b""
    os.truncate(volumes / "empty", 4097)
    assert (volumes / "empty").read_bytes() == bytes(4097)


def test_volume_never_shrinks_and_is_never_emptied(volumes: Path) -> None:
    """A smaller size is EINVAL; `>` and a cp over it are EPERM, and nothing of it changes; the reason is told."""
    shell("truncate -s 8M db1 && printf kept | dd of=db1 conv=notrunc status=none", volumes)
    expect(errno.EINVAL, os.truncate, volumes / "db1", 4096)
    assert b"never shrinks" in os.getxattr(volumes / "db1", "user.imagefs.error")
    for command in ("echo lost > db1", "cp /etc/passwd db1", "dd if=/dev/zero of=db1 bs=4k count=1"):
        assert "not permitted" in shell(f"{command} 2>&1 || exit 9", volumes, status=9)
    assert b"conv=notrunc" in os.getxattr(volumes / "db1", "user.imagefs.error")
    assert (volumes / "db1").read_bytes() == b"kept" + bytes(8 * MIB - 4)
    shell("printf new >> db1 2>&1 || exit 9", volumes, status=9)  # at its end there is no room
    assert (volumes / "db1").stat().st_size == 8 * MIB


def test_writing_past_the_end(volumes: Path) -> None:
    """Past the end is ENOSPC and changes nothing; after growth the same write succeeds, also for who has the volume open."""
    shell("truncate -s 1M db1", volumes)
    descriptor = os.open(volumes / "db1", os.O_RDWR)
    try:
        expect(errno.ENOSPC, os.pwrite, descriptor, b"x" * 4096, MIB)
        expect(errno.ENOSPC, os.pwrite, descriptor, b"x", 2**50)
        os.ftruncate(descriptor, 2 * MIB)
        assert os.pwrite(descriptor, b"x" * 4096, MIB) == 4096
        assert os.pread(descriptor, 8192, MIB - 4096) == bytes(4096) + b"x" * 4096
    finally:
        os.close(descriptor)


def test_new_volume_takes_nothing_before_it_has_a_size(volumes: Path) -> None:
    """A redirection into a name that is not there makes a volume without a size, and the write is ENOSPC."""
    assert "No space" in shell("/bin/echo lost > db1 || exit 9", volumes, status=9)
    assert (volumes / "db1").stat().st_size == 0
    shell("truncate -s 1M db1 && /bin/echo kept 1<> db1", volumes)  # opened without truncating it
    assert (volumes / "db1").read_bytes() == b"kept\n" + bytes(MIB - 5)


def test_large_volume_is_made_at_once(volumes: Path, mount: Mounted) -> None:
    """1 TiB takes a few blocks of the host's disk, and both its ends can be written."""
    shell("truncate -s 1T huge", volumes)
    with (volumes / "huge").open("r+b", buffering=0) as huge:
        assert os.pwrite(huge.fileno(), b"end!" * 1024, TIB - 4096) == 4096
        os.fsync(huge.fileno())
        assert os.pread(huge.fileno(), 8192, TIB - 8192) == bytes(4096) + b"end!" * 1024
    assert 8 <= (volumes / "huge").stat().st_blocks < 2048
    host = shell(f"du -sk {mount.state / 'volumes'}", volumes)
    assert int(host.split()[0]) < 4096


def test_size_that_the_host_cannot_hold_is_refused(volumes: Path) -> None:
    """A size beyond what files can have is EINVAL or, where Linux itself says so, EFBIG; the volume stays usable."""
    shell("touch db1", volumes)
    with pytest.raises(OSError) as caught:
        os.truncate(volumes / "db1", 2**60)
    assert caught.value.errno in (errno.EINVAL, errno.EFBIG)
    os.truncate(volumes / "db1", MIB)
    assert (volumes / "db1").stat().st_size == MIB


def test_only_volumes_are_made(volumes: Path) -> None:
    """Directories, links, devices and new names are EPERM, and a rename leaves no empty volume behind."""
    shell("truncate -s 1M db1", volumes)
    expect(errno.EPERM, os.mkdir, volumes / "d")
    expect(errno.EPERM, os.symlink, "db1", volumes / "l")
    expect(errno.EPERM, os.link, volumes / "db1", volumes / "l")
    expect(errno.EPERM, os.rename, volumes / "db1", volumes / "db2")
    expect(errno.EPERM, os.mkfifo, volumes / "pipe")
    expect(errno.ENOTDIR, os.rmdir, volumes / "db1")
    assert os.listdir(volumes) == ["db1"]
    os.mknod(volumes / "node", stat.S_IFREG | 0o644)
    assert stat.S_IMODE((volumes / "node").stat().st_mode) == 0o600


def test_names_of_volumes(volumes: Path) -> None:
    """A name that Linux or a terminal cannot take is refused with the reason on the directory; 255 bytes can be had."""
    expect(errno.EINVAL, os.open, volumes / "bad\nname", os.O_CREAT | os.O_WRONLY)
    assert "printable" in os.getxattr(volumes, "user.imagefs.error").decode()
    expect(errno.EINVAL, os.open, os.fsencode(volumes) + b"/\xff", os.O_CREAT | os.O_WRONLY)
    expect(errno.ENAMETOOLONG, os.open, volumes / ("n" * 256), os.O_CREAT | os.O_WRONLY)
    os.close(os.open(volumes / ("n" * 255), os.O_CREAT | os.O_WRONLY))
    expect(errno.EEXIST, os.open, volumes / ("n" * 255), os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_attributes_of_volumes(volumes: Path) -> None:
    """A volume has an id and a date, which nobody changes; root's trusted attributes stay, as do owner and mode."""
    shell("truncate -s 1M db1", volumes)
    path = volumes / "db1"
    assert sorted(os.listxattr(path)) == ["user.created_at", "user.volume_id"]
    assert len(os.getxattr(path, "user.volume_id")) == 36
    expect(errno.EPERM, os.setxattr, path, "user.volume_id", b"x")
    expect(errno.EPERM, os.removexattr, path, "user.volume_id")
    os.setxattr(path, "trusted.libvirt.security.dac", b"+0:+0")
    assert os.getxattr(path, "trusted.libvirt.security.dac") == b"+0:+0"
    os.removexattr(path, "trusted.libvirt.security.dac")
    os.chown(path, ALICE, ALICE)
    path.chmod(0o640)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ALICE, ALICE, 0o640)


def test_open_volume_is_not_removed(volumes: Path) -> None:
    """Rm is EBUSY while somebody has the volume open or mapped, and succeeds right after."""
    shell("truncate -s 1M db1", volumes)
    with (volumes / "db1").open("r+b") as file:
        expect(errno.EBUSY, os.unlink, volumes / "db1")
        with mmap.mmap(file.fileno(), MIB) as mapped:
            mapped[:4] = b"kept"
            mapped.flush()
    assert (volumes / "db1").read_bytes()[:4] == b"kept"
    shell("rm db1", volumes)
    expect(errno.ENOENT, os.stat, volumes / "db1")


def test_volume_outlives_the_instance_that_has_it(volumes: Path, mount: Mounted) -> None:
    """A volume says which instance has it, is not removed meanwhile, grows meanwhile, and is whole and free once the instance is gone."""
    instance = mount.mountpoint / "instances" / "web1"
    shell("truncate -s 1M db1", volumes)
    instance.mkdir()
    (instance / "vdc").symlink_to("../../volumes/db1")
    assert os.getxattr(volumes / "db1", "user.attached_to") == b"web1"
    with (instance / "vdc").open("r+b", buffering=0) as file:
        file.write(b"kept")
    os.truncate(instance / "vdc", 2 * MIB)
    expect(errno.EBUSY, os.unlink, volumes / "db1")
    assert b"web1" in os.getxattr(volumes / "db1", "user.imagefs.error")
    instance.rmdir()
    expect(errno.ENODATA, os.getxattr, volumes / "db1", "user.attached_to")
    assert (volumes / "db1").read_bytes() == b"kept" + bytes(2 * MIB - 4)
    shell("rm db1", volumes)


def test_each_user_has_volumes_of_its_own(volumes: Path) -> None:
    """In a sticky directory everybody makes volumes, and nobody opens, grows, reads about or removes another's."""
    path = str(volumes / "db1")
    with user(ALICE, ALICE) as alice, user(BOB, BOB) as bob:
        alice.call("open", path, os.O_CREAT | os.O_WRONLY)
        alice.call("truncate", path, MIB)
        for number, attempt in (
            (errno.EACCES, ("open", path, os.O_RDONLY)),
            (errno.EACCES, ("open", path, os.O_WRONLY)),
            (errno.EACCES, ("truncate", path, 2 * MIB)),
            (errno.EACCES, ("getxattr", path, "user.volume_id")),
            (errno.EPERM, ("chmod", path, 0o666)),
            (errno.EPERM, ("unlink", path)),
        ):
            assert bob.errno(*attempt) == number, attempt
        assert bob.call("listdir", str(volumes)) == ["db1"]
        alice.call("truncate", path, 2 * MIB)
        assert alice.call("read", path) == bytes(64)
        alice.call("unlink", path)
        assert bob.errno("stat", path) == errno.ENOENT


def test_private_flavors_are_there_for_their_project(mount: Mounted) -> None:
    """Whoever looks first, each sees what it may: names and texts are never another caller's."""
    flavors = str(mount.mountpoint / "flavors")
    gold = f"{flavors}/gold"
    with user(ALICE, ALICE) as alice, user(BOB, BOB) as bob:
        for _ in range(3):
            assert '"projects"' in Path(gold).read_text()
            assert "gold" in alice.call("listdir", flavors)
            assert "gold" not in bob.call("listdir", flavors)
            text = alice.call("read_all", gold)
            assert b'"name": "gold"' in text
            assert b"projects" not in text
            for attempt in (("stat", gold), ("open", gold), ("read_all", gold), ("listxattr", gold)):
                assert bob.errno(*attempt) == errno.ENOENT, attempt
            assert "gold" in os.listdir(flavors)


def test_fio_verifies_what_it_wrote(volumes: Path, tmp_path: Path) -> None:
    """Random direct writes of several sizes read back as written."""
    shell("truncate -s 64M db1", volumes)
    command = (
        f"fio --name=verify --filename={volumes / 'db1'} --rw=randrw --bsrange=512-64k --direct=1 --size=64M --io_size=32M --verify=crc32c "
        "--ioengine=psync --fsync=64 --allow_file_create=0 --verify_fatal=1"
    )
    shell(command, tmp_path)


def test_volumes_survive_remounts_and_kills(tmp_path: Path) -> None:
    """What was written is there after an orderly end and after kill -9, and so are sizes, owners and modes; what was removed stays away."""
    config = write_config(tmp_path)
    volumes = tmp_path / "mnt" / "volumes"
    mount = start_mount(tmp_path, config)
    try:
        shell("truncate -s 16M db1 && truncate -s 1M gone && rm gone && touch empty", volumes)
        os.chown(volumes / "db1", ALICE, ALICE)
        for number in range(1, 4):
            descriptor = os.open(volumes / "db1", os.O_RDWR)
            assert os.pwrite(descriptor, bytes([number]) * 5000, number * MIB + 3) == 5000
            if number == 2:  # the daemon dies while somebody has the volume open
                mount.process.send_signal(signal.SIGKILL)
                mount.process.wait()
            with contextlib.suppress(OSError):
                os.close(descriptor)
            take_down(mount)
            mount = start_mount(tmp_path, config)
            shell(f"truncate -s {16 + number}M db1", volumes)
        assert sorted(os.listdir(volumes)) == ["db1", "empty"]
        found = (volumes / "db1").stat()
        assert (found.st_size, found.st_uid, stat.S_IMODE(found.st_mode)) == (19 * MIB, ALICE, 0o600)
        body = (volumes / "db1").read_bytes()
        for number in range(1, 4):
            assert body[number * MIB : number * MIB + 5006] == bytes(3) + bytes([number]) * 5000 + bytes(3)
        assert body.count(0) == 19 * MIB - 15_000
        assert mount.alive()
    finally:
        take_down(mount)


def test_volumes_on_a_full_disk(tmp_path: Path) -> None:
    """On a full disk making and growing are ENOSPC with a reason, and what is there stays whole; with room again all succeeds."""
    config = write_config(tmp_path, cache="0")
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16M", "none", state], check=True)
    try:
        mount = start_mount(tmp_path, config)
        try:
            volumes = mount.mountpoint / "volumes"
            shell("truncate -s 4M db1 && touch new && printf kept | dd of=db1 conv=notrunc status=none", volumes)
            shell(f"dd if=/dev/zero of={state}/filler bs=4k status=none 2>/dev/null || true", volumes)
            expect(errno.ENOSPC, os.open, volumes / "late", os.O_CREAT | os.O_WRONLY)
            assert "room" in os.getxattr(volumes, "user.imagefs.error").decode()
            expect(errno.ENOSPC, os.truncate, volumes / "new", 100 * MIB)
            assert os.getxattr(volumes / "new", "user.imagefs.error")
            assert sorted(os.listdir(volumes)) == ["db1", "new"]
            assert (volumes / "new").stat().st_size == 0
            with (volumes / "db1").open("r+b", buffering=0) as file:
                expect(errno.ENOSPC, os.pwrite, file.fileno(), b"x" * MIB, MIB)
            assert (volumes / "db1").read_bytes()[:8] == b"kept" + bytes(4)
            (state / "filler").unlink()
            shell("truncate -s 100M new && truncate -s 8M db1 && truncate -s 1M late && rm db1 new late", volumes)
            assert not list((state / "volumes").iterdir())
            assert not list((state / "trash").iterdir())
            assert mount.alive()
        finally:
            take_down(mount)
    finally:
        subprocess.run(["umount", state], check=True)


def test_many_volumes(volumes: Path) -> None:
    """Three hundred volumes are made, listed, each by its name and once, and removed."""
    for number in range(300):
        (volumes / f"v{number}").touch()
    assert sorted(os.listdir(volumes)) == sorted(f"v{number}" for number in range(300))
    shell("rm v*", volumes)
    assert os.listdir(volumes) == []
