"""This module is the catalog: the records of all images of the store, as of the last look.

A look lists the store and reads only records whose version it has not seen: they are kept in the state directory, so that
mounting a store of 100,000 images reads no record twice, and so that a mount can start while the store is down.
"""

import dataclasses
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import trio

from imagefs.catalog.database import RecordDatabase
from imagefs.catalog.image import CatalogImage
from imagefs.catalog.names import FILE_NAME_LIMIT, FileNames, file_name, file_names, newest_active
from imagefs.errors import Conflict, ImageRefused, NotFound, StoreUnavailable, Unsupported
from imagefs.store.protocol import ImageStore, Listed, StoredRecord
from imagefs.store.record import ImageRecord
from imagefs.threads import Lane, run

__all__ = [
    "FILE_NAME_LIMIT",
    "Catalog",
    "CatalogImage",
    "FileNames",
    "RecordDatabase",
    "Snapshot",
    "file_name",
    "file_names",
    "newest_active",
]

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 30.0
"""Between two looks at the store. A look that takes long is followed by a pause twenty times as long."""
FIRST_LOOK_SECONDS: Final = 2.0
"""For which a mount that knows the store's images from an earlier one waits for its first look: listing 100,000 takes longer."""
LOOKUP_SECONDS: Final = 2.0
"""For which the lookup of an id that no look has found waits for the store: the kernel looks up and lists a directory's names one after the
other, so that all callers wait with it."""
SILENCE_SECONDS: Final = 20.0
"""For which no lookup asks a store that has let one wait for too long."""
QUICK: Final = 10_000
"""Images up to which a first look is done before anybody could wait for it."""
STEP: Final = 256
PAUSE: Final = 0.02
"""Seconds of rest after STEP images of what is done gently. Reading a page of a listing takes 5 ms in which no guest is served; without a rest
between them a look at 100,000 images makes everybody's requests take twenty times as long for as long as it takes."""
KEEP_WORTH: Final = 256
"""Records read one by one after which all are written to the store together, for the next node."""
KEEP_SECONDS: Final = 3600.0
"""Between two such writings."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All images at one look. Never changed: a new look makes a new one."""

    generation: int
    images: dict[str, CatalogImage]


@dataclasses.dataclass(frozen=True, slots=True)
class _Survey:
    """What a look found: images that are new or changed, ids that are gone, and how many records were read one by one."""

    read: dict[str, CatalogImage]
    gone: list[str]
    singly: int


class Catalog:
    """The present snapshot and how it is renewed.

    `snapshot` is replaced as a whole, on the event loop; `watchers` are called after each replacement with the old and the
    new one. One look runs at a time.
    """

    def __init__(self, store: ImageStore, database: RecordDatabase) -> None:
        """Start with what the database knows."""
        self._store = store
        self._database = database
        self._look = trio.Lock()
        # One writer of an image at a time, or the older of two answers might be the one that stays.
        self._writing = [trio.Lock() for _ in range(64)]
        self.watchers: list[Callable[[Snapshot, Snapshot], None]] = []
        images = database.load()
        self._saved: Mapping[str, CatalogImage] = images
        self._unreadable: dict[str, str] = {}
        self._silent_until = float("-inf")
        self._singly = 0
        self._keep_after = float("-inf")
        self.snapshot = Snapshot(0, images)

    async def start(self, nursery: trio.Nursery) -> None:
        """Look for the first time, and in `nursery` again and again.

        Without images of an earlier mount this returns when the look is done, and raises what it raised. With them it waits FIRST_LOOK_SECONDS
        at most, and then the mount begins with those images, which the look that goes on brings up to date; so it does if the store is down.
        """
        done = trio.Event()
        failed: list[Exception] = []

        async def tend() -> None:
            try:
                await run(Lane.STORE, self._store.check)
                await self.look(gently=known > QUICK)
            except Exception as error:  # whatever it is: who waits decides
                failed.append(error)
                if waited:
                    log.warning("the store cannot be listed; the catalog stays as an earlier mount left it error=%s", error)
            done.set()
            await self.keep_fresh()

        waited = False
        known = len(self.snapshot.images)
        nursery.start_soon(tend, name="catalog")
        with trio.move_on_after(FIRST_LOOK_SECONDS if known else float("inf")):
            await done.wait()
        waited = True
        if not done.is_set():
            log.info("starting with %d images of an earlier mount while the store is looked at url=%s", known, self._store.url)
        for error in failed:
            if not isinstance(error, StoreUnavailable) or not known:
                raise error
            log.warning("the store is down; starting with %d images of an earlier mount error=%s", known, error)

    async def look(self, gently: bool = False) -> None:
        """Look at the store and take up what changed; `gently` while nobody waits for it. Raises StoreError; the snapshot is then the old one."""
        async with self._look:
            before = self.snapshot.images
            found = await run(Lane.STORE, self._survey, before, gently)
            # The present snapshot may have changed in the await above. What `find` has found since this look began stays, since it may have been
            # made after the store was listed. So does what `update` has written since: what was read of it may be older.
            present = self.snapshot.images
            read = {image_id: image for image_id, image in found.read.items() if present.get(image_id) is before.get(image_id)}
            gone = [image_id for image_id in found.gone if present.get(image_id) is before.get(image_id)]
            if read or gone:
                images = present | read
                for image_id in gone:
                    del images[image_id]
                self._replace(images)
            self._singly += found.singly
            try:
                await run(Lane.DISK, self._save, self.snapshot.images)
            except sqlite3.Error as error:
                log.warning("the catalog's database cannot be written; records are read again at the next mount error=%s", error)

    def _survey(self, known: Mapping[str, CatalogImage], gently: bool) -> _Survey:
        """List the store and read what is not among `known`. Blocks. Raises StoreError.

        All in one thread: a step on the event loop for each of a hundred thousand images would be felt by guests.
        """
        there: set[str] = set()
        wanted: list[Listed] = []
        for count, listed in enumerate(self._store.list(gently), 1):
            if gently and count % STEP == 0:
                time.sleep(PAUSE)
            image = known.get(listed.image_id)
            if image is not None and image.version == listed.version:
                there.add(image.id)
            else:
                wanted.append(listed)
        read: dict[str, CatalogImage] = {}
        unreadable: dict[str, str] = {}

        def take(listed: Listed, found: StoredRecord | ImageRefused) -> None:
            if isinstance(found, StoredRecord):
                # the listing's own words where they are the same: a hundred thousand times two of them are 17 MB
                version = listed.version if found.version == listed.version else found.version
                read[listed.image_id] = self._image(StoredRecord(found.record, version))
                read[listed.image_id].id = listed.image_id
                return
            if self._unreadable.get(listed.image_id) != listed.version:  # once, not at each look
                log.warning("an image is left out of the catalog image=%s error=%s", listed.image_id, found)
            unreadable[listed.image_id] = listed.version

        singly = self._store.records(wanted, take) if wanted else 0
        self._unreadable = unreadable
        return _Survey(read, [image_id for image_id in known if image_id not in there and image_id not in read], singly)

    def _image(self, stored: StoredRecord) -> CatalogImage:
        return CatalogImage(stored.record, stored.version, self._database.packing(stored.record))

    def _save(self, images: Mapping[str, CatalogImage]) -> None:
        """Keep in the database what it does not have yet; if it cannot be written, the next look tries again. Blocks. Raises sqlite3.Error."""
        saved = self._saved
        if images is saved:
            return
        changed = [image for image_id, image in images.items() if saved.get(image_id) is not image]
        gone = [image_id for image_id in saved if image_id not in images]
        if changed or gone:
            self._database.save(changed, gone)
        self._saved = images

    async def find(self, image_id: str) -> CatalogImage:
        """Return an image by id, asking the store for one that no look has seen yet. Raises NotFound, StoreError."""
        if image_id in self.snapshot.images:
            return self.snapshot.images[image_id]
        stored = await run(Lane.STORE, self._store.find, image_id)
        image = self._image(stored)
        if image_id in self.snapshot.images:  # a look, or another caller, was faster
            return self.snapshot.images[image_id]
        self._replace(self.snapshot.images | {image_id: image})
        return image

    async def find_soon(self, image_id: str) -> CatalogImage:
        """Like `find`, for who makes others wait too: raises StoreUnavailable if the store takes long to answer, or has done so lately."""
        if image_id not in self.snapshot.images and trio.current_time() < self._silent_until:
            raise StoreUnavailable(f"image {image_id} is not known here, and {self._store.url} was not asked: it does not answer these seconds")
        with trio.move_on_after(LOOKUP_SECONDS):
            return await self.find(image_id)
        self._silent_until = trio.current_time() + SILENCE_SECONDS
        raise StoreUnavailable(f"image {image_id} is not known here, and {self._store.url} did not tell of it in {LOOKUP_SECONDS:.0f} s: try again")

    async def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> CatalogImage:
        """Write a change of an image's record through to the store (see ImageStore.update), and show it from now on.

        Once the store has begun, it goes on to its end even if the caller is cancelled: the catalog must not miss what was written.
        """
        async with self._writing[hash(image_id) % len(self._writing)]:
            return await self._update(image_id, change)

    async def _update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> CatalogImage:
        with trio.CancelScope(shield=True):
            stored = await run(Lane.STORE, self._store.update, image_id, change)
            image = self._image(stored)
            known = self.snapshot.images.get(image_id)
            if known is not None and known.version != image.version:
                self._replace(self.snapshot.images | {image_id: image})
        return image

    async def reread(self, image_id: str) -> None:
        """Show an image as the store has it now, if it has it. Raises StoreError, ImageRefused; the catalog stays as it is then."""
        async with self._writing[hash(image_id) % len(self._writing)]:
            try:
                stored = await run(Lane.STORE, self._store.find, image_id)
            except NotFound:
                if image_id in self.snapshot.images:
                    self._replace({known: image for known, image in self.snapshot.images.items() if known != image_id})
                return
            known = self.snapshot.images.get(image_id)
            if known is None or known.version != stored.version:
                self._replace(self.snapshot.images | {image_id: self._image(stored)})

    async def keep_fresh(self) -> None:
        """Look again and again, until cancelled; a store that is down costs one warning for each change of its state."""
        pause, reachable = REFRESH_SECONDS, True
        while True:
            await self._keep_records()
            await trio.sleep(pause)
            started = trio.current_time()
            try:
                await self.look(gently=True)
            except Exception as error:  # whatever it is, the mount goes on with what is known
                (log.warning if reachable else log.debug)("the store cannot be listed; the catalog stays as it is error=%s", error)
                reachable = False
            else:
                if not reachable:
                    log.info("the store can be listed again url=%s", self._store.url)
                reachable = True
            pause = max(REFRESH_SECONDS, 20 * (trio.current_time() - started))

    async def _keep_records(self) -> None:
        """Spare the next node what this one has just done: write all records to the store together, if many had to be read one by one."""
        if self._singly < KEEP_WORTH or trio.current_time() < self._keep_after:
            return
        self._singly = 0
        self._keep_after = trio.current_time() + KEEP_SECONDS
        images = self.snapshot.images
        try:
            # Left to itself when the mount ends: the object is written whole or not at all.
            await run(Lane.STORE, self._store.keep_records, _gently(images.values()))
        except Conflict:
            log.debug("another node has kept the records together meanwhile url=%s", self._store.url)
        except Unsupported:
            self._keep_after = float("inf")
        except Exception as error:  # whatever it is, it only costs other nodes time
            log.info("the records could not be kept together in the store, which makes the first mount of other nodes slower error=%s", error)

    def _replace(self, images: dict[str, CatalogImage]) -> None:
        old = self.snapshot
        self.snapshot = Snapshot(old.generation + 1, images)
        for watcher in self.watchers:
            watcher(old, self.snapshot)


def _gently(images: Iterable[CatalogImage]) -> Iterator[StoredRecord]:
    """Yield records, with rests."""
    for count, image in enumerate(images, 1):
        if count % STEP == 0:
            time.sleep(PAUSE)
        yield StoredRecord(image.unpack(), image.version)
