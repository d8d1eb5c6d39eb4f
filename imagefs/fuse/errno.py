"""This module is the one table from errors to errno, and the one guard around all handlers.

With pyfuse3 any exception but FUSEError ends the main loop and with it the mount of every guest: `guarded` lets none out.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from imagefs import errors
from imagefs.counters import COUNTERS

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

ERRNO: Final[dict[type[errors.ImagefsError], int]] = {
    errors.NotFound: errno.ENOENT,
    errors.AlreadyExists: errno.EEXIST,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.Denied: errno.EACCES,
    errors.NotPermitted: errno.EPERM,
    errors.ReadOnly: errno.EROFS,
    errors.InvalidInput: errno.EINVAL,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.Busy: errno.EBUSY,
    errors.LayerFrozen: errno.EIO,  # a disk writes again to the layer above: no caller sees this one
    errors.NoSpace: errno.ENOSPC,
    errors.QuotaExceeded: errno.EDQUOT,
    errors.NoAttribute: errno.ENODATA,
    errors.Unsupported: errno.EOPNOTSUPP,
    errors.ImageRefused: errno.EIO,
    errors.StateDamaged: errno.EIO,
    errors.StoreError: errno.EIO,
    errors.ImagefsError: errno.EIO,
}
_QUIET: Final = frozenset({errno.ENOENT, errno.ENODATA, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EOPNOTSUPP})
"""What callers cause by asking; worth no line in the log."""
_PASSED_ON: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What the host's disk may say that means the same to a guest; all else is EIO."""


def errno_of(error: BaseException) -> int:
    """Return the errno of an error: by its class or the nearest parent in the table; EIO for what is not in it."""
    for kind in type(error).__mro__:
        if (found := ERRNO.get(kind)) is not None:
            return found
    if isinstance(error, OSError) and error.errno in _PASSED_ON:
        return error.errno
    return errno.EIO


def guarded(handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Wrap a handler so that it raises FUSEError only; what nobody foresaw is logged with its traceback and answered EIO."""

    @functools.wraps(handler)
    async def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except (pyfuse3.FUSEError, trio.Cancelled):
            raise
        except Exception as error:
            number = errno_of(error)
            if not isinstance(error, errors.ImagefsError | OSError):
                COUNTERS.handler_errors += 1
                log.exception("a request failed for a reason nobody foresaw request=%s", handler.__name__)
            elif number not in _QUIET:
                log.warning("a request failed request=%s errno=%s reason=%s", handler.__name__, errno.errorcode.get(number, number), error)
            raise pyfuse3.FUSEError(number) from None

    return wrapped
