"""This module takes the steps on the host's disk by which instances come and go; all of it blocks."""

import errno
import logging
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from imagefs.errors import ImagefsError, NoSpace
from imagefs.instances.record import RECORD, DiskRecord, InstanceRecord, encode
from imagefs.overlay.disk import OverlayDisk
from imagefs.sealed import sync_directory, write_durably

log = logging.getLogger(__name__)


def make_directory(directory: Path, record: InstanceRecord) -> None:
    """Make an instance's directory with its record, durably."""
    directory.mkdir(mode=0o700)
    write_durably(directory / RECORD, encode(record))
    sync_directory(directory.parent)


def make_disks(directory: Path, disks: Iterable[DiskRecord], base_identity: str) -> None:
    """Make the files of all disks; vda shows the base."""
    for disk in disks:
        OverlayDisk.create(directory, disk.name, disk.size, base_identity if disk.name == "vda" else "")


def never_completed(directory: Path) -> bool:
    """Tell whether a directory is what a broken `make_directory` leaves: no record, and nothing but unfinished ones."""
    if directory.is_symlink() or not directory.is_dir() or not _is_uuid(directory.name):
        return False
    return all(path.name.startswith(f".{RECORD}.") for path in directory.iterdir())


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def remove_strays(directory: Path, record: InstanceRecord) -> None:
    """Remove files that belong to no disk of the record: what a creation that broke off has left."""
    known = {disk.name for disk in record.disks}
    for path in directory.iterdir():
        if path.name != RECORD and path.name.split(".")[0] not in known:
            path.unlink()


def move_to_trash(directory: Path, doomed: Path) -> None:
    """Take an instance away, durably: from here on it does not come back."""
    directory.rename(doomed)
    sync_directory(directory.parent)
    sync_directory(doomed.parent)


def purge(directory: Path) -> None:
    """Remove all of a directory; what cannot be removed is logged."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        log.error("a deleted instance's files could not be removed; the next mount tries again path=%s error=%s", directory, error)


def explained(error: BaseException, what: str) -> BaseException:
    """Turn a failure of the host's disk into one that says what it hindered; anything else stays as it is."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {error.strerror}: free some room in the state directory")
    return ImagefsError(f"{what}: {error.strerror}: look at the disk that the state directory is on")
