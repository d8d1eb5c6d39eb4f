"""This module is imagefs's own layout of a bucket: for each image a record, its data and the digests of its data.

    <image-id>/image.json    the record (imagefs-store(5)); written only conditionally; the image exists while this does
    <image-id>/data          the image's bytes, never changed
    <image-id>/digests       SHA-256 of each 64 KiB of `data`, 32 bytes each; `image.json` has the hash of each page of them

Creating writes the record first (queued, while the bytes are got ready; then saving), the data and the digests, and then makes the
record active. Deleting marks the record `deleted` first, by a conditional write, so that no change made meanwhile can bring the image
back; the mark counts as "not found", and deleting again finishes a deletion that was interrupted. Other objects in the bucket are ignored.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

import msgspec

from imagefs.errors import AlreadyExists, Conflict, ImagefsError, ImageRefused, InvalidInput, NotFound, NotPermitted, VersionChanged
from imagefs.store.intake import Intake
from imagefs.store.protocol import Bucket, Content, DataObject, Listed, Progress, StoredRecord
from imagefs.store.record import ImageRecord, decode_record, encode_record, is_image_id
from imagefs.store.tree import page_range

RECORD: Final = "image.json"
DATA: Final = "data"
DIGESTS: Final = "digests"
UPDATE_TRIES: Final = 24
LONGEST_DELAY: Final = 1.0
"""Seconds between tries of an update: with full jitter, 24 tries outlast dozens of writers of the same record."""


def timestamp(seconds: float) -> str:
    """Return a Unix time as Glance writes it: 2026-01-02T03:04:05Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class ImagefsLayout:
    """An ImageStore over `bucket`. `clock` gives Unix seconds for created_at and updated_at; `sleep` and `chance` space out tries."""

    def __init__(
        self,
        bucket: Bucket,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._bucket = bucket
        self._clock = clock
        self._sleep = sleep
        self._chance = chance

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._bucket.url

    def check(self) -> None:
        """Return if the store can be used."""
        self._bucket.check()

    def list(self) -> Iterator[Listed]:
        """Yield every image by its record's key alone. One that is just being deleted is listed; `record` then says NotFound."""
        for entry in self._bucket.list():
            image_id, _, name = entry.key.partition("/")
            if name == RECORD and is_image_id(image_id):
                yield Listed(image_id, entry.version, entry)

    def record(self, listed: Listed) -> StoredRecord:
        """Read a listed image's record."""
        return self.find(listed.image_id)

    def find(self, image_id: str) -> StoredRecord:
        """Read an image's record. Raises NotFound, ImageRefused naming the object if the record is damaged."""
        stored = self._read(image_id)
        if stored.record.status == "deleted":
            raise self._not_found(image_id)
        return stored

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Apply `change` to the newest record and write it with a new updated_at; no write if nothing changed.

        Raises NotFound, what `change` raises, and Conflict if UPDATE_TRIES writes all lost against other writers.
        """

        def stamped(record: ImageRecord) -> ImageRecord:
            if record.status == "deleted":
                raise self._not_found(image_id)
            changed = change(record)
            if changed == record:
                return record
            if changed.id != image_id:
                raise InvalidInput(f"image {image_id}: the id cannot be changed")
            return msgspec.structs.replace(changed, updated_at=timestamp(self._clock()))

        return self._rewrite(image_id, stamped)

    def data(self, record: ImageRecord) -> DataObject:
        """Open the image's bytes. Raises NotFound, VersionChanged if they are not as many as the record says."""
        found = self._bucket.open(f"{record.id}/{DATA}")
        if found.size != record.size:
            raise VersionChanged(f"{self.url}/{record.id}/{DATA} has {found.size} bytes, and the image's record says {record.size}")
        return found

    def digest_page(self, record: ImageRecord, page: int) -> bytes:
        """Return page number `page` of the image's digests, to be verified against `record.tree`. Raises NotFound if it has none."""
        offset, length = page_range(record.size or 0, page)
        if record.tree is None or not length:
            raise NotFound(f"image {record.id} has no page {page} of digests")
        return self._bucket.peek(f"{record.id}/{DIGESTS}", offset, length)

    def create(self, record: ImageRecord, content: Content, progress: Progress) -> StoredRecord:
        """Store a new image and return its active record.

        Raises AlreadyExists, InvalidInput if the content has not as many bytes as it should, NoSpace, what `content` and `progress` raise, and
        NotFound if the image is deleted meanwhile. Whatever ends it early, KeyboardInterrupt too, what was written is removed, unless the store
        does not even allow that.
        """
        now = timestamp(self._clock())
        queued = msgspec.structs.replace(record, status="queued", created_at=now, updated_at=now, size=None, key=None)
        self._claim(queued)
        try:
            source, size = content()
            self._advance(queued, "queued", lambda current: msgspec.structs.replace(current, status="saving"))
            return self._fill(queued, source, size, progress)
        except BaseException:
            with contextlib.suppress(ImagefsError):
                self._abandon(queued)
            raise

    def delete(self, image_id: str) -> None:
        """Remove the image. Raises NotFound, NotPermitted if it is protected, ImageRefused if its record is damaged."""

        def allow(record: ImageRecord) -> None:
            if record.protected:
                raise NotPermitted(f"image {image_id} is protected: set protected to false before deleting it")

        self._remove(image_id, allow)

    def _claim(self, queued: ImageRecord) -> None:
        try:
            self._bucket.put(self._key(queued.id), encode_record(queued), None)
        except Conflict:
            raise AlreadyExists(f"an image with the id {queued.id} is already in {self.url}: choose another id, or delete that one first") from None

    def _fill(self, queued: ImageRecord, source: BinaryIO, size: int, progress: Progress) -> StoredRecord:
        """Write data and digests, then make the record active."""
        with Intake(source, size) as intake:
            self._bucket.upload(f"{queued.id}/{DATA}", intake.stream(), size, progress)
            tree = intake.finish()
            digests, digests_size = intake.digests()
            self._bucket.upload(f"{queued.id}/{DIGESTS}", digests, digests_size, lambda _: None)
            learnt = {"size": size, "checksum": intake.md5, "os_hash_algo": "sha512", "os_hash_value": intake.sha512, "tree": tree}
        return self._advance(queued, "saving", lambda current: msgspec.structs.replace(current, status="active", **learnt))

    def _abandon(self, own: ImageRecord) -> None:
        """Remove what a creation wrote, also if the image was deleted before the last of it was written."""
        try:
            self._remove(own.id, lambda current: self._require_own(own, current))
        except NotFound:
            # Its objects may be there again. Taking the id as a deleted image keeps a new one from coming between; Conflict: it was quicker.
            self._bucket.put(self._key(own.id), encode_record(msgspec.structs.replace(own, status="deleted")), None)
            self.delete(own.id)

    def _advance(self, own: ImageRecord, status: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Update the record of the image being created, if it is still there, still ours, and `status`; others may have set properties."""

        def guarded(record: ImageRecord) -> ImageRecord:
            self._require_own(own, record)
            if record.status != status:
                raise Conflict(f"image {own.id} became {record.status} while it was being stored")
            return change(record)

        return self.update(own.id, guarded)

    def _require_own(self, own: ImageRecord, record: ImageRecord) -> None:
        """Raise Conflict if the record belongs to another image that took the id after ours was deleted."""
        if record.created_at != own.created_at or record.status not in ("queued", "saving", "active"):
            raise Conflict(f"image {own.id} was deleted and another one took its id while it was being stored")

    def _remove(self, image_id: str, allow: Callable[[ImageRecord], None]) -> None:
        """Mark the record deleted, unless `allow` raises, and remove the objects, the record last."""

        def marked(record: ImageRecord) -> ImageRecord:
            if record.status == "deleted":
                return record
            allow(record)
            return msgspec.structs.replace(record, status="deleted")

        self._rewrite(image_id, marked)
        for name in (DATA, DIGESTS, RECORD):
            self._bucket.delete(f"{image_id}/{name}")

    def _rewrite(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Read, change, write conditionally; again after each Conflict of the write, UPDATE_TRIES times at most."""
        for attempt in range(UPDATE_TRIES):
            stored = self._read(image_id)
            changed = change(stored.record)
            if changed == stored.record:
                return stored
            try:
                return StoredRecord(changed, self._bucket.put(self._key(image_id), encode_record(changed), stored.version))
            except Conflict:
                self._sleep(self._chance() * min(0.01 * 2**attempt, LONGEST_DELAY))
        raise Conflict(f"image {image_id} in {self.url} is changed by others all the time: try again")

    def _read(self, image_id: str) -> StoredRecord:
        """Return the record, also of an image that is being deleted."""
        if not is_image_id(image_id):
            raise self._not_found(image_id)
        try:
            body, version = self._bucket.get(self._key(image_id))
        except NotFound:
            raise self._not_found(image_id) from None
        origin = f"{self.url}/{self._key(image_id)}"
        record = decode_record(body, origin)
        if record.id != image_id:
            raise ImageRefused(f"{origin}: it is the record of another image, {record.id}")
        return StoredRecord(record, version)

    def _not_found(self, image_id: str) -> NotFound:
        return NotFound(f"image {image_id} is not in {self.url}")

    @staticmethod
    def _key(image_id: str) -> str:
        return f"{image_id}/{RECORD}"
