"""What imagefs's own layout and the flat layout promise besides what every store does, over a directory and over a real S3 server."""

import io
import itertools
import struct
import uuid
from collections.abc import Callable, Iterator

import msgspec
import pytest

from imagefs.errors import AlreadyExists, Conflict, ImageRefused, NotFound, ReadOnly, Unsupported, VersionChanged
from imagefs.store.flat import FLAT_NAMESPACE, FlatLayout
from imagefs.store.layout import ImagefsLayout
from imagefs.store.protocol import Bucket
from imagefs.store.record import ImageRecord, decode_record, encode_record
from imagefs.store.tree import digest_of, verify_page, verify_unit
from imagefs.units import MIB, UNIT
from tests.support.sources import Bomb, given

ID = "11111111-2222-4333-8444-555555555555"
OTHER = "9999abcd-2222-4333-8444-555555555555"
BODY = bytes(range(256)) * 1000 + b"the last unit is short"


def record(image_id: str = ID, **attributes: object) -> ImageRecord:
    return msgspec.structs.replace(ImageRecord(id=image_id, created_at="", updated_at=""), **attributes)


@pytest.fixture
def clock() -> Iterator[float]:
    """A clock that moves on by ten seconds at each look, from 2026-01-02T03:04:05Z."""
    return itertools.count(1767323045.0, 10.0)


@pytest.fixture
def layout(bucket: Bucket, clock: Iterator[float]) -> ImagefsLayout:
    """The imagefs layout over each kind of bucket."""
    return ImagefsLayout(bucket, clock=lambda: next(clock))


@pytest.fixture
def flat(bucket: Bucket) -> FlatLayout:
    """The flat layout over each kind of bucket."""
    return FlatLayout(bucket)


def create(layout: ImagefsLayout, image_id: str = ID, body: bytes = BODY, **attributes: object) -> ImageRecord:
    return layout.create(record(image_id, **attributes), given(body), lambda _: None).record


def upload(bucket: Bucket, key: str, body: bytes) -> None:
    bucket.upload(key, io.BytesIO(body), len(body), lambda _: None)


def test_times_come_from_the_clock(layout: ImagefsLayout) -> None:
    """created_at is the moment of creation, updated_at that of the last write."""
    made = create(layout)
    assert made.created_at == "2026-01-02T03:04:05Z"
    assert made.updated_at > made.created_at
    changed = layout.update(ID, lambda old: msgspec.structs.replace(old, name="new")).record
    assert (changed.created_at, changed.updated_at > made.updated_at) == (made.created_at, True)


def test_an_image_of_no_bytes_has_no_pages(layout: ImagefsLayout) -> None:
    """The tree of an empty image is there and empty."""
    made = create(layout, body=b"")
    assert made.tree is not None
    assert made.tree.pages == ()


def test_every_unit_of_a_created_image_can_be_proved(layout: ImagefsLayout) -> None:
    """The data reads back, and each unit verifies against a fetched page, and the page against the record."""
    body = bytes(range(256)) * 256 * 1025  # a unit more than one page
    made = create(layout, body=body)
    data = layout.data(made)
    assert made.tree is not None
    assert len(made.tree.pages) == 2
    pages = [layout.digest_page(made, page) for page in range(2)]
    for number, page in enumerate(pages):
        verify_page(made.tree, len(body), number, page, "test")
    for unit in (0, 1023, 1024):
        verify_unit(pages[unit // 1024], unit, b"".join(data.stream(unit * UNIT, UNIT)), "test")
    with pytest.raises(NotFound, match="no page 2"):
        layout.digest_page(made, 2)


def test_the_objects_are_where_the_manual_says(layout: ImagefsLayout, bucket: Bucket) -> None:
    """An image is exactly image.json, data and digests below its id."""
    create(layout)
    assert sorted(entry.key for entry in bucket.list()) == [f"{ID}/data", f"{ID}/digests", f"{ID}/image.json"]
    digests, _ = bucket.get(f"{ID}/digests")
    assert digests == b"".join(digest_of(BODY[start : start + UNIT]) for start in range(0, len(BODY), UNIT))


class Watcher(io.BytesIO):
    """A source that looks at the store while it is read."""

    def __init__(self, layout: ImagefsLayout) -> None:
        super().__init__(BODY)
        self.layout = layout
        self.seen: list[str] = []

    def read(self, size: int | None = -1) -> bytes:
        self.seen.append(self.layout.find(ID).record.status)
        return super().read(size)


def test_an_image_is_saving_while_its_bytes_are_stored(layout: ImagefsLayout) -> None:
    """Others see the status saving during the upload."""
    source = Watcher(layout)
    layout.create(record(), given(source, len(BODY)), lambda _: None)
    assert set(source.seen) == {"saving"}


def test_a_failed_creation_does_not_remove_another_image_that_took_the_id(layout: ImagefsLayout) -> None:
    """If the image is deleted and its id taken by another one meanwhile, the failing creation leaves that one alone."""

    def replace_and_fail() -> None:
        layout.delete(ID)
        create(layout, name="the other one", body=b"other")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        layout.create(record(), given(Bomb(replace_and_fail), 4 * MIB), lambda _: None)
    assert layout.find(ID).record.name == "the other one"


def test_an_update_that_always_loses_gives_up(bucket: Bucket) -> None:
    """Against a writer that always comes between, update raises Conflict after a bounded number of tries."""
    slept: list[float] = []
    layout = ImagefsLayout(bucket, sleep=slept.append)
    create(layout, body=b"small")
    number = itertools.count()

    def disturbed(old: ImageRecord) -> ImageRecord:
        ImagefsLayout(bucket).update(ID, lambda now: msgspec.structs.replace(now, name=f"other {next(number)}"))
        return msgspec.structs.replace(old, name="mine")

    with pytest.raises(Conflict, match="changed by others"):
        layout.update(ID, disturbed)
    assert len(slept) == 24
    assert max(slept) <= 1.0


def test_an_interrupted_deletion_counts_as_deleted_and_can_be_finished(layout: ImagefsLayout, bucket: Bucket) -> None:
    """A record marked deleted is not found and takes no update; deleting again removes the rest."""
    create(layout)
    layout._rewrite(ID, lambda old: msgspec.structs.replace(old, status="deleted"))
    with pytest.raises(NotFound):
        layout.find(ID)
    with pytest.raises(NotFound):
        layout.update(ID, lambda old: msgspec.structs.replace(old, name="back"))
    with pytest.raises(AlreadyExists):
        create(layout)
    layout.delete(ID)
    assert list(bucket.list()) == []


def test_foreign_objects_are_ignored_in_the_listing(layout: ImagefsLayout, bucket: Bucket) -> None:
    """Only image.json of a directory named by a UUID is an image."""
    create(layout)
    for key in ("README", "boot/image.json", f"{OTHER}/data", f"{ID}/image.json.bak", f"deep/{OTHER}/image.json", f"{OTHER.upper()}/image.json"):
        bucket.put(key, b"{}", None)
    assert [listed.image_id for listed in layout.list()] == [ID]


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "not an image record"), (b"{}", "not an image record"), (b"\xff\xfe", "not an image record"), (None, "another image")],
    ids=["empty", "json", "bytes", "swapped"],
)
def test_a_damaged_record_is_refused_by_name_and_others_are_not_affected(
    layout: ImagefsLayout, bucket: Bucket, body: bytes | None, reason: str
) -> None:
    """Record raises ImageRefused that names the object; the other images stay readable."""
    create(layout, body=b"small")
    bucket.put(f"{OTHER}/image.json", bucket.get(f"{ID}/image.json")[0] if body is None else body, None)
    listed = {found.image_id: found for found in layout.list()}
    with pytest.raises(ImageRefused, match=f"{OTHER}/image.json.*{reason}"):
        layout.record(listed[OTHER])
    assert layout.record(listed[ID]).record.status == "active"


def test_data_of_another_size_than_recorded_is_refused(layout: ImagefsLayout, bucket: Bucket) -> None:
    """Data, or its first read, raises VersionChanged if the object has not the recorded size, NotFound if it is gone."""
    made = create(layout)
    for other in (BODY + b"!", BODY[:-1]):
        upload(bucket, f"{ID}/data", other)
        for offset, length in ((0, len(BODY)), (len(BODY) - 2, 2)):
            with pytest.raises(VersionChanged, match=f"{ID}/data"):
                list(layout.data(made).stream(offset, length))
    bucket.delete(f"{ID}/data")
    with pytest.raises(NotFound):
        list(layout.data(made).stream(0, 1))


def qcow2_head(virtual_size: int) -> bytes:
    return struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 0, 0, 16, virtual_size) + bytes(1000)


def test_every_object_of_a_flat_store_is_an_image(flat: FlatLayout, bucket: Bucket) -> None:
    """Formats, sizes, names and ids come from the key and the first bytes."""
    iso = bytearray(40 * 1024)
    iso[0x8001:0x8006] = b"CD001"
    bodies = {"cirros.img": qcow2_head(10 * MIB), "debian/12.raw": BODY, "install": bytes(iso), "disk.vhd": b"no magic here", "empty.raw": b""}
    for key, body in bodies.items():
        upload(bucket, key, body)
    upload(bucket, ".hidden/disk.raw", b"x")
    upload(bucket, "debian/.part", b"x")
    images = {stored.record.name: stored.record for stored in map(flat.record, flat.list())}
    assert {name: (image.disk_format, image.size, image.virtual_size) for name, image in images.items()} == {
        "cirros.img": ("qcow2", 1032, 10 * MIB),
        "debian/12.raw": ("raw", len(BODY), len(BODY)),
        "install": ("iso", 40 * 1024, 40 * 1024),
        "disk.vhd": ("vhd", 13, None),
        "empty.raw": ("raw", 0, 0),
    }
    for name, image in images.items():
        assert image.id == str(uuid.uuid5(FLAT_NAMESPACE, str(name)))
        assert (image.status, image.visibility, image.container_format, image.tree) == ("active", "public", "bare", None)
        assert image.created_at == image.updated_at > "2026-01-01"


def test_a_flat_image_is_found_by_id_and_read(flat: FlatLayout, bucket: Bucket) -> None:
    """Find needs no earlier listing, and data streams the object's bytes."""
    upload(bucket, "debian/12.raw", BODY)
    image_id = str(uuid.uuid5(FLAT_NAMESPACE, "debian/12.raw"))
    found = flat.find(image_id).record
    assert b"".join(flat.data(found).stream(5, 100)) == BODY[5:105]
    assert flat.data(msgspec.structs.replace(found, key=None)).size == len(BODY)
    with pytest.raises(NotFound):
        flat.find(ID)
    with pytest.raises(NotFound, match="flat"):
        flat.digest_page(found, 0)


def test_a_flat_image_that_changed_its_size_is_refused(flat: FlatLayout, bucket: Bucket) -> None:
    """Data raises VersionChanged if the object is longer than the record says."""
    upload(bucket, "a.raw", b"old")
    (listed,) = flat.list()
    old = flat.record(listed).record
    upload(bucket, "a.raw", b"newer")
    with pytest.raises(VersionChanged, match="list the images again"):
        flat.data(old)


def test_a_flat_store_is_read_only(flat: FlatLayout, bucket: Bucket) -> None:
    """create, update and delete raise ReadOnly and say what to do instead."""
    upload(bucket, "a.raw", b"bytes")
    (listed,) = flat.list()
    writes: tuple[Callable[[], object], ...] = (
        lambda: flat.update(listed.image_id, lambda old: old),
        lambda: flat.delete(listed.image_id),
        lambda: flat.create(record(), given(b"x"), lambda _: None),
    )
    for write in writes:
        with pytest.raises(ReadOnly, match="add, replace or remove the file or object itself"):
            write()
    flat.check()
    assert flat.url == bucket.url


def test_a_flat_store_keeps_no_boot_profiles(bucket: Bucket, flat: FlatLayout) -> None:
    """Every object is an image there: one more would be an image more."""
    upload(bucket, "disk.img", BODY)
    (listed,) = flat.list()
    found = flat.record(listed).record
    assert flat.profile(found) is None
    with pytest.raises(Unsupported, match="flat layout"):
        flat.put_profile(found, b"profile", None)
    assert [entry.key for entry in bucket.list()] == ["disk.img"]


def test_a_boot_profile_is_no_image(bucket: Bucket, layout: ImagefsLayout) -> None:
    """A listing has the image once, whatever lies beside its record, and at the same version."""
    made = create(layout)
    before = list(layout.list())
    layout.put_profile(made, b"profile", None)
    assert [(found.image_id, found.version) for found in layout.list()] == [(found.image_id, found.version) for found in before]
    assert f"{ID}/profile" in [entry.key for entry in bucket.list()]


def test_a_deletion_that_was_cut_short_takes_the_boot_profile_when_it_is_finished(bucket: Bucket, layout: ImagefsLayout) -> None:
    """The image counts as gone from its mark on: a profile that is written then is taken back, and one from before goes in the end."""
    made = create(layout)
    layout.put_profile(made, b"profile", None)
    body, version = bucket.get(f"{ID}/image.json")
    bucket.put(f"{ID}/image.json", encode_record(msgspec.structs.replace(decode_record(body, ""), status="deleted")), version)
    found = layout.profile(made)
    assert found is not None
    with pytest.raises(NotFound):
        layout.put_profile(made, b"newer", found[1])
    assert layout.profile(made) is None
    layout.delete(ID)
    assert [entry.key for entry in bucket.list()] == []
