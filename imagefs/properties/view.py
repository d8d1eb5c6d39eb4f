"""This module shows an image's record as one flat list of names and values, as Glance's v2 API does: as text, as xattrs and as JSON.

Core attributes and additional properties share the namespace. Values are text: booleans `true` and `false`, tags a JSON list. Which
properties a caller may read is decided elsewhere (`access`): here they are given.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Final

import msgspec

from imagefs.properties.core import CORE, HIDDEN, OWN_PREFIX
from imagefs.store.record import ImageRecord

XATTR_NAME_LIMIT: Final = 255
"""Bytes of a Linux xattr's name, with its `user.` prefix."""
XATTR_VALUE_LIMIT: Final = 64 * 1024
XATTR_LIST_LIMIT: Final = 64 * 1024
"""Bytes that one listxattr(2) can return: all names, each with its NUL."""
_NOT_SHOWN: Final = frozenset(CORE) | HIDDEN


@dataclasses.dataclass(frozen=True, slots=True)
class XattrView:
    """The record as xattrs, and how many names did not fit Linux's limits."""

    xattrs: dict[str, bytes]
    omitted: int


def shown(record: ImageRecord, properties: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return all names and values; core attributes that the image does not have are left out. Core names come first.

    `properties` are the additional properties that may be shown; by default all, for who reads the store itself.
    """
    values = {name: _text(value) for name in CORE if (value := getattr(record, name)) is not None}
    return values | _sorted(record.properties if properties is None else properties)


def as_xattrs(record: ImageRecord, readable: Mapping[str, str]) -> XattrView:
    """Return what getfattr shows; names and values beyond Linux's limits are left out, in a fixed order, and counted.

    `readable` are the additional properties that the caller may read; others are not counted either.
    """
    xattrs: dict[str, bytes] = {}
    omitted = listed = 0
    for name, value in shown(record, readable).items():
        body, length = _encoded(value), _fitting_length(name)
        # room is kept for the few user.imagefs.* names
        if length is None or body is None or len(body) > XATTR_VALUE_LIMIT or listed + length > XATTR_LIST_LIMIT - 1024:
            omitted += 1
        else:
            listed += length
            xattrs[f"user.{name}"] = body
    return XattrView(xattrs, omitted)


def listing_line(record: ImageRecord, readable: Mapping[str, str], listed: bool, member_status: str | None) -> bytes:
    """Return the image as one line of JSON with its newline: core attributes with Glance's types, then the readable properties.

    Null attributes are left out. `imagefs.listed` tells whether the caller's default listing has the image, or would if it were not hidden, and
    `imagefs.member_status` is the status of its project's membership, if it has one; properties cannot forge them. Text that is not
    UTF-8 has U+FFFD for what JSON cannot represent.
    """
    line: dict[str, object] = {name: value for name in CORE if (value := getattr(record, name)) is not None}
    line |= {name: value for name, value in _sorted(readable).items() if not name.startswith(OWN_PREFIX)}
    line[f"{OWN_PREFIX}listed"] = listed
    if member_status is not None:
        line[f"{OWN_PREFIX}member_status"] = member_status
    try:
        body = msgspec.json.encode(line)
    except UnicodeEncodeError:
        body = msgspec.json.encode({_representable(name): _cleaned(value) for name, value in line.items()})
    return body + b"\n"


def _sorted(properties: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in sorted(properties.items()) if name not in _NOT_SHOWN}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return str(value)


def _fitting_length(name: str) -> int | None:
    """Return how many bytes a list of xattrs takes for the name, with its NUL; None if it cannot be an xattr of a property's."""
    full = _encoded(f"user.{name}")
    if full is None or not name or "\0" in name or name.startswith(OWN_PREFIX) or len(full) > XATTR_NAME_LIMIT:
        return None
    return len(full) + 1


def _encoded(text: str) -> bytes | None:
    """Return the bytes that the text stands for, those included that were not UTF-8; None if there are none."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def _cleaned(value: object) -> object:
    if isinstance(value, str):
        return _representable(value)
    return tuple(map(_cleaned, value)) if isinstance(value, tuple) else value


def _representable(text: str) -> str:
    """Return the text with U+FFFD for each byte of a surrogate."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
