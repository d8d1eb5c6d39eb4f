"""This module says what a store of images is: two protocols and the plain values they speak in.

`Bucket` is the lower one: objects by key (a directory, an S3 bucket). `ImageStore` is the upper one: images with records
and data; `layout` and `flat` build it on any Bucket. All methods block: callers run them in `threads.Lane.STORE` (records)
or `Lane.FETCH` (data). All raise StoreUnavailable for what may pass (after their own short retries for small requests),
StoreRefused for what will not, NotFound for what is not there.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from imagefs.errors import ImageRefused
from imagefs.store.record import MAX_RECORD, ImageRecord

SMALL_LIMIT: Final = MAX_RECORD + 1
"""Bytes after which `Bucket.get` cuts, so that a hostile object cannot fill the memory; a record that long is refused."""

PROFILE_LIMIT: Final = 1024 * 1024
"""Bytes after which `ImageStore.profile` cuts: twice the longest boot profile."""

Progress = Callable[[int], None]
"""Called with the number of bytes moved since the last call, in any thread, and in several at once. What it raises breaks the work off."""

Content = Callable[[], tuple[BinaryIO, int]]
"""Called once, in the thread of who stores an image: returns its bytes, to be read in order from where the stream stands, and how many they are.

It may take long: the bytes may only then be made. The stream is the caller's to close.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing: its key below the prefix, size in bytes, opaque version and modification time (Unix seconds)."""

    key: str
    size: int
    version: str
    modified: float


class DataObject(Protocol):
    """One object's bytes at one version."""

    @property
    def size(self) -> int:
        """Bytes in the object."""
        ...

    @property
    def version(self) -> str:
        """The version that every read is pinned to."""
        ...

    @property
    def path(self) -> Path | None:
        """The local file that holds exactly these bytes, if there is one: it may be read in place."""
        ...

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of [offset, offset+length) in pieces of any size: one attempt, no retry, no verification.

        Raises StoreUnavailable when the body breaks or ends short, VersionChanged when the object is another one by now.
        Closing the generator early drops the connection.
        """
        ...


class Bucket(Protocol):
    """Objects by key. A key is relative to the prefix, with `/` between its parts."""

    @property
    def url(self) -> str:
        """The store's URL, without credentials, for messages."""
        ...

    def check(self) -> None:
        """Return if the bucket is there and may be listed; raise otherwise, with a message that says what to mend."""
        ...

    def list(self) -> Iterator[Entry]:
        """Yield every object below the prefix, in any order."""
        ...

    @property
    def remote(self) -> bool:
        """Whether each request is a way over a network: then records are worth keeping together in one object."""
        ...

    def list_below(self, starts: Sequence[str], suffix: str, gently: bool = False) -> Iterator[tuple[str, str]]:
        """Yield (key, version) of every object whose key begins with one of `starts` and ends in `suffix`, in any order.

        `gently`: with few requests at once, since guests are running and nobody waits.
        """
        ...

    def get_many(self, keys: Iterable[str], take: Callable[[str, bytes, str], None]) -> None:
        """Call `take` with key, bytes and version of each of many small objects, in this thread and any order, many at once on their way.

        Objects that are not there are left out. Raises what `take` raises, and StoreError as soon as an object cannot be read.
        """
        ...

    def get(self, key: str, limit: int = SMALL_LIMIT) -> tuple[bytes, str]:
        """Return a small object's bytes (cut after `limit`) and version. Raises NotFound."""
        ...

    def peek(self, key: str, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset+length) of the object as it is now, fewer at its end. Raises NotFound.

        For a few bytes that the caller verifies, or needs no version of.
        """
        ...

    def put(self, key: str, body: bytes, expected: str | None) -> str:
        """Write a small object durably if its version is still `expected` (None: if there is none yet); return the new version.

        Raises Conflict if another writer was there first.
        """
        ...

    def upload(self, key: str, source: BinaryIO, size: int, progress: Progress) -> str:
        """Write `size` bytes read in order from `source` (in a directory, runs of zeros become holes) and return the version.

        All or nothing: a failure leaves no object and no parts behind. Raises InvalidInput if the source ends early, NoSpace.
        """
        ...

    def open(self, key: str, size: int | None = None) -> DataObject:
        """Return the object pinned at its present version. Raises NotFound.

        With `size`, the bytes that it must have, asking the store may be left to the first read: it pins the version that it finds then, and
        raises NotFound, or VersionChanged for another size. That saves the first byte of an image a way to the store and back.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class StoredRecord:
    """An image's record as read, and the version that a conditional write must name."""

    record: ImageRecord
    version: str


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """One image of a listing: the id, the version of its record, what `record` needs besides (opaque to callers), and the record itself
    where a listing of the store has it.
    """

    image_id: str
    version: str
    entry: Entry | None = None
    stored: StoredRecord | None = None


Read = Callable[[Listed, StoredRecord | ImageRefused], None]
"""Called with a listed image and its record, or the reason why that is refused."""


class ImageStore(Protocol):
    """Images with records and data."""

    @property
    def url(self) -> str:
        """The store's URL, without credentials, for messages."""
        ...

    def check(self) -> None:
        """Return if the store can be used; raise otherwise, with a message that says what to mend."""
        ...

    def list(self, gently: bool = False) -> Iterator[Listed]:
        """Yield every image, without a request for each; `gently` if nobody waits for it, and guests are running."""
        ...

    def record(self, listed: Listed) -> StoredRecord:
        """Read one image's record. Raises NotFound, ImageRefused if the record is damaged."""
        ...

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        """Read the records of many listed images, calling `take` for each in this thread, in any order; images that are gone are left out.

        Returns how many cost a request each. A record that was changed since the listing comes as it is now, with its own version.
        Raises StoreError; some may have been taken by then.
        """
        ...

    def keep_records(self, records: Iterable[StoredRecord]) -> None:
        """Keep records together in the store, so that the next node that reads many of them needs few requests.

        Raises Unsupported where that makes no sense, Conflict if another node has just done it, StoreError.
        """
        ...

    def find(self, image_id: str) -> StoredRecord:
        """Read one image's record by id, without a listing. Raises NotFound."""
        ...

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Apply `change` to the image's newest record and write it, again and again until no other writer comes between.

        `change` must be pure: it may be called more than once. What it raises ends the update with nothing written.
        """
        ...

    def data(self, record: ImageRecord) -> DataObject:
        """Open the image's bytes, pinned at their present version. Raises NotFound, VersionChanged if the size is wrong."""
        ...

    def digest_page(self, record: ImageRecord, page: int) -> bytes:
        """Return page number `page` of the image's `digests`, unverified. Raises NotFound if the store has none."""
        ...

    def profile(self, record: ImageRecord) -> tuple[bytes, str] | None:
        """Return what is kept as the image's boot profile, cut after PROFILE_LIMIT and unverified, and its version for `put_profile`.

        None if there is none, or if this store keeps none.
        """
        ...

    def put_profile(self, record: ImageRecord, body: bytes, expected: str | None) -> None:
        """Keep a boot profile beside the image, if the present one's version is `expected` (None: if there is none).

        Raises Conflict if another writer was there first, NotFound if the image is gone (nothing is left of the profile then),
        Unsupported, NotPermitted or StoreRefused where the store keeps none.
        """
        ...

    def create(self, record: ImageRecord, content: Content, progress: Progress) -> StoredRecord:
        """Store a new image and return its active record, with size, checksums and digests filled in.

        The image is visible as `queued` from before `content` is called until it has returned, then as `saving`, then as `active`.
        A failure, also of `content` and of `progress`, leaves nothing behind and passes through. Raises AlreadyExists.
        """
        ...

    def delete(self, image_id: str) -> None:
        """Remove the image with its data. Raises NotFound, NotPermitted if it is protected."""
        ...
