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
from collections.abc import Callable
from typing import Final, Literal

import trio

from imagefs.cache.cache import UnitCache
from imagefs.cache.filler import UnitFiller
from imagefs.cache.mark import Mark
from imagefs.cache.root import CacheRoot
from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import ImageRefused, NotFound, StoreRefused, VersionChanged
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.inplace import InPlaceSource
from imagefs.fetch.stored import StoredObject
from imagefs.fetch.traffic import Traffic
from imagefs.hydration.hydrator import Hydrator
from imagefs.hydration.image import HydratedImage
from imagefs.hydration.verdict import JudgedFiller, Verdict
from imagefs.hydration.verification import CacheVerified, Progress, verify_cached
from imagefs.image.inspect import HEAD, Inspection, inspect
from imagefs.image.qcow2.disk import Qcow2Disk
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.profile.boots import Boots
from imagefs.profile.prefetches import Prefetches
from imagefs.profile.recorder import Recorder
from imagefs.source import Source
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

OPEN_IMAGES: Final = 256

AS_STORED: Final = frozenset({"raw", "iso"})
"""Formats whose disk is the stored bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenImage:
    """An image's two faces: `stored` is the object's bytes as they are, `disk` what a guest sees."""

    stored: Source
    inspection: Inspection
    disk: Source | None
    """None when the format cannot be shown as a disk."""
    hydration: HydratedImage | None = None
    """What brings the rest of the disk into the cache; None if it is not read through one, or cannot be shown."""
    hydrator: Hydrator | None = None

    def as_disk(self) -> Source:
        """Return the disk, which somebody is about to use. Raises ImageRefused with the reason if there is none."""
        if self.disk is None:
            raise ImageRefused(self.inspection.unreadable)
        if self.hydration is not None and self.hydrator is not None:
            self.hydrator.consider(self.hydration)
        return self.disk


@dataclasses.dataclass(slots=True, eq=False)
class _Opening:
    """An image that is being opened."""

    done: trio.Event = dataclasses.field(default_factory=trio.Event)
    asked: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set once `stored` is there, and at the end."""
    stored: UnitCache | None = None
    """What readers' bytes may be fetched through already; they get them once the image is open."""
    failure: Exception | None = None
    """Why it could not be opened, where no caller is there to be told."""


class Library:
    """Opens images of one store. All methods run on the event loop; one opening of an image serves all who wait for it."""

    def __init__(
        self, store: ImageStore, cache: CacheRoot, nursery: trio.Nursery, policy: RetryPolicy, boots: Boots, hydrator: Hydrator | None = None
    ) -> None:
        """Fills of the cache run in `nursery`: they belong to the cache, not to the reader who caused them. `boots` sees to what guests read,
        `hydrator` (None: nothing) to the rest.
        """
        self._store = store
        self._cache = cache
        self._nursery = nursery
        self._policy = policy
        self._traffic = Traffic()
        self._boots = boots
        self._hydrator = hydrator
        self._prefetches = Prefetches(boots)
        self._open: collections.OrderedDict[tuple[str, str], OpenImage] = collections.OrderedDict()
        self._opening: dict[tuple[str, str], _Opening] = {}

    def forget(self, old: Snapshot, new: Snapshot) -> None:
        """Let go of images that are gone from the catalog or have other bytes: a deleted file takes room while it is open."""
        for image_id, image in old.images.items():
            newer = new.images.get(image_id)
            if newer is not image and (newer is None or newer.data_version != image.data_version):
                self._open.pop((image_id, image.data_version), None)
                self._boots.forget(image)
                self._prefetches.forget(image)
                if self._hydrator is not None:
                    self._hydrator.forget((image_id, image.data_version))

    async def open(self, image: CatalogImage, wanted: tuple[int, int] | None = None) -> OpenImage:
        """Return the image, opened. Raises StoreError, ImageRefused; a failed opening is tried again by the next call.

        `wanted` is the offset and length of stored bytes that the caller will read: where they come from afar, they are fetched meanwhile.
        """
        key = (image.record.id, image.data_version)
        while (opened := self._open.get(key)) is None:
            if (opening := self._opening.get(key)) is None:
                opening = self._opening[key] = _Opening()
                return await self._complete(image, opening)
            if wanted is not None and opening.stored is not None:
                self._nursery.start_soon(_fetch, opening.stored, wanted)
                wanted = None
            await opening.done.wait()
        self._open.move_to_end(key)
        return opened

    async def begin(self, image: CatalogImage, *, of_disk: bool) -> OpenImage | None:
        """Return the image, opened; None if it will be by the time that a read of the face has asked `open` for it. Raises what `open` raises.

        Later are those images whose bytes come from afar and were inspected when they were imported: to look at such a one's head
        once more before anything is asked for would be a round trip that its first reader waits for.
        """
        key = (image.record.id, image.data_version)
        if key in self._open or image.record.tree is None or (of_disk and image.record.disk_format not in AS_STORED):
            return await self.open(image)
        if (opening := self._opening.get(key)) is None:
            opening = self._opening[key] = _Opening()
            self._nursery.start_soon(self._complete_behind, image, opening)
        await opening.asked.wait()
        if opening.failure is not None:
            raise opening.failure
        return self._open.get(key)

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

    def expect_boot(self, image: CatalogImage) -> None:
        """Begin to bring what a boot of the image reads, opening it first if it is not open; returns at once and never raises."""

        async def opening() -> Source | None:
            return (await self.open(image)).disk

        self._boots.expect(image, opening)

    def ask_of_boots(self, image: CatalogImage) -> None:
        """Begin to read what is known of boots from an image that is about to be opened; returns at once and never raises."""
        self._boots.ask(image)

    def recorded(self, image: CatalogImage, disk: Source, ended: Callable[[], object]) -> Recorder | None:
        """Return what a guest that is about to boot reads the open image's disk through; None if its boot is not worth recording.

        `ended` is called once it has done its work: from then on the disk may be read directly.
        """
        return self._boots.recorded(image, disk, ended)

    async def prefetch(self, image: CatalogImage, what: Literal["boot", "all"]) -> None:
        """Bring what a boot of the image reads, or all of it, into the cache; returns when it is there. Safe to cancel.

        Raises StoreErrors, ImageRefused, and NoSpace for all of an image that the cache cannot hold. Bytes that are read in place need no
        bringing. `prefetch_state` tells how far it is.
        """
        opened = await self.open(image)
        await self._prefetches.run(image, opened.stored if opened.disk is None else opened.disk, what)

    def prefetch_state(self, image: CatalogImage) -> str:
        """Return how far `prefetch` is: "none", "boot 12345/67890" and "all 12345/67890" in bytes while it runs, "done"."""
        return self._prefetches.state(image)

    async def verify_cached(self, image_id: str | None, progress: Progress) -> CacheVerified:
        """Compare what is cached, of one image or (None) of all, with its checksums; see `hydration.verification.verify_cached`."""
        return await verify_cached(self._cache, image_id, progress)

    async def mark(self, image: CatalogImage, *, of_disk: bool) -> Mark | None:
        """Return what a face of the image was compared with once all of it was cached; None if it is not known to be complete. Opens nothing."""
        space = "guest" if of_disk and image.record.disk_format == "qcow2" else "stored"
        return await self._cache.mark(image.record.id, space, image.data_version)

    async def close(self) -> None:
        """Write down the boots that are being recorded, within seconds. Never raises."""
        await self._boots.close()

    async def _complete(self, image: CatalogImage, opening: _Opening) -> OpenImage:
        """Open the image for all who wait for it."""
        key = (image.record.id, image.data_version)
        try:
            opened = self._open[key] = await self._build(image, opening)
        finally:
            del self._opening[key]
            opening.asked.set()
            opening.done.set()
        if len(self._open) > OPEN_IMAGES:
            self._open.popitem(last=False)
        return opened

    async def _complete_behind(self, image: CatalogImage, opening: _Opening) -> None:
        """Open the image as a task of its own: who waits for it asks for the reason, or tries again."""
        try:
            await self._complete(image, opening)
        except Exception as error:
            opening.failure = error
            log.debug("an image cannot be opened image=%s error=%s", image.record.id, error)

    async def _build(self, image: CatalogImage, opening: _Opening) -> OpenImage:
        record, name = image.record, _checked_name(image.record)
        verdict = self._hydrator.verdict((record.id, image.data_version)) if self._hydrator is not None else Verdict()
        verdict.check()
        stored = await run(Lane.STORE, self._open_object, image, name)
        in_place = await run(Lane.DISK, InPlaceSource, stored) if stored.path is not None else None
        bytes_as_stored: Source = in_place or await self._cached(image, "stored", ObjectFiller(stored), verdict)
        if isinstance(bytes_as_stored, UnitCache):
            opening.stored = bytes_as_stored
            opening.asked.set()
        head = bytes(await bytes_as_stored.read(0, min(HEAD, stored.size)))
        try:
            inspection = inspect(head, stored.size, record.disk_format, name)
        except ImageRefused as error:
            log.warning("an image is refused image=%s error=%s", record.id, error)
            raise
        disk: Source | None = None
        if inspection.format == "qcow2":
            qcow2 = await open_image(bytes_as_stored, name)
            decoded = await self._cached(image, "guest", Qcow2Filler(qcow2, stored), verdict)
            disk = Qcow2Disk(qcow2, in_place, decoded) if in_place is not None else decoded
        elif not inspection.unreadable:
            disk = bytes_as_stored
        hydration = None
        if isinstance(bytes_as_stored, UnitCache) and isinstance(disk, UnitCache):
            hydration = HydratedImage(record, image.data_version, stored, bytes_as_stored, disk, verdict)
        return OpenImage(bytes_as_stored, inspection, disk, hydration, self._hydrator)

    def _open_object(self, image: CatalogImage, name: str) -> StoredObject:
        record = image.record
        digests = None
        if record.tree is not None:
            digests = UnitDigests(record.tree, record.size or 0, functools.partial(self._store.digest_page, record), name)
        return StoredObject(self._store.data(record), digests, self._policy, name=name, traffic=self._traffic)

    async def _cached(self, image: CatalogImage, space: str, filler: UnitFiller, verdict: Verdict) -> UnitCache:
        """Open the cache of one address space. Where unit digests prove each byte as it comes, nothing has to be found out afterwards."""
        judged = filler if image.record.tree is not None else JudgedFiller(filler, verdict)
        return await self._cache.open(image.record.id, space, image.data_version, judged, self._nursery, name=_checked_name(image.record))


async def _fetch(stored: UnitCache, wanted: tuple[int, int]) -> None:
    """Read a range for somebody who will read it in a moment, and be told then what is wrong with it."""
    try:
        await stored.read(*wanted)
    except Exception as error:
        log.debug("what is wanted first cannot be read cache=%s error=%s", stored.name, error)


def _checked_name(record: ImageRecord) -> str:
    """Return what messages call an image. Raises ImageRefused if it has no bytes."""
    name = f"{record.id} ({record.name})" if record.name else record.id
    if record.status not in ("active", "deactivated"):
        raise ImageRefused(f"image {name}: its status is {record.status}: it has no bytes to read yet")
    return name


class ImageDisk:
    """The disk of an image that an instance was made from: a Source that opens the image at its first read.

    It is pinned to the version that the instance was made from. If the store has another one by now, or none, reads of what
    the instance has not written fail with a reason; they never return other bytes.
    """

    def __init__(self, catalog: Catalog, library: Library, image_id: str, data_version: str, size: int, *, boots: bool = False) -> None:
        """Name the image, the version of its bytes and the size of its disk; nothing is opened.

        `boots` says that what is read first is the first boot of a guest, so that it is recorded.
        """
        self._catalog = catalog
        self._library = library
        self._image_id = image_id
        self._data_version = data_version
        self._size = size
        self._boots = boots
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
        disk = self._disk if self._disk is not None else await self._opened((offset, length))
        return await disk.read(offset, length)

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """As Source says; opens the image. Raises what `read` raises."""
        disk = self._disk if self._disk is not None else await self._opened()
        return await disk.extents(offset, length)

    def expect_boot(self) -> None:
        """Begin to bring what a boot reads: somebody has opened the instance's disk. Returns at once and never raises."""
        image = self._catalog.snapshot.images.get(self._image_id)
        if image is not None and self._data_version in image.data_versions:
            self._library.expect_boot(image)

    def close(self) -> None:
        """Let go of the image; nobody reads any more. A boot that was being recorded is over."""
        if isinstance(self._disk, Recorder):
            self._disk.end()

    async def _opened(self, wanted: tuple[int, int] | None = None) -> Source:
        """Open the image, for a read of `wanted`. Several may do so at once: the library gives all of them the same disk."""
        try:
            image = await self._catalog.find(self._image_id)
        except NotFound as error:
            raise StoreRefused(f"{error}: it was deleted, and what the instance has not written cannot be read any more") from error
        if self._data_version not in image.data_versions:
            raise VersionChanged(f"image {self._image_id} has other bytes than the instance was made from: its disk cannot be read further")
        opened = await self._library.open(image, wanted if image.record.disk_format in AS_STORED else None)
        disk = opened.as_disk()
        if disk.size != self._size:
            raise VersionChanged(f"image {self._image_id} is a disk of {disk.size} bytes, not of {self._size} as when the instance was made from it")
        if self._disk is not None:  # another reader was quicker, and its boot is the one that is recorded
            return self._disk
        recorder = self._library.recorded(image, disk, functools.partial(self._show, disk)) if self._boots else None
        return self._show(recorder or disk)

    def _show(self, disk: Source) -> Source:
        """Read this from now on: the hot path goes there itself, without a step through this object."""
        self._disk = disk
        self.read_nowait = disk.read_nowait  # type: ignore[method-assign]
        return disk
