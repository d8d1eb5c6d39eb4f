"""This module is what a snapshot shows, captured at its moment: read out into a file of its own, from which it is stored."""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import trio

from imagefs.disks.disk import Disk
from imagefs.errors import Busy, InvalidInput
from imagefs.identity.caller import Caller
from imagefs.instances import direct
from imagefs.instances.flatten import flatten
from imagefs.instances.instance import Instance
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.instances.spool import Spool
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.merge import MergingDisk
from imagefs.qmp.backup import Backup, backup
from imagefs.threads import Lane, run

Note = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Capture(Protocol):
    """A disk as it was at one moment."""

    outlasts: bool
    """Whether it is still there after the daemon was ended, once `flush` has returned."""

    async def flush(self) -> None:
        """Make it durable as it is. Raises OSError, NoSpace."""
        ...

    async def fill(self, note: Note) -> int:
        """Read it out, unless that was done before; return the bytes to store. Raises StoreError, NoSpace, ImageRefused."""
        ...

    def reader(self) -> BinaryIO:
        """Return what was read out, from its beginning; after `fill`."""
        ...

    async def close(self) -> None:
        """Let go of everything; again, if it was done already."""
        ...


class LayerCapture:
    """The frozen layers of a root disk, which is taken and released by `close`."""

    outlasts = True

    def __init__(self, root: Disk, view: OverlayDisk | MergingDisk, disk_format: Literal["qcow2", "raw"]) -> None:
        """Take the disk, which the caller has taken, its frozen part, and the format to store it in."""
        self._root = root
        self._view = view
        self._disk_format = disk_format
        self._spool: Spool | None = None
        self._size: int | None = None
        self._closed = False

    async def flush(self) -> None:
        """As Capture says."""
        await self._view.flush()

    async def fill(self, note: Note) -> int:
        """As Capture says. Takes room in the state directory, which is given back by `close`."""
        if self._size is None or self._spool is None:
            if self._spool is not None:
                self._spool.close()
            self._spool = await run(Lane.DISK, self._make_spool)
            self._size = await flatten(self._view, self._disk_format, self._spool, note)
        return self._size

    def _make_spool(self) -> Spool:
        directory: Path = self._root.holder.directory
        return Spool(directory, encrypted=self._root.record.encrypted)

    def reader(self) -> BinaryIO:
        """As Capture says."""
        assert self._spool is not None  # noqa: S101 -- `fill` was called
        return self._spool.reader()

    async def close(self) -> None:
        """As Capture says."""
        if self._closed:
            return
        self._closed = True
        if self._spool is not None:
            await run(Lane.DISK, self._spool.close)
        await self._root.release()


class DirectCapture:
    """A direct disk, copied into a file of its owner's beside it: by the QEMU that has it open, or by qemu-img while nobody has."""

    outlasts = False

    def __init__(self, instance: Instance, request: SnapshotRequest, groups: Iterable[int]) -> None:
        """Use `begin`. `groups` are those of the disk's owner, as far as they are known."""
        self._record = instance.record
        self._disk = Path(instance.record.direct or "")
        self._disk_format = request.disk_format
        self._groups = groups
        self._stack = contextlib.AsyncExitStack()
        self._target = Path()
        self._running: Backup | None = None
        self._changed_ns = 0
        self._size: int | None = None

    @staticmethod
    async def begin(instance: Instance, request: SnapshotRequest, caller: Caller) -> "DirectCapture":
        """Begin to copy the disk of the instance as it is now.

        Raises InvalidInput if QEMU is to write another format than qcow2, Busy if somebody has the disk open and no QMP socket was named,
        ImagefsError.
        """
        if request.qmp is not None and request.disk_format != "qcow2":
            raise InvalidInput(f"{instance.label} is snapshot by QEMU, which writes qcow2: leave disk_format out")
        capture = DirectCapture(instance, request, caller.groups if caller.uid == instance.record.uid else ())
        if request.qmp is None:
            capture._changed_ns = await run(Lane.DISK, _changed_ns, capture._disk)
            if await run(Lane.DISK, direct.in_use, capture._disk):
                raise Busy(f'vda of {instance.label} is open, and imagefs cannot freeze it: stop the guest, or name its QMP socket with "qmp"')
        try:
            await capture._start(request.qmp, caller.uid)
        except BaseException:
            with trio.CancelScope(shield=True):
                await capture.close()
            raise
        return capture

    async def _start(self, qmp: str | None, caller_uid: int) -> None:
        record = self._record
        self._target = await run(Lane.DISK, direct.make_target, self._disk, record.direct_size, record.uid, record.gid)
        self._stack.push_async_callback(run, Lane.DISK, direct.remove_target, self._target)
        if qmp is not None:
            self._running = await self._stack.enter_async_context(backup(Path(qmp), caller_uid, self._disk, self._target))

    async def flush(self) -> None:
        """As Capture says: there is nothing that outlasts the daemon."""

    async def fill(self, note: Note) -> int:
        """As Capture says. Raises Busy if a disk that nobody had open was written to before it was copied."""
        if self._size is None:
            if self._running is not None:
                await self._running.completed(note)
            else:
                await self._convert()
            self._size = await run(Lane.DISK, direct.inspect_target, self._target, self._disk_format, self._record.direct_size)
        return self._size

    async def _convert(self) -> None:
        record, backing = self._record, Path(self._record.direct_backing)
        await direct.convert(
            self._disk, self._target, self._disk_format, record.uid, record.gid, backing=backing, size=record.direct_size, groups=self._groups
        )
        if await run(Lane.DISK, _changed_ns, self._disk) != self._changed_ns:
            raise Busy(f"{self._disk} was used while it was copied: take the snapshot again, with the QMP socket of the guest")

    def reader(self) -> BinaryIO:
        """As Capture says."""
        return direct.open_target(self._target)

    async def close(self) -> None:
        """As Capture says."""
        await self._stack.aclose()


def _changed_ns(path: Path) -> int:
    """Return when a file was last written to, or given to another owner. Blocks."""
    return path.lstat().st_ctime_ns
