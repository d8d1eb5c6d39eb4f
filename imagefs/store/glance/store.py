"""This module is a Glance as an ImageStore.

A record of it has no hash tree: units cannot be proved one by one, only lengths and versions can. Members are those that the account
may see. See imagefs-store(5) for what the account needs, and why.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn

import msgspec

from imagefs.errors import (
    AlreadyExists,
    Busy,
    Conflict,
    ImagefsError,
    ImageRefused,
    NotFound,
    NotPermitted,
    StoreUnavailable,
    Unsupported,
    VersionChanged,
)
from imagefs.store.crowd import read_each
from imagefs.store.glance.connection import Connection
from imagefs.store.glance.data import GlanceData
from imagefs.store.glance.direct import DirectStores
from imagefs.store.glance.intake import UploadBody, check_arrived
from imagefs.store.glance.listing import list_images
from imagefs.store.glance.members import READERS, Memberships
from imagefs.store.glance.record import GONE, decode_image, encode_new, locations, stored
from imagefs.store.glance.update import Updates
from imagefs.store.intake import Intake
from imagefs.store.protocol import Content, DataObject, Listed, Progress, Read, StoredRecord
from imagefs.store.record import ImageRecord, data_versions, is_image_id

ADMIN: Final = "admin"

_log = logging.getLogger(__name__)


class GlanceStore:
    """An ImageStore over one Glance. Thread-safe."""

    def __init__(self, url: str, connection: Connection, direct: DirectStores, updates: Updates | None = None) -> None:
        """Take the URL of the configuration, and what reads and writes; nothing is sent."""
        self._url = url
        self._connection = connection
        self._direct = direct
        self._members = Memberships(connection)
        self._updates = updates or Updates(connection, self.find)
        self._listed: frozenset[str] = frozenset()
        self._warned = False

    @property
    def url(self) -> str:
        """The store's URL."""
        return self._url

    def check(self) -> None:
        """Return if images may be listed. Warns once of an account that Glance would make remove what it cannot read."""
        doing = f"opening {self._url}"
        try:
            page = self._connection.get(doing, "/v2/images", {"limit": "1"})
        except NotFound:
            raise NotFound(f"{doing}: there is no Glance with version 2 of the API: mend [store] url") from None
        if not isinstance(page.get("images"), list):
            raise NotFound(f"{doing}: what answers is no Glance: mend [store] url")
        roles = self._connection.roles()
        if roles is not None and ADMIN not in roles and not self._warned:
            self._warned = True
            _log.warning(
                "the account is not admin: it sees and changes only some images, and any property that it may not read is removed by Glance "
                "from each image that it changes; give it the role admin, and read access in the property protections url=%s",
                self._url,
            )

    def list(self, gently: bool = False) -> Iterator[Listed]:
        """Yield every image with its record. Raises StoreError before the first one, never after."""
        shown = list_images(self._connection)
        # An image may have moved between two pages, or been hidden or shown between the two listings: it must not seem to be gone.
        missing = sorted(self._listed - shown.keys())
        with ThreadPoolExecutor(READERS, thread_name_prefix="missing") as readers:
            shown |= {image["id"]: image for image in readers.map(self._show_if_there, missing) if image is not None}
        records = {image_id: self._decoded(image_id, document) for image_id, document in shown.items()}
        shared = [image_id for image_id, record in records.items() if record is not None and record.visibility == "shared"]
        members = self._members.read_all(shared)
        found: list[Listed] = []
        for image_id, record in records.items():
            if record is None:
                # `record` says why it is refused
                found.append(Listed(image_id, "refused"))
            elif record.status not in GONE:
                complete = stored(msgspec.structs.replace(record, members=members.get(image_id, ())))
                found.append(Listed(image_id, complete.version, stored=complete))
        self._listed = frozenset(listed.image_id for listed in found)
        yield from found

    def record(self, listed: Listed) -> StoredRecord:
        """Return a listed image's record, without a request if the listing had it."""
        return listed.stored or self.find(listed.image_id)

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        """Hand over the records that the listing had; the others are read, a few at once."""
        return read_each(self.record, wanted, take)

    def keep_records(self, records: Iterable[StoredRecord]) -> None:
        """Raise Unsupported: its listing has all records."""
        raise Unsupported(f"keeping the catalog in {self._url}: it is a Glance, whose listing has all records")

    def find(self, image_id: str) -> StoredRecord:
        """Read an image with its members. Raises NotFound, ImageRefused."""
        record = decode_image(self._show(image_id), self._url)
        if record.status in GONE:
            raise self._not_found(image_id)
        if record.visibility == "shared":
            record = msgspec.structs.replace(record, members=self._members.read(image_id))
        return stored(record)

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Apply `change` to the image as it is now, and see to it that no other writer undoes it. See Updates.update."""
        return self._updates.update(image_id, change)

    def data(self, record: ImageRecord) -> DataObject:
        """Open the image's bytes, directly where that is allowed and works. Raises NotFound, VersionChanged, ImageRefused."""
        document = self._show(record.id)
        present = decode_image(document, self._url)
        if present.status in GONE:
            raise self._not_found(record.id)
        if present.size is None or present.status not in ("active", "deactivated"):
            raise ImageRefused(f"image {record.id} in {self._url}: its status is {present.status}: it has no bytes to read yet")
        names = data_versions(present)
        if present.size != record.size or data_versions(record)[0] not in names:
            raise VersionChanged(f"image {record.id} in {self._url} has other bytes now: list the images again")
        if self._direct:
            direct = self._direct.open(record.id, locations(document), present.size, names[0])
            if direct is not None:
                return direct
        return GlanceData(self._connection, record.id, present.size, names[0], present.checksum)

    def digest_page(self, record: ImageRecord, page: int) -> bytes:
        """Raise NotFound: Glance keeps no digests."""
        raise NotFound(f"image {record.id} has no page {page} of digests: {self._url} is a Glance, which keeps none")

    def profile(self, record: ImageRecord) -> tuple[bytes, str] | None:
        """Return None: a Glance keeps records and bytes of images, and nothing else."""
        return None

    def put_profile(self, record: ImageRecord, body: bytes, expected: str | None) -> None:
        """Raise Unsupported."""
        raise Unsupported(f"keeping a boot profile of image {record.id}: {self._url} is a Glance, which has no place for it")

    def create(self, record: ImageRecord, content: Content, progress: Progress) -> StoredRecord:
        """Store a new image and return its active record, whose hashes are compared with those of the bytes that were sent.

        Raises AlreadyExists (Glance uses no id twice, not even a deleted image's), InvalidInput, NotPermitted, QuotaExceeded,
        NoSpace, what `content` and `progress` raise, and NotFound if the image is deleted meanwhile. Whatever ends it early, the
        image is removed again.
        """
        self._claim(record)
        try:
            source, size = content()
            with Intake(source, size) as intake:
                self._upload(record.id, intake, size, progress)
                check_arrived(self.find(record.id).record, intake, size)

            def complete(made: ImageRecord) -> ImageRecord:
                return msgspec.structs.replace(made, protected=record.protected or made.protected, members=record.members or made.members)

            return self.update(record.id, complete)
        except BaseException:
            with contextlib.suppress(ImagefsError):
                self._remove(record.id)
            raise

    def delete(self, image_id: str) -> None:
        """Remove the image with its data. Raises NotFound, NotPermitted if it is protected, Busy if its backend still needs it."""
        record = self.find(image_id).record
        if record.protected:
            raise NotPermitted(f"image {image_id} is protected: set protected to false before deleting it")
        self._remove(image_id)

    def _claim(self, record: ImageRecord) -> None:
        """Make the image without its bytes. Raises AlreadyExists."""
        body = encode_new(record)
        doing = f"storing image {record.id}"
        sent = False

        def post() -> None:
            nonlocal sent
            first, sent = not sent, True
            try:
                self._connection.send(doing, "POST", "/v2/images", json=body)
            except Conflict:
                # The first try may have arrived, and its answer been lost.
                if first or not self._is_just_claimed(record):
                    raise AlreadyExists(
                        f"an image with the id {record.id} is or was in {self._url}, and Glance uses no id twice: choose another id"
                    ) from None

        self._connection.retry(post)

    def _is_just_claimed(self, record: ImageRecord) -> bool:
        """Tell whether the image is there, without bytes, and as `record` wants it."""
        try:
            present = self.find(record.id).record
        except NotFound:
            return False
        return present.status == "queued" and (present.name, present.properties) == (record.name, record.properties)

    def _upload(self, image_id: str, intake: Intake, size: int, progress: Progress) -> None:
        """Send the bytes. An answer that is lost after the last of them is looked for."""
        doing = f"storing the bytes of image {image_id}"
        body = UploadBody(intake, size, progress)
        try:
            self._connection.upload(doing, f"/v2/images/{image_id}/file", body if size else b"")
        except StoreUnavailable:
            # A deleted image is told by find, and so is one that became active although the answer was lost.
            if self.find(image_id).record.status != "active" or body.sent != size:
                raise
        except NotFound:
            raise self._not_found(image_id) from None

    def _remove(self, image_id: str) -> None:
        """Delete an image. Raises NotFound, NotPermitted, Busy."""
        sent = False

        def delete() -> None:
            nonlocal sent
            first, sent = not sent, True
            try:
                self._connection.send(f"deleting image {image_id}", "DELETE", f"/v2/images/{image_id}")
            except NotFound:
                if first:
                    raise self._not_found(image_id) from None
            except Conflict as error:
                raise Busy(f"{error}: something is made from it or still uses it") from error

        self._connection.retry(delete)

    def _show(self, image_id: str) -> Mapping[str, Any]:
        if not is_image_id(image_id):
            raise self._not_found(image_id)
        try:
            document = self._connection.get(f"reading image {image_id}", f"/v2/images/{image_id}")
        except NotFound:
            raise self._not_found(image_id) from None
        if document.get("id") != image_id:
            self._refuse_other(image_id)
        return document

    def _show_if_there(self, image_id: str) -> Mapping[str, Any] | None:
        try:
            return self._show(image_id)
        except NotFound:
            return None

    def _decoded(self, image_id: str, document: Mapping[str, Any]) -> ImageRecord | None:
        """Return a listed image's record, or None if it has to be refused."""
        try:
            return decode_image(document, self._url)
        except ImageRefused as error:
            _log.debug("an image is refused image=%s error=%s", image_id, error)
            return None

    def _refuse_other(self, image_id: str) -> NoReturn:
        raise ImageRefused(f"image {image_id} in {self._url}: Glance answers with another image")

    def _not_found(self, image_id: str) -> NotFound:
        return NotFound(f"image {image_id} is not in {self._url}")
