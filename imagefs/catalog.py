"""This module is the catalog: the records of all images of the store, as of the last look, and their names.

A look lists the store and reads only records whose version it has not seen: they are kept in the state directory, so that
mounting a store of 10,000 images reads no record twice, and so that a mount can start while the store is down.
"""

import dataclasses
import functools
import logging
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.errors import ImageRefused, InvalidInput, NotFound, StateDamaged, StoreError, StoreUnavailable
from imagefs.store.protocol import ImageStore, Listed, StoredRecord
from imagefs.store.record import ImageRecord, data_versions, decode_record, encode_record
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 30.0
"""Between two looks at the store. A look that takes long is followed by a pause twenty times as long."""
LOOKUP_SECONDS: Final = 2.0
"""For which the lookup of an id that no look has found waits for the store: the kernel looks up and lists a directory's names one after the
other, so that all callers wait with it."""
SILENCE_SECONDS: Final = 20.0
"""For which no lookup asks a store that has let one wait for too long."""
APPLICATION_ID: Final = 0x494D4653  # "IMFS"
SCHEMA_VERSION: Final = 1
FILE_NAME_LIMIT: Final = 255
"""Bytes of a file's name in Linux."""
_BIDIRECTIONAL: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclasses.dataclass(frozen=True, slots=True)
class CatalogImage:
    """One image: its record, and the record's version in the store."""

    record: ImageRecord
    version: str

    @property
    def data_version(self) -> str:
        """What names the image's bytes: changes if they do, and when they get a better name."""
        return self.record.os_hash_value or self.data_versions[0]

    @property
    def data_versions(self) -> tuple[str, ...]:
        """All that has ever named these bytes, the present name first. An object of the flat layout has the name that its store gives it."""
        return data_versions(self.record) if self.record.key is None else (self.version,)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """All images at one look. Never changed: a new look makes a new one."""

    generation: int
    images: dict[str, CatalogImage]


class RecordDatabase:
    """Records by image id and version in a SQLite file; all methods block.

    A row's body is a record in its stored form, which carries its own checksum. The file has `application_id` IMFS and
    `user_version` 1; one that is damaged or of another kind is put aside and made anew, since the store has it all.
    """

    def __init__(self, path: Path, store_url: str) -> None:
        """Open or make the file at `path`; rows of another store are dropped. Raises InvalidInput if it cannot be opened or made."""
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = self._open(store_url)
        except sqlite3.OperationalError as error:  # a full or broken disk, or no permission: the file may be as good as ever
            raise InvalidInput(f"{path}: {error}: free some room in the state directory, and see that it is yours") from error
        except (sqlite3.DatabaseError, StateDamaged) as error:
            aside = path.with_suffix(".damaged")
            log.warning("the catalog's database cannot be used and is made anew path=%s aside=%s error=%s", path, aside, error)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.replace(aside)
            self._db = self._open(store_url)

    def _open(self, store_url: str) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._path.chmod(0o600)
            application, version = (database.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("application_id", "user_version"))
            if (application, version) not in {(0, 0), (APPLICATION_ID, SCHEMA_VERSION)}:
                raise StateDamaged(f"{self._path}: application {application:#x} version {version}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            database.execute("CREATE TABLE IF NOT EXISTS store (url TEXT NOT NULL)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS image (id TEXT PRIMARY KEY, version TEXT NOT NULL, key TEXT, body BLOB NOT NULL) WITHOUT ROWID"
            )
            if database.execute("SELECT url FROM store").fetchone() != (store_url,):
                with database:
                    database.execute("DELETE FROM image")
                    database.execute("DELETE FROM store")
                    database.execute("INSERT INTO store VALUES (?)", (store_url,))
        except BaseException:
            database.close()
            raise
        return database

    def load(self) -> dict[str, CatalogImage]:
        """Return all images; rows that fail their checksum are left out, and so read again from the store."""
        images = {}
        with self._lock:
            rows = self._db.execute("SELECT id, version, key, body FROM image").fetchall()
        for image_id, version, key, body in rows:
            try:
                record = decode_record(body, f"{self._path}: image {image_id}")
            except ImageRefused as error:
                log.warning("a cached record is read again from the store error=%s", error)
                continue
            images[image_id] = CatalogImage(msgspec.structs.replace(record, key=None if key is None else os.fsdecode(key)), version)
        return images

    def save(self, changed: Iterable[CatalogImage], gone: Iterable[str]) -> None:
        """Write changed images and remove those that are gone, in one transaction."""
        rows = [
            (
                image.record.id,
                image.version,
                None if image.record.key is None else os.fsencode(image.record.key),  # file names need not be UTF-8, which SQLite's text is
                encode_record(msgspec.structs.replace(image.record, key=None)),
            )
            for image in changed
        ]
        with self._lock:
            self._db.execute("BEGIN")
            try:
                self._db.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)", rows)
                self._db.executemany("DELETE FROM image WHERE id = ?", [(image_id,) for image_id in gone])
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back by itself if the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()


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
        self._saved = {image_id: image.version for image_id, image in images.items()}
        self._unreadable: dict[str, str] = {}
        self._silent_until = float("-inf")
        self.snapshot = Snapshot(0, images)

    async def look(self) -> None:
        """Look at the store and take up what changed. Raises StoreError; the snapshot is then the old one."""
        async with self._look:
            before = self.snapshot.images
            listing = await run(Lane.STORE, lambda: list(self._store.list()))
            known = self.snapshot.images
            wanted = [listed for listed in listing if listed.image_id not in known or known[listed.image_id].version != listed.version]
            read = await self._read_records(wanted)
            unreadable = {listed.image_id for listed in wanted} - read.keys()
            # The present snapshot may have changed in the awaits above: what `find` has found since this look began stays, since it may
            # have been made after the store was listed.
            present = self.snapshot.images
            # So does what `update` has written since: what was read of it may be older.
            read = {image_id: image for image_id, image in read.items() if present.get(image_id) is before.get(image_id)}
            stay = {listed.image_id for listed in listing} - unreadable | present.keys() - before.keys()
            images = {image_id: image for image_id, image in present.items() if image_id in stay} | read
            if read or images.keys() != present.keys():
                self._replace(images)
            await self._save(images)

    async def _save(self, images: dict[str, CatalogImage]) -> None:
        """Keep in the database what it does not have yet; if it cannot be written, the next look tries again."""
        changed = [image for image_id, image in images.items() if self._saved.get(image_id) != image.version]
        gone = [image_id for image_id in self._saved if image_id not in images]
        if not changed and not gone:
            return
        try:
            await run(Lane.DISK, self._database.save, changed, gone)
        except sqlite3.Error as error:
            log.warning("the catalog's database cannot be written; records are read again at the next mount error=%s", error)
        else:
            self._saved = {image_id: image.version for image_id, image in images.items()}

    async def find(self, image_id: str) -> CatalogImage:
        """Return an image by id, asking the store for one that no look has seen yet. Raises NotFound, StoreError."""
        if image_id in self.snapshot.images:
            return self.snapshot.images[image_id]
        stored = await run(Lane.STORE, self._store.find, image_id)
        image = CatalogImage(stored.record, stored.version)
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
            image = CatalogImage(stored.record, stored.version)
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
                self._replace(self.snapshot.images | {image_id: CatalogImage(stored.record, stored.version)})

    async def keep_fresh(self) -> None:
        """Look again and again, until cancelled; a store that is down costs one warning for each change of its state."""
        pause, reachable = REFRESH_SECONDS, True
        while True:
            await trio.sleep(pause)
            started = trio.current_time()
            try:
                await self.look()
            except Exception as error:  # whatever it is, the mount goes on with what is known
                (log.warning if reachable else log.debug)("the store cannot be listed; the catalog stays as it is error=%s", error)
                reachable = False
            else:
                if not reachable:
                    log.info("the store can be listed again url=%s", self._store.url)
                reachable = True
            pause = max(REFRESH_SECONDS, 20 * (trio.current_time() - started))

    async def _read_records(self, wanted: list[Listed]) -> dict[str, CatalogImage]:
        """Read many records at once; one that is gone or damaged is left out, with a warning for the latter."""
        read: dict[str, CatalogImage] = {}
        failures: list[StoreError] = []
        unreadable: dict[str, str] = {}

        async def read_one(listed: Listed) -> None:
            try:
                stored: StoredRecord = listed.stored if listed.stored is not None else await run(Lane.STORE, self._store.record, listed)
            except NotFound:
                return
            except ImageRefused as error:
                if self._unreadable.get(listed.image_id) != listed.version:  # once, not at each look
                    log.warning("an image is left out of the catalog image=%s error=%s", listed.image_id, error)
                unreadable[listed.image_id] = listed.version
                return
            except StoreError as error:
                failures.append(error)
                return
            read[listed.image_id] = CatalogImage(stored.record, stored.version)

        for start in range(0, len(wanted), 256):  # tasks are cheap, ten thousand of them are not
            async with trio.open_nursery() as nursery:
                for listed in wanted[start : start + 256]:
                    nursery.start_soon(read_one, listed)
            if failures:
                raise failures[0]
        self._unreadable = unreadable
        return read

    def _replace(self, images: dict[str, CatalogImage]) -> None:
        old = self.snapshot
        self.snapshot = Snapshot(old.generation + 1, images)
        for watcher in self.watchers:
            watcher(old, self.snapshot)


@functools.lru_cache(maxsize=16384)
def file_name(name: str) -> str:
    """Return an image's name as a file name: `/`, control and bidirectional characters and a leading dot as %XX of UTF-8."""
    escaped = "".join(_percent(character) if _unprintable(character) else character for character in name)
    return "%2E" + escaped[1:] if escaped.startswith(".") else escaped


def _unprintable(character: str) -> bool:
    return character == "/" or character in _BIDIRECTIONAL or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def file_names(images: Iterable[CatalogImage]) -> dict[str, str]:
    """Return the names/ directory: the newest active image of a name has it plainly, all that share it as `<name>@<8 of id>`.

    A name whose file name would be over 255 bytes is cut, and then always carries the id's 8 digits.
    """
    groups: dict[str, list[CatalogImage]] = {}
    for image in images:
        if image.record.name:
            groups.setdefault(file_name(image.record.name), []).append(image)
    names: dict[str, str] = {}
    for name, group in groups.items():
        short = name.encode()[:240].decode(errors="ignore")
        if len(group) > 1 or len(name.encode()) > FILE_NAME_LIMIT:
            names |= {f"{short}@{image.record.id[:8]}": image.record.id for image in group}
        if len(name.encode()) <= FILE_NAME_LIMIT:
            names[name] = newest_active(group).record.id
    return names


def newest_active(group: Sequence[CatalogImage]) -> CatalogImage:
    """Return which of several images of one name that name means: the newest active one, else the newest."""
    active = [image for image in group if image.record.status == "active"]
    return max(active or group, key=lambda image: (image.record.created_at, image.record.id))
