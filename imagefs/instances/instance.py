"""This module is one instance and its disks, as they are while the daemon runs."""

from collections.abc import Callable
from pathlib import Path

import trio

from imagefs.errors import ImagefsError, NotFound
from imagefs.instances.record import RECORD, DiskRecord, InstanceRecord
from imagefs.library import ImageDisk
from imagefs.overlay.disk import OverlayDisk
from imagefs.threads import Lane, run


class Disk:
    """One writable disk of an instance, opened while somebody has it open.

    Invariant: `overlay` is open if `opens` > 0; requests that arrive without an open (after a restart of the daemon) open it too.
    """

    def __init__(self, instance: "Instance", record: DiskRecord, base: Callable[[], ImageDisk] | None) -> None:
        """`base` gives what the disk's unwritten blocks show; None for an empty disk."""
        self.instance = instance
        self.record = record
        self.opens = 0
        self.overlay: OverlayDisk | None = None
        self._base = base
        self._lock = trio.Lock()

    @property
    def size(self) -> int:
        """Bytes that the guest sees."""
        return self.record.size

    async def ready(self) -> OverlayDisk:
        """Return the overlay, opening it if need be. Raises StateDamaged, NotFound once the instance is removed."""
        async with self._lock:
            if self.instance.removed:
                raise NotFound(f"instance '{self.instance.record.name}' was removed")
            if self.overlay is None:
                base = self._base() if self._base is not None else None
                self.overlay = await run(Lane.DISK, OverlayDisk.open, self.instance.directory, self.record.name, base)
            return self.overlay

    async def hold(self) -> None:
        """Count one more that has the disk open."""
        self.opens += 1
        try:
            await self.ready()
        except BaseException:
            self.opens -= 1
            raise

    async def let_go(self) -> None:
        """Count one less; after the last, what was written is made durable and the files are closed."""
        self.opens = max(0, self.opens - 1)
        async with self._lock:
            overlay = self.overlay
            if self.opens or overlay is None:
                return
            try:
                await overlay.flush()
            except (ImagefsError, OSError) as error:
                self.instance.error = f"{self.record.name}: what was written last may be lost if the host fails: {error}"
                raise
            finally:
                if self.opens == 0:
                    self.overlay = None
                    await run(Lane.DISK, overlay.close)

    async def flush(self) -> None:
        """Make everything written so far durable."""
        if self.overlay is not None:
            await self.overlay.flush()

    def status(self) -> tuple[int, int]:
        """Return the bytes allocated on the host and the time of the last write in nanoseconds. Blocks for a stat only."""
        found = (self.instance.directory / f"{self.record.name}.data").stat()
        return found.st_blocks * 512, found.st_mtime_ns


class Instance:
    """One instance. `record` is replaced as a whole, after the file was; `error` is why the last attempt on it failed."""

    def __init__(self, directory: Path, record: InstanceRecord) -> None:
        """Take the directory and what its record says."""
        self.directory = directory
        self.record = record
        self.error: str | None = None
        self.disks: dict[str, Disk] = {}
        self.lock = trio.Lock()
        self.removed = False

    @property
    def status(self) -> str:
        """`new` before the image is set, then `active`."""
        return "active" if self.record.disks else "new"

    def changed_ns(self) -> int:
        """Return when the record was last written. Raises OSError once the instance is removed."""
        return (self.directory / RECORD).stat().st_mtime_ns

    def busy(self) -> list[str]:
        """Return the names of disks that somebody has open."""
        return [name for name, disk in self.disks.items() if disk.opens]
