"""This module is the table of an image's core attributes: their names, which of them are written and what may be written to them.

All other names are additional properties, in the same namespace, except those that are reserved. Limits and reserved names are
those of Glance 33 (its image schema, its database and its default quotas).
"""

import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from imagefs.errors import InvalidInput, QuotaExceeded
from imagefs.store.record import VISIBILITIES

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
"""Names of attributes that every image may have, in the order in which they are shown."""
RESERVED: Final = frozenset({*CORE, "location", "locations", "deleted", "deleted_at", "direct_url", "self", "file", "schema"})
"""Names that Glance gives a meaning of their own; they cannot be properties."""
OWN_PREFIX: Final = "imagefs."
"""Names that imagefs gives a meaning of its own; they are never stored."""
GLANCE_PREFIX: Final = "os_glance"
"""Properties that Glance writes for itself; they do not count against the quota."""
RESERVED_PREFIXES: Final = (GLANCE_PREFIX, OWN_PREFIX)
HIDDEN: Final = frozenset({"os_glance_stage_host", "os_glance_hash_op_host"})
"""Properties that Glance stores and shows to nobody."""

TEXT_LIMIT: Final = 255
"""Characters of an image's name, of a property's name, of a tag and of a project, as in Glance's database."""
VALUE_LIMIT: Final = 64 * 1024
"""Bytes of a property's value: what a Linux extended attribute and MySQL's TEXT hold."""
NUMBER_LIMIT: Final = 2**31 - 1
"""The largest min_disk (GiB) and min_ram (MiB): they are INTEGER in Glance's database."""
PROPERTY_LIMIT: Final = 128
TAG_LIMIT: Final = 128
MEMBER_LIMIT: Final = 128
"""Glance's default quotas."""

_NUMBER: Final = re.compile(r"[0-9]{1,10}")


def is_reserved(name: str) -> bool:
    """Tell whether the name cannot be that of a property. The names of core attributes are reserved too."""
    return name in RESERVED or name.startswith(RESERVED_PREFIXES)


def is_text(text: str) -> bool:
    """Tell whether the text is UTF-8 without NUL: bytes that are not UTF-8 come from the kernel and the shell as surrogates."""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, what: str) -> str:
    """Return the text if it has 1 to TEXT_LIMIT characters of UTF-8. Raises InvalidInput saying what it cannot be."""
    if not text or len(text) > TEXT_LIMIT or not is_text(text):
        raise InvalidInput(f"{text[:40]!r} cannot be {what}: it has 1 to {TEXT_LIMIT} characters of UTF-8")
    return text


def parse_text(value: bytes, subject: str) -> str:
    """Return an attribute's value as text. Raises InvalidInput if it is not UTF-8, has a NUL or more than VALUE_LIMIT bytes.

    `subject` is what is being written, for the message.
    """
    if len(value) > VALUE_LIMIT:
        raise InvalidInput(f"{subject}: the value has {len(value)} bytes, more than {VALUE_LIMIT}")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{subject}: the value is not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise InvalidInput(f"{subject}: the value has a NUL at character {text.index(chr(0))}")
    return text


def parse_core(name: str, value: bytes, subject: str) -> object:
    """Return what `value` means for a core attribute in WRITABLE; a newline at its end, as `echo` writes it, does not count.

    Raises InvalidInput, and QuotaExceeded for too many tags.
    """
    return WRITABLE[name](parse_text(value, subject).removesuffix("\n"), subject)


def check_property_quota(names: Collection[str], subject: str) -> None:
    """Raise QuotaExceeded if these are more properties than an image may have. Those that Glance writes for itself do not count."""
    count = sum(not name.startswith(GLANCE_PREFIX) for name in names)
    if count > PROPERTY_LIMIT:
        raise QuotaExceeded(f"{subject}: an image has at most {PROPERTY_LIMIT} properties, those that are not shown included: remove another first")


def check_tag_quota(tags: Collection[str], subject: str) -> None:
    """Raise QuotaExceeded if these are more tags than an image may have."""
    if len(tags) > TAG_LIMIT:
        raise QuotaExceeded(f"{subject}: {len(tags)} tags are more than {TAG_LIMIT}")


def _name(text: str, subject: str) -> str:
    if len(text) > TEXT_LIMIT:
        raise InvalidInput(f"{subject}: {len(text)} characters are more than {TEXT_LIMIT}")
    return text


def _visibility(text: str, subject: str) -> str:
    if text not in VISIBILITIES:
        raise InvalidInput(f"{subject}: {text[:40]!r} is not one of {', '.join(VISIBILITIES)}")
    return text


def _boolean(text: str, subject: str) -> bool:
    folded = text.lower()
    if folded not in {"true", "false"}:
        raise InvalidInput(f"{subject}: {text[:40]!r} is neither true nor false")
    return folded == "true"


def _number(text: str, subject: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > NUMBER_LIMIT:
        raise InvalidInput(f"{subject}: {text[:40]!r} is not a whole number from 0 to {NUMBER_LIMIT}")
    return int(text)


def _tags(text: str, subject: str) -> tuple[str, ...]:
    """Return the tags in their order, each once."""
    try:
        tags = tuple(dict.fromkeys(msgspec.json.decode(text, type=list[str])))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(f"{subject}: not a JSON list of strings: {error}") from None
    for tag in tags:
        check_text(tag, "a tag")
    check_tag_quota(tags, subject)
    return tags


WRITABLE: Final[Mapping[str, Callable[[str, str], object]]] = MappingProxyType(
    {
        "name": _name,
        "visibility": _visibility,
        "protected": _boolean,
        "os_hidden": _boolean,
        "tags": _tags,
        "min_disk": _number,
        "min_ram": _number,
    }
)
"""The core attributes that are written, with what reads their text. All others are read-only."""
