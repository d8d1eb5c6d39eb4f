"""This module opens and removes what lies in a directory that belongs to somebody who must not be trusted.

Its owner may put a symlink, a pipe, a hard link or a mount of its own in the place of a file at any moment. So a file is opened once, by
one component of a name and without following anything, examined by its descriptor, and used through that.
"""

import ctypes
import errno
import os
import secrets
import struct
from typing import Final

_SYS_OPENAT2: Final = 437
"""The same on all architectures; Linux 5.6 and later."""
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_HOW: Final = struct.Struct("<QQQ")
_PASSES: Final = 100_000
"""How deep the directories that are removed may lie in each other, with those that their owner goes on making."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def open_beneath(directory: int, name: str, flags: int) -> int:
    """Return a descriptor of an entry that is there, opened without waiting; `directory` is a descriptor and `name` one component.

    Raises OSError: ELOOP for a symlink, EXDEV if something is mounted there, which is not touched, EAGAIN if its owner has a lease on it.
    """
    _check_name(name)
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    how = ctypes.create_string_buffer(_HOW.pack(flags, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH), _HOW.size)
    error = errno.EINTR
    while error == errno.EINTR:
        number = _syscall(_SYS_OPENAT2, directory, os.fsencode(name), how, ctypes.c_size_t(_HOW.size))
        if number >= 0:
            return int(number)
        error = ctypes.get_errno()
    if error in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container whose filter does not know the call
        return os.open(name, flags, dir_fd=directory)
    raise OSError(error, os.strerror(error), name)


def remove_beneath(directory: int, name: str) -> None:
    """Remove an entry and, if it is a directory, all that is in it; nothing is followed, and depth does not matter. Blocks.

    Its owner is locked out first. Raises OSError: FileNotFoundError if there is no entry, EXDEV or EBUSY if something is mounted in it.
    """
    _check_name(name)
    if not _removed_as_file(directory, name):
        doomed = open_beneath(directory, name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock_out(doomed)
            _empty(doomed)
        finally:
            os.close(doomed)
        os.rmdir(name, dir_fd=directory)


def _check_name(name: str) -> None:
    if not name or "/" in name or name in {".", ".."}:
        raise OSError(errno.EINVAL, "not a name in a directory", name)


def _removed_as_file(directory: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _lock_out(descriptor: int) -> None:
    """Take a directory from its owner: from here on nobody else makes entries in it."""
    os.fchown(descriptor, os.geteuid(), os.getegid())
    os.fchmod(descriptor, 0o700)


def _empty(top: int) -> None:
    """Remove all entries. What is in a directory is moved up and not gone into: nested ones could be deeper than any path or stack."""
    for _ in range(_PASSES):
        names = _names(top)
        if not names:
            return
        for name in names:
            if _removed_as_file(top, name):
                continue
            nested = open_beneath(top, name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock_out(nested)
                for entry in _names(nested):
                    if not _removed_as_file(nested, entry):
                        os.rename(entry, f".{secrets.token_hex(8)}", src_dir_fd=nested, dst_dir_fd=top)
            finally:
                os.close(nested)
            os.rmdir(name, dir_fd=top)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
