"""This module reads a file of rules, whole or not at all: an error of the file system never reads as `no rules`."""

import os
import stat
from pathlib import Path
from typing import Final

from imagefs.errors import InvalidInput

SIZE_LIMIT: Final = 1 << 20
"""Bytes; a thousand times what such a file has."""


def read_rules(path: Path, kind: str) -> bytes:
    """Return the bytes of a file of rules; raises InvalidInput that names the file, which is a `kind`, and says why it cannot be used."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"{kind} {path}: it is not a regular file: name one that is")
            body = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise InvalidInput(f"{kind} {path}: there is no such file: correct its name in the configuration, or make it") from None
    except IsADirectoryError:
        raise InvalidInput(f"{kind} {path}: it is a directory: name the file itself") from None
    except OSError as error:
        raise InvalidInput(f"{kind} {path}: it cannot be read ({error.strerror}): let the user that imagefs runs as read it") from None
    if len(body) > SIZE_LIMIT:
        raise InvalidInput(f"{kind} {path}: it has more than {SIZE_LIMIT} bytes, which is too much for a file of rules: name another one")
    return body


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # otherwise a FIFO would stop the mount until somebody writes to it
