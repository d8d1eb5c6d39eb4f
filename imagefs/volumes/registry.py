"""This module is the registry of volumes: it makes, finds, grows and removes them, and knows which instance has which.

A volume lies in `<state>/volumes/<uuid>/`: `volume` is its record (sealed JSON, imagefs-state(5)), `disk.*` are its overlay files, which it has
from its first size on. Each step that a crash may cut short leaves either what was there before it or what it was to bring.
"""

import contextlib
import logging
import shutil
import time
import uuid
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.disks.disk import close_all
from imagefs.disks.record import DiskRecord, check_name
from imagefs.disks.steps import explained, make_directory, move_to_trash, never_completed, purge, remove_strays
from imagefs.errors import AlreadyExists, Busy, NotFound, StateDamaged
from imagefs.identity.caller import Caller
from imagefs.overlay.calls import CALLS
from imagefs.overlay.durable_map import DurableMap
from imagefs.statedir import StateDirectory
from imagefs.threads import Lane, run
from imagefs.volumes.record import DISK, RECORD, VolumeRecord, encode, read_record
from imagefs.volumes.volume import Volume

log = logging.getLogger(__name__)

CLOSING_SECONDS: Final = 0.05


class Volumes:
    """All volumes of a state directory, by name. All methods run on the event loop. `generation` changes whenever a volume or its place does."""

    def __init__(self, state: StateDirectory) -> None:
        """Start empty; `load` reads what is there."""
        self._state = state
        self._making: set[str] = set()
        self.by_name: dict[str, Volume] = {}
        self.generation = 0

    def load(self) -> None:
        """Read all records and remove what broken steps left behind. Blocks; call it before the mount is there."""
        for directory in sorted(self._state.volumes.iterdir()):
            if never_completed(directory, RECORD):
                log.warning("a volume that was never completed is removed directory=%s", directory)
                purge(directory)
                continue
            try:
                volume = self._load_one(directory)
            except (StateDamaged, OSError) as error:
                log.error("a volume cannot be shown; its files are left as they are directory=%s error=%s", directory, error)
                continue
            self.by_name[volume.record.name] = volume

    def _load_one(self, directory: Path) -> Volume:
        """Read one volume. Raises StateDamaged if the directory is a copy of another, or has a name that is taken, or lacks its disk; OSError."""
        record = read_record(directory / RECORD)
        if record.uuid != directory.name:
            raise StateDamaged(f"the record is that of {record.uuid}: is this a copy? Move it out of {directory.parent}")
        if (other := self.by_name.get(record.name)) is not None:
            raise StateDamaged(f"the name '{record.name}' is taken by {other.directory}")
        size = _overlay_size(directory, record.disk) if record.disk.size else 0
        try:
            remove_strays(directory, RECORD, record.disk.stems if size else ())
        except OSError as error:
            log.warning("what a broken step left of a volume cannot be removed directory=%s error=%s", directory, error)
        return Volume(directory, msgspec.structs.replace(record, disk=msgspec.structs.replace(record.disk, size=size)))

    def get(self, name: str) -> Volume:
        """Return a volume. Raises NotFound."""
        try:
            return self.by_name[name]
        except KeyError:
            raise NotFound(f"there is no volume '{name}'") from None

    def check_free(self, name: str) -> None:
        """Raise AlreadyExists if there is a volume of that name, InvalidInput or NameTooLong if there cannot be one."""
        check_name(name, "a volume")
        if name in self.by_name or name in self._making:
            raise AlreadyExists(f"volume '{name}' exists")

    async def create(self, name: str, caller: Caller, mode: int) -> Volume:
        """Make a volume of size 0, owned by the caller. Raises AlreadyExists, InvalidInput for a bad name, NoSpace."""
        self.check_free(name)
        volume_uuid = str(uuid.uuid4())
        created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = VolumeRecord(volume_uuid, name, created_at, DiskRecord(DISK, 0, caller.uid, caller.gid, mode, kind="volume"))
        directory = self._state.volumes / volume_uuid
        self._making.add(name)  # taken before the first await: two callers cannot both make it
        try:
            await run(Lane.DISK, make_directory, directory, RECORD, encode(record))
            self.by_name[name] = volume = Volume(directory, record)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await run(Lane.DISK, _discard, directory)
            if isinstance(error, OSError):
                raise explained(error, f"volume '{name}' cannot be made") from error
            raise
        finally:
            self._making.discard(name)
        self.generation += 1
        return volume

    async def resize(self, volume: Volume, size: int) -> None:
        """Make a volume `size` bytes long, durably; what is new reads as zeros.

        A crash leaves the old size or the new one, and so does an error. Raises InvalidInput if that would shrink it or no file of the host
        can be so long, NoSpace, NotFound once it is removed.
        """
        before = volume.disk.size
        await volume.disk.grow(size)
        if volume.disk.size != before:
            self.generation += 1

    async def remove(self, name: str) -> None:
        """Remove a volume and purge its disk. Raises NotFound, Busy while it is attached or open."""
        volume = self.get(name)
        async with volume.lock:
            if volume.disk.opens:
                await trio.sleep(CLOSING_SECONDS)  # the kernel tells of a close(2) some time after it has returned
            if self.by_name.get(name) is not volume:
                raise NotFound(f"there is no volume '{name}'")
            if volume.attached_to is not None:
                raise Busy(f"{volume.label} is attached to instance '{volume.attached_to}': detach it first, with rm of its link there")
            if volume.disk.opens:
                raise Busy(f"{volume.label} is open: stop who uses it first")
            volume.removed = True  # nothing waited since the checks, and from here on it is neither opened nor attached
            doomed = self._state.trash / volume.record.uuid
            try:
                await run(Lane.DISK, move_to_trash, volume.directory, doomed)
            except OSError as error:
                if volume.directory.exists():
                    volume.removed = False
                else:  # it is only not known to be durable: the next mount would go on with it
                    await self._forget(volume, doomed)
                raise explained(error, f"{volume.label} cannot be removed") from error
            await self._forget(volume, doomed)

    async def _forget(self, volume: Volume, doomed: Path) -> None:
        del self.by_name[volume.record.name]
        self.generation += 1
        with contextlib.suppress(Exception):  # only descriptors are left to give back, of requests that came without an open
            await volume.disk.let_go()
        await run(Lane.DISK, purge, doomed)

    def attach(self, name: str, instance_name: str) -> None:
        """Note that an instance has the volume. Raises NotFound, Busy if an instance has it already. Whoever calls this keeps the record of it."""
        volume = self.get(name)
        volume.check_there()
        if volume.attached_to is not None:
            raise Busy(f"{volume.label} is attached to instance '{volume.attached_to}' already: a volume has one place at a time")
        volume.attached_to = instance_name
        self.generation += 1

    def detach(self, name: str, instance_name: str) -> None:
        """Note that the instance has the volume no more. Raises NotFound if it has not, Busy if another instance has it."""
        volume = self.get(name)
        if volume.attached_to is None:
            raise NotFound(f"{volume.label} is not attached")
        if volume.attached_to != instance_name:
            raise Busy(f"{volume.label} is attached to instance '{volume.attached_to}', not to '{instance_name}'")
        volume.attached_to = None
        self.generation += 1

    async def close(self) -> None:
        """Flush and close all disks."""
        await close_all(volume.disk for volume in self.by_name.values())


def _overlay_size(directory: Path, disk: DiskRecord) -> int:
    """Return the bytes of a disk as its overlay files have them. Raises StateDamaged if they are missing or fewer than the record says; OSError."""
    durable = DurableMap(directory / f"{disk.stems[-1]}.map", CALLS)
    durable.close()
    size = durable.header.size
    if size < disk.size:
        raise StateDamaged(f"{directory}: the record is of a disk of {disk.size} bytes, the map of one of {size}: restore both together")
    return size


def _discard(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
