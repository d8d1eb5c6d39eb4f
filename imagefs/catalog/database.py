"""This module is the file that keeps the catalog's records over mounts, so that a mount reads from the store only what changed."""

import contextlib
import logging
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
    "CREATE TABLE IF NOT EXISTS store (url TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS packing (sample BLOB NOT NULL, form TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS image (id TEXT PRIMARY KEY, version TEXT NOT NULL, name BLOB, key BLOB, record BLOB NOT NULL,"
    " crc INTEGER NOT NULL) WITHOUT ROWID",
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
            if (application, version) not in {(0, 0), (APPLICATION_ID, 1), (APPLICATION_ID, SCHEMA_VERSION)}:
                raise StateDamaged(f"{self._path}: application {application:#x} version {version}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with _transaction(database):
                if version == 1:  # its rows are read again from the store
                    database.execute("DROP TABLE image")
                for table in _TABLES:
                    database.execute(table)
                database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                packing = database.execute("SELECT sample, form FROM packing").fetchone()
                if database.execute("SELECT url FROM store").fetchone() != (store_url,) or (packing is not None and packing[1] != FORM):
                    packing = None
                    for name in ("image", "packing", "store"):
                        database.execute(f"DELETE FROM {name}")  # noqa: S608 - the names are the three above
                    database.execute("INSERT INTO store VALUES (?)", (store_url,))
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
