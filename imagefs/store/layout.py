"""This module is imagefs's own layout of a bucket: for each image a record, its data and the digests of its data.

    <image-id>/image.json    the record (imagefs-store(5)); written only conditionally; the image exists while this does
    <image-id>/data          the image's bytes, never changed
    <image-id>/digests       SHA-256 of each 64 KiB of `data`, 32 bytes each; `image.json` has the hash of each page of them
    .imagefs/catalog         copies of many records, for nodes that know none yet (see `bundle`); may be missing
    <image-id>/profile       what boots from the image read (imagefs-profile(5)); may be missing; written only conditionally

Creating writes the record first (queued, while the bytes are got ready; then saving), the data and the digests, and then makes the
record active. Deleting marks the record `deleted` first, by a conditional write, so that no change made meanwhile can bring the image
back; the mark counts as "not found", and deleting again finishes a deletion that was interrupted. Other objects in the bucket are ignored.
"""

import contextlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Final

import msgspec

from imagefs.errors import (
    AlreadyExists,
    Conflict,
    ImagefsError,
    ImageRefused,
    InvalidInput,
    NotFound,
    NotPermitted,
    StateDamaged,
    StoreError,
    Unsupported,
    VersionChanged,
)
from imagefs.store import bundle
from imagefs.store.intake import Intake
from imagefs.store.protocol import PROFILE_LIMIT, Bucket, Content, DataObject, Listed, Progress, Read, StoredRecord
from imagefs.store.record import ImageRecord, decode_record, encode_record, is_image_id
from imagefs.store.tree import page_range

RECORD: Final = "image.json"
DATA: Final = "data"
DIGESTS: Final = "digests"
PROFILE: Final = "profile"
UPDATE_TRIES: Final = 24
BUNDLE_WORTH: Final = 256
"""Records from which on the bundle is asked for first: it may be megabytes."""
HEX_DIGITS: Final = "0123456789abcdef"
"""What ids begin with, and listings are split by."""
LONGEST_DELAY: Final = 1.0
"""Seconds between tries of an update: with full jitter, 24 tries outlast dozens of writers of the same record."""


log = logging.getLogger(__name__)


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
        self._bundle_version: str | None = None
        """That of the bundle when it was last seen."""

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._bucket.url

    def check(self) -> None:
        """Return if the store can be used."""
        self._bucket.check()

    def list(self, gently: bool = False) -> Iterator[Listed]:
        """Yield every image by its record's key alone. One that is just being deleted is listed; `record` then says NotFound."""
        for key, version in self._bucket.list_below(HEX_DIGITS, f"/{RECORD}", gently):
            image_id = key.removesuffix(f"/{RECORD}")
            if is_image_id(image_id):
                yield Listed(image_id, version)

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        """Read records: many of them from the bundle where it has them as listed, the others one by one."""
        left = {listed.image_id: listed for listed in wanted}
        if self._bucket.remote and len(left) >= BUNDLE_WORTH:
            self._take_bundled(left, take)

        def got(key: str, body: bytes, version: str) -> None:
            listed = left[key.removesuffix(f"/{RECORD}")]
            try:
                take(listed, StoredRecord(self._decoded(listed.image_id, body), version))
            except NotFound:
                pass
            except ImageRefused as error:
                take(listed, error)

        self._bucket.get_many((self._key(image_id) for image_id in left), got)
        return len(left)

    def keep_records(self, records: Iterable[StoredRecord]) -> None:
        """Write the bundle. Raises Unsupported where records are as quick to read one by one, Conflict."""
        if not self._bucket.remote:
            raise Unsupported(f"keeping the catalog in {self.url}: its records are read quickly enough")
        body, count = bundle.encode_bundle(records)
        try:
            self._bundle_version = self._bucket.put(bundle.KEY, body, self._bundle_version)
        except Conflict:
            # Of a hundred nodes that have all found none, one has written it now: that is enough of them.
            self._bundle_version = self._bucket.open(bundle.KEY).version
            raise
        log.info("kept the records of %d images together in the store bytes=%d", count, len(body))

    def _take_bundled(self, left: dict[str, Listed], take: Read) -> None:
        """Hand on the records that the bundle has as they are listed, and take them out of `left`. A bundle that is no good costs a warning."""
        origin = f"{self.url}/{bundle.KEY}"
        try:
            body, self._bundle_version = self._bucket.get(bundle.KEY)
            if len(body) > bundle.LARGEST:
                raise StateDamaged(f"{origin}: it is longer than any bundle")
            checked = self._versions_are_sums(left)
            for image_id, version, record in bundle.decode_bundle(body, origin):
                listed = left.get(image_id)
                if listed is None or listed.version != version or (checked and not bundle.is_sum(version, record)):
                    continue
                with contextlib.suppress(ImageRefused, NotFound):  # what is wrong with it, reading the record itself will tell
                    stored = StoredRecord(self._decoded(image_id, record), version)
                    del left[image_id]
                    take(listed, stored)
        except NotFound:
            self._bundle_version = None
        except (StoreError, StateDamaged) as error:
            log.warning("records are read one by one: the store's catalog cannot be used error=%s", error)

    def _versions_are_sums(self, left: Mapping[str, Listed]) -> bool:
        """Tell whether this store's versions are MD5 sums of what they are versions of, by the first record that is there."""
        for image_id in itertools.islice(left, UPDATE_TRIES):
            with contextlib.suppress(NotFound):
                body, version = self._bucket.get(self._key(image_id))
                return bundle.is_sum(version, body)
        return True

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
        """Open the image's bytes. Raises NotFound, VersionChanged if they are not as many as the record says: here, or at the first read."""
        found = self._bucket.open(f"{record.id}/{DATA}", record.size)
        if found.size != record.size:
            raise VersionChanged(f"{self.url}/{record.id}/{DATA} has {found.size} bytes, and the image's record says {record.size}")
        return found

    def digest_page(self, record: ImageRecord, page: int) -> bytes:
        """Return page number `page` of the image's digests, to be verified against `record.tree`. Raises NotFound if it has none."""
        offset, length = page_range(record.size or 0, page)
        if record.tree is None or not length:
            raise NotFound(f"image {record.id} has no page {page} of digests")
        return self._bucket.peek(f"{record.id}/{DIGESTS}", offset, length)

    def profile(self, record: ImageRecord) -> tuple[bytes, str] | None:
        """Return the image's boot profile as it stands there, cut after PROFILE_LIMIT, and its version; None if it has none."""
        try:
            return self._bucket.get(f"{record.id}/{PROFILE}", PROFILE_LIMIT)
        except NotFound:
            return None

    def put_profile(self, record: ImageRecord, body: bytes, expected: str | None) -> None:
        """Write the image's boot profile. Raises Conflict, and NotFound if the image is gone."""
        key = f"{record.id}/{PROFILE}"
        self._bucket.put(key, body, expected)
        try:
            self.find(record.id)
        except NotFound:
            # The image was deleted before the profile was written. After the mark that this has seen nobody else would remove it.
            self._bucket.delete(key)
            raise

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
        for name in (DATA, DIGESTS, PROFILE, RECORD):
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
        return StoredRecord(self._parsed(image_id, body), version)

    def _parsed(self, image_id: str, body: bytes) -> ImageRecord:
        """Return the record of an image from its stored form. Raises ImageRefused."""
        origin = f"{self.url}/{self._key(image_id)}"
        record = decode_record(body, origin)
        if record.id != image_id:
            raise ImageRefused(f"{origin}: it is the record of another image, {record.id}")
        return record

    def _decoded(self, image_id: str, body: bytes) -> ImageRecord:
        """As _parsed. Raises NotFound for an image that is being deleted."""
        record = self._parsed(image_id, body)
        if record.status == "deleted":
            raise self._not_found(image_id)
        return record

    def _not_found(self, image_id: str) -> NotFound:
        return NotFound(f"image {image_id} is not in {self.url}")

    @staticmethod
    def _key(image_id: str) -> str:
        return f"{image_id}/{RECORD}"
