"""A catalog bundle that is anything but right, and looks at the store that are disturbed: records are read one by one then, and never wrong."""

import contextlib
import hashlib
import os
import resource
import signal
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from imagefs.catalog import KEEP_SECONDS, KEEP_WORTH, Catalog, RecordDatabase
from imagefs.errors import InvalidInput, NotFound, StoreRefused, StoreUnavailable
from imagefs.sealed import seal
from imagefs.store import bundle
from imagefs.store.layout import ImagefsLayout
from imagefs.store.protocol import Listed, StoredRecord
from imagefs.store.record import ImageRecord, encode_record
from tests.support.memory_bucket import MemoryBucket

COUNT = 300


def image_id(number: int) -> str:
    """Return the id of an image."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def record(number: int, name: str | None = None) -> ImageRecord:
    """Return the record of an image."""
    when = "2026-01-01T00:00:00Z"
    return ImageRecord(id=image_id(number), created_at=when, updated_at=when, name=name or f"image {number}", status="active", properties={"a": "b"})


def filled(count: int = COUNT, **options: bytes) -> MemoryBucket:
    """Return a bucket with so many images."""
    bucket = MemoryBucket(**options)  # type: ignore[arg-type]  # `remote` stays as it is
    for number in range(count):
        bucket.objects[f"{image_id(number)}/image.json"] = encode_record(record(number))
        bucket.objects[f"{image_id(number)}/data"] = b"x"
    return bucket


def read(bucket: MemoryBucket) -> dict[str, tuple[ImageRecord, str]]:
    """Read all records as a node does that knows none; each image must come once."""
    layout, taken = ImagefsLayout(bucket), {}

    def take(listed: Listed, found: object) -> None:
        assert isinstance(found, StoredRecord)
        assert listed.image_id not in taken
        taken[listed.image_id] = (found.record, found.version)

    bucket.asked.clear()
    layout.records(list(layout.list()), take)
    return taken


def right(bucket: MemoryBucket) -> dict[str, tuple[ImageRecord, str]]:
    """Return what the records are."""
    keys = [key for key in bucket.objects if key.endswith("/image.json")]
    return {key[:36]: (record_in(bucket.objects[key]), bucket.version(key)) for key in keys}


def record_in(body: bytes) -> ImageRecord:
    """Return the record in a stored form."""
    return msgspec.convert(msgspec.json.decode(body)["image"], ImageRecord)


def keep(bucket: MemoryBucket) -> None:
    """Write the bundle as a node does that has read everything."""
    ImagefsLayout(bucket).keep_records(StoredRecord(*one) for one in right(bucket).values())


@pytest.mark.parametrize("salt", [b"", b"encrypted"])
def test_a_bundle_spares_reading(salt: bytes) -> None:
    """With a bundle all records come with it; but for one, by which it is seen whether versions are sums, none is read."""
    bucket = filled(salt=salt)
    keep(bucket)
    assert read(bucket) == right(bucket)
    assert len(bucket.asked) == 2


def test_few_records_do_not_ask_for_the_bundle() -> None:
    """It may be megabytes: for a handful of changed records it is not worth it."""
    bucket = filled(10)
    keep(bucket)
    assert read(bucket) == right(bucket)
    assert bundle.KEY not in bucket.asked


def test_a_stale_bundle_costs_what_has_changed() -> None:
    """Images that were changed, made or deleted since it was written are read, and are as they are now."""
    bucket = filled()
    keep(bucket)
    bucket.objects[f"{image_id(3)}/image.json"] = encode_record(record(3, "changed"))
    bucket.objects[f"{image_id(COUNT)}/image.json"] = encode_record(record(COUNT))
    del bucket.objects[f"{image_id(5)}/image.json"]
    found = read(bucket)
    assert found == right(bucket)
    assert found[image_id(3)][0].name == "changed"
    assert image_id(5) not in found
    assert sorted(bucket.asked[2:]) == [f"{image_id(3)}/image.json", f"{image_id(COUNT)}/image.json"]


GARBAGE: list[Callable[[bytes], bytes]] = [
    lambda body: b"",
    lambda body: b"garbage" * 1000,
    lambda body: body[: len(body) // 2],
    lambda body: body[:-1],
    lambda body: body[:200] + bytes([body[200] ^ 8]) + body[201:],
    lambda body: bundle.encode_bundle([StoredRecord(record(number), "of another store") for number in range(COUNT)])[0],
]


@pytest.mark.parametrize("spoil", GARBAGE)
def test_a_bundle_that_is_no_good_costs_only_time(spoil: Callable[[bytes], bytes]) -> None:
    """Empty, garbage, cut short, changed, or of another store: every record is right all the same."""
    bucket = filled()
    keep(bucket)
    bucket.objects[bundle.KEY] = spoil(bucket.objects[bundle.KEY])
    assert read(bucket) == right(bucket)


@pytest.mark.parametrize("error", [StoreRefused("denied"), StoreUnavailable("busy"), NotFound("gone")])
def test_a_bundle_that_cannot_be_read_costs_only_time(error: Exception) -> None:
    """Denied or failing: every record is read one by one."""
    bucket = filled()
    keep(bucket)
    bucket.failing[bundle.KEY] = error
    assert read(bucket) == right(bucket)


def test_a_forged_record_is_not_believed() -> None:
    """Who may write the bundle alone cannot change what an image is: where versions are sums of the bytes, a record must have that sum."""
    bucket = filled()
    versions = {found: version for found, (_, version) in right(bucket).items()}
    forged = [StoredRecord(msgspec.structs.replace(record(number), visibility="public"), versions[image_id(number)]) for number in range(COUNT)]
    bucket.objects[bundle.KEY] = bundle.encode_bundle(forged)[0]
    assert read(bucket) == right(bucket)


def test_the_record_of_another_image_is_not_believed() -> None:
    """An entry whose record is another image's is left out, also where versions are not sums."""
    bucket = filled(salt=b"encrypted")
    entries = [(found, version, encode_record(stored)) for found, (stored, version) in right(bucket).items()]
    plain = b"".join(
        struct.pack("<36sHI", one[0].encode(), len(one[1]), len(other[2])) + one[1].encode() + other[2]
        for one, other in zip(entries, entries[1:] + entries[:1], strict=True)
    )
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    bucket.objects[bundle.KEY] = seal(bundle.MAGIC, bundle.VERSION, packer.compress(plain) + packer.flush())
    assert read(bucket) == right(bucket)


def test_a_record_that_changes_after_the_listing_comes_with_its_own_version() -> None:
    """A version is always that of the bytes that were read, so that the next look does not miss the change."""
    bucket = filled(10)
    layout = ImagefsLayout(bucket)
    listed = list(layout.list())
    bucket.objects[f"{image_id(4)}/image.json"] = encode_record(record(4, "newer"))
    del bucket.objects[f"{image_id(6)}/image.json"]
    bucket.objects[f"{image_id(7)}/image.json"] = encode_record(msgspec.structs.replace(record(7), status="deleted"))
    found: dict[str, StoredRecord] = {}
    layout.records(listed, lambda one, stored: found.update({one.image_id: stored}) if isinstance(stored, StoredRecord) else None)
    assert found[image_id(4)].record.name == "newer"
    assert found[image_id(4)].version == bucket.version(f"{image_id(4)}/image.json")
    assert found.keys() == {image_id(number) for number in range(10)} - {image_id(6), image_id(7)}


def node(bucket: MemoryBucket, path: Path) -> Catalog:
    """Return the catalog of a node with its own state."""
    return Catalog(ImagefsLayout(bucket), RecordDatabase(path, bucket.url))


async def tend(catalog: Catalog, mock_clock: MockClock, seconds: float) -> None:
    """Let a catalog be kept fresh for a while."""
    mock_clock.autojump_threshold = 0.05
    async with trio.open_nursery() as nursery:
        nursery.start_soon(catalog.keep_fresh)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()


async def test_a_node_that_read_much_spares_the_next_one(tmp_path: Path, mock_clock: MockClock) -> None:
    """It writes all records together after its look; a second node reads next to nothing, and sees the same."""
    bucket = filled()
    first, second = node(bucket, tmp_path / "one"), node(bucket, tmp_path / "two")
    await first.look()
    await tend(first, mock_clock, 10)
    assert bundle.KEY in bucket.objects
    bucket.asked.clear()
    await second.look()
    assert len(bucket.asked) == 2
    assert {one: image.record for one, image in second.snapshot.images.items()} == {one: image.record for one, image in first.snapshot.images.items()}


async def test_a_node_that_read_little_writes_nothing(tmp_path: Path, mock_clock: MockClock) -> None:
    """Below the limit the bundle is not worth its writing."""
    bucket = filled(KEEP_WORTH - 1)
    catalog = node(bucket, tmp_path / "db")
    await catalog.look()
    await tend(catalog, mock_clock, 100)
    assert bundle.KEY not in bucket.objects


async def test_the_bundle_is_written_now_and_then(tmp_path: Path, mock_clock: MockClock) -> None:
    """Much may change all the time: it is written once an hour at most, and then again."""
    bucket = filled()
    catalog = node(bucket, tmp_path / "db")
    await catalog.look()
    await tend(catalog, mock_clock, 10)
    written = bucket.objects[bundle.KEY]
    for number in range(COUNT):
        bucket.objects[f"{image_id(number)}/image.json"] = encode_record(record(number, "changed"))
    await catalog.look()
    await tend(catalog, mock_clock, 100)
    assert bucket.objects[bundle.KEY] == written
    await trio.sleep(KEEP_SECONDS)
    await tend(catalog, mock_clock, 10)
    assert bucket.objects[bundle.KEY] != written
    assert read(bucket) == right(bucket)
    assert len(bucket.asked) == 2


@pytest.mark.parametrize("error", [StoreRefused("denied"), StoreUnavailable("busy"), OSError("anything")])
async def test_a_store_that_takes_no_bundle_is_no_trouble(error: Exception, tmp_path: Path, mock_clock: MockClock) -> None:
    """The catalog goes on being kept fresh: a new image is found."""
    bucket = filled()
    bucket.failing[bundle.KEY] = error
    catalog = node(bucket, tmp_path / "db")
    if isinstance(error, OSError):
        del bucket.failing[bundle.KEY]
    await catalog.look()
    bucket.failing[bundle.KEY] = error
    async with trio.open_nursery() as nursery:
        mock_clock.autojump_threshold = 0.05
        nursery.start_soon(catalog.keep_fresh)
        await trio.sleep(10)
        bucket.objects[f"{image_id(COUNT)}/image.json"] = encode_record(record(COUNT))
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert image_id(COUNT) in catalog.snapshot.images


async def test_of_two_nodes_one_writes_the_bundle(tmp_path: Path, mock_clock: MockClock) -> None:
    """Both have read everything; the second finds that it was written meanwhile, and leaves it."""
    bucket = filled()
    first, second = node(bucket, tmp_path / "one"), node(bucket, tmp_path / "two")
    await first.look()
    await second.look()
    await tend(first, mock_clock, 10)
    written = bucket.objects[bundle.KEY]
    puts: list[str] = []
    put = bucket.put

    def count(key: str, body: bytes, expected: str | None) -> str:
        puts.append(key)
        return put(key, body, expected)

    bucket.put = count  # type: ignore[method-assign]
    await tend(second, mock_clock, 10)
    assert bucket.objects[bundle.KEY] is written
    assert puts == [bundle.KEY]


class BrokenListing(MemoryBucket):
    """A bucket whose listing fails after some pages."""

    after = 10**9

    def list_below(self, starts: object, suffix: str, gently: bool = False) -> object:  # type: ignore[override]
        """Yield some of it."""
        for count, found in enumerate(super().list_below(starts, suffix)):  # type: ignore[arg-type]
            if count == self.after:
                raise StoreUnavailable("a page does not come")
            yield found


async def test_a_listing_that_breaks_off_removes_nothing(tmp_path: Path) -> None:
    """Half a listing is none: images that it had not come to are not taken for gone."""
    bucket = BrokenListing()
    bucket.objects = filled().objects
    catalog = node(bucket, tmp_path / "db")
    await catalog.look()
    before = catalog.snapshot
    bucket.after = 17
    with pytest.raises(StoreUnavailable):
        await catalog.look()
    assert catalog.snapshot is before


async def test_records_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    """A look in which a record does not come is no look: the catalog stays as it was, and the next one reads it."""
    bucket = filled(20)
    catalog = node(bucket, tmp_path / "db")
    bucket.failing[f"{image_id(7)}/image.json"] = StoreUnavailable("does not come")
    with pytest.raises(StoreUnavailable):
        await catalog.look()
    assert catalog.snapshot.images == {}
    bucket.failing.clear()
    await catalog.look()
    assert len(catalog.snapshot.images) == 20


async def test_a_database_of_an_older_version_is_filled_again(tmp_path: Path) -> None:
    """Tables of version 1 are made anew in place: no record of them is used, and none is put aside as damaged."""
    path = tmp_path / "db"
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA application_id = 0x494D4653")
        old.execute("PRAGMA user_version = 1")
        old.execute("CREATE TABLE store (url TEXT NOT NULL)")
        old.execute("CREATE TABLE image (id TEXT PRIMARY KEY, version TEXT NOT NULL, key TEXT, body BLOB NOT NULL) WITHOUT ROWID")
        old.execute("INSERT INTO store VALUES ('test:')")
        old.execute("INSERT INTO image VALUES (?, '1', NULL, ?)", (image_id(1), encode_record(record(1))))
    old.close()
    bucket = filled(5)
    database = RecordDatabase(path, bucket.url)
    catalog = Catalog(ImagefsLayout(bucket), database)
    assert catalog.snapshot.images == {}
    await catalog.look()
    database.close()
    assert len(node(bucket, path).snapshot.images) == 5
    assert not path.with_suffix(".damaged").exists()


def test_records_packed_in_another_form_are_not_read(tmp_path: Path) -> None:
    """What another version of imagefs knew of images may not be what this one knows: such rows are dropped, and read again."""
    path = tmp_path / "db"
    database = RecordDatabase(path, "test:")
    catalog = Catalog(ImagefsLayout(filled(5)), database)
    trio.run(catalog.look)
    database.close()
    database = RecordDatabase(path, "test:")
    assert len(database.load()) == 5
    database.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE packing SET form = form || ' more'")
    raw.close()
    assert RecordDatabase(path, "test:").load() == {}


def test_a_full_disk_keeps_no_known_images_back(tmp_path: Path) -> None:
    """A database of this version that holds what a killed worker wrote is read where not a byte can be written: guests wait for the next worker."""
    path, bucket = tmp_path / "db", filled(5)
    child = os.fork()
    if not child:
        trio.run(node(bucket, path).look)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert Path(f"{path}-wal").stat().st_size
    with no_room(tmp_path):
        assert len(RecordDatabase(path, bucket.url).load()) == 5
        with pytest.raises(InvalidInput, match="free some room"):
            RecordDatabase(tmp_path / "other", bucket.url)


@contextlib.contextmanager
def no_room(directory: Path) -> Iterator[None]:
    """Let no file of ours grow: the limit of a process for that stands for a full disk, and SQLite says the same of both."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            (directory / "proof").write_bytes(b"x")
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_sum_is_that_of_the_stored_form() -> None:
    """What the tests above rest on: this bucket's versions are MD5 sums."""
    bucket = filled(1)
    (key, *_) = bucket.objects
    assert bucket.version(key) == hashlib.md5(bucket.objects[key], usedforsecurity=False).hexdigest()
