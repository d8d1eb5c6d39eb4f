"""This module is one writable disk while the daemon runs: the stack of overlay layers that holds it, and who has it open."""

import contextlib
import logging
import stat
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec
import trio

from imagefs.disks.record import DiskRecord, first_stem
from imagefs.errors import Busy, ImagefsError, LayerFrozen, NotFound
from imagefs.library import ImageDisk
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import NodeKey
from imagefs.overlay.merge import MergingDisk
from imagefs.source import Source
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)


class Holder:
    """What disks belong to: an instance or a volume, with a directory of its own. `error` is why the last attempt on it failed."""

    def __init__(self, directory: Path) -> None:
        """Take the directory that the disks' files are in."""
        self.directory = directory
        self.error: str | None = None
        self.removed = False
        self.lock = trio.Lock()
        """Held while the record changes."""

    @property
    def label(self) -> str:
        """What messages call it, such as `instance 'web1'`."""
        return self.directory.name

    async def keep_disk(self, record: DiskRecord) -> None:
        """Write a disk's new record durably. `lock` is held. Raises NoSpace, ImagefsError; the old record is in force then."""
        raise NotFound(f"{self.label} has no disk {record.name}")


class Disk:
    """One writable disk, opened while somebody has it open.

    Invariant: `overlay` is there if `opens` or `jobs` > 0; requests that arrive without an open (after a restart of the daemon) open it too.
    It is the top of the stack: all other layers are frozen, but the one below a layer that is being merged into it.
    """

    def __init__(self, holder: Holder, record: DiskRecord, base: Callable[[], Source] | None, node_key: Callable[[], NodeKey] | None = None) -> None:
        """`base` gives what the disk's unwritten blocks show, None for an empty disk.

        `node_key` gives what opens the key of an encrypted one; it may block.
        """
        self.holder = holder
        self.record = record
        self.opens = 0
        self.uncached = False
        """Whether those that have it open have it so past the kernel's page cache."""
        self.jobs = 0
        self.overlay: OverlayDisk | MergingDisk | None = None
        self._base = base
        self._below: Source | None = None
        self._node_key = node_key
        self._layers: list[OverlayDisk] = []
        self._lock = trio.Lock()
        self._restacking = trio.Lock()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.record.name} of {self.holder.label}"

    @property
    def size(self) -> int:
        """Bytes that the guest sees."""
        return self.record.size

    # -- opening and closing --------------------------------------------------------------------

    async def ready(self) -> OverlayDisk | MergingDisk:
        """Return the overlay, opening it if need be. Raises StateDamaged, NotFound once its holder is removed."""
        async with self._lock:
            if self.holder.removed:
                raise NotFound(f"{self.holder.label} was removed")
            if (overlay := self.overlay) is not None:
                return overlay
            self._below, self._layers, opened = await run(Lane.DISK, self._open)
            self.overlay = opened
            return opened

    def _open(self) -> tuple[Source | None, list[OverlayDisk], OverlayDisk | MergingDisk]:
        """Open what lies below, and all layers, lowest first. Blocks."""
        layers: list[OverlayDisk] = []
        with contextlib.ExitStack() as on_failure:
            base = below = self._base() if self._base is not None else None
            node_key = self._node_key() if self._node_key is not None else None
            for stem in self.record.stems:
                layer = OverlayDisk.open(self.holder.directory, stem, below, node_key=node_key)
                on_failure.callback(layer.close)
                layers.append(layer)
                below = layer
            for layer in layers[:-1]:
                layer.freeze()
            on_failure.pop_all()
        return base, layers, _pair(layers) if self.record.merging else layers[-1]

    async def hold(self) -> None:
        """Count one more that has the disk open."""
        self.opens += 1
        try:
            await self.ready()
        except BaseException:
            self.opens -= 1
            raise
        if self.opens == 1 and isinstance(self._below, ImageDisk):
            self._below.expect_boot()

    async def let_go(self) -> None:
        """Count one less; after the last, what was written is made durable and the files are closed."""
        self.opens = max(0, self.opens - 1)
        await self._close_if_idle()

    async def take(self) -> None:
        """Count one more job of the daemon's own that needs the disk open; whether the disk is in use is another question."""
        self.jobs += 1
        try:
            await self.ready()
        except BaseException:
            self.jobs -= 1
            raise

    async def release(self) -> None:
        """Count one job less."""
        self.jobs -= 1
        await self._close_if_idle()

    async def _close_if_idle(self) -> None:
        async with self._lock:
            if self.opens or self.jobs or self.overlay is None:
                return
            try:
                await self.overlay.flush()
            except (ImagefsError, OSError) as error:
                self.holder.error = f"{self.record.name}: what was written last may be lost if the host fails: {error}"
                raise
            finally:
                if not (self.opens or self.jobs):
                    layers, self._layers, self.overlay = self._layers, [], None
                    if isinstance(self._below, ImageDisk):
                        self._below.close()
                    for layer in reversed(layers):
                        await layer.settled()
                        await run(Lane.DISK, layer.close)

    # -- writing --------------------------------------------------------------------------------

    async def write(self, offset: int, body: bytes) -> int:
        """Write `body` and return its length. Raises NoSpace past the end, with nothing changed, or when the host's disk is full."""
        while True:
            overlay = self.overlay or await self.ready()
            try:
                return await overlay.write(offset, body)
            except LayerFrozen:  # a snapshot or a merge came between: there is a new top by now
                if overlay.frozen and self.overlay is overlay:
                    raise

    async def flush(self) -> None:
        """Make everything written so far durable."""
        if self.overlay is not None:
            await self.overlay.flush()

    # -- the record -----------------------------------------------------------------------------

    def status(self) -> tuple[int, int]:
        """Return the bytes allocated on the host and the time of the last write in nanoseconds. Blocks for a stat of each layer only."""
        found = [(self.holder.directory / f"{stem}.data").stat() for stem in self.record.stems]
        return sum(one.st_blocks for one in found) * 512, max(one.st_mtime_ns for one in found)

    async def set_owner(self, *, uid: int | None, gid: int | None, mode: int | None) -> None:
        """Change owner, group or permission bits, durably."""
        async with self.holder.lock:
            old = self.record
            await self._keep(
                msgspec.structs.replace(
                    old,
                    uid=old.uid if uid is None else uid,
                    gid=old.gid if gid is None else gid,
                    mode=old.mode if mode is None else stat.S_IMODE(mode),
                )
            )

    async def set_xattrs(self, xattrs: dict[str, bytes]) -> None:
        """Replace root's attributes, durably."""
        async with self.holder.lock:
            await self._keep(msgspec.structs.replace(self.record, xattrs=xattrs))

    async def grow(self, size: int) -> None:
        """Make the disk `size` bytes long, durably. Raises InvalidInput if that would shrink it, NotPermitted for one with a base, NoSpace."""
        await self.take()
        try:
            async with self._restacking, self.holder.lock:
                overlay = self.overlay
                if not isinstance(overlay, OverlayDisk) or len(self._layers) > 1:
                    raise Busy(f"{self.label} is being snapshot or merged: grow it later")
                await overlay.grow(size)
                await self._keep(msgspec.structs.replace(self.record, size=size))
        finally:
            await self.release()

    async def _keep(self, record: DiskRecord) -> None:
        await self.holder.keep_disk(record)
        self.record = record

    # -- layers ---------------------------------------------------------------------------------

    async def add_layer(self, keep: Callable[[DiskRecord], Awaitable[None]]) -> OverlayDisk | MergingDisk:
        """Freeze the disk as it is at one moment, on top of which the guest writes on; return the frozen part, to be read.

        `keep` writes the disk's new record durably, together with what its caller has to remember. The disk must be taken, and no merge
        may run. Nobody waits: until the record is durable writes go to the layer that is then frozen. Raises NoSpace and OSError, with
        nothing changed.
        """
        async with self._restacking:
            below = await self.ready()
            stem, layer = await run(Lane.DISK, self._make_layer, below)
            try:
                async with self.holder.lock:
                    record = msgspec.structs.replace(self.record, layers=(*self.record.stems, stem), merging=False)
                    await keep(record)
                    # From here on nothing waits: this is the moment that the snapshot shows.
                    self.record = record
                    below.freeze()
                    self._layers.append(layer)
                    self.overlay = layer
            except BaseException:
                with trio.CancelScope(shield=True):
                    await run(Lane.DISK, layer.close)
                    async with self.holder.lock:
                        # The record first: it may be the new one that is there, if only syncing it has failed. Then the layer stays.
                        await self._keep(self.record)
                    await run(Lane.DISK, OverlayDisk.delete, self.holder.directory, stem)
                raise
            return below

    def _make_layer(self, below: OverlayDisk | MergingDisk) -> tuple[str, OverlayDisk]:
        """Make and open a layer under a name that no layer has or ever had since the daemon started. Blocks."""
        directory, key = self.holder.directory, self._node_key() if self._node_key is not None else None
        first = first_stem(self.record.name)
        names = [*self.record.stems, *(path.name.partition(".")[0] for path in directory.glob(f"{first}@*"))]
        stem = f"{first}@{1 + max(int(name.partition('@')[2] or 0) for name in names)}"
        OverlayDisk.create(directory, stem, self.record.size, below.identity, node_key=key)
        try:
            return stem, OverlayDisk.open(directory, stem, below, node_key=key)
        except BaseException:
            OverlayDisk.delete(directory, stem)
            raise

    def view(self, layers: int) -> OverlayDisk:
        """Return the lowest `layers` layers as what they show together. The disk must be taken, and have more layers than that."""
        return self._layers[layers - 1]

    async def merge(self) -> None:
        """Move the layers above the first into it, one after the other, while the guest goes on. The disk must be taken.

        Safe to cancel, and to be called again, also by the next daemon. Raises NoSpace, StateDamaged and OSError; the layers are as good then.
        """
        while len(self.record.stems) > 1:
            async with self._restacking:
                await self.ready()
                await self._merge_top()

    async def _merge_top(self) -> None:
        pair = self.overlay
        if not isinstance(pair, MergingDisk):
            async with self.holder.lock:
                await self._keep(msgspec.structs.replace(self.record, merging=True))
            pair = self.overlay = _pair(self._layers)
        await pair.merge()
        stems = self.record.stems
        async with self.holder.lock:
            await self._keep(msgspec.structs.replace(self.record, layers=stems[:-1], merging=False))
        # The upper layer holds nothing any more, and nothing waits between these lines.
        upper = self._layers.pop()
        self.overlay = self._layers[-1]
        with trio.CancelScope(shield=True):
            await pair.settled()
            await upper.settled()
            await run(Lane.DISK, upper.close)
            await run(Lane.DISK, OverlayDisk.delete, self.holder.directory, stems[-1])


async def close_all(disks: Iterable[Disk]) -> None:
    """Flush all disks at the end of a mount, and close those that no job holds, which closes its own when it is cancelled."""
    for disk in disks:
        disk.opens = 0
        try:
            await (disk.flush() if disk.jobs else disk.let_go())
        except Exception as error:  # whatever it is, the other disks are flushed too
            log.error("a disk could not be flushed disk=%s error=%s", disk.label, error)


def _pair(layers: list[OverlayDisk]) -> MergingDisk:
    """Return the two uppermost layers as one that moves the upper into the lower; the lower takes writes from now on."""
    return MergingDisk(layers[-1], layers[-2])
