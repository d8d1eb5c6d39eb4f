"""This module is all instances of a state directory: how they are made, chosen for, given volumes and removed, each step whole or not at all."""

import contextlib
import functools
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.catalog import Catalog, CatalogImage
from imagefs.disks.disk import Disk, close_all
from imagefs.disks.record import check_name
from imagefs.disks.steps import explained, make_directory, move_to_trash, never_completed, purge, remove_strays
from imagefs.errors import AlreadyExists, Busy, ImagefsError, InvalidInput, NotFound, StateDamaged, StoreUnavailable
from imagefs.flavors import Flavor
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.instances.attachments import Attachments
from imagefs.instances.choices import choose
from imagefs.instances.creation import Creation
from imagefs.instances.fit import VOLUME_DEVICES, check_fit
from imagefs.instances.instance import Instance
from imagefs.instances.record import RECORD, BaseImage, InstanceRecord, Maker, encode, read_record
from imagefs.instances.snapshots import Snapshots
from imagefs.library import ImageDisk, Library, OpenImage
from imagefs.statedir import StateDirectory
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

CLOSING_SECONDS: Final = 0.05
OPENING_SECONDS: Final = 20.0
"""How long the image of a new instance may take to open. The kernel does nothing else with the instance meanwhile, and who then removes it
makes it hold up instances/ as a whole."""


class Instances:
    """All instances of a state directory, by name. All methods run on the event loop."""

    def __init__(
        self, state: StateDirectory, catalog: Catalog, library: Library, attachments: Attachments, creation: Creation, snapshots: Snapshots
    ) -> None:
        """Start empty; `load` reads what is there."""
        self._state = state
        self._catalog = catalog
        self._library = library
        self._attachments = attachments
        self._creation = creation
        self._snapshots = snapshots
        self.by_name: dict[str, Instance] = {}
        self.generation = 0

    # -- what is there --------------------------------------------------------------------------

    def load(self) -> None:
        """Read all records and remove what broken steps left behind. Blocks; call it before the mount is there, and after the volumes' load."""
        for leftover in self._state.trash.iterdir():
            purge(leftover)
        for directory in sorted(self._state.instances.iterdir()):
            if never_completed(directory, RECORD):
                log.warning("an instance that was never completed is removed directory=%s", directory)
                purge(directory)
                continue
            try:
                instance = self._load_one(directory)
            except (StateDamaged, OSError) as error:
                log.error("an instance cannot be shown; its files are left as they are directory=%s error=%s", directory, error)
                continue
            self._attach_disks(instance)
            self._load_volumes(instance)
            self.by_name[instance.record.name] = instance
        without = {instance.record.uuid for instance in self.by_name.values() if instance.record.direct is None}
        self._creation.purge_direct({path.name for path in self._state.instances.iterdir()} - without)

    def _load_one(self, directory: Path) -> Instance:
        """Read one instance. Raises StateDamaged if the directory is a copy of another, or has a name that is taken; OSError."""
        record = read_record(directory / RECORD)
        if record.uuid != directory.name:
            raise StateDamaged(f"the record is that of {record.uuid}: is this a copy? Move it out of {directory.parent}")
        if (other := self.by_name.get(record.name)) is not None:
            raise StateDamaged(f"the name '{record.name}' is taken by {other.directory}")
        try:
            remove_strays(directory, RECORD, record.stems)
        except OSError as error:
            log.warning("what a broken step left of an instance cannot be removed directory=%s error=%s", directory, error)
        return Instance(directory, record)

    def _load_volumes(self, instance: Instance) -> None:
        for device, target in instance.record.volumes.items():
            try:
                self._attachments.attach(target, instance.record.name)
            except ImagefsError as error:
                log.error("an attached volume is not what it was instance=%s device=%s error=%s", instance.record.name, device, error)

    def get(self, name: str) -> Instance:
        """Return an instance. Raises NotFound."""
        try:
            return self.by_name[name]
        except KeyError:
            raise NotFound(f"there is no instance '{name}'") from None

    # -- making ---------------------------------------------------------------------------------

    async def create(self, name: str, caller: Caller, mode: int) -> Instance:
        """Make an instance without disks, owned by the caller. Raises AlreadyExists, InvalidInput for a bad name, NoSpace."""
        check_name(name, "an instance")
        if name in self.by_name:
            raise AlreadyExists(f"instance '{name}' exists")
        instance_uuid = str(uuid.uuid4())
        created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = InstanceRecord(instance_uuid, name, caller.uid, caller.gid, mode, created_at)
        instance = Instance(self._state.instances / instance_uuid, record)
        self.by_name[name] = instance  # taken before the first await: two callers cannot both make it
        try:
            async with instance.lock:  # whoever finds it by now, to change or remove it, waits
                await run(Lane.DISK, make_directory, instance.directory, RECORD, encode(record))
        except BaseException as error:
            instance.removed = True
            del self.by_name[name]
            await _discard(instance.directory)
            raise explained(error, f"instance '{name}' cannot be made") from error
        self.generation += 1
        return instance

    async def set_flavor(self, instance: Instance, flavor: Flavor) -> None:
        """Choose the flavor. Raises Busy once the instance has its disks."""
        async with self._changing(instance):
            self.check_new(instance, "flavor")
            await instance.write(msgspec.structs.replace(instance.record, flavor=flavor))

    async def set_choice(self, instance: Instance, name: str, value: bytes) -> None:
        """Choose what else can be chosen (see `choices`). Raises InvalidInput, Busy once the instance has its disks."""
        async with self._changing(instance):
            self.check_new(instance, name)
            await instance.write(msgspec.structs.replace(instance.record, choices=choose(instance.record.choices, name, value)))

    async def set_image(self, instance: Instance, image: CatalogImage, properties: dict[str, str], maker: Identity) -> None:
        """Choose the image and make the disks. Whether `maker` may use that image, and reads these properties, is for the caller to know.

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
            self._library.expect_boot(image)  # the disks take some milliseconds, and then a guest boots from them
            found = image.record
            base = BaseImage(found.id, image.data_version, opened.as_disk().size, found.disk_format, found.min_ram, properties)
            wanted = msgspec.structs.replace(instance.record, image=base, maker=Maker(maker.user_id, maker.project_id, tuple(sorted(maker.roles))))
            try:
                record = await self._creation.make(instance.directory, wanted, image)
                await instance.write(record)
            except BaseException as error:
                with trio.CancelScope(shield=True), contextlib.suppress(OSError, ImagefsError):  # the next attempt or mount tries again
                    # The record first: it may be the new one that is there, if only syncing it has failed.
                    await instance.write(instance.record)
                    await run(Lane.DISK, self._creation.undo, instance.directory, instance.record)
                raise explained(error, f"the disks of {instance.label} cannot be made") from error
            self._attach_disks(instance)
            self.generation += 1

    async def set_owner(self, instance: Instance, *, uid: int | None, gid: int | None, mode: int | None) -> None:
        """Change owner, group or permission bits of an instance, durably."""
        async with instance.lock:
            old = instance.record
            new = msgspec.structs.replace(
                old, uid=old.uid if uid is None else uid, gid=old.gid if gid is None else gid, mode=old.mode if mode is None else mode & 0o7777
            )
            await instance.write(new)
            await self._creation.follow_owner(new)

    def check_new(self, instance: Instance, what: str) -> None:
        """Raise Busy once the instance has its disks: `what` cannot be chosen any more then."""
        if instance.made:
            raise Busy(f"{instance.label} has its disks already: its {what} cannot be changed")

    # -- volumes --------------------------------------------------------------------------------

    async def attach(self, instance: Instance, device: str, target: str) -> None:
        """Attach a volume, or the block device at an absolute path, as `device`. Whether the caller may is for the caller of this to know.

        Raises InvalidInput for a name that no volume can have, AlreadyExists, NotFound, Busy if it is attached somewhere.
        """
        async with self._changing(instance):
            if device not in VOLUME_DEVICES:
                raise InvalidInput(f"{device!r} cannot be the name of an attached volume: use one of vdc to vdz")
            if device in instance.disks or device in instance.record.volumes:
                raise AlreadyExists(f"{instance.label} has a disk {device}: choose another of vdc to vdz")
            self._attachments.attach(target, instance.record.name)
            try:
                await instance.write(msgspec.structs.replace(instance.record, volumes=instance.record.volumes | {device: target}))
            except BaseException:
                self._attachments.detach(target, instance.record.name)
                raise
            self.generation += 1

    async def detach(self, instance: Instance, device: str) -> None:
        """Detach a volume. Raises NotFound, Busy while it is open: its guest would write on, beside the next one."""
        async with self._changing(instance):
            target = instance.record.volumes.get(device)
            if target is None:
                raise NotFound(f"{instance.label} has no volume {device}")
            await self._check_closed(instance, lambda: self._attachments.busy([target]), "detach")
            kept = {name: other for name, other in instance.record.volumes.items() if name != device}
            await instance.write(msgspec.structs.replace(instance.record, volumes=kept))
            self._attachments.detach(target, instance.record.name)
            self.generation += 1

    # -- removing -------------------------------------------------------------------------------

    async def remove(self, name: str) -> None:
        """Remove an instance, purge its disks and detach its volumes. Raises NotFound, Busy while a disk is open."""
        instance = self.get(name)
        await self._snapshots.stop(instance)  # before the lock is held: a merge may need it to come to an end
        try:
            async with instance.lock:
                await self._remove(instance)
        finally:
            if not instance.removed:
                self._snapshots.resume([instance])

    async def _remove(self, instance: Instance) -> None:
        if instance.removed:
            raise NotFound(f"there is no instance '{instance.record.name}'")
        self._snapshots.check_idle(instance)
        await self._check_closed(instance, lambda: [*instance.busy(), *self._attachments.busy(instance.record.volumes.values())], "remove it")
        await self._creation.check_unused(instance.record)
        instance.removed = True
        doomed = self._state.trash / instance.record.uuid
        try:
            await run(Lane.DISK, move_to_trash, instance.directory, doomed)
        except OSError as error:
            if instance.directory.exists():
                instance.removed = False
            else:  # it is only not known to be durable: the next mount would go on with it
                await self._forget(instance, doomed)
            raise explained(error, f"{instance.label} cannot be removed") from error
        await self._forget(instance, doomed)

    async def _forget(self, instance: Instance, doomed: Path) -> None:
        """Let go of an instance that is in the trash, and of all that was its."""
        del self.by_name[instance.record.name]
        self.generation += 1
        for target in instance.record.volumes.values():
            self._attachments.detach(target, instance.record.name)
        for disk in instance.disks.values():
            with contextlib.suppress(Exception):  # only descriptors are left to give back, of requests that came without an open
                await disk.let_go()
        await run(Lane.DISK, self._creation.remove_direct, instance.record)
        await run(Lane.DISK, purge, doomed)

    async def _check_closed(self, instance: Instance, busy: Callable[[], list[str]], what: str) -> None:
        """Raise Busy if `busy` names what is open, also after a moment: the kernel tells of a close(2) some time after it has returned."""
        if busy():
            await trio.sleep(CLOSING_SECONDS)
        if names := busy():
            raise Busy(f"cannot {what}: {instance.label} is in use ({', '.join(names)} is open): stop the guest first")

    async def close(self) -> None:
        """Flush all disks, and close those that no job holds."""
        await close_all(disk for instance in self.by_name.values() for disk in instance.disks.values())

    @contextlib.asynccontextmanager
    async def _changing(self, instance: Instance) -> AsyncIterator[None]:
        """Hold the instance's lock, and keep the reason of a failure for its owner to read."""
        async with instance.lock:
            if instance.removed:
                raise NotFound(f"{instance.label} was removed")
            try:
                yield
            except ImagefsError as error:
                instance.error = str(error)
                raise
            instance.error = None

    def _attach_disks(self, instance: Instance) -> None:
        record = instance.record
        for disk in record.disks:
            base: Callable[[], ImageDisk] | None = None
            if disk.kind == "root" and (image := record.image) is not None:
                base = functools.partial(self._image_disk, image, instance.directory / f"{disk.stems[0]}.data")
            instance.disks[disk.name] = Disk(instance, disk, base, self._creation.node_key if disk.encrypted else None)

    def _image_disk(self, image: BaseImage, data: Path) -> ImageDisk:
        """Return the image's disk below an instance's. A guest that has booted has written: what is read of an untouched disk is its first boot.

        Later boots are not recorded: what they read is partly their own, or still in the kernel's memory. Blocks for a stat of the disk's data.
        """
        try:
            untouched = data.stat().st_blocks == 0
        except OSError:
            untouched = False
        return ImageDisk(self._catalog, self._library, image.id, image.data_version, image.virtual_size, boots=untouched)


async def _discard(directory: Path) -> None:
    with trio.CancelScope(shield=True):
        await run(Lane.DISK, lambda: shutil.rmtree(directory, ignore_errors=True))
