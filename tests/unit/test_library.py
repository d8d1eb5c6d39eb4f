"""The disk of an image that an instance was made from: opened when it is needed, and pinned to its bytes."""

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import trio

from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import ImageRefused, NotFound, StoreRefused, StoreUnavailable, VersionChanged, WrongBytes
from imagefs.fetch.backoff import RetryPolicy
from imagefs.hydration.verification import CacheVerified
from imagefs.image.inspect import Inspection
from imagefs.library import ImageDisk, Library, OpenImage
from imagefs.profile.recorder import Recorder
from imagefs.source import Source
from imagefs.store.factory import open_store
from imagefs.store.layout import ImagefsLayout
from imagefs.units import MIB
from tests.support.access import image
from tests.support.caching import Caches, started
from tests.support.fetched import hash_tree, noise
from tests.support.memory_bucket import MemoryBucket, MemoryObject
from tests.support.overlay import PatternBase, pattern

if TYPE_CHECKING:
    from imagefs.profile.boots import Boots

IMAGE = CatalogImage(image(os_hash_value="v1", size=MIB), "record-1")
INSPECTION = cast("Inspection", type("Refused", (), {"unreadable": "it is a vmdk"})())


class Half(PatternBase):
    """A disk whose second half is zeros."""

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        return [(offset, min(offset + length, self.size // 2))] if offset < self.size // 2 else []


class Host:
    """A catalog and a library of one image."""

    def __init__(self) -> None:
        self.image: CatalogImage | Exception = IMAGE
        self.disk: Source | None = Half(MIB)
        self.error: Exception | None = None
        self.opened = 0
        self.expected = 0
        self.recording = True
        self.recorders: list[Recorder] = []
        self.snapshot = Snapshot(1, {IMAGE.record.id: IMAGE})

    async def find(self, image_id: str) -> CatalogImage:
        if isinstance(self.image, Exception):
            raise self.image
        return self.image

    async def open(self, found: CatalogImage, wanted: tuple[int, int] | None = None) -> OpenImage:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return OpenImage(PatternBase(MIB), INSPECTION, self.disk)

    def expect_boot(self, found: CatalogImage) -> None:
        self.expected += 1

    def recorded(self, found: CatalogImage, disk: Source, ended: Callable[[], object]) -> Recorder | None:
        if not self.recording:
            return None
        self.recorders.append(Recorder(disk, lambda recorder: None, ended))
        return self.recorders[-1]

    def image_disk(self, version: str = "v1", *, boots: bool = False) -> ImageDisk:
        return ImageDisk(cast("Catalog", self), cast("Library", self), IMAGE.record.id, version, MIB, boots=boots)


async def test_extents_open_the_image_once() -> None:
    """They are the image's own; nothing is opened before, and no byte is read."""
    host = Host()
    disk = host.image_disk()
    assert (disk.size, host.opened, disk.read_nowait(0, 10)) == (MIB, 0, None)
    assert await disk.extents(5, MIB) == [(5, MIB // 2)]
    assert await disk.extents(MIB // 2, 10) == []
    assert host.opened == 1
    assert isinstance(host.disk, Half)
    assert host.disk.calls == 0
    assert disk.read_nowait(0, 10) == await disk.read(0, 10) == pattern(0, 10)
    assert host.opened == 1


@pytest.mark.parametrize("ask", ["read", "extents"])
async def test_what_keeps_the_image_from_being_opened_is_told(ask: str) -> None:
    """A deleted image, other bytes, another size, a format that is no disk, a store that is away; the next try opens it."""
    host = Host()
    other = CatalogImage(image(os_hash_value="v2", size=MIB), "record-2")
    cases: list[tuple[CatalogImage | Exception, Source | None, Exception | None, type[Exception], str]] = [
        (NotFound("there is no image x"), Half(MIB), None, StoreRefused, "it was deleted"),
        (other, Half(MIB), None, VersionChanged, "has other bytes"),
        (IMAGE, Half(2 * MIB), None, VersionChanged, "is a disk of 2097152 bytes"),
        (IMAGE, None, None, ImageRefused, "it is a vmdk"),
        (IMAGE, Half(MIB), StoreUnavailable("the store is away"), StoreUnavailable, "the store is away"),
    ]
    disk = host.image_disk()
    for host.image, host.disk, host.error, kind, words in cases:
        with pytest.raises(kind, match=words):
            await getattr(disk, ask)(0, 10)
        assert disk.read_nowait(0, 10) is None
    host.error = None
    assert await getattr(disk, ask)(0, 10) == (pattern(0, 10) if ask == "read" else [(0, 10)])


async def test_the_first_boot_of_an_instance_is_recorded_and_then_out_of_the_way() -> None:
    """Its reads are noted by one recorder, however many come at once; afterwards hits are the image's own again."""
    host = Host()
    disk = host.image_disk(boots=True)
    async with trio.open_nursery() as nursery:
        for offset in (0, 1000, 70_000):
            nursery.start_soon(disk.read, offset, 10)
    assert disk.read_nowait(500_000, 10) == pattern(500_000, 10)
    (recorder,) = host.recorders
    assert sorted(recorder.units) == [0, 1, 7]
    assert isinstance(host.disk, Half)
    assert disk.read_nowait != host.disk.read_nowait
    disk.close()
    disk.close()
    assert disk.read_nowait == host.disk.read_nowait
    assert await disk.read(200_000, 10) == pattern(200_000, 10)
    assert sorted(recorder.units) == [0, 1, 7]


async def test_later_boots_are_not_recorded_and_neither_is_what_cannot_be() -> None:
    """An instance that has written already; an image that is read in place."""
    host = Host()
    assert await host.image_disk().read(0, 10) == pattern(0, 10)
    host.recording = False
    assert await host.image_disk(boots=True).read(0, 10) == pattern(0, 10)
    assert host.recorders == []


async def test_a_copy_of_an_instance_ends_the_recording_of_its_boot() -> None:
    """A snapshot that is stored while the guest still boots: what it reads is not what the guest reads."""
    host = Host()
    disk = host.image_disk(boots=True)
    await disk.read(0, 10)
    await disk.extents(0, MIB)
    await disk.read(500_000, 10)
    assert host.recorders[0].units == (0,)


def test_a_boot_is_expected_of_the_bytes_the_instance_was_made_from() -> None:
    """An image that has other bytes by now, or is gone, is not brought ahead for it."""
    host = Host()
    host.image_disk().expect_boot()
    assert host.expected == 1
    host.image_disk("v2").expect_boot()
    host.snapshot = Snapshot(2, {})
    host.image_disk().expect_boot()
    assert host.expected == 1


def damage(store: Path) -> None:
    """Change some bytes of the only image of a store that is a directory."""
    with next(store.glob("*/data")).open("r+b") as file:
        file.seek(MIB)
        file.write(b"damage")


async def test_verification_opens_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    """What is cached is examined, and a mark looked for, without opening or caching an image."""
    body = noise(3 * MIB)
    store = open_store(tmp_path.as_uri())
    store.check()
    stored = store.create(image(disk_format="raw", container_format="bare"), lambda: (io.BytesIO(body), len(body)), lambda amount: None)
    caches = await started(tmp_path / "cache", nursery)
    library = Library(store, caches.root, nursery, RetryPolicy(), cast("Boots", None))
    found = CatalogImage(stored.record, stored.version)
    assert caches.root.names() == []
    assert await library.verify_cached(None, lambda done, total: None) == CacheVerified()
    assert await library.mark(found, of_disk=True) is None


class HeldObject(MemoryObject):
    """An object that answers nothing before it may, and says what it was asked."""

    def __init__(self, body: bytes, version: str, asked: list[int], held: threading.Event) -> None:
        super().__init__(body, version)
        self._asked = asked
        self._held = held

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        self._asked.append(offset)
        assert self._held.wait(10)
        yield from super().stream(offset, length)


class HeldBucket(MemoryBucket):
    """A bucket far away, whose images' bytes are held back."""

    def __init__(self) -> None:
        super().__init__()
        self.streamed: list[int] = []
        self.held = threading.Event()

    def open(self, key: str, size: int | None = None) -> MemoryObject:
        return HeldObject(self.objects[key], self.version(key), self.streamed, self.held)


class Afar:
    """A library over a bucket that is held back, with one image of noise."""

    def __init__(self, caches: Caches, nursery: trio.Nursery, body: bytes) -> None:
        self.bucket = HeldBucket()
        store = ImagefsLayout(self.bucket)
        stored = store.create(image(disk_format="raw", container_format="bare"), lambda: (io.BytesIO(body), len(body)), lambda amount: None)
        self.image = CatalogImage(stored.record, stored.version)
        self.library = Library(store, caches.root, nursery, RetryPolicy(), cast("Boots", None))

    async def asked(self, *offsets: int) -> None:
        """Return once the bytes at these offsets were asked for."""
        with trio.fail_after(10):
            while not set(offsets) <= set(self.bucket.streamed):  # noqa: ASYNC110 - threads ask, which cannot set an event of trio
                await trio.sleep(0.001)


async def test_what_is_wanted_is_fetched_while_the_head_is_inspected(tmp_path: Path, nursery: trio.Nursery) -> None:
    """One round trip, not two: an imported image was inspected before. Nobody gets a byte before it is again."""
    body = noise(4 * MIB)
    afar = Afar(await started(tmp_path / "cache", nursery), nursery, body)
    assert await afar.library.begin(afar.image, of_disk=True) is None
    opened: list[OpenImage] = []

    async def reader(offset: int) -> None:
        opened.append(await afar.library.open(afar.image, (offset, 4096)))

    async with trio.open_nursery() as readers:
        readers.start_soon(reader, 3 * MIB)
        readers.start_soon(reader, 2 * MIB)
        await afar.asked(0, 2 * MIB, 3 * MIB)
        assert not opened
        afar.bucket.held.set()
    assert opened[0] is opened[1]
    assert await opened[0].as_disk().read(3 * MIB, 4096) == body[3 * MIB :][:4096]
    assert afar.bucket.streamed.count(3 * MIB) == 1
    assert await afar.library.begin(afar.image, of_disk=True) is opened[0]


async def test_an_image_that_is_not_what_it_was_imported_as_gives_no_byte(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Whoever can write into the store could declare a qcow2 file raw: it is refused all the same, by the first read."""
    afar = Afar(await started(tmp_path / "cache", nursery), nursery, noise(4 * MIB))
    hostile = bytearray(noise(4 * MIB))
    hostile[:8] = b"QFI\xfb\x00\x00\x00\x03"
    (key,) = (key for key in afar.bucket.objects if key.endswith("/data"))
    digests, pages = hash_tree(bytes(hostile))
    afar.bucket.objects[key] = bytes(hostile)
    afar.bucket.objects[key.removesuffix("data") + "digests"] = pages
    record = msgspec.structs.replace(afar.image.record, tree=digests)
    changed = CatalogImage(record, "another")
    afar.bucket.held.set()
    assert await afar.library.begin(changed, of_disk=True) is None
    for _ in range(2):
        with pytest.raises(ImageRefused):
            await afar.library.open(changed, (3 * MIB, 4096))


async def test_what_can_be_told_at_once_fails_the_opening(tmp_path: Path, nursery: trio.Nursery) -> None:
    """A tree that cannot be the image's, say; and what is declared with tables of its own is inspected first."""
    afar = Afar(await started(tmp_path / "cache", nursery), nursery, noise(4 * MIB))
    afar.bucket.held.set()
    digests, _ = hash_tree(noise(100 * MIB))
    with pytest.raises(WrongBytes):
        await afar.library.begin(CatalogImage(msgspec.structs.replace(afar.image.record, tree=digests), "another"), of_disk=True)
    with pytest.raises(ImageRefused):
        await afar.library.begin(CatalogImage(msgspec.structs.replace(afar.image.record, disk_format="qcow2"), "third"), of_disk=True)
