"""This module takes the steps on the host's disk by which directories of disks come and go; all of it blocks."""

import errno
import logging
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from imagefs.errors import ImagefsError, NoSpace
from imagefs.overlay.key import shred_keys
from imagefs.sealed import sync_directory, write_durably

log = logging.getLogger(__name__)


def make_directory(directory: Path, record: str, body: bytes) -> None:
    """Make a directory with its record in a file of the name `record`, durably."""
    directory.mkdir(mode=0o700)
    write_durably(directory / record, body)
    sync_directory(directory.parent)


def never_completed(directory: Path, record: str) -> bool:
    """Tell whether a directory is what a broken `make_directory` leaves: no record, and nothing but unfinished ones."""
    if directory.is_symlink() or not directory.is_dir() or not _is_uuid(directory.name):
        return False
    return all(path.name.startswith(f".{record}.") for path in directory.iterdir())


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def remove_strays(directory: Path, record: str, stems: Iterable[str]) -> None:
    """Remove files that belong neither to the record nor to the disks whose overlay files are called `stems`: what broke off has left them.

    Keys go first, as with any disk. Directories are left alone, but for those whose names begin with a dot, which are of unfinished steps.
    """
    known = set(stems)
    strays = [path for path in directory.iterdir() if path.name != record and path.name.split(".")[0] not in known]
    shred_keys(strays)
    for path in strays:
        if path.name.startswith(".") and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def move_to_trash(directory: Path, doomed: Path) -> None:
    """Take a directory away, durably: from here on it does not come back."""
    directory.rename(doomed)
    sync_directory(directory.parent)
    sync_directory(doomed.parent)


def purge(directory: Path) -> None:
    """Remove all of a directory, the keys of encrypted disks first; what cannot be removed is logged."""
    try:
        shred_keys(directory.glob("*.key"))
        shutil.rmtree(directory)
    except OSError as error:
        log.error("deleted files could not be removed; the next mount tries again path=%s error=%s", directory, error)


def explained(error: BaseException, what: str) -> BaseException:
    """Turn a failure of the host's disk into one that says what it hindered; anything else stays as it is."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {error.strerror}: free some room in the state directory")
    return ImagefsError(f"{what}: {error.strerror}: look at the disk that the state directory is on")
