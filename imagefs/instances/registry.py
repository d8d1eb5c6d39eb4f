"""This module is the registry of instances: it makes, finds, changes and removes them.

An instance lies in `<state>/instances/<uuid>/`: `instance` is its record (sealed JSON, imagefs-state(5)), the rest are the
overlay files of its disks. It is made in two steps, as the tree makes it: a directory first (status `new`), then all its
disks at once when its image is set (status `active`). The record is written last in each step, so that a crash leaves an
instance with no disks or with all of them; what a broken step left is removed at the next mount.
"""

import contextlib
import functools
import logging
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.catalog import Catalog, CatalogImage
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NotFound, StateDamaged, StoreUnavailable
from imagefs.flavors import Flavor
from imagefs.identity.caller import Caller
from imagefs.instances.fit import check_fit, plan_disks
from imagefs.instances.instance import Disk, Instance
from imagefs.instances.record import RECORD, DiskRecord, InstanceRecord, check_name, encode, read_record
from imagefs.instances.steps import explained, make_directory, make_disks, move_to_trash, never_completed, purge, remove_strays
from imagefs.library import ImageDisk, Library, OpenImage
from imagefs.sealed import write_durably
from imagefs.statedir import StateDirectory
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

CLOSING_SECONDS: Final = 0.05
OPENING_SECONDS: Final = 20.0
"""How long the image of a new instance may take to open. The kernel does nothing else with the instance meanwhile, and who then removes it
makes it hold up instances/ as a whole."""


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
            purge(leftover)
        for directory in sorted(self._state.instances.iterdir()):
            if never_completed(directory):
                log.warning("an instance that was never completed is removed directory=%s", directory)
                purge(directory)
                continue
            try:
                instance = self._load_one(directory)
            except (StateDamaged, OSError) as error:
                log.error("an instance cannot be shown; its files are left as they are directory=%s error=%s", directory, error)
                continue
            self._attach_disks(instance)
            self.by_name[instance.record.name] = instance

    def _load_one(self, directory: Path) -> Instance:
        """Read one instance. Raises StateDamaged if the directory is a copy of another, or has a name that is taken; OSError."""
        record = read_record(directory / RECORD)
        if record.uuid != directory.name:
            raise StateDamaged(f"the record is that of {record.uuid}: is this a copy? Move it out of {directory.parent}")
        if (other := self.by_name.get(record.name)) is not None:
            raise StateDamaged(f"the name '{record.name}' is taken by {other.directory}")
        try:
            remove_strays(directory, record)
        except OSError as error:
            log.warning("what a broken step left of an instance cannot be removed directory=%s error=%s", directory, error)
        return Instance(directory, record)

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
            async with instance.lock:  # whoever finds it by now, to change or remove it, waits
                await run(Lane.DISK, make_directory, instance.directory, record)
        except BaseException as error:
            instance.removed = True
            del self.by_name[name]
            await _discard(instance.directory)
            raise explained(error, f"instance '{name}' cannot be made") from error
        self.generation += 1
        return instance

    async def set_flavor(self, instance: Instance, name: str) -> None:
        """Choose the flavor. Raises InvalidInput for an unknown one, Busy once the instance has its disks."""
        async with self._changing(instance):
            self.check_new(instance, "flavor")
            flavor = self._flavors.get(name)
            if flavor is None:
                raise InvalidInput(f"there is no flavor '{name}': choose one of {', '.join(self._flavors)}")
            await self._write(instance, msgspec.structs.replace(instance.record, flavor=flavor))

    async def set_image(self, instance: Instance, image: CatalogImage) -> None:
        """Choose the image and make the disks. Whether the caller may use that image is for the caller of this to know.

        Raises InvalidInput if it does not fit or is not active, NotFound, StoreError, ImageRefused, Busy if the disks are there.
        """
        async with self._changing(instance):
            self.check_new(instance, "image")
            check_fit(image, instance.record.flavor)
            opened: OpenImage | None = None
            with trio.move_on_after(OPENING_SECONDS):
                opened = await self._library.open(image)
            if opened is None:
                raise StoreUnavailable(f"image {image.record.id} could not be opened in {OPENING_SECONDS:.0f} s: try again")
            virtual_size = opened.as_disk().size
            disks = plan_disks(image, virtual_size, instance.record)
            base_identity = f"{image.record.id}@{image.data_version}"
            try:
                await run(Lane.DISK, make_disks, instance.directory, disks, base_identity)
                record = msgspec.structs.replace(
                    instance.record, image_id=image.record.id, data_version=image.data_version, virtual_size=virtual_size, disks=disks
                )
                await self._write(instance, record)
            except BaseException as error:
                with trio.CancelScope(shield=True), contextlib.suppress(OSError):  # the next mount tries again
                    await run(Lane.DISK, remove_strays, instance.directory, instance.record)
                raise explained(error, f"the disks of instance '{instance.record.name}' cannot be made") from error
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
                await run(Lane.DISK, move_to_trash, instance.directory, doomed)
            except OSError as error:
                instance.removed = False
                raise explained(error, f"instance '{name}' cannot be removed") from error
            del self.by_name[name]
            self.generation += 1
            await run(Lane.DISK, purge, doomed)

    async def close(self) -> None:
        """Flush and close all disks."""
        for instance in self.by_name.values():
            for disk in instance.disks.values():
                disk.opens = 0
                try:
                    await disk.let_go()
                except Exception as error:  # whatever it is, the other disks are flushed too
                    log.error("a disk could not be flushed instance=%s disk=%s error=%s", instance.record.name, disk.record.name, error)

    @contextlib.asynccontextmanager
    async def _changing(self, instance: Instance) -> AsyncIterator[None]:
        """Hold the instance's lock, and keep the reason of a failure for its owner to read."""
        async with instance.lock:
            if instance.removed:
                raise NotFound(f"instance '{instance.record.name}' was removed")
            try:
                yield
            except ImagefsError as error:
                instance.error = str(error)
                raise
            instance.error = None

    def check_new(self, instance: Instance, what: str) -> None:
        """Raise Busy once the instance has its disks: `what` cannot be chosen any more then."""
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
            await run(Lane.DISK, write_durably, instance.directory / RECORD, encode(record))
        except OSError as error:
            raise explained(error, f"the record of instance '{record.name}' cannot be written") from error
        instance.record = record

    def _attach_disks(self, instance: Instance) -> None:
        record = instance.record
        for disk in record.disks:
            base: Callable[[], ImageDisk] | None = None
            if disk.name == "vda" and record.image_id is not None and record.data_version is not None:
                base = functools.partial(ImageDisk, self._catalog, self._library, record.image_id, record.data_version, record.virtual_size)
            instance.disks[disk.name] = Disk(instance, disk, base)


async def _discard(directory: Path) -> None:
    with trio.CancelScope(shield=True):
        await run(Lane.DISK, lambda: shutil.rmtree(directory, ignore_errors=True))
