"""This module is one volume and its disk, as they are while the daemon runs."""

import contextlib
import logging
from pathlib import Path

import msgspec
import trio

from imagefs.disks.disk import Disk, Holder
from imagefs.disks.record import DiskRecord
from imagefs.disks.steps import explained
from imagefs.errors import ImagefsError, InvalidInput, NoSpace, NotFound
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.merge import MergingDisk
from imagefs.sealed import write_durably
from imagefs.threads import Lane, run
from imagefs.volumes.record import DISK, RECORD, VolumeRecord, encode

log = logging.getLogger(__name__)


class Volume(Holder):
    """One volume. `attached_to` is the name of the instance that has it, which that instance's record decides; None if none has."""

    def __init__(self, directory: Path, record: VolumeRecord) -> None:
        """Take the directory and what its record says."""
        super().__init__(directory)
        self.record = record
        self.attached_to: str | None = None
        self.disk = VolumeDisk(self, record.disk)

    @property
    def label(self) -> str:
        """As Holder says."""
        return f"volume '{self.record.name}'"

    async def keep_disk(self, record: DiskRecord) -> None:
        """As Holder says."""
        self.check_there()
        new = msgspec.structs.replace(self.record, disk=record)
        try:
            await run(Lane.DISK, write_durably, self.directory / RECORD, encode(new))
        except OSError as error:
            raise explained(error, f"the record of {self.label} cannot be written") from error
        self.record = new

    def check_there(self) -> None:
        """Raise NotFound once the volume is removed."""
        if self.removed:
            raise NotFound(f"{self.label} was removed")


class VolumeDisk(Disk):
    """The disk of a volume: of size 0 and without overlay files until it gets its first size, and growing from then on.

    Invariant: the size is 0, or that in the header of the overlay's durable map, which is durable before anybody is told of it. The record's
    copy of it may be behind.
    """

    def __init__(self, volume: Volume, record: DiskRecord) -> None:
        """Take the volume that this is the disk of."""
        super().__init__(volume, record, None, None)
        self._volume = volume
        self._sizing = trio.Lock()

    @property
    def label(self) -> str:
        """As Disk says: a volume is its disk."""
        return self._volume.label

    async def ready(self) -> OverlayDisk | MergingDisk:
        """As Disk says; whatever broke off before, the size is what the overlay has by now."""
        overlay = await super().ready()
        if overlay.size != self.record.size:
            self.record = msgspec.structs.replace(self.record, size=overlay.size)
        return overlay

    async def hold(self) -> None:
        """As Disk says."""
        if self.size:
            await super().hold()
        else:
            self._volume.check_there()
            self.opens += 1

    async def write(self, offset: int, body: bytes) -> int:
        """As Disk says."""
        if not self.size:
            raise NoSpace(f"{self.label} has no size yet: give it one with truncate -s")
        return await super().write(offset, body)

    def status(self) -> tuple[int, int]:
        """As Disk says; without overlay files the record's time counts."""
        if self.size:
            return super().status()
        return 0, (self._volume.directory / RECORD).stat().st_mtime_ns

    async def grow(self, size: int) -> None:
        """As Disk says, and from size 0 too. Whenever the daemon or the host fails on the way, the disk has its old size or the new one."""
        async with self._sizing:
            self._volume.check_there()
            if size < self.size:
                raise InvalidInput(f"{self.label} has {self.size} bytes and never shrinks: make a smaller one and copy what is in it")
            try:
                if not self.size and size:
                    await self._make(size)
                elif size > self.size:
                    await self._lengthen(size)
            except OSError as error:
                raise explained(error, f"{self.label} cannot be made {size} bytes long") from error

    async def _make(self, size: int) -> None:
        """Make the overlay files, and then the record that has the size."""
        async with self._volume.lock:
            self._volume.check_there()
            try:
                await run(Lane.DISK, self._create, size)
                await self._keep(msgspec.structs.replace(self.record, size=size))
            except BaseException:
                with trio.CancelScope(shield=True), contextlib.suppress(OSError, ImagefsError):  # the next attempt or mount tries again
                    await run(Lane.DISK, self._clear)
                raise

    def _create(self, size: int) -> None:
        if any(self._volume.directory.glob(f"{DISK}.*")):
            self._clear()
        OverlayDisk.create(self._volume.directory, self.record.stems[0], size, "")

    def _clear(self) -> None:
        """Remove what an attempt has left that failed. The record first: the file may be the one with the size, if only syncing it has failed."""
        write_durably(self._volume.directory / RECORD, encode(self._volume.record))
        OverlayDisk.delete(self._volume.directory, self.record.stems[0])

    async def _lengthen(self, size: int) -> None:
        await self.take()  # so that the overlay is still open when it is asked how long it has become
        try:
            try:
                await super().grow(size)
            except (ImagefsError, OSError) as error:
                await self.ready()
                if self.size != size:
                    raise
                # The size is durable where it counts. Growing again could not do better, and the next change of the record writes it there too.
                log.warning("a volume has grown, but its record does not say so yet volume=%s error=%s", self._volume.record.name, error)
        finally:
            await self.release()
