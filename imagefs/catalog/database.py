"""This module is the file that keeps the catalog's records over mounts, so that a mount reads from the store only what changed."""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from crc32c import crc32c

from imagefs.catalog.image import PLAIN, CatalogImage, Packing, record_body
from imagefs.errors import InvalidInput, StateDamaged
from imagefs.store.record import HashTree, ImageRecord, Member

log = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x494D4653  # "IMFS"
SCHEMA_VERSION: Final = 2
FORM: Final = " ".join(name for kind in (ImageRecord, HashTree, Member) for name in kind.__struct_fields__)
"""What a record consists of. Records that another version of imagefs packed are only read if it is the same."""
_TABLES: Final = (
    "CREATE TABLE store (url TEXT NOT NULL)",
    "CREATE TABLE packing (sample BLOB NOT NULL, form TEXT NOT NULL)",
    "CREATE TABLE image (id TEXT PRIMARY KEY, version TEXT NOT NULL, name BLOB, key BLOB, record BLOB NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
)


class RecordDatabase:
    """Records by image id and version in a SQLite file; all methods block.

    The file has `application_id` IMFS and `user_version` 2. A row's record is packed (see `image`), and the row has a checksum. A file that is
    damaged or of another kind is put aside and made anew, since the store has it all; so are the tables of an older version, in place.
    """

    def __init__(self, path: Path, store_url: str) -> None:
        """Open or make the file at `path`; rows of another store are dropped. Raises InvalidInput if it cannot be opened or made."""
        self._path = path
        self._lock = threading.Lock()
        self._packing: Packing | None = None
        self._packing_lock = threading.Lock()
        try:
            try:
                self._db = self._open(store_url)
            except sqlite3.OperationalError:  # a full disk may have no room for the file beside it in which SQLite keeps locks and an index
                self._db = self._open(store_url, locking="EXCLUSIVE")
        except sqlite3.OperationalError as error:  # a full or broken disk, or no permission: the file may be as good as ever
            raise InvalidInput(f"{path}: {error}: free some room in the state directory, and see that it is yours") from error
        except (sqlite3.DatabaseError, StateDamaged) as error:
            aside = path.with_suffix(".damaged")
            log.warning("the catalog's database cannot be used and is made anew path=%s aside=%s error=%s", path, aside, error)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            path.replace(aside)
            self._db = self._open(store_url)

    def _open(self, store_url: str, *, locking: str = "NORMAL") -> sqlite3.Connection:
        """Open the file. With the locking EXCLUSIVE SQLite keeps its index in memory, and whoever else has the file open is in the way, also a
        daemon that was killed and cannot end.
        """
        try:  # SQLite would make it with the mode that the umask leaves, and gives the files beside it this one's
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror) from error
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._path.chmod(0o600)
            database.execute(f"PRAGMA locking_mode = {locking}")
            application, version = (database.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in ("application_id", "user_version"))
            if (application, version) not in {(0, 0), (APPLICATION_ID, 1), (APPLICATION_ID, SCHEMA_VERSION)}:
                raise StateDamaged(f"{self._path}: application {application:#x} version {version}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            # Written only if there is something to write: who mounts on a full disk has guests that wait for it.
            if version != SCHEMA_VERSION or not _is_of(database, store_url):
                with _transaction(database):
                    _make_anew(database, store_url)
            packing = database.execute("SELECT sample FROM packing").fetchone()
            self._packing = None if packing is None else Packing(packing[0])
        except BaseException:
            database.close()
            raise
        return database

    def packing(self, record: ImageRecord | None = None) -> Packing:
        """Return how records are packed here: as a sample the first one ever asked for has been taken."""
        with self._packing_lock:
            if self._packing is None:
                self._packing = PLAIN if record is None else Packing(record_body(record))
            return self._packing

    def load(self) -> dict[str, CatalogImage]:
        """Return all images; rows that fail their checksum are left out, and so read again from the store."""
        images: dict[str, CatalogImage] = {}
        packing = self._packing
        if packing is None:
            return images
        with self._lock:
            for image_id, version, name, key, record, crc in self._db.execute("SELECT id, version, name, key, record, crc FROM image"):
                if _checksum(image_id, version, name, key, record) != crc:
                    log.warning("a cached record is read again from the store: its checksum does not match path=%s image=%s", self._path, image_id)
                    continue
                shown = None if name is None else name.decode("utf-8", "surrogatepass")
                images[image_id] = CatalogImage.packed(image_id, version, shown, key, record, packing)
        return images

    def save(self, changed: Iterable[CatalogImage], gone: Iterable[str]) -> None:
        """Write changed images and remove those that are gone, in one transaction."""
        packing = self.packing()
        with self._lock, _transaction(self._db):
            if self._db.execute("SELECT 1 FROM packing").fetchone() is None:
                self._db.execute("INSERT INTO packing VALUES (?, ?)", (packing.sample, FORM))
            self._db.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?, ?, ?)", _rows(changed, packing))
            self._db.executemany("DELETE FROM image WHERE id = ?", ((image_id,) for image_id in gone))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _is_of(database: sqlite3.Connection, store_url: str) -> bool:
    """Tell whether the rows are of this store, and packed as we do."""
    if database.execute("SELECT count(*) FROM sqlite_master WHERE name IN ('image', 'packing', 'store')").fetchone() != (3,):
        return False
    if database.execute("SELECT url FROM store").fetchone() != (store_url,):
        return False
    packing = database.execute("SELECT form FROM packing").fetchone()
    return packing is None or packing == (FORM,)


def _make_anew(database: sqlite3.Connection, store_url: str) -> None:
    """Make the tables, empty, within a transaction."""
    for name in ("image", "packing", "store"):
        database.execute(f"DROP TABLE IF EXISTS {name}")
    for table in _TABLES:
        database.execute(table)
    database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database.execute("INSERT INTO store VALUES (?)", (store_url,))


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything inside is written, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite has rolled back by itself if the disk is full
            database.execute("ROLLBACK")
        raise


def _rows(images: Iterable[CatalogImage], packing: Packing) -> Iterator[tuple[str, str, bytes | None, bytes | None, bytes, int]]:
    for image in images:
        image_id, version, name, key, record = image.pieces(packing)
        shown = None if name is None else name.encode("utf-8", "surrogatepass")
        yield image_id, version, shown, key, record, _checksum(image_id, version, shown, key, record)


def _checksum(image_id: str, version: str, name: bytes | None, key: bytes | None, record: bytes) -> int:
    """Return the CRC-32C of a row."""
    return int(crc32c(b"\0".join((image_id.encode(), version.encode("utf-8", "replace"), name or b"", key or b"", record))))
