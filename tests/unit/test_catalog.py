"""Tests of the catalog: names as files, and looks at the store that read only what changed."""

import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from imagefs.catalog import Catalog, CatalogImage, RecordDatabase, file_name, file_names
from imagefs.errors import ImageRefused, InvalidInput, NotFound, StoreUnavailable
from imagefs.store.crowd import read_each
from imagefs.store.protocol import Listed, Read, StoredRecord
from imagefs.store.record import ImageRecord

A, B, C = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "abc")


def record(image_id: str, name: str | None = None, *, created: str = "2026-01-01T00:00:00Z", status: str = "active") -> ImageRecord:
    """Return a small record."""
    return ImageRecord(id=image_id, created_at=created, updated_at=created, name=name, status=status, os_hash_value="0" * 128)


@dataclasses.dataclass
class ListStore:
    """A store that is a dictionary, and counts how often a record is read."""

    images: dict[str, tuple[str, ImageRecord]]
    reads: int = 0
    down: bool = False
    url: str = "test:"

    def list(self, gently: bool = False) -> Iterator[Listed]:
        if self.down:
            raise StoreUnavailable("the store is down")
        for image_id, (version, _) in self.images.items():
            yield Listed(image_id, version)

    def records(self, wanted: Sequence[Listed], take: Read) -> int:
        return read_each(self.record, wanted, take)

    def record(self, listed: Listed) -> StoredRecord:
        self.reads += 1
        version, found = self.images[listed.image_id]
        if found.status == "damaged":
            raise ImageRefused("damaged")
        return StoredRecord(found, version)

    def find(self, image_id: str) -> StoredRecord:
        if image_id not in self.images:
            raise NotFound(image_id)
        version, found = self.images[image_id]
        return StoredRecord(found, version)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("debian-12", "debian-12"),
        ("a/b", "a%2Fb"),
        (".hidden", "%2Ehidden"),
        ("..", "%2E."),
        ("a\nb\x1b[31m", "a%0Ab%1B[31m"),
        ("x\u202egnp", "x%E2%80%AEgnp"),
        ("bytes \udcff", "bytes %ED%B3%BF"),
        ("Grüße 100%", "Grüße 100%"),
    ],
)
def test_file_name_escapes_what_a_directory_cannot_show(name: str, shown: str) -> None:
    """Slashes, control and bidirectional characters, surrogates and a leading dot are percent-encoded; the rest stays."""
    assert file_name(name) == shown


def test_shared_name_goes_to_newest_active_image() -> None:
    """Of images that share a name the newest active one has it plainly, and each has it with its id."""
    images = [
        CatalogImage(record(A, "os", created="2026-01-01T00:00:00Z"), "1"),
        CatalogImage(record(B, "os", created="2026-02-01T00:00:00Z"), "1"),
        CatalogImage(record(C, "os", created="2026-03-01T00:00:00Z", status="queued"), "1"),
    ]
    assert file_names(images) == {"os": B, "os@aaaaaaaa": A, "os@bbbbbbbb": B, "os@cccccccc": C}


def test_long_name_is_cut_and_carries_the_id() -> None:
    """A name that does not fit a directory entry is shown cut, with the id's first digits."""
    names = file_names([CatalogImage(record(A, "ü" * 255), "1")])
    (name,) = names
    assert name.endswith("@aaaaaaaa")
    assert len(name.encode()) <= 255


async def test_look_reads_only_changed_records(tmp_path: Path) -> None:
    """A second look, and a second mount, read no record whose version they know."""
    store = ListStore({A: ("1", record(A, "one")), B: ("1", record(B, "two"))})
    database = RecordDatabase(tmp_path / "db", store.url)
    catalog = Catalog(store, database)  # type: ignore[arg-type]
    await catalog.look()
    await catalog.look()
    assert store.reads == 2
    store.images[B] = ("2", record(B, "renamed"))
    await catalog.look()
    assert store.reads == 3
    database.close()
    again = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    assert {image.record.name for image in again.snapshot.images.values()} == {"one", "renamed"}
    await again.look()
    assert store.reads == 3


class CompleteStore(ListStore):
    """A store whose listing has the records."""

    def list(self, gently: bool = False) -> Iterator[Listed]:
        """Yield every image with its record."""
        for listed in super().list(gently):
            yield dataclasses.replace(listed, stored=StoredRecord(self.images[listed.image_id][1], listed.version))


async def test_look_at_a_listing_with_records_reads_none(tmp_path: Path) -> None:
    """What the listing has is not asked for again."""
    store = CompleteStore({A: ("1", record(A, "one")), B: ("1", record(B, "two"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    store.images[B] = ("2", record(B, "renamed"))
    await catalog.look()
    assert {image.record.name for image in catalog.snapshot.images.values()} == {"one", "renamed"}
    assert store.reads == 0


def test_bytes_are_named_by_their_hash_if_there_is_one() -> None:
    """SHA-512, else MD5, else what never changes of an image; an object of the flat layout by its store's version."""
    bare = msgspec.structs.replace(record(A, "one", created="2026-01-01T00:00:00Z"), os_hash_value=None, size=5)
    hashed = msgspec.structs.replace(bare, checksum="md5", os_hash_value="sha512")
    images = (hashed, msgspec.structs.replace(hashed, os_hash_value=None), bare, msgspec.structs.replace(bare, key="one"))
    assert [CatalogImage(image, "7").data_version for image in images] == ["sha512", "md5", "2026-01-01T00:00:00Z-5", "7"]


def test_bytes_keep_the_names_that_they_had_before_they_were_hashed() -> None:
    """A Glance may hash an image after it is active: its bytes are the same ones; those of another hash are not."""
    bare = msgspec.structs.replace(record(A, "one"), os_hash_value=None, size=5)
    hashed, other = (CatalogImage(msgspec.structs.replace(bare, os_hash_value=value), "8") for value in ("h", "i"))
    assert CatalogImage(bare, "7").data_version in hashed.data_versions
    assert hashed.data_version not in other.data_versions


async def test_look_at_a_store_that_is_down_keeps_the_catalog(tmp_path: Path) -> None:
    """A look that fails changes nothing."""
    store = ListStore({A: ("1", record(A, "one"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    before, store.down = catalog.snapshot, True
    with pytest.raises(StoreUnavailable):
        await catalog.look()
    assert catalog.snapshot is before


async def test_damaged_record_leaves_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An image whose record is damaged is left out with a warning; the others are shown."""
    store = ListStore({A: ("1", record(A, "one", status="damaged")), B: ("1", record(B, "two"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    assert list(catalog.snapshot.images) == [B]
    assert A in caplog.text


async def test_watchers_learn_of_removed_images(tmp_path: Path) -> None:
    """A watcher sees the old and the new snapshot when an image is gone."""
    store = ListStore({A: ("1", record(A, "one")), B: ("1", record(B, "two"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    seen: list[tuple[set[str], set[str]]] = []
    catalog.watchers.append(lambda old, new: seen.append((set(old.images), set(new.images))))
    del store.images[A]
    await catalog.look()
    assert seen == [({A, B}, {B})]


async def test_find_asks_the_store_for_an_unseen_image(tmp_path: Path) -> None:
    """An image made after the last look opens by its id; one that does not exist is not found."""
    store = ListStore({})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    store.images[A] = ("1", record(A, "new"))
    assert (await catalog.find(A)).record.name == "new"
    assert catalog.snapshot.images[A].record.name == "new"
    with pytest.raises(NotFound):
        await catalog.find(B)


class Writable(ListStore):
    """A store whose records can be written."""

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        version, old = self.images[image_id]
        self.images[image_id] = (f"{version}+", change(old))
        return StoredRecord(self.images[image_id][1], self.images[image_id][0])


async def test_what_is_written_is_shown_at_once(tmp_path: Path) -> None:
    """A change written through the catalog is in its snapshot when `update` returns, and the watchers know."""
    store = Writable({A: ("1", record(A, "old")), B: ("1", record(B, "other"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    seen: list[int] = []
    catalog.watchers.append(lambda old, new: seen.append(new.generation))
    image = await catalog.update(A, lambda old: msgspec.structs.replace(old, name="new"))
    assert image.record.name == "new"
    assert catalog.snapshot.images[A] is image
    assert catalog.snapshot.images[B].record.name == "other"
    assert len(seen) == 1


async def test_a_look_does_not_undo_what_was_written_meanwhile(tmp_path: Path) -> None:
    """A record that was read before a write, by a look that ends after it, does not take the place of what was written."""
    store = Writable({A: ("1", record(A, "old"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    await catalog.look()
    store.images[A] = ("2", record(A, "of another node"))
    reading, written = threading.Event(), threading.Event()
    read = store.record

    def slow(listed: Listed) -> StoredRecord:
        found = read(listed)
        reading.set()
        written.wait(10)
        return found

    store.record = slow  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalog.look)
        await trio.to_thread.run_sync(reading.wait)
        await catalog.update(A, lambda old: msgspec.structs.replace(old, name="written"))
        written.set()
    assert catalog.snapshot.images[A].record.name == "written"


def test_damaged_database_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A database that is no database is kept aside and made anew, with a warning."""
    path = tmp_path / "db"
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    assert RecordDatabase(path, "test:").load() == {}
    assert (tmp_path / "db.damaged").exists()
    assert "made anew" in caplog.text


def test_database_of_another_store_is_emptied(tmp_path: Path) -> None:
    """Records of one store are never shown as another's."""
    path = tmp_path / "db"
    first = RecordDatabase(path, "file:///one")
    first.save([CatalogImage(record(A, "one"), "1")], [])
    first.close()
    assert RecordDatabase(path, "file:///two").load() == {}


def test_row_that_fails_its_checksum_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged row is left out, with a warning, and so read from the store."""
    path = tmp_path / "db"
    database = RecordDatabase(path, "test:")
    database.save([CatalogImage(record(A, "one"), "1"), CatalogImage(record(B, "two"), "1")], [])
    database.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE image SET record = substr(record, 2) WHERE id = ?", (A,))
    raw.close()
    assert list(RecordDatabase(path, "test:").load()) == [B]
    assert "checksum" in caplog.text or "SHA-256" in caplog.text


async def test_database_that_cannot_be_written_hides_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk a look still takes up what changed, with a warning; the next look that can writes all of it."""
    store = ListStore({A: ("1", record(A, "one"))})
    database = RecordDatabase(tmp_path / "db", store.url)
    catalog = Catalog(store, database)  # type: ignore[arg-type]
    save = database.save

    def full(changed: Iterable[CatalogImage], gone: Iterable[str]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(database, "save", full)
    await catalog.look()
    assert list(catalog.snapshot.images) == [A]
    assert "disk is full" in caplog.text
    monkeypatch.setattr(database, "save", save)
    await catalog.look()
    assert list(database.load()) == [A]


async def test_image_found_by_id_is_kept_for_the_next_mount(tmp_path: Path) -> None:
    """An image that was first seen by its id is in the database after the next look."""
    store = ListStore({A: ("1", record(A, "one"))})
    database = RecordDatabase(tmp_path / "db", store.url)
    catalog = Catalog(store, database)  # type: ignore[arg-type]
    await catalog.find(A)
    await catalog.look()
    assert list(database.load()) == [A]


async def test_image_found_during_a_look_stays(tmp_path: Path) -> None:
    """An image that is made and found while a look reads records is not lost with that look's older listing."""
    store = ListStore({A: ("1", record(A, "one"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    read_record, reading, go_on = store.record, threading.Event(), threading.Event()

    def slow_record(listed: Listed) -> StoredRecord:
        reading.set()
        assert go_on.wait(10)
        return read_record(listed)

    store.record = slow_record  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalog.look)
        await trio.to_thread.run_sync(reading.wait)
        store.images[B] = ("1", record(B, "two"))
        await catalog.find(B)
        go_on.set()
    assert set(catalog.snapshot.images) == {A, B}
    del store.images[B]
    await catalog.look()
    assert set(catalog.snapshot.images) == {A}


async def test_damaged_record_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged record costs one warning, not one at each look, until it changes."""
    store = ListStore({A: ("1", record(A, status="damaged"))})
    catalog = Catalog(store, RecordDatabase(tmp_path / "db", store.url))  # type: ignore[arg-type]
    for _ in range(3):
        await catalog.look()
    assert caplog.text.count("left out") == 1
    store.images[A] = ("2", record(A, status="damaged"))
    await catalog.look()
    assert caplog.text.count("left out") == 2


def test_database_that_cannot_be_opened_is_left_where_it_is(tmp_path: Path) -> None:
    """A database that the disk does not let open is no damaged one: it stays, and the message says what to do."""
    path = tmp_path / "db"
    path.mkdir()
    with pytest.raises(InvalidInput, match="state directory"):
        RecordDatabase(path, "test:")
    assert path.is_dir()
    assert not (tmp_path / "db.damaged").exists()


def test_a_key_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    """A file of a flat store may have any bytes in its name: the database keeps them as they are."""
    database = RecordDatabase(tmp_path / "db", "test:")
    odd = msgspec.structs.replace(record(A), key="b\udcffd.raw")
    plain = msgspec.structs.replace(record(B), key="gr\u00fc\u00dfe.raw")
    database.save([CatalogImage(odd, "1"), CatalogImage(plain, "1"), CatalogImage(record(C), "1")], [])
    assert {image_id: image.record.key for image_id, image in database.load().items()} == {A: odd.key, B: plain.key, C: None}
