"""This module shows an image's record as one flat list of names and values, as Glance's v2 API does, and as xattrs.

Core attributes and additional properties share the namespace. Values are text: booleans `true` and `false`, tags a JSON list.
"""

import dataclasses
import json
from typing import Final

from imagefs.store.record import ImageRecord

XATTR_NAME_LIMIT: Final = 255
"""Bytes of a Linux xattr's name, with its `user.` prefix."""
XATTR_VALUE_LIMIT: Final = 64 * 1024
XATTR_LIST_LIMIT: Final = 64 * 1024
"""Bytes that one listxattr(2) can return: all names, each with its NUL."""
RESERVED_PREFIX: Final = "imagefs."
CORE: Final = (
    "id",
    "name",
    "status",
    "visibility",
    "owner",
    "disk_format",
    "container_format",
    "size",
    "virtual_size",
    "min_disk",
    "min_ram",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "created_at",
    "updated_at",
    "protected",
    "os_hidden",
    "tags",
)


@dataclasses.dataclass(frozen=True, slots=True)
class XattrView:
    """The record as xattrs, and how many names did not fit Linux's limits."""

    xattrs: dict[str, bytes]
    omitted: int


def shown(record: ImageRecord) -> dict[str, str]:
    """Return all names and values; core attributes that the image does not have are left out. Core names come first."""
    values = {name: _text(value) for name in CORE if (value := getattr(record, name)) is not None}
    return values | {name: value for name, value in sorted(record.properties.items()) if name not in CORE}


def as_xattrs(record: ImageRecord) -> XattrView:
    """Return what getfattr shows; names and values beyond Linux's limits are left out, in a fixed order, and counted."""
    xattrs: dict[str, bytes] = {}
    omitted = listed = 0
    for name, value in shown(record).items():
        full, body = f"user.{name}", value.encode("utf-8", "surrogateescape")
        name_length = len(full.encode("utf-8", "surrogateescape"))
        fits = bool(name) and "\0" not in name and name_length <= XATTR_NAME_LIMIT and len(body) <= XATTR_VALUE_LIMIT
        # room is kept for the few user.imagefs.* names
        if not fits or name.startswith(RESERVED_PREFIX) or listed + name_length + 1 > XATTR_LIST_LIMIT - 1024:
            omitted += 1
            continue
        listed += name_length + 1
        xattrs[full] = body
    return XattrView(xattrs, omitted)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return json.dumps(list(value), ensure_ascii=False)
    return str(value)
