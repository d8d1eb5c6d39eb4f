"""This module is one instance, as it is while the daemon runs."""

from pathlib import Path

import msgspec

from imagefs.disks.disk import Disk, Holder
from imagefs.disks.record import DiskRecord
from imagefs.disks.steps import explained
from imagefs.errors import NotFound
from imagefs.instances.record import RECORD, InstanceRecord, encode
from imagefs.sealed import write_durably
from imagefs.threads import Lane, run


class Instance(Holder):
    """One instance. `record` is replaced as a whole, after the file was."""

    def __init__(self, directory: Path, record: InstanceRecord) -> None:
        """Take the directory and what its record says."""
        super().__init__(directory)
        self.record = record
        self.disks: dict[str, Disk] = {}
        self.progress = (0, 0)
        """Bytes done and in all of the step that a running snapshot is at."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"instance '{self.record.name}'"

    @property
    def made(self) -> bool:
        """Tell whether the image is chosen and the disks are there."""
        return self.record.image is not None

    @property
    def status(self) -> str:
        """`new` before the image is set, then `active`."""
        return "active" if self.made else "new"

    def changed_ns(self) -> int:
        """Return when the record was last written. Raises OSError once the instance is removed."""
        return (self.directory / RECORD).stat().st_mtime_ns

    def busy(self) -> list[str]:
        """Return the names of disks that somebody has open."""
        return [name for name, disk in self.disks.items() if disk.opens]

    async def write(self, record: InstanceRecord) -> None:
        """Replace the record, durably; `lock` is held. Raises NotFound if the instance is gone, NoSpace, ImagefsError."""
        if self.removed:
            raise NotFound(f"{self.label} was removed")
        try:
            await run(Lane.DISK, write_durably, self.directory / RECORD, encode(record))
        except OSError as error:
            raise explained(error, f"the record of {self.label} cannot be written") from error
        self.record = record

    async def keep_disk(self, record: DiskRecord) -> None:
        """As Holder says."""
        await self.write(with_disk(self.record, record))


def with_disk(record: InstanceRecord, disk: DiskRecord) -> InstanceRecord:
    """Return the instance's record with another record of one of its disks."""
    return msgspec.structs.replace(record, disks=tuple(disk if old.name == disk.name else old for old in record.disks))
