"""This module makes, examines, copies and removes direct disks: qcow2 files over an image, which their owners open past imagefs.

    STATE/direct/<uuid>/vda.qcow2        the disk; directory and file belong to the instance's owner
    STATE/direct/.<uuid>.<random>/       root's: a disk that is being made, or the file that a snapshot is copied into

The owner is hostile: the disk's name may lead anywhere from one moment to the next, and its header may say anything. So nothing is followed
(`imagefs.beneath`), what is opened is examined, and qemu-img reads it with its owner's rights and with the backing file that we name.
All but `convert` blocks.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import signal
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import trio

from imagefs.beneath import open_beneath, remove_beneath
from imagefs.child import ENVIRONMENT, find_tool, last_words, run_tool
from imagefs.errors import Busy, ImagefsError, ImageRefused, InvalidInput
from imagefs.image.qcow2.header import HEADER_BYTES, Qcow2Header, parse_header
from imagefs.instances.direct_header import check_direct_header
from imagefs.sealed import sync_directory
from imagefs.threads import Lane, run
from imagefs.units import GIB

log = logging.getLogger(__name__)

DISK: Final = "vda.qcow2"
PASSAGE_MODE: Final = 0o711
"""Of the state directory and its direct/: who knows a path gets through, and nobody can list them."""
BACKING_LIMIT: Final = 1023
"""Bytes of a backing file's name in qcow2."""
CREATE_SECONDS: Final = 60.0
MEMORY_LIMIT: Final = GIB
"""Bytes of address space of a qemu-img that copies; it needs a tenth."""
CPU_LIMIT: Final = 300
"""Seconds of CPU for each begun GiB of the disk: compressing one takes about 30, but a header can make it take for ever."""
WALL_LIMIT: Final = 10 * CPU_LIMIT
"""Seconds that may pass for each begun GiB: what the image lacks here is fetched meanwhile."""
_SNAPSHOT: Final = "snapshot"
_NO_FILE: Final = frozenset({errno.ELOOP, errno.EXDEV, errno.EISDIR, errno.ENXIO, errno.ENOTDIR})
"""What opening a symlink, a mount, a directory for writing or a socket fails with."""

DiskFormat = Literal["qcow2", "raw"]


def create(state_direct: Path, instance_uuid: str, size: int, backing: Path, uid: int, gid: int, directory_mode: int, file_mode: int) -> Path:
    """Make the disk of an instance, durably and whole or not at all, and return its path.

    `size` is in bytes; `backing` is an absolute path, recorded as raw and not opened: it is served by this very process. Raises InvalidInput,
    NoSpace, ImagefsError; OSError, ENOTEMPTY if the instance has one.
    """
    if len(os.fsencode(backing)) > BACKING_LIMIT or not backing.is_absolute():
        raise InvalidInput(f"a direct disk over {backing}: that path cannot be recorded in qcow2: use a shorter mount point")
    state_direct.mkdir(mode=PASSAGE_MODE, exist_ok=True)
    for directory in (state_direct, state_direct.parent):
        directory.chmod(PASSAGE_MODE)
    with _unfinished(state_direct, instance_uuid) as directory:
        _make_qcow2(directory / DISK, size, uid, gid, file_mode, "-u", "-F", "raw", "-b", str(backing))
        sync_directory(directory)
        os.chown(directory, uid, gid)
        directory.chmod(stat.S_IMODE(directory_mode))
        directory.rename(state_direct / instance_uuid)
    sync_directory(state_direct)
    return state_direct / instance_uuid / DISK


def in_use(path: Path) -> bool:
    """Tell whether anybody has the disk open. What is not there, or is no file any more, nobody has."""
    try:
        with _disk(path) as descriptor:
            return _is_shared(descriptor)
    except BlockingIOError:  # somebody has a lease on it, and so has it open
        return True
    except (FileNotFoundError, ImageRefused):
        return False


def inspect(path: Path, backing: Path, size: int) -> Qcow2Header:
    """Return the header of the disk. Raises ImageRefused unless it is a sound qcow2 file of `size` bytes over `backing`, as raw; OSError."""
    with _disk(path) as descriptor:
        return _inspect(descriptor, path, backing, size)


def set_owner(state_direct: Path, instance_uuid: str, uid: int, gid: int, mode: int) -> None:
    """Give the disk's directory an owner, group and mode, and the disk the owner and group. Raises OSError, FileNotFoundError if there is none.

    A file that its owner has put in the disk's place, or that is lent to another user (libvirt does that while a guest runs), is left as it is.
    """
    with _opened(state_direct, instance_uuid, os.O_RDONLY | os.O_DIRECTORY) as directory:
        before = os.fstat(directory).st_uid
        try:
            disk = open_beneath(directory, DISK, os.O_RDONLY)
        except OSError as error:
            log.warning("a direct disk keeps its owner: it cannot be opened instance=%s error=%s", instance_uuid, error)
        else:
            with _descriptor(disk):
                found = os.fstat(disk)
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == before:
                    os.fchown(disk, uid, gid)
                else:
                    log.warning("a direct disk keeps its owner: it is not its instance's instance=%s uid=%s", instance_uuid, found.st_uid)
        os.fchown(directory, uid, gid)
        os.fchmod(directory, stat.S_IMODE(mode))


def delete(state_direct: Path, name: str) -> None:
    """Remove an entry of the directory of direct disks with all that is in it, durably; it is no error if it is not there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), _descriptor(os.open(state_direct, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        remove_beneath(directory, name)
        os.fsync(directory)


def make_target(disk: Path, size: int, uid: int, gid: int) -> Path:
    """Make an empty qcow2 file of `size` bytes that a disk is to be copied into by its owner, and return its path.

    It belongs to the owner, and its directory to root: it stays what it is. Raises NoSpace, ImagefsError, OSError.
    """
    with _unfinished(disk.parent.parent, disk.parent.name, keep=True) as directory:
        _make_qcow2(directory / _SNAPSHOT, size, uid, gid, 0o600)
        directory.chmod(PASSAGE_MODE)
    return directory / _SNAPSHOT


def remove_target(target: Path) -> None:
    """Remove what `make_target` made. Raises OSError."""
    delete(target.parent.parent, target.parent.name)


def inspect_target(target: Path, disk_format: DiskFormat, disk_size: int) -> int:
    """Take a copy of a disk of `disk_size` bytes that is complete from its owner and return its size in bytes as a file.

    Raises ImageRefused, also for a copy that is longer than any of that disk, Busy if somebody has it open, OSError.
    """
    with _disk(target) as descriptor:
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o600)
        if _is_shared(descriptor):
            raise Busy(f"the copy {target} is still open somewhere, and could change while it is stored: end the process that has it")
        size = os.fstat(descriptor).st_size
        shown = parse_header(os.pread(descriptor, HEADER_BYTES, 0), size, str(target)).size if disk_format == "qcow2" else size
        if shown != disk_size or size > _copy_limit(disk_size):
            raise ImageRefused(f"the copy {target} has {size} bytes and shows {shown}: it is not one of a disk of {disk_size} bytes")
        return size


def _copy_limit(size: int) -> int:
    """Return the bytes that a copy of a disk can have as a file: with qcow2's tables, and clusters that do not get smaller."""
    return size + size // 8 + GIB


def open_target(target: Path) -> BinaryIO:
    """Open a copy for reading; after `inspect_target`. Raises ImageRefused, OSError."""
    with _disk(target) as descriptor:
        return os.fdopen(os.dup(descriptor), "rb")


async def convert(
    path: Path, target: Path, disk_format: DiskFormat, uid: int, gid: int, *, backing: Path, size: int, groups: Iterable[int] = ()
) -> None:
    """Copy a disk that nobody has open into `target`, as `make_target` has made it, with the rights of that user and no other.

    `backing` and `size` are those that the disk was made with. Raises ImageRefused if the disk's header is not what it should be,
    ImagefsError with the reason if qemu-img fails or takes too long, InvalidInput if it is not installed, OSError.
    On cancellation the child is killed; the target is then for the caller to remove.
    """
    for tool, package in (("qemu-img", "qemu-utils"), ("prlimit", "util-linux")):
        find_tool([tool], package, f"disk {path}")
    seconds = WALL_LIMIT * (1 + size // GIB)
    with contextlib.ExitStack() as stack:
        source, written = await run(Lane.DISK, _open_both, stack, path, backing, size, target, disk_format)
        command = _convert_command(source, written, backing, disk_format, size)
        identity: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": list(groups)} if os.geteuid() == 0 else {}
        child = None
        with trio.move_on_after(seconds):
            child = await trio.run_process(
                command,
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                deliver_cancel=_kill,
                pass_fds=(source, written),
                env=ENVIRONMENT,
                cwd="/",
                **identity,
            )
    if child is None:
        raise ImagefsError(f"disk {path}: copying it did not end within {seconds} s: look whether the image's store answers")
    if child.returncode != 0:
        words = child.stderr.decode(errors="replace")
        for long, short in (*((word, "it") for word in command if word.startswith("driver=")), (f"/proc/self/fd/{source}", str(path))):
            words = words.replace(long, short)  # which would leave no room for the reason
        words = last_words(words).removeprefix("qemu-img: ")
        raise ImagefsError(f"disk {path}: copying it as user {uid} failed with status {child.returncode}: {words}")


def _open_both(stack: contextlib.ExitStack, path: Path, backing: Path, size: int, target: Path, disk_format: DiskFormat) -> tuple[int, int]:
    """Return descriptors of the disk and of the target, ready for each other, which `stack` closes."""
    source = stack.enter_context(_disk(path))
    _inspect(source, path, backing, size)
    written = stack.enter_context(_disk(target, os.O_RDWR))
    if disk_format == "raw":
        os.ftruncate(written, 0)
        os.ftruncate(written, size)
    return source, written


def _convert_command(source: int, written: int, backing: Path, disk_format: DiskFormat, size: int) -> list[str]:
    """Return the words of a qemu-img that copies one descriptor into another. The backing file is ours, whatever the header says by now."""
    name = str(backing).replace(",", ",,")
    seconds = CPU_LIMIT * (1 + size // GIB)
    return [
        *("prlimit", f"--as={MEMORY_LIMIT}", f"--cpu={seconds}", f"--fsize={_copy_limit(size)}", "--core=0"),
        *("qemu-img", "convert", "-q", "-n", "--target-is-zero", *(("-c",) if disk_format == "qcow2" else ())),
        "--image-opts",
        f"driver=qcow2,file.driver=file,file.filename=/proc/self/fd/{source},backing.driver=raw,backing.file.driver=file,backing.file.filename={name}",
        "--target-image-opts",
        f"driver={disk_format},file.driver=file,file.filename=/proc/self/fd/{written}",
    ]


async def _kill(process: trio.Process) -> None:
    process.kill()


def _make_qcow2(path: Path, size: int, uid: int, gid: int, mode: int, *options: str) -> None:
    """Make a qcow2 file in a directory of our own, durably."""
    tool = find_tool(["qemu-img"], "qemu-utils", f"direct disk {path}")
    run_tool([tool, "create", "-q", "-f", "qcow2", *options, str(path.absolute()), str(size)], f"direct disk {path}", CREATE_SECONDS)
    with _descriptor(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as descriptor:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _inspect(descriptor: int, path: Path, backing: Path, size: int) -> Qcow2Header:
    header = check_direct_header(os.pread(descriptor, HEADER_BYTES, 0), os.fstat(descriptor).st_size, str(backing), str(path))
    if header.size != size:
        raise ImageRefused(f"image {path}: its header says {header.size} bytes, and it was made with {size}: a direct disk cannot be resized")
    return header


@contextlib.contextmanager
def _unfinished(state_direct: Path, instance_uuid: str, *, keep: bool = False) -> Iterator[Path]:
    """Hold a new directory that only we get into; if an error comes, and unless it is to be kept or was renamed, it is removed."""
    directory = state_direct / f".{instance_uuid}.{secrets.token_hex(8)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    except BaseException:
        with contextlib.suppress(OSError):  # the next mount tries again
            delete(state_direct, directory.name)
        raise
    if not keep:
        delete(state_direct, directory.name)


@contextlib.contextmanager
def _descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened(directory: Path, name: str, flags: int) -> Iterator[int]:
    """Hold an entry of a directory that is ours."""
    with (
        _descriptor(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as above,
        _descriptor(open_beneath(above, name, flags)) as descriptor,
    ):
        yield descriptor


@contextlib.contextmanager
def _disk(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Hold the disk or target at `path`, whose directory is its owner's, and the one above it ours. Raises ImageRefused if it is no file; OSError."""
    refusal = f"disk {path}: its owner has put something else in its place: put it back"
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(_opened(path.parent.parent, path.parent.name, os.O_RDONLY | os.O_DIRECTORY))
            descriptor = stack.enter_context(_descriptor(open_beneath(directory, path.name, flags)))
        except OSError as error:
            if error.errno in _NO_FILE:
                raise ImageRefused(refusal) from None
            raise
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            raise ImageRefused(refusal)
        yield descriptor


_F_OFD_GETLK: Final = 36
_FLOCK: Final = struct.Struct("hh4xqqi4x")
_QEMU_LOCKS: Final = (100, 104)
"""Where QEMU has its locks: from byte 100 on what it does with a file, from 200 on what it lets nobody else do, one byte each."""


def _is_shared(descriptor: int) -> bool:
    """Tell whether the file is open elsewhere: the kernel gives a lease for writing only to who alone has it open.

    Where the filesystem has no leases, or they are not permitted, QEMU's own locks tell.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # who opens it just now breaks the lease, and SIGIO would end this process
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            return True
        return _is_locked(descriptor)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _is_locked(descriptor: int) -> bool:
    first, count = _QEMU_LOCKS
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    return int(_FLOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, asked))[0]) != fcntl.F_UNLCK
