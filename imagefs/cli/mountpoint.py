"""This module finds the mount that a command speaks of, and reads and explains what is in it through plain file operations."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from imagefs.cli.invocation import Invocation
from imagefs.errors import AlreadyExists, Busy, Denied, ImagefsError, InvalidInput, MountFailed, NoAttribute, NotFound, QuotaExceeded, ReadOnly

MOUNT_TABLE: Final = Path("/proc/self/mounts")
FILESYSTEM_TYPE: Final = b"fuse.imagefs"
REASON: Final = "user.imagefs.error"
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
_KINDS: Final = {
    errno.EEXIST: AlreadyExists, errno.ENOENT: NotFound, errno.EBUSY: Busy, errno.EACCES: Denied, errno.EPERM: Denied, errno.EINVAL: InvalidInput,
    errno.EDQUOT: QuotaExceeded, errno.ENODATA: NoAttribute, errno.EROFS: ReadOnly,
}  # fmt: skip


def parse_mounts(table: bytes) -> list[Path]:
    """Return the mount points of imagefs in a mount table such as /proc/self/mounts, the newest last.

    The kernel writes blanks and backslashes of names there as octal numbers.
    """
    rows = [line.split(b" ") for line in table.splitlines()]
    names = [_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), row[1]) for row in rows if len(row) > 2 and row[2] == FILESYSTEM_TYPE]
    return [Path(os.fsdecode(name)) for name in names]


def imagefs_mounts() -> list[Path]:
    """Return where imagefs is mounted now."""
    return parse_mounts(MOUNT_TABLE.read_bytes())


def find_mount(invocation: Invocation) -> Path:
    """Return the mount to work on: that of -m, else the configured one, else the only one there is.

    Raises NotFound if there is none, InvalidInput if there are several, MountFailed if its daemon is gone.
    """
    named = invocation.mountpoint or invocation.config.mount.mountpoint
    if named is not None:
        return _checked(named)
    found = imagefs_mounts()
    if not found:
        raise NotFound("no imagefs is mounted: mount one with imagefs mount MOUNTPOINT")
    if len(found) > 1:
        found = [mount for mount in found if not _is_closed(mount)] or found
    if len(found) > 1:
        raise InvalidInput(f"several imagefs are mounted: choose one with -m: {', '.join(map(str, found))}")
    return _checked(found[0])


def _is_closed(mount: Path) -> bool:
    """Tell whether the kernel does not let us in at all: the mount is another user's."""
    try:
        mount.stat()
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def _checked(mount: Path) -> Path:
    with explained(f"imagefs at {mount}", mount):
        is_mount = (mount / "instances").is_dir() and (mount / "images").is_dir()
    if not is_mount:
        raise NotFound(f"no imagefs is mounted at {mount}: mount it with imagefs mount {mount}")
    return mount


@contextlib.contextmanager
def explained(what: str, mount: Path, reason_of: Path | None = None) -> Iterator[None]:
    """Turn an OSError of a file operation on `mount` into an error that says what was being done and why it failed.

    `reason_of` is the object whose user.imagefs.error has the reason in words.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountFailed(f"the daemon behind {mount} is gone: run imagefs umount {mount}, then mount it again") from error
        reason = read_reason(reason_of) if reason_of is not None else None
        raise _KINDS.get(error.errno or 0, ImagefsError)(f"{what}: {reason or error.strerror}") from error


def read_reason(path: Path) -> str | None:
    """Return why the last operation on an object of the mount failed, if that is known."""
    try:
        return os.getxattr(path, REASON).decode(errors="replace").strip() or None
    except OSError:
        return None


def read_attribute(path: Path, name: str) -> str | None:
    """Return the value of `user.<name>`, None if there is none. Raises OSError for any other failure."""
    try:
        return _text(os.getxattr(path, f"user.{name}"))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def read_attributes(path: Path) -> dict[str, str]:
    """Return all `user.*` attributes by name without that prefix, but imagefs's own ones. Raises OSError."""
    names = [name.removeprefix("user.") for name in os.listxattr(path) if name.startswith("user.") and not name.startswith("user.imagefs.")]
    values = ((name, read_attribute(path, name)) for name in names)
    return {name: value for name, value in values if value is not None}


def names_in(directory: Path) -> list[str]:
    """Return the names in a directory, in any order. Raises OSError."""
    return [path.name for path in directory.iterdir()]


def check_part(name: str, kind: str) -> str:
    """Return `name` if it can be one part of a path; a name never leads elsewhere. Raises InvalidInput."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise InvalidInput(f"{name!r} cannot be the name of {kind}: it is one part of a path")
    return name


def refresh_mounts() -> None:
    """Ask every mounted imagefs to look at its store now, so that a new image is seen at once; one that cannot does so later."""
    for mount in imagefs_mounts():
        with contextlib.suppress(OSError):
            os.setxattr(mount, "user.imagefs.refresh", b"1")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
