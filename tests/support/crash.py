"""This module breaks operations off at each call that changes a disk: the process ends there, or the call fails.

What ends a process keeps what it has written so far: the page cache is the kernel's. So this shows what kill -9 leaves, at every step and
not only where a signal happens to strike; of a loss of power it shows what it leaves of a host whose disk writes in order.

    for crash in crashes():
        state = a_fresh_state(tmp_path / str(crash.number))
        crash.run(lambda: the_operation(state))          # in a forked child; an async function is run by trio
        check(state, done=crash.completed)               # in the test itself: load what is there, as the next daemon would

    for fault in faults(errno.ENOSPC):
        state = a_fresh_state(tmp_path / str(fault.number))
        with fault:                                      # in this process; a fault that did not strike is the last one
            await the_operation(state)

Counted are the functions of `os` that change a disk, files opened for writing by `open` and what is written to them, the calls of an
overlay (imagefs.overlay.calls) and starts of other programs. What SQLite does, or a program that was started, is not seen.
"""

import builtins
import contextlib
import functools
import inspect
import io
import os
import subprocess
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import IO, Any, Final, Self, cast

import trio

from imagefs.overlay.calls import CALLS

LIMIT: Final = 2000
"""Calls after which an operation is taken for one that never ends."""
_COMPLETED, _CRASHED, _FAILED = 0, 71, 72
_CHANGING: Final = (
    "mkdir", "rmdir", "rename", "replace", "renames", "link", "symlink", "unlink", "remove", "mknod", "truncate", "ftruncate", "write", "writev",
    "pwrite", "pwritev", "fsync", "fdatasync", "sync", "posix_fallocate", "copy_file_range", "sendfile", "chmod", "fchmod", "chown", "fchown",
    "lchown", "setxattr", "removexattr", "utime", "posix_spawn",
)  # fmt: skip
_OVERLAY_READS: Final = frozenset({"pread", "preadv", "boot_id"})
_OPENING: Final = os.O_CREAT | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY

Strike = Callable[[str], None]
"""Called with what is about to be done, before it is; does not return, or raises, to keep it from being done."""


class Crash:
    """One attempt: the process ends before the call of this `number`, counted from 1. `completed` tells that there was no such call."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.completed = False
        self.before = "the operation was not run"
        """What was about to be done, for the messages of tests."""

    def __repr__(self) -> str:
        return "the whole operation" if self.completed else f"the end of the process at call {self.number}, {self.before}"

    def run(self, operation: Callable[[], object]) -> None:
        """Run the operation in a forked child. Raises AssertionError with the child's traceback if it fails in another way than by the crash."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = _FAILED
            try:
                os.close(reading)
                _run_until(operation, self.number, writing)
                status = _COMPLETED
            except BaseException:
                _tell(writing, traceback.format_exc())
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading, "rb") as said:
            self.before = said.read().decode()
        _, state = os.waitpid(child, 0)
        status = os.waitstatus_to_exitcode(state)
        if status not in (_COMPLETED, _CRASHED):
            raise AssertionError(f"the operation failed before call {self.number}: {status}\n{self.before}")
        self.completed = status == _COMPLETED


def crashes(limit: int = LIMIT) -> Iterator[Crash]:
    """Yield a Crash for each call that the operation makes, and one more that lets it complete. Raises AssertionError after `limit` calls."""
    for number in range(1, limit + 1):
        crash = Crash(number)
        yield crash
        if crash.completed:
            assert number > 1, "the operation changes nothing that is seen here"
            return
    raise AssertionError(f"the operation makes more than {limit} calls")


class Fault:
    """One attempt in which the call of this `number` raises OSError; those after it succeed. `struck` tells whether there was such a call."""

    def __init__(self, number: int, error_number: int, *, lasting: bool) -> None:
        self.number = number
        self.struck = False
        self.at = ""
        self._error_number = error_number
        self._lasting = lasting
        self._count = 0
        self._counting = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"errno {self._error_number} at call {self.number}, {self.at}" if self.struck else "the whole operation"

    def __enter__(self) -> Self:
        self._stack.enter_context(_counted(self._strike))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _strike(self, what: str) -> None:
        with self._counting:
            self._count += 1
            strikes = self._count >= self.number if self._lasting else self._count == self.number
            if strikes and not self.struck:
                self.struck, self.at = True, what
        if strikes:
            raise OSError(self._error_number, os.strerror(self._error_number))


def faults(error_number: int, *, lasting: bool = False, limit: int = LIMIT) -> Iterator[Fault]:
    """Yield a Fault for each call that the operation makes, and one more that does not strike. With `lasting` the calls after it fail too.

    Raises AssertionError after `limit` calls.
    """
    for number in range(1, limit + 1):
        fault = Fault(number, error_number, lasting=lasting)
        yield fault
        if not fault.struck:
            assert number > 1, "the operation changes nothing that is seen here"
            return
    raise AssertionError(f"the operation makes more than {limit} calls")


def _run_until(operation: Callable[[], object], number: int, writing: int) -> None:
    """Run the operation; end the process before the call of this number."""
    counting = threading.Lock()
    count = 0

    def strike(what: str) -> None:
        nonlocal count
        with counting:
            count += 1
            if count == number:
                _tell(writing, what)
                os._exit(_CRASHED)

    with _counted(strike):
        outcome = operation() if not inspect.iscoroutinefunction(operation) else None
        if inspect.iscoroutinefunction(operation):
            trio.run(operation)
        elif inspect.isawaitable(outcome):
            trio.run(_awaited, outcome)


async def _awaited(outcome: Awaitable[object]) -> None:
    await outcome


_real_write: Final = os.write
_real_open: Final = os.open
_real_io_open: Final = io.open


def _tell(writing: int, text: str) -> None:
    body = text.encode("utf-8", "replace")
    while body:
        body = body[_real_write(writing, body) :]


@contextlib.contextmanager
def _counted(strike: Strike) -> Iterator[None]:
    """Have `strike` called before each call that changes a disk."""
    with contextlib.ExitStack() as undo:
        wrapped: dict[object, Callable[..., Any]] = {}
        for name in _CHANGING:
            real = getattr(os, name)
            wrapped[real] = _wrap(real, name, strike)
            _put(undo, os, name, wrapped[real])
        _put(undo, os, "open", _opening(strike))
        opening = functools.partial(_open_file, strike)
        _put(undo, io, "open", opening)
        _put(undo, builtins, "open", opening)
        _put(undo, subprocess.Popen, "_execute_child", _starting(strike))
        for name in CALLS.__dataclass_fields__:
            if name not in _OVERLAY_READS:
                real = getattr(CALLS, name)
                undo.callback(object.__setattr__, CALLS, name, real)
                object.__setattr__(CALLS, name, wrapped.get(real) or _wrap(real, name, strike))
        yield


def _put(undo: contextlib.ExitStack, owner: object, name: str, value: object) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _wrap(real: Callable[..., Any], name: str, strike: Strike) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*arguments: Any, **options: Any) -> Any:
        strike(f"{name}{_shown(arguments)}")
        return real(*arguments, **options)

    return call


def _opening(strike: Strike) -> Callable[..., int]:
    @functools.wraps(os.open)
    def call(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & _OPENING:
            strike(f"open{_shown((path,))} to make it")
        return _real_open(path, flags, *arguments, **options)

    return call


def _starting(strike: Strike) -> Callable[..., Any]:
    real = cast("Any", subprocess.Popen)._execute_child

    @functools.wraps(real)
    def call(self: Any, command: Any, *arguments: Any, **options: Any) -> Any:
        strike(f"start of {command}")
        return real(self, command, *arguments, **options)

    return call


class _CountedFile(io.FileIO):
    """A file whose writes are counted; buffers on top of it write through it."""

    strike: Strike

    def write(self, body: Any) -> int:
        self.strike(f"write of {len(body)} bytes to {self.name}")
        return super().write(body)

    def truncate(self, size: int | None = None) -> int:
        self.strike(f"truncate of {self.name}")
        return super().truncate(size)


def _open_file(
    strike: Strike,
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> IO[Any]:
    """Open a file as `open` does; one that may be written is of the counted kind."""
    if not set(mode) & set("wax+"):
        return _real_io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if not isinstance(file, int):
        strike(f"open({file}, {mode})")
    raw = _CountedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    raw.strike = strike
    if buffering == 0:
        return cast("IO[Any]", raw)
    binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return cast("IO[Any]", binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, line_buffering=buffering == 1))


def _shown(arguments: tuple[Any, ...]) -> str:
    return f"({', '.join(_short(one) for one in arguments)})"


def _short(argument: Any) -> str:
    return f"<{len(argument)} bytes>" if isinstance(argument, bytes | bytearray | memoryview) else str(argument)
