"""The disk of an image that an instance was made from: opened when it is needed, and pinned to its bytes."""

from typing import cast

import pytest

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import ImageRefused, NotFound, StoreRefused, StoreUnavailable, VersionChanged
from imagefs.image.inspect import Inspection
from imagefs.library import ImageDisk, Library, OpenImage
from imagefs.source import Source
from imagefs.units import MIB
from tests.support.access import image
from tests.support.overlay import PatternBase, pattern

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

    async def find(self, image_id: str) -> CatalogImage:
        if isinstance(self.image, Exception):
            raise self.image
        return self.image

    async def open(self, found: CatalogImage) -> OpenImage:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return OpenImage(PatternBase(MIB), INSPECTION, self.disk)

    def image_disk(self, version: str = "v1") -> ImageDisk:
        return ImageDisk(cast("Catalog", self), cast("Library", self), IMAGE.record.id, version, MIB)


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
