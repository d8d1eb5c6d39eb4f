"""Direct disks, and owners who do with them what they like."""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from imagefs.errors import Busy, ImagefsError, ImageRefused, InvalidInput
from imagefs.image.qcow2.header import HEADER_BYTES, Qcow2Header, parse_header
from imagefs.instances import direct
from imagefs.instances.direct import (
    DISK,
    convert,
    create,
    delete,
    in_use,
    inspect,
    inspect_target,
    make_target,
    open_target,
    remove_target,
    set_owner,
)
from imagefs.instances.direct_header import check_direct_header
from imagefs.units import GIB, MIB
from tests.support.peer import as_user
from tests.support.qcow2 import check_clean, decoded_by_qemu, qemu_img, qemu_io
from tests.support.user import open_the_way, user

OWNER, OTHER = 4001, 4002
UUID = "0d6e5b1a-5f0c-4d3e-9a58-6f6a1c1f0f10"
SIZE = 64 * MIB


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory as it is before there is a direct disk."""
    open_the_way(tmp_path)
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The image on the mount, readable to all."""
    path = tmp_path / "raw,with=comma"
    path.write_bytes(b"image" * 100_000)
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def disk(state: Path, image: Path) -> Path:
    """A disk of OWNER's."""
    return create(state / "direct", UUID, SIZE, image, OWNER, OWNER, 0o700, 0o600)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def number_of(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def mode_of(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, found.st_mode & 0o7777


def test_a_disk_is_made_for_its_owner(state: Path, disk: Path, image: Path) -> None:
    """Directory and file are the owner's, everybody gets through to them, and nobody can list what else is there."""
    assert disk == state / "direct" / UUID / DISK
    assert [mode_of(path) for path in (state, state / "direct", disk.parent, disk)] == [
        (0, 0, 0o711),
        (0, 0, 0o711),
        (OWNER, OWNER, 0o700),
        (OWNER, OWNER, 0o600),
    ]
    assert os.listdir(state / "direct") == [UUID]
    assert os.listdir(disk.parent) == [DISK]
    assert inspect(disk, image, SIZE).size == SIZE
    assert decoded_by_qemu(disk) == content_of(image)
    with user(OWNER, OWNER) as owner:
        assert owner.errno("open", str(disk), os.O_RDWR) == 0
        assert owner.errno("listdir", str(state / "direct")) != 0
    with user(OTHER, OTHER) as other:
        assert other.errno("open", str(disk)) != 0


def test_the_image_is_not_opened(state: Path) -> None:
    """The image is served by the process that makes the disk: the tool must not wait for it, nor mind that it is not there."""
    path = create(state / "direct", UUID, 100 * GIB, Path("/nonexistent/raw/image"), OWNER, OWNER, 0o750, 0o640)
    assert mode_of(path.parent) == (OWNER, OWNER, 0o750)
    assert mode_of(path) == (OWNER, OWNER, 0o640)
    assert path.stat().st_blocks * 512 < MIB
    assert inspect(path, Path("/nonexistent/raw/image"), 100 * GIB).size == 100 * GIB


def test_a_disk_is_made_whole_or_not_at_all(state: Path, disk: Path, image: Path) -> None:
    """What is there is not touched by a second one, and nothing is left of that."""
    before = disk.read_bytes()
    with pytest.raises(OSError, match="not empty"):
        create(state / "direct", UUID, SIZE, image, OTHER, OTHER, 0o700, 0o600)
    assert os.listdir(state / "direct") == [UUID]
    assert disk.read_bytes() == before


@pytest.mark.parametrize("backing", [Path("relative"), Path("/" + "x" * 1023)])
def test_images_that_cannot_be_recorded_are_refused(state: Path, backing: Path) -> None:
    """A relative path would be another one elsewhere, and qcow2 has a limit."""
    with pytest.raises(InvalidInput, match="cannot be recorded"):
        create(state / "direct", UUID, SIZE, backing, OWNER, OWNER, 0o700, 0o600)
    assert not (state / "direct").exists()


# -- who has it open ---------------------------------------------------------------------------


@pytest.fixture(params=["leases", "locks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to tell: by a lease, and by QEMU's locks where there are no leases."""
    if request.param == "locks":
        plain = fcntl.fcntl

        def without_leases(descriptor: int, command: int, argument: int | bytes = 0) -> int | bytes:
            if command == fcntl.F_SETLEASE:
                raise OSError(22, "Invalid argument")
            return plain(descriptor, command, argument)

        monkeypatch.setattr(fcntl, "fcntl", without_leases)
    return str(request.param)


@pytest.mark.qemu
@pytest.mark.parametrize("options", [(), ("-r",)])
def test_a_disk_that_qemu_has_open_is_in_use(disk: Path, way: str, options: tuple[str, ...]) -> None:
    """QEMU is seen for as long as it has the disk, to write or to read alone."""
    assert not in_use(disk)
    child = subprocess.Popen(["qemu-io", *options, "-f", "qcow2", disk], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        while not any(os.path.realpath(f"/proc/{child.pid}/fd/{fd}") == str(disk) for fd in os.listdir(f"/proc/{child.pid}/fd")):
            assert child.poll() is None
            time.sleep(0.02)
        while not in_use(disk):  # it locks the file some time after it has opened it
            assert way == "locks"
            time.sleep(0.02)
    finally:
        child.kill()
        child.communicate()
    assert not in_use(disk)


def test_any_open_file_is_use(disk: Path) -> None:
    """Whoever has it open counts, with QEMU's locks or without."""
    with disk.open("rb"):
        assert in_use(disk)
    with disk.open("r+b"):
        assert in_use(disk)
    assert not in_use(disk)


def test_a_lease_of_another_is_use(disk: Path) -> None:
    """Its holder has the file open, and is not waited for."""
    descriptor = os.open(disk, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    assert in_use(disk)
    os.close(descriptor)
    assert not in_use(disk)


def test_asking_does_no_harm_to_who_opens_just_then(disk: Path) -> None:
    """A process that opens the disk while somebody asks gets it, and the one that asks is not killed by a signal."""
    with user(OWNER, OWNER) as owner:
        for _ in range(200):
            owner._connection.send(("open", (str(disk), os.O_RDWR)))
            in_use(disk)
            assert owner._connection.recv() == (None, None)
    assert not in_use(disk)


def test_what_is_not_there_is_not_in_use(state: Path, disk: Path) -> None:
    """Nobody uses what its owner removed, or what has nothing of a file."""
    with as_user(OWNER):
        disk.unlink()
    assert not in_use(disk)
    with as_user(OWNER):
        disk.symlink_to("/etc/passwd")
    with Path("/etc/passwd").open():
        assert not in_use(disk)
    delete(state / "direct", UUID)
    assert not in_use(disk)


# -- hostile owners ----------------------------------------------------------------------------


def replace_by_symlink(disk: Path, victim: Path) -> None:
    disk.unlink()
    disk.symlink_to(victim)


def replace_by_hard_link(disk: Path, victim: Path) -> None:
    disk.unlink()
    os.seteuid(0)  # as if the kernel did not protect hard links
    os.link(victim, disk)
    os.seteuid(OWNER)


def replace_by_directory(disk: Path, victim: Path) -> None:
    disk.unlink()
    disk.mkdir()
    (disk / "link").symlink_to(victim)


def replace_by_pipe(disk: Path, _victim: Path) -> None:
    disk.unlink()
    os.mkfifo(disk)


def replace_by_nothing(disk: Path, _victim: Path) -> None:
    disk.unlink()


def hide(disk: Path, victim: Path) -> None:
    replace_by_symlink(disk, victim)
    disk.parent.chmod(0)


def replace_by_moved(disk: Path, victim: Path) -> None:
    victim.rename(disk)


TRICKS = [replace_by_symlink, replace_by_hard_link, replace_by_directory, replace_by_pipe, replace_by_nothing, hide, replace_by_moved]
Trick = Callable[[Path, Path], None]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's that is worth something, in a directory where the owner may rename files."""
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, OWNER, OWNER)
    path = place / "victim"
    path.write_bytes(b"secret" * 1000)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_hostile_owner_gets_nothing(
    state: Path, disk: Path, image: Path, victim: Path, trick: Trick, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the owner puts in the disk's place, root's file keeps its bytes, owner and mode, and the instance can be removed."""
    number = number_of(victim)
    target = make_target(disk, SIZE, OWNER, OWNER)
    with as_user(OWNER):
        trick(disk, victim)
    with pytest.raises((ImageRefused, FileNotFoundError)):
        inspect(disk, image, SIZE)
    with pytest.raises((ImageRefused, FileNotFoundError)):
        await convert(disk, target, "qcow2", OWNER, OWNER, backing=image, size=SIZE)
    assert not in_use(disk)
    caplog.clear()
    set_owner(state / "direct", UUID, OTHER, OTHER, 0o755)
    assert "keeps its owner" in caplog.text
    assert mode_of(disk.parent) == (OTHER, OTHER, 0o755)
    found = next((path for path in (victim, disk) if number_of(path) == number), None)
    assert found is not None
    assert mode_of(found) == (0, 0, 0o600)
    assert content_of(found) == b"secret" * 1000
    remove_target(target)
    delete(state / "direct", UUID)
    assert os.listdir(state / "direct") == []
    assert found == disk or content_of(victim) == b"secret" * 1000


async def test_a_hostile_header_reads_nothing(disk: Path, image: Path, victim: Path) -> None:
    """A disk that is written over root's file is refused, and without the check the copy, made as its owner, would not get the file."""
    target = make_target(disk, SIZE, OWNER, OWNER)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", victim, disk)
    with pytest.raises(ImageRefused, match="its backing file is not"):
        inspect(disk, image, SIZE)
    with pytest.raises(ImageRefused, match="its backing file is not"):
        await convert(disk, target, "raw", OWNER, OWNER, backing=image, size=SIZE)
    with pytest.raises(ImagefsError, match=r"copying it as user 4001 failed with status 1: .*Permission denied"):
        await convert(disk, target, "raw", OWNER, OWNER, backing=victim, size=SIZE)
    assert b"secret" not in target.read_bytes()


async def test_a_header_that_changes_after_the_check_is_not_believed(disk: Path, image: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check and the copy the owner writes another backing file: what is copied is still over the image."""
    os.chmod(victim, 0o644)
    target = make_target(disk, SIZE, OWNER, OWNER)

    def checked(head: bytes, stored_size: int, backing: str, name: str) -> Qcow2Header:
        found = check_direct_header(head, stored_size, backing, name)
        qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", victim, disk)
        return found

    monkeypatch.setattr(direct, "check_direct_header", checked)
    await convert(disk, target, "raw", OWNER, OWNER, backing=image, size=SIZE)
    assert target.read_bytes() == content_of(image)


# -- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
async def test_a_disk_is_copied_as_its_owner(disk: Path, image: Path, disk_format: direct.DiskFormat) -> None:
    """The copy has the disk's bytes, over the image's, takes little room, and becomes root's before it is stored."""
    qemu_io(disk, "write -P 0x11 1M 64k", "write -z 0 64k")
    expected = decoded_by_qemu(disk)
    assert expected[:5] == bytes(5)
    target = make_target(disk, SIZE, OWNER, OWNER)
    assert mode_of(target) == (OWNER, OWNER, 0o600)
    assert mode_of(target.parent) == (0, 0, 0o711)
    await convert(disk, target, disk_format, OWNER, OWNER, backing=image, size=SIZE)
    size = inspect_target(target, disk_format, SIZE)
    assert mode_of(target) == (os.getuid(), os.getgid(), 0o600)
    for _ in range(2):
        with open_target(target) as copy:
            content = copy.read()
            assert len(content) == size
    if disk_format == "raw":
        assert content == expected
    else:
        check_clean(target)
        assert parse_header(content[:HEADER_BYTES], size, "the copy").size == SIZE
        assert decoded_by_qemu(target) == expected
    assert target.stat().st_blocks * 512 < 2 * MIB
    remove_target(target)
    assert os.listdir(disk.parent.parent) == [UUID]


async def test_the_owners_groups_are_those_that_are_given(disk: Path, image: Path) -> None:
    """An image that only a group may read needs the group."""
    os.chown(image, 0, 4242)
    os.chmod(image, 0o640)
    target = make_target(disk, SIZE, OWNER, OWNER)
    with pytest.raises(ImagefsError, match="Permission denied"):
        await convert(disk, target, "qcow2", OWNER, OWNER, backing=image, size=SIZE)
    await convert(disk, target, "qcow2", OWNER, OWNER, backing=image, size=SIZE, groups=(4242,))
    assert decoded_by_qemu(target) == content_of(image)


async def test_a_disk_of_another_size_is_refused(disk: Path, image: Path) -> None:
    """An owner who writes another size into the header does not get a copy of it."""
    target = make_target(disk, SIZE, OWNER, OWNER)
    qemu_img("resize", "-q", "-f", "qcow2", disk, "+1T")
    with pytest.raises(ImageRefused, match="was made with 67108864: a direct disk cannot be resized"):
        await convert(disk, target, "raw", OWNER, OWNER, backing=image, size=SIZE)


async def test_a_disk_that_is_open_is_not_copied(disk: Path, image: Path) -> None:
    """QEMU's own lock stops the copy, and its words come out."""
    child = await trio.lowlevel.open_process(["qemu-io", "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        reason = ""
        with trio.fail_after(60):
            while not reason:  # until it has opened the disk and locked it
                target = make_target(disk, SIZE, OWNER, OWNER)
                try:
                    await convert(disk, target, "qcow2", OWNER, OWNER, backing=image, size=SIZE)
                except ImagefsError as error:
                    reason = str(error)
                remove_target(target)
    finally:
        child.kill()
        await child.wait()
    assert f"another process using the image [{disk}]" in reason


def test_a_copy_that_is_still_open_is_not_stored(disk: Path) -> None:
    """Who has it open could change it while it is read; it is taken from its owner all the same."""
    target = make_target(disk, SIZE, OWNER, OWNER)
    with target.open("rb"), pytest.raises(Busy, match="still open somewhere"):
        inspect_target(target, "qcow2", SIZE)
    assert mode_of(target) == (os.getuid(), os.getgid(), 0o600)
    assert inspect_target(target, "qcow2", SIZE) == target.stat().st_size


@pytest.mark.parametrize(("disk_format", "length"), [("raw", SIZE - 1), ("raw", 2**40), ("qcow2", 2**40), ("qcow2", 0)])
def test_a_copy_that_is_none_of_that_disk_is_refused(disk: Path, disk_format: direct.DiskFormat, length: int) -> None:
    """Its owner may make it as long as it likes without taking any room: the store would take all of it."""
    target = make_target(disk, SIZE, OWNER, OWNER)
    if length:
        os.truncate(target, length)
    else:
        qemu_img("resize", "-q", "-f", "qcow2", target, "+1T")
    with pytest.raises(ImageRefused, match=f"not one of a disk of {SIZE} bytes"):
        inspect_target(target, disk_format, SIZE)


@pytest.mark.parametrize("options", [("-F", "raw", "-b", "/etc/passwd"), ("-o", "data_file=/etc/passwd,data_file_raw=on")])
def test_a_copy_that_refers_elsewhere_is_refused(disk: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The QEMU that wrote it is its owner's, and may have written anything."""
    target = make_target(disk, SIZE, OWNER, OWNER)
    if "data_file" in options[-1]:
        content = bytearray(target.read_bytes())
        content[79] |= 4
        target.write_bytes(content)
    else:
        qemu_img("rebase", "-u", "-f", "qcow2", *options, target)
    with pytest.raises(ImageRefused, match="it has a"):
        inspect_target(target, "qcow2", SIZE)


# -- owners and ends ---------------------------------------------------------------------------


def test_a_new_owner_gets_all_of_it(state: Path, disk: Path) -> None:
    """Directory and disk change hands; the disk keeps its mode."""
    set_owner(state / "direct", UUID, OTHER, 4242, 0o1750)
    assert mode_of(disk.parent) == (OTHER, 4242, 0o1750)
    assert mode_of(disk) == (OTHER, 4242, 0o600)
    with pytest.raises(FileNotFoundError):
        set_owner(state / "direct", "another", OTHER, OTHER, 0o700)


def test_a_disk_that_is_lent_stays_lent(state: Path, disk: Path) -> None:
    """For a guest libvirt gives the disk to its own user while it runs, and back to whom it had it from."""
    os.chown(disk, OTHER, OTHER)
    set_owner(state / "direct", UUID, OWNER, 4242, 0o700)
    assert mode_of(disk) == (OTHER, OTHER, 0o600)
    assert mode_of(disk.parent) == (OWNER, 4242, 0o700)


def test_a_deleted_disk_is_gone(state: Path, disk: Path) -> None:
    """With all that its owner put beside it; twice is no error."""
    with as_user(OWNER):
        (disk.parent / "more" / "of").mkdir(parents=True)
        (disk.parent / "more" / "file").write_bytes(b"x")
    delete(state / "direct", UUID)
    delete(state / "direct", UUID)
    assert os.listdir(state / "direct") == []
    delete(state / "never", UUID)
