"""This module is the flat layout: every object or file of a bucket is an image, with no records. It is read-only.

- The image's id is the UUIDv5 of the object's key below the prefix (its bytes) in the namespace FLAT_NAMESPACE: the same on every node.
- Its name is the key. It is active, public and `bare`; created_at and updated_at are the object's modification time.
- disk_format is told by the first bytes, then by the key's extension, else it is raw; `image.inspect` decides again, and safely, before use.
- Hidden names (any part with a leading dot) and the empty "directory" keys that end in `/` are no images.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NoReturn

from imagefs.errors import NotFound, ReadOnly, Unsupported, VersionChanged
from imagefs.store.crowd import read_each
from imagefs.store.layout import timestamp
from imagefs.store.protocol import Bucket, Content, DataObject, Entry, Listed, Progress, Read, StoredRecord
from imagefs.store.record import ImageRecord

FLAT_NAMESPACE: Final = uuid.UUID("2f0a4ed5-6b55-4b3e-9c0d-1f6b7a2c8e11")
HEAD: Final = 0x8006
"""Bytes read of each object: up to the end of an ISO's signature, in the first volume descriptor at 32 KiB."""
_MAGICS: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "ploop"),
    (0, b"WithouFreSpacExt", "ploop"),
    (0x8001, b"CD001", "iso"),
)
_EXTENSIONS: Final = {"qcow2": "qcow2", "vmdk": "vmdk", "vhdx": "vhdx", "vhd": "vhd", "vpc": "vhd", "vdi": "vdi", "iso": "iso"}


def image_id_of(key: str) -> str:
    """Return the id of the image at `key`; equals uuid.uuid5(FLAT_NAMESPACE, key) for a key that is valid UTF-8."""
    digest = hashlib.sha1(FLAT_NAMESPACE.bytes + os.fsencode(key), usedforsecurity=False).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


def is_image(entry: Entry) -> bool:
    """Tell whether an object is an image: not hidden and not a "directory" key."""
    return not entry.key.endswith("/") and not any(part.startswith(".") for part in entry.key.split("/"))


def detect_format(head: bytes, key: str) -> str:
    """Return the disk_format that the first HEAD bytes, or else the key's extension, speak for."""
    for offset, magic, disk_format in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return disk_format
    return _EXTENSIONS.get(key.rpartition(".")[2].lower(), "raw")


def virtual_size_of(disk_format: str, head: bytes, size: int) -> int | None:
    """Return the guest's disk size in bytes where the first bytes tell it (raw, iso, qcow2), else None."""
    if disk_format in ("raw", "iso"):
        return size
    if disk_format == "qcow2" and head.startswith(b"QFI\xfb") and len(head) >= 32:
        virtual_size = int.from_bytes(head[24:32], "big")
        return virtual_size if virtual_size < 2**63 else None
    return None


class FlatLayout:
    """An ImageStore over `bucket` in which every object is an image."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._known: dict[str, Listed] = {}  # by image id, of the last complete listing

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._bucket.url

    def check(self) -> None:
        """Return if the store can be used."""
        self._bucket.check()

    def list(self, gently: bool = False) -> Iterator[Listed]:
        """Yield every image, without reading it."""
        known: dict[str, Listed] = {}
        for entry in self._bucket.list():
            if is_image(entry):
                image_id = image_id_of(entry.key)
                known[image_id] = Listed(image_id, entry.version, entry)
                yield known[image_id]
        self._known = known

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        """Make the records of many listed images, a few at once."""
        return read_each(self.record, wanted, take)

    def keep_records(self, records: Iterable[StoredRecord]) -> None:
        """Raise Unsupported: every object is an image."""
        raise Unsupported(f"keeping the catalog in {self.url}: it has the flat layout, in which every object is an image")

    def record(self, listed: Listed) -> StoredRecord:
        """Make the record of a listed image, from the listing and its first HEAD bytes."""
        entry = listed.entry
        if entry is None:
            raise NotFound(f"image {listed.image_id} is not in {self.url}")
        head = self._bucket.peek(entry.key, 0, HEAD) if entry.size else b""
        disk_format = detect_format(head, entry.key)
        modified = timestamp(entry.modified)
        record = ImageRecord(
            id=listed.image_id,
            created_at=modified,
            updated_at=modified,
            name=os.fsencode(entry.key).decode("utf-8", "backslashreplace"),
            status="active",
            visibility="public",
            disk_format=disk_format,
            container_format="bare",
            size=entry.size,
            virtual_size=virtual_size_of(disk_format, head, entry.size),
            key=entry.key,
        )
        return StoredRecord(record, listed.version)

    def find(self, image_id: str) -> StoredRecord:
        """Make an image's record by id. An id says nothing about the key: one that the last listing had not costs a new listing."""
        if image_id not in self._known:
            for _ in self.list():
                pass
        if image_id not in self._known:
            raise NotFound(f"image {image_id} is not in {self.url}")
        return self.record(self._known[image_id])

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Raise ReadOnly: there is nowhere to keep properties."""
        self._refuse(f"changing image {image_id}")

    def data(self, record: ImageRecord) -> DataObject:
        """Open the image's bytes. Raises NotFound, VersionChanged if they are not as many as the record says."""
        key = record.key if record.key is not None else self.find(record.id).record.key
        if key is None:
            raise NotFound(f"image {record.id} is not in {self.url}")
        found = self._bucket.open(key)
        if found.size != record.size:
            raise VersionChanged(f"{self.url}/{key} has {found.size} bytes now, not {record.size}: list the images again")
        return found

    def digest_page(self, record: ImageRecord, page: int) -> bytes:
        """Raise NotFound: a flat store has no digests."""
        raise NotFound(f"image {record.id} has no page {page} of digests: {self.url} is a flat store")

    def profile(self, record: ImageRecord) -> tuple[bytes, str] | None:
        """Return None: every object of a flat store is an image, and there is no place for what belongs to one."""
        return None

    def put_profile(self, record: ImageRecord, body: bytes, expected: str | None) -> None:
        """Raise Unsupported."""
        raise Unsupported(f"keeping a boot profile of image {record.id}: {self.url} has the flat layout, in which every object is an image")

    def create(self, record: ImageRecord, content: Content, progress: Progress) -> StoredRecord:
        """Raise ReadOnly."""
        self._refuse(f"storing image {record.id}")

    def delete(self, image_id: str) -> None:
        """Raise ReadOnly."""
        self._refuse(f"deleting image {image_id}")

    def _refuse(self, doing: str) -> NoReturn:
        raise ReadOnly(f"{doing}: {self.url} has the flat layout, which is read-only: add, replace or remove the file or object itself")
