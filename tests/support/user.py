"""This module runs system calls as another user: a process with that user's ids, which does what it is asked and tells the outcome.

It is forked, not started: the interpreter and the packages may lie where only root may read.
"""

import multiprocessing
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final


def _read(path: str) -> bytes:
    with Path(path).open("rb", buffering=0) as file:
        return file.read(64) or b""


def _read_all(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read()


def _open(path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def _stat(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return stat.S_IFMT(found.st_mode), found.st_size


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "access": os.access,
    "chmod": os.chmod,
    "getxattr": os.getxattr,
    "listdir": os.listdir,
    "listxattr": os.listxattr,
    "lookup": os.path.lexists,
    "mkdir": os.mkdir,
    "open": _open,
    "read": _read,
    "read_all": _read_all,
    "readlink": os.readlink,
    "removexattr": os.removexattr,
    "rmdir": os.rmdir,
    "setxattr": os.setxattr,
    "stat": _stat,
    "symlink": os.symlink,
    "unlink": os.unlink,
    "truncate": os.truncate,
}


class User:
    """A process of another user."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def call(self, name: str, *arguments: object) -> Any:
        """Make a call of CALLS and return what it returns. Raises OSError as the call did."""
        self._connection.send((name, arguments))
        number, value = self._connection.recv()
        if number is not None:
            raise OSError(number, os.strerror(number), str(arguments))
        return value

    def errno(self, name: str, *arguments: object) -> int:
        """Make a call and return its errno, 0 if it succeeds."""
        try:
            self.call(name, *arguments)
        except OSError as error:
            return error.errno or -1
        return 0


@contextmanager
def user(uid: int, gid: int, groups: tuple[int, ...] = ()) -> Iterator[User]:
    """Start a process with these ids, and end it."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_serve, args=(theirs, uid, gid, groups), daemon=True)
    process.start()
    theirs.close()
    try:
        yield User(ours)
    finally:
        ours.send(None)  # closing is not enough: processes that were forked later hold the other end too
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def _serve(connection: Connection, uid: int, gid: int, groups: tuple[int, ...]) -> None:
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    while True:
        request = connection.recv()
        if request is None:
            os._exit(0)
        name, arguments = request
        try:
            connection.send((None, CALLS[name](*arguments)))
        except OSError as error:
            connection.send((error.errno, None))


def open_the_way(directory: Path) -> None:
    """Let every user pass through a directory of a test and those above it, which pytest makes for its own user only."""
    for path in (directory, *directory.parents):
        if path.name.startswith("pytest-of") or path == path.parent or path.stat().st_uid != os.getuid() or path == Path("/tmp"):
            if path.name.startswith("pytest-of"):
                path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o711)
            break
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o711)
