"""This module connects to a UNIX socket on behalf of a caller, whose right to it is checked first.

The daemon is root and the path is the caller's: without the check anybody could make the daemon talk to the sockets of others. A path may
lead elsewhere from one moment to the next, so the socket itself is held open, examined and connected to, and its path is used once.
"""

import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

import trio

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.threads import Lane, run

CONNECT_SECONDS: Final = 5.0
"""How long looking up the path and connecting may take: both are local, but the path may lie on a filesystem of the caller's that hangs."""
_RETRY_SECONDS: Final = 0.05
_CREDENTIALS: Final = struct.Struct("3i")


async def connect(path: Path, caller_uid: int, what: str) -> trio.SocketStream:
    """Return a connection to the socket at `path`, which must belong to the caller and be listened at by the caller's process.

    For root (`caller_uid` 0) any socket will do that is listened at by its owner or root. `what` names the socket in messages. Raises InvalidInput
    with the reason if it is not so, ImagefsError if nobody answers within CONNECT_SECONDS. Safe to cancel.
    """
    if not path.is_absolute():
        raise InvalidInput(f"{what} {path}: not an absolute path: begin it with /")
    try:
        with trio.fail_after(CONNECT_SECONDS):
            held, owner = await run(Lane.CALLER, _hold, path, caller_uid, what)
            try:
                return await _connect(held, path, caller_uid, owner, what)
            finally:
                held.close()
    except trio.TooSlowError:
        raise ImagefsError(
            f"{what} {path}: nobody took the connection within {CONNECT_SECONDS:.0f} s: is the process that listens there alive?"
        ) from None


class _Held:
    """A descriptor that is closed with its holder: a thread that was left to itself has nobody else to close what it opens."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Close it; once is enough."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    __del__ = close


def _hold(path: Path, caller_uid: int, what: str) -> tuple[_Held, int]:
    """Return the socket at `path`, held, and its owner. What a caller may not know, such as whether a path exists, is not told apart."""
    refusal = f"{what} {path}: there is no socket of user {caller_uid}: name one that QEMU was started with by the same user"
    try:
        held = _Held(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"{what} {path}: {reason}" if caller_uid == 0 else refusal) from None
    state = os.fstat(held.descriptor)
    if not stat.S_ISSOCK(state.st_mode):
        held.close()
        raise InvalidInput(f"{what} {path}: not a socket (and symlinks are not followed)" if caller_uid == 0 else refusal)
    if caller_uid not in (0, state.st_uid):
        held.close()
        raise InvalidInput(refusal)
    return held, state.st_uid


async def _connect(held: _Held, path: Path, caller_uid: int, owner: int, what: str) -> trio.SocketStream:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                connection.connect(f"/proc/self/fd/{held.descriptor}")
                break
            except BlockingIOError:  # its queue is full: a UNIX socket does not tell when there is room again
                await trio.sleep(_RETRY_SECONDS)
        peer = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
        if peer != caller_uid and not (caller_uid == 0 and peer == owner):
            raise InvalidInput(f"{what} {path}: user {peer} listens there, not user {caller_uid}: name a socket of your own")
        return trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    except OSError as error:
        connection.close()
        raise ImagefsError(f"{what} {path}: {error.strerror}: is QEMU running?") from error
    except BaseException:
        connection.close()
        raise
