"""This module reads the values of configuration keys: each function takes what TOML gave and returns what imagefs uses.

All raise InvalidInput with what is wrong and what to write instead; the caller knows the key.
"""

import dataclasses
import grp
import ipaddress
import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from imagefs.errors import InvalidInput
from imagefs.units import MIB, parse_size

SIZE_LIMIT: Final = 2**62
"""Bytes; no file system goes beyond."""
ID_LIMIT: Final = 2**32 - 2
"""The largest uid or gid: the one above it says "none" to the kernel."""
_MODE_TEXT: Final = re.compile(r"0?[0-3]?[0-7]{3}")
_MODE_NUMBER: Final = re.compile(r"[0-3]?7[0-7]{2}")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*%")


@dataclasses.dataclass(frozen=True, slots=True)
class FreeSpaceFloor:
    """How much of a file system the cache leaves free: a fraction of its size (0 to 1), or bytes. One of the two is 0."""

    fraction: float = 0.0
    size: int = 0


def read_text(value: object) -> str:
    """Return a text that is not empty and has no control characters."""
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InvalidInput(f"{seen(value)} is not a text of printable characters in quotes")
    return value


def read_boolean(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{seen(value)} is neither true nor false")
    return value


def read_choice(*choices: str) -> Callable[[object], str]:
    """Return a reader of one word out of `choices`."""

    def read(value: object) -> str:
        if value not in choices:
            raise InvalidInput(f"{seen(value)} is not one of {', '.join(choices)}")
        return str(value)

    return read


def read_number(smallest: int, largest: int) -> Callable[[object], int]:
    """Return a reader of whole numbers within bounds, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise InvalidInput(f"{seen(value)} is not a whole number from {smallest} to {largest}")
        return value

    return read


def read_size(*, zero: bool) -> Callable[[object], int]:
    """Return a reader of sizes in bytes, at least 1 MiB; or 0, if `zero` means something. A bare number is refused: of what?"""

    def read(value: object) -> int:
        if zero and value == 0 and not isinstance(value, bool):
            return 0
        size = _size(value)
        if zero and size == 0:
            return 0
        if size < MIB:
            raise InvalidInput(f"{seen(value)} is too small: write 1MiB or more{', or 0 for none' if zero else ''}")
        return size

    return read


def read_floor(value: object) -> FreeSpaceFloor:
    """Return a share in percent ("5%"), or a size."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())) is not None:
        if float(match[1]) >= 100:
            raise InvalidInput(f"{seen(value)} would leave nothing: write less than 100%")
        return FreeSpaceFloor(fraction=float(match[1]) / 100)
    return FreeSpaceFloor(size=_size(value))


def read_path(value: object) -> Path:
    """Return an absolute path."""
    text = read_text(value)
    if not text.startswith("/"):
        raise InvalidInput(f"'{text}' is not an absolute path: begin it with /")
    return Path(os.path.normpath(text))


def read_path_text(value: object) -> str:
    """Return an absolute path as text."""
    return str(read_path(value))


def read_file(value: object) -> Path | None:
    """Return the path of a file; a relative one is for the caller to complete. None for an empty text: no file, as in Glance."""
    return None if value == "" else Path(read_text(value))


def read_list(value: object, read: Callable[[object], str]) -> tuple[str, ...]:
    """Return a list's items as `read` gives them, each of them once, in order. All mistakes of its items are told at once."""
    if not isinstance(value, list):
        raise InvalidInput(f"{seen(value)} is not a list: put square brackets around it")
    items: list[str] = []
    mistakes: list[str] = []
    for item in value:
        try:
            items.append(read(item))
        except InvalidInput as error:
            mistakes.append(str(error))
    if mistakes:
        raise InvalidInput("; ".join(mistakes))
    return tuple(dict.fromkeys(items))


def read_roles(value: object) -> tuple[str, ...]:
    """Return a list of roles in lower case, as Glance's context has them, each of them once."""
    return read_list(value, _read_role)


def _read_role(value: object) -> str:
    if value == "":  # what Glance makes of two commas side by side: rules may list it
        return ""
    role = read_text(value).strip().lower()
    if not role or "," in role:  # no token could hold such a role: Glance gets them separated by commas and strips them
        raise InvalidInput(f"{seen(value)} is not a role: write each as a text of its own, without commas")
    return role


def read_projects(value: object) -> tuple[str, ...]:
    """Return a list of project ids, each of them once. Ids are told apart by case, as in Keystone."""
    return read_list(value, read_text)


def read_id(value: object) -> int:
    """Return a uid or gid."""
    return int(read_number(0, ID_LIMIT)(value))


def read_address(value: object) -> str:
    """Return an IP address of this host, as text."""
    text = read_text(value)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidInput(f"'{text}' is not an IP address: write one of this host's, such as 10.0.2.5") from None


def read_listen(value: object) -> str:
    """Return "HOST:PORT"; an IPv6 host stands in brackets."""
    text = read_text(value)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise InvalidInput(f"'{text}' is not an address to listen at: write HOST:PORT, such as 127.0.0.1:9180")
    return text


def read_user(value: object) -> str:
    """Return the name of a user of this host."""
    text = read_text(value)
    try:
        return pwd.getpwnam(text).pw_name
    except KeyError:
        raise InvalidInput(f"there is no user '{text}' on this host") from None


def read_group(value: object) -> str:
    """Return the name of a group of this host."""
    text = read_text(value)
    try:
        return grp.getgrnam(text).gr_name
    except KeyError:
        raise InvalidInput(f"there is no group '{text}' on this host") from None


def read_mode(value: object) -> int:
    """Return permission bits written in octal: "1777", or the same digits as a number.

    TOML turns 0o1777 into 1023, which cannot be told from a number typed as such; so a number counts only if its digits are a
    mode that anybody would give a directory: with all bits for its owner. No other way to write one of those looks like that.
    """
    if isinstance(value, str) and _MODE_TEXT.fullmatch(value) is not None:
        return int(value, 8)
    if isinstance(value, int) and not isinstance(value, bool) and _MODE_NUMBER.fullmatch(str(value)) is not None:
        return int(str(value), 8)
    raise InvalidInput(f'{seen(value)} is not a mode: write its octal digits in quotes, such as "0755" or "1777"')


def _size(value: object) -> int:
    if not isinstance(value, str):
        raise InvalidInput(f'{seen(value)} is not a size: write a number and a unit in quotes, such as "50GiB"')
    size = parse_size(value)
    if size > SIZE_LIMIT:
        raise InvalidInput(f"{seen(value)} is too large")
    return size


def seen(value: object) -> str:
    """Return a value as it looks in TOML, cut if it is long."""
    kinds: dict[type, str] = {str: f"'{value}'", dict: "a table", list: "a list"}
    text = kinds.get(type(value), str(value))
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= 80 else f"{text[:76]}...'"
