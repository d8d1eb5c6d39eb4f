"""This module is the library: it opens images for reading, building the chain from the store to the bytes of a disk.

    store -> StoredObject (verified ranges) -> stored bytes: read in place if they are a local file, else through the disk cache
                                            -> disk: raw and iso are the stored bytes; qcow2 is decoded, through the disk cache

An opened image is shared by all its readers. The library keeps the last 256; one that falls out is closed when its last
reader lets go of it, since descriptors belong to the sources and end with them.
"""

import collections
import dataclasses
import functools
import logging
from typing import Final

import trio

from imagefs.cache.cache import UnitCache
from imagefs.cache.filler import UnitFiller
from imagefs.cache.root import CacheRoot
from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import ImageRefused, NotFound, StoreRefused, VersionChanged
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.inplace import InPlaceSource
from imagefs.fetch.stored import StoredObject
from imagefs.image.inspect import HEAD, Inspection, inspect
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.source import Source
from imagefs.store.protocol import ImageStore
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

OPEN_IMAGES: Final = 256


@dataclasses.dataclass(frozen=True, slots=True)
class OpenImage:
    """An image's two faces: `stored` is the object's bytes as they are, `disk` what a guest sees."""

    stored: Source
    inspection: Inspection
    disk: Source | None
    """None when the format cannot be shown as a disk."""

    def as_disk(self) -> Source:
        """Return the disk. Raises ImageRefused with the reason if there is none."""
        if self.disk is None:
            raise ImageRefused(self.inspection.unreadable)
        return self.disk


class Library:
    """Opens images of one store. All methods run on the event loop; one opening of an image serves all who wait for it."""

    def __init__(self, store: ImageStore, cache: CacheRoot, nursery: trio.Nursery, policy: RetryPolicy) -> None:
        """Fills of the cache run in `nursery`: they belong to the cache, not to the reader who caused them."""
        self._store = store
        self._cache = cache
        self._nursery = nursery
        self._policy = policy
        self._open: collections.OrderedDict[tuple[str, str], OpenImage] = collections.OrderedDict()
        self._opening: dict[tuple[str, str], trio.Event] = {}

    def forget(self, old: Snapshot, new: Snapshot) -> None:
        """Let go of images that are gone from the catalog or have other bytes: a deleted file takes room while it is open."""
        for image_id, image in old.images.items():
            newer = new.images.get(image_id)
            if newer is not image and (newer is None or newer.data_version != image.data_version):
                self._open.pop((image_id, image.data_version), None)

    async def open(self, image: CatalogImage) -> OpenImage:
        """Return the image, opened. Raises StoreError, ImageRefused; a failed opening is tried again by the next call."""
        key = (image.record.id, image.data_version)
        while (opened := self._open.get(key)) is None:
            if (others := self._opening.get(key)) is not None:
                await others.wait()
                continue
            done = self._opening[key] = trio.Event()
            try:
                opened = self._open[key] = await self._build(image)
            finally:
                del self._opening[key]
                done.set()
            if len(self._open) > OPEN_IMAGES:
                self._open.popitem(last=False)
            return opened
        self._open.move_to_end(key)
        return opened

    async def cached_bytes(self, image: CatalogImage, size: int, *, of_disk: bool) -> int:
        """Return how many of the `size` bytes of a face of the image are cached, or proved in place; opens nothing."""
        opened = self._open.get((image.record.id, image.data_version))
        if opened is not None:
            source = opened.disk if of_disk else opened.stored
            if isinstance(source, Qcow2Disk):  # what is not compressed is read in place, and takes no room
                source = source.decoded
            return source.cached_bytes if isinstance(source, UnitCache | InPlaceSource) else 0
        space = "guest" if of_disk and image.record.disk_format == "qcow2" else "stored"
        return await self._cache.cached_bytes(image.record.id, space, image.data_version, size)

    async def _build(self, image: CatalogImage) -> OpenImage:
        record = image.record
        name = f"{record.id} ({record.name})" if record.name else record.id
        if record.status not in ("active", "deactivated"):
            raise ImageRefused(f"image {name}: its status is {record.status}: it has no bytes to read yet")
        stored = await run(Lane.STORE, self._open_object, image, name)
        in_place = await run(Lane.DISK, InPlaceSource, stored) if stored.path is not None else None
        bytes_as_stored: Source = in_place or await self._cached(image, "stored", ObjectFiller(stored), name)
        head = bytes(await bytes_as_stored.read(0, min(HEAD, stored.size)))
        try:
            inspection = inspect(head, stored.size, record.disk_format, name)
        except ImageRefused as error:
            log.warning("an image is refused image=%s error=%s", record.id, error)
            raise
        disk: Source | None = None
        if inspection.format == "qcow2":
            qcow2 = await open_image(bytes_as_stored, name)
            decoded = await self._cached(image, "guest", Qcow2Filler(qcow2, stored), name)
            disk = Qcow2Disk(qcow2, in_place, decoded) if in_place is not None else decoded
        elif not inspection.unreadable:
            disk = bytes_as_stored
        return OpenImage(bytes_as_stored, inspection, disk)

    def _open_object(self, image: CatalogImage, name: str) -> StoredObject:
        record = image.record
        digests = None
        if record.tree is not None:
            digests = UnitDigests(record.tree, record.size or 0, functools.partial(self._store.digest_page, record), name)
        return StoredObject(self._store.data(record), digests, self._policy, name=name)

    async def _cached(self, image: CatalogImage, space: str, filler: UnitFiller, name: str) -> UnitCache:
        return await self._cache.open(image.record.id, space, image.data_version, filler, self._nursery, name=name)


class ImageDisk:
    """The disk of an image that an instance was made from: a Source that opens the image at its first read.

    It is pinned to the version that the instance was made from. If the store has another one by now, or none, reads of what
    the instance has not written fail with a reason; they never return other bytes.
    """

    def __init__(self, catalog: Catalog, library: Library, image_id: str, data_version: str, size: int) -> None:
        """Name the image, the version of its bytes and the size of its disk; nothing is opened."""
        self._catalog = catalog
        self._library = library
        self._image_id = image_id
        self._data_version = data_version
        self._size = size
        self._disk: Source | None = None

    @property
    def size(self) -> int:
        """Bytes of the image's disk."""
        return self._size

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says; None until the image is open."""
        return None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says. Raises VersionChanged if the image has other bytes than the instance was made from."""
        disk = self._disk if self._disk is not None else await self._opened()
        return await disk.read(offset, length)

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """As Source says; opens the image. Raises what `read` raises."""
        disk = self._disk if self._disk is not None else await self._opened()
        return await disk.extents(offset, length)

    async def _opened(self) -> Source:
        """Open the image. Several may do so at once: the library gives all of them the same disk."""
        try:
            image = await self._catalog.find(self._image_id)
        except NotFound as error:
            raise StoreRefused(f"{error}: it was deleted, and what the instance has not written cannot be read any more") from error
        if self._data_version not in image.data_versions:
            raise VersionChanged(f"image {self._image_id} has other bytes than the instance was made from: its disk cannot be read further")
        opened = await self._library.open(image)
        disk = opened.as_disk()
        if disk.size != self._size:
            raise VersionChanged(f"image {self._image_id} is a disk of {disk.size} bytes, not of {self._size} as when the instance was made from it")
        self._disk = disk
        # from here on the hot path goes to the image itself, without a step through this object
        self.read_nowait = disk.read_nowait  # type: ignore[method-assign]
        return disk
