"""This module is the record of an image: its attributes as Glance's v2 API names them, and the form they are stored in.

The stored form (imagefs-store(5)) is JSON: `{"format": "imagefs-image", "version": 1, "sha256": H, "image": {...}}`, where H
is the SHA-256 of the bytes of the value of `image` as they stand in the file.
"""

import hashlib
import re
import uuid
from typing import Final

import msgspec

from imagefs.errors import ImageRefused, InvalidInput

FORMAT: Final = "imagefs-image"
VERSION: Final = 1
STATUSES: Final = ("queued", "saving", "active", "killed", "deactivated", "deleted")
VISIBILITIES: Final = ("public", "private", "shared", "community")
DISK_FORMATS: Final = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop")
CONTAINER_FORMATS: Final = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")
MAX_RECORD: Final = 64 * 1024 * 1024
_IMAGE_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A project that a shared image is shared with; status is pending, accepted or rejected."""

    project_id: str
    status: str = "pending"


class HashTree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The top of the hash tree over the stored bytes: one digest per `unit` bytes stands in `digests`, and `pages` has the
    hex SHA-256 of each run of `page_units` of those digests (the last run and the last unit may be short).
    """

    algorithm: str
    unit: int
    page_units: int
    pages: tuple[str, ...]


class ImageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An image's attributes (Glance v2 names, sizes in bytes, min_disk in GiB, min_ram in MiB) and additional properties."""

    id: str
    created_at: str
    updated_at: str
    name: str | None = None
    status: str = "queued"
    visibility: str = "shared"
    owner: str | None = None
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    protected: bool = False
    os_hidden: bool = False
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    members: tuple[Member, ...] = ()
    tree: HashTree | None = None
    key: str | None = None
    """Flat layout only: the key of the object; never stored."""


def data_versions(record: ImageRecord) -> tuple[str, ...]:
    """Return what names the bytes of an image: the best name first, and then those that it had before its hashes were known.

    A Glance may make an image active first and hash it afterwards, or never. Without a hash it is the image itself that names its bytes: an
    id is used once, and nothing changes the bytes of an image.
    """
    return (*filter(None, (record.os_hash_value, record.checksum)), f"{record.created_at}-{record.size}")


class _Envelope(msgspec.Struct, frozen=True):
    format: str
    version: int
    sha256: str
    image: msgspec.Raw


def is_image_id(text: str) -> bool:
    """Tell whether `text` is a UUID in its one lower-case form, and so safe to use as a name in a path."""
    return _IMAGE_ID.fullmatch(text) is not None


def parse_image_id(text: str) -> str:
    """Return the canonical form of a UUID given by a user. Raises InvalidInput."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidInput(f"'{text}' is not an image id: give a UUID") from None


def encode_record(record: ImageRecord) -> bytes:
    """Return the stored form; the same record always gives the same bytes."""
    image = msgspec.json.encode(record, order="sorted")
    digest = hashlib.sha256(image).hexdigest()
    return msgspec.json.encode(_Envelope(FORMAT, VERSION, digest, msgspec.Raw(image)))


def decode_record(body: bytes, origin: str) -> ImageRecord:
    """Return the record in `body`, which was read from `origin`. Raises ImageRefused with the reason if it is not sound."""
    if len(body) > MAX_RECORD:
        raise ImageRefused(f"{origin}: the record has {len(body)} bytes, more than {MAX_RECORD}")
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageRefused(f"{origin}: not an image record: {error}") from error
    if envelope.format != FORMAT:
        raise ImageRefused(f"{origin}: not an image record: its format is '{envelope.format}', not '{FORMAT}'")
    if envelope.version != VERSION:
        raise ImageRefused(f"{origin}: record version {envelope.version} is unknown here: this imagefs reads {VERSION}")
    if hashlib.sha256(envelope.image).hexdigest() != envelope.sha256:
        raise ImageRefused(f"{origin}: the record is damaged: its SHA-256 does not match")
    try:
        record = msgspec.json.decode(envelope.image, type=ImageRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageRefused(f"{origin}: the record is not valid: {error}") from error
    if not is_image_id(record.id):
        raise ImageRefused(f"{origin}: '{record.id}' is not an image id")
    return record
