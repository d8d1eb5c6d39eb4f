"""Tests of the table from errors to errno, and of the guard around handlers."""

import errno
import inspect
import logging

import pyfuse3
import pytest

from imagefs import errors
from imagefs.fuse.errno import ERRNO, errno_of, guarded
from imagefs.fuse.operations import Operations

ALL_ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ImagefsError)]
UNGUARDED = {"init", "stacktrace", "poll", "forget", "flush", "fsyncdir"}
"""Handlers that do nothing, or that are pyfuse3's own."""


def test_every_error_has_an_errno_of_its_own_or_its_parents() -> None:
    """No error falls through to the table's root, but for the root itself."""
    for kind in ALL_ERRORS:
        nearest = next(parent for parent in kind.__mro__ if parent in ERRNO)
        assert nearest is not errors.ImagefsError or kind in (errors.ImagefsError, errors.MountFailed), kind


def test_unforeseen_exception_is_eio() -> None:
    """What the table does not know is EIO; a full host disk stays ENOSPC."""
    assert errno_of(ValueError("bug")) == errno.EIO
    assert errno_of(OSError(errno.ENOSPC, "full")) == errno.ENOSPC
    assert errno_of(OSError(errno.EMFILE, "too many")) == errno.EIO
    assert errno_of(errors.VersionChanged("x")) == errno.EIO


def test_every_handler_is_guarded() -> None:
    """Each handler that this class has is wrapped, or does nothing that could fail."""
    own = {name for name, member in vars(Operations).items() if inspect.iscoroutinefunction(member) and not name.startswith("_")}
    overridable = {name for name, member in vars(pyfuse3.Operations).items() if callable(member) and not name.startswith("_")}
    assert own <= overridable
    for name in own - UNGUARDED:
        assert hasattr(vars(Operations)[name], "__wrapped__"), name


async def test_guard_turns_a_bug_into_eio(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a handler is logged with its traceback and answered EIO; a FUSEError passes."""

    class Handlers:
        @guarded
        async def broken(self) -> None:
            raise KeyError("bug")

        @guarded
        async def refused(self) -> None:
            raise pyfuse3.FUSEError(errno.EXDEV)

    with caplog.at_level(logging.ERROR), pytest.raises(pyfuse3.FUSEError) as caught:
        await Handlers().broken()
    assert caught.value.errno == errno.EIO
    assert "KeyError" in caplog.text
    with pytest.raises(pyfuse3.FUSEError) as passed:
        await Handlers().refused()
    assert passed.value.errno == errno.EXDEV
