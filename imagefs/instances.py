"""This module is the instances: their records, their disks, and how both come and go.

An instance lies in `<state>/instances/<uuid>/`: `instance` is its record (sealed JSON, imagefs-state(5)), the rest are the
overlay files of its disks. It is made in two steps, as the tree makes it: a directory first (status `new`), then all its
disks at once when its image is set (status `active`). The record is written last in each step, so that a crash leaves an
instance with no disks or with all of them; what a broken step left is removed at the next mount.
"""

import functools
import logging
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NoSpace, NotFound, StateDamaged
from imagefs.flavors import Flavor
from imagefs.identity import Caller
from imagefs.library import ImageDisk, Library
from imagefs.overlay.disk import OverlayDisk
from imagefs.sealed import seal, sync_directory, unseal, write_durably
from imagefs.statedir import StateDirectory
from imagefs.threads import Lane, run
from imagefs.units import GIB, MIB

log = logging.getLogger(__name__)

MAGIC: Final = b"IMFSINST"
VERSION: Final = 1
RECORD: Final = "instance"
DISK_MODE: Final = 0o600
NAME_LIMIT: Final = 255
CLOSING_SECONDS: Final = 0.05


class DiskRecord(msgspec.Struct, frozen=True):
    """A disk as it was made: size in bytes, and owner, mode and root's attributes as they are now."""

    name: str
    size: int
    uid: int
    gid: int
    mode: int = DISK_MODE
    xattrs: dict[str, bytes] = {}


class InstanceRecord(msgspec.Struct, frozen=True):
    """What is kept of an instance. `flavor` is as it was when the instance was made: a later change of it changes no disk."""

    uuid: str
    name: str
    uid: int
    gid: int
    mode: int
    created_at: str
    flavor: Flavor | None = None
    image_id: str | None = None
    data_version: str | None = None
    virtual_size: int = 0
    """Bytes of the image's disk; vda may be larger."""
    disks: tuple[DiskRecord, ...] = ()


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
        """Return the overlay, opening it if need be. Raises StateDamaged."""
        async with self._lock:
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


class Instances:
    """All instances of a state directory, by name. All methods run on the event loop."""

    def __init__(self, state: StateDirectory, flavors: dict[str, Flavor], catalog: Catalog, library: Library) -> None:
        """Start empty; `load` reads what is there."""
        self._state = state
        self._flavors = flavors
        self._catalog = catalog
        self._library = library
        self.by_name: dict[str, Instance] = {}
        self.generation = 0

    def load(self) -> None:
        """Read all records and remove what broken steps left behind. Blocks; call it before the mount is there."""
        for leftover in self._state.trash.iterdir():
            _purge(leftover)
        for directory in sorted(self._state.instances.iterdir()):
            try:
                record = _read_record(directory / RECORD)
            except FileNotFoundError:
                log.warning("an instance that was never completed is removed directory=%s", directory)
                _purge(directory)
                continue
            except StateDamaged as error:
                log.error("an instance cannot be shown; its files are left as they are error=%s", error)
                continue
            _remove_strays(directory, record)
            instance = Instance(directory, record)
            self._attach_disks(instance)
            self.by_name[record.name] = instance

    def get(self, name: str) -> Instance:
        """Return an instance. Raises NotFound."""
        try:
            return self.by_name[name]
        except KeyError:
            raise NotFound(f"there is no instance '{name}'") from None

    async def create(self, name: str, caller: Caller, mode: int) -> Instance:
        """Make an instance without disks, owned by the caller. Raises AlreadyExists, InvalidInput for a bad name, NoSpace."""
        check_name(name)
        if name in self.by_name:
            raise AlreadyExists(f"instance '{name}' exists")
        instance_uuid = str(uuid.uuid4())
        created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = InstanceRecord(instance_uuid, name, caller.uid, caller.gid, mode, created_at)
        instance = Instance(self._state.instances / instance_uuid, record)
        self.by_name[name] = instance  # taken before the first await: two callers cannot both make it
        try:
            await run(Lane.DISK, _make_directory, instance.directory, record)
        except BaseException as error:
            del self.by_name[name]
            await _discard(instance.directory)
            raise _explained(error, f"instance '{name}' cannot be made") from error
        self.generation += 1
        return instance

    async def set_flavor(self, instance: Instance, name: str) -> None:
        """Choose the flavor. Raises InvalidInput for an unknown one, Busy once the instance has its disks."""
        async with self._changing(instance):
            self._still_new(instance, "flavor")
            flavor = self._flavors.get(name)
            if flavor is None:
                raise InvalidInput(f"there is no flavor '{name}': choose one of {', '.join(self._flavors)}")
            await self._write(instance, msgspec.structs.replace(instance.record, flavor=flavor))

    async def set_image(self, instance: Instance, name: str) -> None:
        """Choose the image, by id or name, and make the disks.

        Raises InvalidInput if it does not fit or is not active, NotFound, StoreError, ImageRefused, Busy if the disks are there.
        """
        async with self._changing(instance):
            self._still_new(instance, "image")
            image = self._catalog.resolve(name)
            check_fit(image, instance.record.flavor)
            opened = await self._library.open(image)
            virtual_size = opened.as_disk().size
            disks = plan_disks(image, virtual_size, instance.record)
            base_identity = f"{image.record.id}@{image.data_version}"
            try:
                await run(Lane.DISK, _make_disks, instance.directory, disks, base_identity)
                record = msgspec.structs.replace(
                    instance.record, image_id=image.record.id, data_version=image.data_version, virtual_size=virtual_size, disks=disks
                )
                await self._write(instance, record)
            except BaseException as error:
                with trio.CancelScope(shield=True):
                    await run(Lane.DISK, _remove_strays, instance.directory, instance.record)
                raise _explained(error, f"the disks of instance '{instance.record.name}' cannot be made") from error
            self._attach_disks(instance)
            self.generation += 1

    async def set_owner(self, instance: Instance, disk: Disk | None, *, uid: int | None, gid: int | None, mode: int | None) -> None:
        """Change owner, group or permission bits of an instance or one of its disks, durably."""
        async with instance.lock:
            old = disk.record if disk is not None else instance.record
            new = msgspec.structs.replace(
                old,
                uid=old.uid if uid is None else uid,
                gid=old.gid if gid is None else gid,
                mode=old.mode if mode is None else stat.S_IMODE(mode),
            )
            await self._replace(instance, new)

    async def set_disk_xattrs(self, disk: Disk, xattrs: dict[str, bytes]) -> None:
        """Replace root's attributes of a disk, durably."""
        async with disk.instance.lock:
            await self._replace(disk.instance, msgspec.structs.replace(disk.record, xattrs=xattrs))

    async def remove(self, name: str) -> None:
        """Remove an instance and purge its disks. Raises NotFound, Busy while a disk is open."""
        instance = self.get(name)
        async with instance.lock:
            if self.by_name.get(name) is not instance:
                raise NotFound(f"there is no instance '{name}'")
            if instance.busy():
                await trio.sleep(CLOSING_SECONDS)  # the kernel tells of a close(2) some time after it has returned
            if busy := instance.busy():
                raise Busy(f"instance '{name}' is in use ({', '.join(busy)} is open): stop the guest first")
            instance.removed = True
            doomed = self._state.trash / instance.record.uuid
            try:
                await run(Lane.DISK, _move_to_trash, instance.directory, doomed)
            except OSError as error:
                instance.removed = False
                raise _explained(error, f"instance '{name}' cannot be removed") from error
            del self.by_name[name]
            self.generation += 1
            await run(Lane.DISK, _purge, doomed)

    async def close(self) -> None:
        """Flush and close all disks."""
        for instance in self.by_name.values():
            for disk in instance.disks.values():
                disk.opens = 0
                try:
                    await disk.let_go()
                except (ImagefsError, OSError) as error:
                    log.error("a disk could not be flushed instance=%s disk=%s error=%s", instance.record.name, disk.record.name, error)

    def _changing(self, instance: Instance) -> "_Change":
        return _Change(instance)

    def _still_new(self, instance: Instance, what: str) -> None:
        if instance.record.disks:
            raise Busy(f"instance '{instance.record.name}' has its disks already: its {what} cannot be changed")

    async def _replace(self, instance: Instance, new: InstanceRecord | DiskRecord) -> None:
        if isinstance(new, InstanceRecord):
            await self._write(instance, new)
            return
        disks = tuple(new if record.name == new.name else record for record in instance.record.disks)
        await self._write(instance, msgspec.structs.replace(instance.record, disks=disks))
        instance.disks[new.name].record = new

    async def _write(self, instance: Instance, record: InstanceRecord) -> None:
        if instance.removed:
            raise NotFound(f"instance '{record.name}' was removed")
        try:
            await run(Lane.DISK, write_durably, instance.directory / RECORD, _encode(record))
        except OSError as error:
            raise _explained(error, f"the record of instance '{record.name}' cannot be written") from error
        instance.record = record

    def _attach_disks(self, instance: Instance) -> None:
        record = instance.record
        for disk in record.disks:
            base: Callable[[], ImageDisk] | None = None
            if disk.name == "vda" and record.image_id is not None and record.data_version is not None:
                base = functools.partial(ImageDisk, self._catalog, self._library, record.image_id, record.data_version, record.virtual_size)
            instance.disks[disk.name] = Disk(instance, disk, base)


class _Change:
    """Holds an instance's lock and keeps the reason of a failure for its owner to read."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def __aenter__(self) -> None:
        await self._instance.lock.acquire()

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._instance.lock.release()
        if isinstance(error, ImagefsError):
            self._instance.error = str(error)
        elif error is None:
            self._instance.error = None


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name an instance: 1 to 255 bytes of printable UTF-8, no '/', not '.' or '..'."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{name!r} cannot be an instance's name: it is not UTF-8") from None
    if not 0 < length <= NAME_LIMIT or name in {".", ".."} or "/" in name or not name.isprintable():
        raise InvalidInput(f"{name!r} cannot be an instance's name: use 1 to {NAME_LIMIT} bytes of printable text without '/'")


def check_fit(image: CatalogImage, flavor: Flavor | None) -> None:
    """Raise InvalidInput if the image is not active, or asks for more memory or disk than the flavor has."""
    record = image.record
    name = record.name or record.id
    if record.status != "active":
        raise InvalidInput(f"image '{name}' has status {record.status}: only active images can be used")
    if flavor is None:
        return
    if record.min_ram > flavor.ram:
        raise InvalidInput(f"image '{name}' needs {record.min_ram} MiB of memory, flavor {flavor.name} has {flavor.ram}: choose a larger flavor")
    if flavor.disk and record.min_disk > flavor.disk:
        raise InvalidInput(f"image '{name}' needs a disk of {record.min_disk} GiB, flavor {flavor.name} has {flavor.disk}: choose a larger flavor")


def plan_disks(image: CatalogImage, virtual_size: int, record: InstanceRecord) -> tuple[DiskRecord, ...]:
    """Return the disks that an instance of this image and flavor has, or raise InvalidInput if the image does not fit.

    What must fit is the virtual size: the stored size of a compressed image says nothing about the disk in it.
    """
    flavor = record.flavor
    size = virtual_size
    if flavor is not None and flavor.disk:
        size = flavor.disk * GIB
        if virtual_size > size:
            needed = -(-virtual_size // MIB)
            raise InvalidInput(
                f"image '{image.record.name or image.record.id}' has a virtual size of {needed} MiB, "
                f"flavor {flavor.name} a disk of {flavor.disk} GiB: choose a larger flavor"
            )
    if size == 0:
        raise InvalidInput(f"image '{image.record.name or image.record.id}' is empty: it cannot be a disk")
    disks = [DiskRecord("vda", size, record.uid, record.gid)]
    if flavor is not None and flavor.ephemeral:
        disks.append(DiskRecord("vdb", flavor.ephemeral * GIB, record.uid, record.gid))
    return tuple(disks)


def _encode(record: InstanceRecord) -> bytes:
    return seal(MAGIC, VERSION, msgspec.json.encode(record))


def _read_record(path: Path) -> InstanceRecord:
    payload = unseal(MAGIC, VERSION, path.read_bytes(), str(path))
    try:
        return msgspec.json.decode(payload, type=InstanceRecord)
    except msgspec.DecodeError as error:
        raise StateDamaged(f"{path}: {error}") from error


def _make_directory(directory: Path, record: InstanceRecord) -> None:
    directory.mkdir(mode=0o700)
    write_durably(directory / RECORD, _encode(record))
    sync_directory(directory.parent)


def _make_disks(directory: Path, disks: Iterable[DiskRecord], base_identity: str) -> None:
    for disk in disks:
        OverlayDisk.create(directory, disk.name, disk.size, base_identity if disk.name == "vda" else "")


def _remove_strays(directory: Path, record: InstanceRecord) -> None:
    """Remove files that belong to no disk of the record: what a creation that broke off has left."""
    known = {disk.name for disk in record.disks}
    for path in directory.iterdir():
        if path.name != RECORD and path.name.split(".")[0] not in known:
            path.unlink()


def _move_to_trash(directory: Path, doomed: Path) -> None:
    directory.rename(doomed)
    sync_directory(directory.parent)
    sync_directory(doomed.parent)


def _purge(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except OSError as error:
        log.error("a deleted instance's files could not be removed; the next mount tries again path=%s error=%s", directory, error)


async def _discard(directory: Path) -> None:
    with trio.CancelScope(shield=True):
        await run(Lane.DISK, lambda: shutil.rmtree(directory, ignore_errors=True))


def _explained(error: BaseException, what: str) -> BaseException:
    """Turn a failure of the host's disk into one that says what it hindered; anything else stays as it is."""
    if not isinstance(error, OSError):
        return error
    return NoSpace(f"{what}: {error.strerror}: free some room in the state directory")
