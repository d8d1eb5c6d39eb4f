"""This module is raw/<id>: an image as a disk, format decoded."""

import functools
from collections.abc import Callable

from imagefs.catalog import Catalog, CatalogImage
from imagefs.files.image import ImageFile
from imagefs.files.node import Attributes, OpenMode
from imagefs.identity.caller import Caller
from imagefs.library import Library, OpenImage
from imagefs.profile.merge import LEAST_UNITS
from imagefs.profile.recorder import Recorder
from imagefs.sight import Sights
from imagefs.source import Source
from imagefs.upkeep import Upkeep


class DiskImageFile(ImageFile):
    """raw/<id>: the image as a disk."""

    __slots__ = ("_booted", "_recorder")
    kind = "raw"
    shows_disk = True

    def __init__(
        self,
        image: CatalogImage,
        catalog: Catalog,
        library: Library,
        upkeep: Upkeep,
        sights: Sights,
        owner: tuple[int, int],
        keep: Callable[["ImageFile"], None],
    ) -> None:
        """As ImageFile says."""
        super().__init__(image, catalog, library, upkeep, sights, owner, keep)
        self._recorder: Recorder | None = None
        self._booted = False

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Who opens it first may be a guest that boots from it, or from a direct disk over it."""
        mode = await super().open(caller, flags)
        if self._opens == 1:
            self._library.expect_boot(self.image)
        return mode

    async def close(self) -> None:
        """As Node says."""
        if self._opens <= 1 and self._recorder is not None:
            self._recorder.end()
        await super().close()

    def _recorded(self, disk: Source) -> None:
        """Go back to reading the disk itself, once its first reads are recorded.

        That is done once: when it is opened again, what was read is in the kernel's memory, and no boot shows as a whole.
        """
        if self._recorder is not None and len(self._recorder.units) >= LEAST_UNITS:
            self._booted = True
        if self._source is self._recorder:
            self._source = disk
        self._recorder = None

    def _opening(self) -> None:
        """Ask for what is known of boots: it comes while the image is opened."""
        if not self._opens:
            self._library.ask_of_boots(self.image)

    def _face(self, opened: OpenImage) -> Source:
        """As ImageFile says: while a boot is being recorded, what records it. That may be what begins now, if nobody has read the disk so far."""
        disk = opened.as_disk()
        if self._source is None and not self._booted and self._recorder is None:
            self._recorder = self._library.recorded(self.image, disk, functools.partial(self._recorded, disk))
        return self._recorder or disk

    def attributes(self) -> Attributes:
        """As Node says. A size that is only guessed is not for the kernel to keep: it would cut reads at it."""
        shown = super().attributes()
        if self._source is None and self.image.record.virtual_size is None:
            shown.name_timeout = shown.attributes_timeout = 0.0
        return shown

    @property
    def size(self) -> int:
        """Bytes of the disk: known for sure once the image is open, until then what its record says."""
        if self._source is not None:
            return self._source.size
        record = self.image.record
        return record.virtual_size if record.virtual_size is not None else record.size or 0
