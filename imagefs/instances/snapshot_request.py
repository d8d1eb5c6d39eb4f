"""This module is the request for a snapshot, and the reading of it: the JSON that is written to user.imagefs.snapshot."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from imagefs.errors import InvalidInput
from imagefs.properties.core import VALUE_LIMIT, check_property_quota, check_text, is_reserved, is_text

_SUBJECT: Final = "user.imagefs.snapshot"
_PATH_LIMIT: Final = 4095
"""Bytes of a path that Linux takes."""

OWN: Final = frozenset(
    {
        "instance_uuid",
        "user_id",
        "image_type",
        "base_image_ref",
        "owner_user_name",
        "owner_project_name",
        "boot_roles",
        "image_location",
        "image_state",
        "owner_id",
    }
)
"""Properties that every snapshot has of itself, as Nova's have: a request cannot say otherwise."""


class SnapshotRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot is asked to be. `qmp` and `agent` are paths of sockets of the guest's QEMU: a direct disk's snapshot goes through the
    one, and the other freezes the guest's filesystems. `allow_plain`: that of an encrypted disk may be stored as plain bytes.
    """

    name: str
    disk_format: Literal["qcow2", "raw"] = "qcow2"
    visibility: Literal["private", "shared", "community", "public"] = "private"
    properties: dict[str, str] = {}
    qmp: str | None = None
    agent: str | None = None
    allow_plain: bool = False


def parse_request(value: bytes) -> SnapshotRequest:
    """Return the request that the JSON object `value` is. Raises InvalidInput with the key that is wrong, QuotaExceeded."""
    try:
        request = msgspec.json.decode(value, type=SnapshotRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f'{_SUBJECT}: {error}: write a JSON object such as {{"name": "web1-before"}}') from None
    check_text(request.name, f"the name of an image ({_SUBJECT}: name)")
    _check_properties(request.properties)
    for key, path in (("qmp", request.qmp), ("agent", request.agent)):
        if path is not None and not (path.startswith("/") and is_text(path) and len(path.encode()) <= _PATH_LIMIT):
            raise InvalidInput(f"{_SUBJECT}: {key}: '{path[:80]}' is not the absolute path of a socket")
    return request


def _check_properties(properties: Mapping[str, str]) -> None:
    """Raise InvalidInput for a name or value that no property can have, QuotaExceeded for too many."""
    for name, value in properties.items():
        check_text(name, f"a property's name ({_SUBJECT}: properties)")
        if is_reserved(name):
            raise InvalidInput(f"{_SUBJECT}: properties: '{name}' is not a property: Glance or imagefs gives the name a meaning of its own")
        if name in OWN:
            raise InvalidInput(f"{_SUBJECT}: properties: '{name}' says where a snapshot comes from and cannot be chosen: leave it out")
        if not is_text(value) or len(value.encode()) > VALUE_LIMIT:
            raise InvalidInput(f"{_SUBJECT}: properties: the value of '{name}' is not UTF-8 without NUL of {VALUE_LIMIT} bytes at most")
    check_property_quota(properties, f"{_SUBJECT}: properties")
