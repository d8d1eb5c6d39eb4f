"""raw/<id> as what a guest boots from: what is expected, recorded and read when it is opened once, twice and again."""

import os
from collections.abc import Callable
from typing import cast

import pytest

from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.errors import ImageRefused
from imagefs.files.image import ImageFile, StoredImageFile
from imagefs.files.raw import DiskImageFile
from imagefs.identity.caller import Caller
from imagefs.image.inspect import Inspection
from imagefs.library import Library, OpenImage
from imagefs.profile.merge import LEAST_UNITS
from imagefs.profile.recorder import Recorder
from imagefs.sight import Sights
from imagefs.source import Source
from imagefs.units import UNIT
from imagefs.upkeep import Upkeep
from tests.support.access import image
from tests.support.booting import DISK, IMAGE, BootDisk

ROOT = Caller(0, 0)


class World:
    """A catalog, a library and rules of one image, which everybody may read."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(1, {IMAGE.record.id: IMAGE})
        self.disk = BootDisk()
        self.stored = BootDisk()
        self.calls: list[str] = []
        self.later = False
        self.error: Exception | None = None
        self.wanted: list[tuple[int, int] | None] = []
        self.recorders: list[Recorder] = []
        self.access = self
        self.identity = None

    def of(self, caller: Caller) -> "World":
        return self

    def check(self, image: CatalogImage) -> None:
        return

    def check_download(self, identity: None, record: object) -> None:
        return

    async def begin(self, image: CatalogImage, *, of_disk: bool) -> OpenImage | None:
        if self.later:
            self.calls.append("begin")
            return None
        return await self.open(image)

    async def open(self, image: CatalogImage, wanted: tuple[int, int] | None = None) -> OpenImage:
        self.calls.append("open")
        self.wanted.append(wanted)
        if self.error is not None:
            raise self.error
        return OpenImage(self.stored, cast("Inspection", None), self.disk)

    def ask_of_boots(self, image: CatalogImage) -> None:
        self.calls.append("ask")

    def expect_boot(self, image: CatalogImage) -> None:
        self.calls.append("expect")

    def recorded(self, image: CatalogImage, disk: Source, ended: Callable[[], object]) -> Recorder | None:
        self.recorders.append(Recorder(disk, lambda recorder: None, ended))
        return self.recorders[-1]

    def file(self, kind: type[ImageFile], found: CatalogImage = IMAGE) -> ImageFile:
        """Return the image's file in raw/ or images/."""
        return kind(found, cast("Catalog", self), cast("Library", self), cast("Upkeep", None), cast("Sights", self), (0, 0), lambda node: None)


async def boot(file: ImageFile, units: int = LEAST_UNITS) -> None:
    """Read some units."""
    for unit in range(units):
        await file.read(unit * UNIT, 10)


async def test_the_profile_is_asked_for_while_the_image_is_opened() -> None:
    """It needs no round trip of its own before the guest's first byte."""
    world = World()
    await world.file(DiskImageFile).open(ROOT, os.O_RDONLY)
    assert world.calls == ["ask", "open", "expect"]


async def test_who_opens_it_beside_a_booting_guest_does_not_end_the_recording() -> None:
    """Both read through it, and it is over when the last of them closes."""
    world = World()
    file = world.file(DiskImageFile)
    await file.open(ROOT, os.O_RDONLY)
    await boot(file, 20)
    await file.open(ROOT, os.O_RDONLY)
    assert file.read_nowait(30 * UNIT, 10) is None
    await file.close()
    await boot(file)
    (recorder,) = world.recorders
    assert set(recorder.units) == {*range(LEAST_UNITS), 30}
    assert file.read_nowait != world.disk.read_nowait
    await file.close()
    await boot(file, 100)
    assert len(recorder.units) == LEAST_UNITS
    assert world.calls.count("expect") == 1


async def test_a_boot_is_recorded_once_and_helped_each_time() -> None:
    """What the second guest reads is in the kernel's memory in part: a recording of the rest would mislead."""
    world = World()
    file = world.file(DiskImageFile)
    for _ in range(3):
        await file.open(ROOT, os.O_RDONLY)
        await boot(file)
        await file.close()
    assert len(world.recorders) == 1
    assert world.calls.count("expect") == 3


async def test_a_glance_does_not_count_as_the_boot() -> None:
    """Somebody looked at the partition table; the guest comes after."""
    world = World()
    file = world.file(DiskImageFile)
    for units in (1, 0, LEAST_UNITS, LEAST_UNITS):
        await file.open(ROOT, os.O_RDONLY)
        await boot(file, units)
        await file.close()
    assert [len(recorder.units) for recorder in world.recorders] == [1, 0, LEAST_UNITS]


async def test_when_the_recording_ends_reads_go_to_the_disk_itself() -> None:
    """Also while the file stays open."""
    world = World()
    file = world.file(DiskImageFile)
    await file.open(ROOT, os.O_RDONLY)
    await boot(file)
    world.recorders[0].end()
    await boot(file, 200)
    assert len(world.recorders[0].units) == LEAST_UNITS
    assert file.size == world.disk.size


async def test_the_stored_bytes_are_nobodys_boot() -> None:
    """images/<id> is what `image save` and copies read."""
    world = World()
    file = world.file(StoredImageFile)
    await file.open(ROOT, os.O_RDONLY)
    await boot(file)
    assert (world.calls, world.recorders) == (["open"], [])
    assert world.stored.reads


async def test_the_first_read_says_what_it_wants() -> None:
    """An image that need not be open when open(2) returns is opened by the first read, and recorded from it on."""
    world = World()
    world.later = True
    raw = CatalogImage(image(os_hash_value="v1", size=DISK, disk_format="raw"), "record-1")
    world.snapshot = Snapshot(1, {raw.record.id: raw})
    file = world.file(DiskImageFile, raw)
    await file.open(ROOT, os.O_RDONLY)
    assert world.calls == ["ask", "begin", "expect"]
    assert not world.recorders
    await file.read(5 * UNIT, 10)
    await file.read(6 * UNIT, 10)
    assert world.wanted == [(5 * UNIT, 10)]
    (recorder,) = world.recorders
    assert list(recorder.units) == [5, 6]


async def test_what_the_first_read_finds_wrong_is_kept() -> None:
    """As the reason why open(2) failed would be."""
    world = World()
    world.later, world.error = True, ImageRefused("it is not what it says")
    file = world.file(DiskImageFile)
    await file.open(ROOT, os.O_RDONLY)
    with pytest.raises(ImageRefused):
        await file.read(0, 10)
    assert file.error == "it is not what it says"
    world.error = None
    await file.read(0, 10)
    assert file.error is None
