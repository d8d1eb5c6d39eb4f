"""This module turns images as Glance's v2 API shows them into records and back; it does no I/O.

What Glance sends is input from outside. A core attribute of another type than the API's makes the image refused; anything that is
not a core attribute or a link is an additional property, whose value is text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from imagefs.errors import ImageRefused, InvalidInput
from imagefs.store.protocol import StoredRecord
from imagefs.store.record import VISIBILITIES, ImageRecord, Member, is_image_id

T = TypeVar("T")

GONE: Final = frozenset({"deleted", "pending_delete"})
"""Statuses of an image that is not there any more: its data may be there for a while, for the scrubber."""
LINKS: Final = frozenset({"self", "file", "schema", "locations", "direct_url", "stores"})
"""What Glance shows of an image besides its attributes: where it and its bytes are. It makes them for each answer, and nobody can set them."""
CREATED_WITH: Final = ("visibility", "owner", "disk_format", "container_format", "min_disk", "min_ram", "os_hidden", "name")
_CORE: Final = frozenset(
    {
        *("id", "name", "status", "visibility", "owner", "disk_format", "container_format", "size", "virtual_size", "min_disk", "min_ram"),
        *("checksum", "os_hash_algo", "os_hash_value", "protected", "os_hidden", "tags", "created_at", "updated_at"),
    }
)
_LARGEST: Final = 2**63 - 1


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`. Raises ValueError if it holds anything else."""
    try:
        found = json.loads(body.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - callers know one error for what the server sent
    return found


def decode_image(document: Mapping[str, Any], origin: str, members: Sequence[Member] = ()) -> ImageRecord:
    """Return the record of an image that Glance shows as `document`. Raises ImageRefused, naming `origin` and the attribute."""
    image_id = document.get("id")
    if not isinstance(image_id, str) or not is_image_id(image_id):
        raise ImageRefused(f"{origin}: '{str(image_id)[:40]}' is not an image id in lower case")
    read = _Reader(document, f"{origin}: image {image_id}")
    visibility = read.text("visibility") or "shared"
    if visibility not in VISIBILITIES:
        raise ImageRefused(f"{origin}: image {image_id}: its visibility is '{visibility[:40]}', which is none")
    return ImageRecord(
        id=image_id,
        created_at=read.text("created_at") or "",
        updated_at=read.text("updated_at") or "",
        name=read.text("name"),
        status=read.text("status") or "queued",
        visibility=visibility,
        owner=read.text("owner"),
        disk_format=read.text("disk_format"),
        container_format=read.text("container_format"),
        size=read.number("size"),
        virtual_size=read.number("virtual_size"),
        min_disk=read.number("min_disk") or 0,
        min_ram=read.number("min_ram") or 0,
        checksum=read.text("checksum"),
        os_hash_algo=read.text("os_hash_algo"),
        os_hash_value=read.text("os_hash_value"),
        protected=read.get("protected", bool, False),
        os_hidden=read.get("os_hidden", bool, False),
        tags=read.tags(),
        properties=_properties(document),
        members=tuple(members) if visibility == "shared" else (),
    )


def decode_members(document: Mapping[str, Any]) -> tuple[Member, ...]:
    """Return the members in the answer to GET of an image's members, by project; what is no member is passed over."""
    listed = document.get("members")
    found: dict[str, Member] = {}
    for entry in listed if isinstance(listed, list) else ():
        project, status = (entry.get("member_id"), entry.get("status")) if isinstance(entry, dict) else (None, None)
        if isinstance(project, str) and isinstance(status, str):
            found[_utf8(project)] = Member(_utf8(project), _utf8(status))
    return tuple(found[project] for project in sorted(found))


def locations(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the URLs at which Glance says that the image's bytes lie, the best first; none where Glance does not show them."""
    shown = document.get("locations")
    urls = [document.get("direct_url"), *(entry.get("url") for entry in (shown if isinstance(shown, list) else ()) if isinstance(entry, dict))]
    return tuple(dict.fromkeys(url for url in urls if isinstance(url, str)))


def stored(record: ImageRecord) -> StoredRecord:
    """Return the record with its version: a hash of all of it, since Glance's updated_at counts in seconds and not for members."""
    return StoredRecord(record, hashlib.sha256(msgspec.json.encode(record, order="sorted")).hexdigest()[:32])


def encode_new(record: ImageRecord) -> dict[str, Any]:
    """Return the body of the POST that makes the image, without its bytes; it is not protected and has no members yet.

    Raises InvalidInput for a property that Glance cannot tell from an attribute.
    """
    if clash := sorted(record.properties.keys() & (_CORE | LINKS)):
        raise InvalidInput(f"image {record.id}: '{clash[0]}' is an attribute of Glance's images and cannot be a property")
    attributes = {name: getattr(record, name) for name in CREATED_WITH}
    return {
        "id": record.id,
        "tags": list(record.tags),
        **{name: value for name, value in attributes.items() if value is not None},
        **record.properties,
    }


class _Reader:
    """Reads core attributes of one image, each with its type."""

    def __init__(self, document: Mapping[str, Any], origin: str) -> None:
        self._document = document
        self._origin = origin

    def get(self, name: str, kind: type[T], default: T) -> T:
        """Return an attribute that is of type `kind`, or `default` if it is absent or null. Raises ImageRefused."""
        value = self._document.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise ImageRefused(f"{self._origin}: its {name} is {_shown(value)}, which Glance's API does not allow")
        return value

    def text(self, name: str) -> str | None:
        """Return an attribute that is text, or None."""
        return None if self._document.get(name) is None else _utf8(self.get(name, str, ""))

    def number(self, name: str) -> int | None:
        """Return an attribute that is a whole number from 0 to 2**63 - 1, or None."""
        if self._document.get(name) is None:
            return None
        value = self.get(name, int, 0)
        if isinstance(value, bool) or not 0 <= value <= _LARGEST:
            raise ImageRefused(f"{self._origin}: its {name} is {_shown(value)}, which Glance's API does not allow")
        return value

    def tags(self) -> tuple[str, ...]:
        """Return the tags, sorted, since Glance keeps no order of them."""
        found = self.get("tags", list, [])
        if not all(isinstance(tag, str) for tag in found):
            raise ImageRefused(f"{self._origin}: its tags are {_shown(found)}, which Glance's API does not allow")
        return tuple(sorted({_utf8(tag) for tag in found}))


def _properties(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the additional properties. A value that a schema of the site's own made a number or a boolean is its JSON text."""
    found = {}
    for name, value in document.items():
        if name in _CORE or name in LINKS or _utf8(name) != name:
            continue
        if isinstance(value, str):
            found[name] = _utf8(value)
        elif value is None:
            found[name] = ""
        elif isinstance(value, int | float):
            found[name] = json.dumps(value)
    return found


def _utf8(text: str) -> str:
    """Return the text with half surrogate pairs, which JSON can hold and UTF-8 cannot, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(value: object) -> str:
    return f"'{_utf8(str(value))[:40]}'"
