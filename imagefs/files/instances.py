"""This module is instances/: directories made by mkdir and removed by rmdir, and the writable disks in them."""

import functools
import os
import stat
import time
from collections.abc import Mapping
from typing import Final

from imagefs.errors import AlreadyExists, ImagefsError, ImageRefused, InvalidInput, NoAttribute, NotFound, NotPermitted
from imagefs.files.node import Attributes, Changes, Children, Failures, Node, OpenMode, directory_attributes
from imagefs.identity.caller import Caller
from imagefs.instances.instance import Disk, Instance
from imagefs.instances.record import check_name
from imagefs.instances.registry import Instances
from imagefs.properties.change import Mode
from imagefs.sight import Sights

CHOICE_LIMIT: Final = 4096
"""Bytes of what user.flavor and user.image are set to; an image's name has at most 255 characters. What is refused is told in
user.imagefs.error with the value in it, which must fit an attribute."""


class DiskFile(Node):
    """vda or vdb: a fixed size, whatever is written; its bytes are the guest's and are never looked at."""

    kind = "disk"
    read_only = False

    def __init__(self, disk: Disk, instances: Instances) -> None:
        """Take the disk, and the registry that its changes go through."""
        super().__init__(disk_key(disk))
        self.disk = disk
        self._instances = instances

    def attributes(self) -> Attributes:
        """As Node says; `allocated` is what the disk's own blocks take on the host."""
        record = self.disk.record
        try:
            allocated, modified_ns = self.disk.status()
        except FileNotFoundError:
            raise NotFound(f"{self!r} was removed") from None
        return Attributes(self.inode, stat.S_IFREG | record.mode, record.uid, record.gid, record.size, allocated, modified_ns, modified_ns)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Raises StateDamaged if the overlay's files are not sound, NotPermitted for O_TRUNC, which the kernel leaves to open."""
        access = flags & os.O_ACCMODE
        wanted = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK}.get(access, os.R_OK | os.W_OK)
        self.check(caller, wanted)
        if flags & os.O_TRUNC:
            raise NotPermitted(f"{self!r} has a fixed size")
        await self.disk.hold()
        return OpenMode(keep_pages=True)

    async def close(self) -> None:
        """As Node says."""
        await self.disk.let_go()

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Node says."""
        overlay = self.disk.overlay
        return overlay.read_nowait(offset, length) if overlay is not None else None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Node says. Raises StoreError where the image's bytes cannot be had."""
        overlay = self.disk.overlay or await self.disk.ready()
        try:
            return await overlay.read(offset, length)
        except ImagefsError as error:
            self.disk.instance.error = f"{self.disk.record.name} at {offset}: {error}"
            raise

    def write_nowait(self, offset: int, body: bytes) -> int | None:
        """As Node says."""
        overlay = self.disk.overlay
        return overlay.write_nowait(offset, body) if overlay is not None else None

    async def write(self, offset: int, body: bytes) -> int:
        """As Node says. Raises NoSpace past the end, with nothing changed, or when the host's disk is full."""
        overlay = self.disk.overlay or await self.disk.ready()
        try:
            return await overlay.write(offset, body)
        except ImagefsError as error:
            self.disk.instance.error = f"{self.disk.record.name} at {offset}: {error}"
            raise

    async def flush(self) -> None:
        """As Node says."""
        await self.disk.flush()

    async def change(self, caller: Caller, changes: Changes) -> None:
        """As Node says: owner and mode, never the size."""
        if changes.size is not None:
            raise NotPermitted(f"{self!r} has a fixed size")
        record = self.disk.record
        check_change(caller, changes, record.uid, record.gid, repr(self))
        if (changes.mode, changes.uid, changes.gid) != (None, None, None):
            await self._instances.set_owner(self.disk.instance, self.disk, uid=changes.uid, gid=changes.gid, mode=changes.mode)

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: root's trusted.* attributes, to root."""
        return self.disk.record.xattrs if caller.uid == 0 else {}

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Keep one of root's trusted.* attributes."""
        if not name.startswith("trusted.") or caller.uid != 0:
            raise NotPermitted(f"attribute {name} of {self!r} cannot be set")
        if not _is_utf8(name):
            raise InvalidInput(f"{name!r} cannot be the name of an attribute: it is not UTF-8")
        await self._instances.set_disk_xattrs(self.disk, self.disk.record.xattrs | {name: value})

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Drop one of root's trusted.* attributes."""
        await self.xattr(caller, name)
        await self._instances.set_disk_xattrs(self.disk, {key: value for key, value in self.disk.record.xattrs.items() if key != name})


class InstanceDirectory(Node):
    """One instance: its disks, and what it is as user.* attributes. Setting user.flavor and user.image makes the disks."""

    kind = "instance"
    read_only = False

    def __init__(self, instance: Instance, instances: Instances, sights: Sights) -> None:
        """Take the instance, the registry that its changes go through, and who may see which images."""
        super().__init__(instance.record.uuid)
        self.instance = instance
        self._instances = instances
        self._sights = sights
        self._disks: dict[str, DiskFile] = {}

    def attributes(self) -> Attributes:
        """As Node says."""
        record = self.instance.record
        try:
            changed_ns = self.instance.changed_ns()
        except OSError:
            raise NotFound(f"instance '{record.name}' was removed") from None
        return directory_attributes(self.inode, record.mode, record.uid, record.gid, changed_ns)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        if name not in self.instance.disks:
            raise NotFound(f"instance '{self.instance.record.name}' has no '{name}'")
        return self.disk(name)

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        self.check(caller, os.R_OK)
        return [(name, functools.partial(self.disk, name)) for name in self.instance.disks]

    def disk(self, name: str) -> DiskFile:
        """Return the node of a disk; always the same one."""
        found = self._disks.get(name)
        if found is None:
            found = self._disks[name] = DiskFile(self.instance.disks[name], self._instances)
        return found

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: disks come with the image."""
        raise NotPermitted("an instance's disks are made by setting its user.image")

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: there are no directories in an instance."""
        raise NotPermitted("there are no directories in an instance")

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Refuse: disks go with their instance."""
        if name not in self.instance.disks:
            raise NotFound(f"instance '{self.instance.record.name}' has no '{name}'")
        raise NotPermitted("a disk is removed with its instance, by rmdir")

    async def change(self, caller: Caller, changes: Changes) -> None:
        """As Node says: owner and mode."""
        record = self.instance.record
        check_change(caller, changes, record.uid, record.gid, repr(self))
        if (changes.mode, changes.uid, changes.gid) != (None, None, None):
            await self._instances.set_owner(self.instance, None, uid=changes.uid, gid=changes.gid, mode=changes.mode)

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says; for those who may read the directory."""
        self.check(caller, os.R_OK)
        record = self.instance.record
        shown = {
            "user.status": self.instance.status,
            "user.instance_uuid": record.uuid,
            "user.created_at": record.created_at,
            "user.flavor": record.flavor.name if record.flavor is not None else None,
            "user.image_id": record.image_id,
            "user.imagefs.error": self.instance.error,
        }
        return {name: value.encode() for name, value in shown.items() if value is not None}

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Set user.flavor or user.image (an id or a name).

        Raises InvalidInput with the reason, Denied for an image that the caller may not download, Busy once there are disks.
        """
        self.check(caller, os.W_OK)
        try:
            await self._choose(caller, name, value)
        except ImagefsError as error:
            self.instance.error = str(error)
            if isinstance(error, NotFound | ImageRefused):
                raise InvalidInput(str(error)) from error
            raise

    async def _choose(self, caller: Caller, name: str, value: bytes) -> None:
        if name not in {"user.flavor", "user.image"}:
            raise NotPermitted(f"attribute {name!r} of an instance cannot be set")
        if len(value) > CHOICE_LIMIT:
            raise InvalidInput(f"the value of {name} has {len(value)} bytes: no id or name has more than {CHOICE_LIMIT}")
        try:
            text = value.decode().rstrip("\n")
        except UnicodeDecodeError:
            raise InvalidInput(f"the value of {name} is not UTF-8") from None
        if name == "user.flavor":
            await self._instances.set_flavor(self.instance, text)
        else:
            self._instances.check_new(self.instance, "image")
            sight = self._sights.of(caller)
            image = await sight.resolve(text)
            sight.access.check_download(sight.identity, image.record)
            await self._instances.set_image(self.instance, image)

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Refuse."""
        if name not in self.xattrs(caller):
            raise NoAttribute(f"{self!r} has no attribute {name}")
        raise NotPermitted(f"attribute {name} of an instance cannot be removed")


class InstancesDirectory(Node):
    """instances/: who may make an instance is decided by its owner, group and mode."""

    kind = "directory"
    read_only = False

    def __init__(self, instances: Instances, sights: Sights, uid: int, gid: int, mode: int) -> None:
        """Take the registry, who may see which images, and the directory's owner, group and permission bits."""
        super().__init__("instances")
        self._instances = instances
        self._sights = sights
        self._owner = (uid, gid)
        self._mode = mode
        self._nodes: dict[str, InstanceDirectory] = {}
        self._failures = Failures()
        self._changed_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, self._mode, *self._owner, self._changed_ns)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        return self.node(self._instances.get(name))

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        self.check(caller, os.R_OK)
        return [(name, functools.partial(self.node, instance)) for name, instance in self._instances.by_name.items()]

    def node(self, instance: Instance) -> InstanceDirectory:
        """Return the node of an instance; always the same one."""
        found = self._nodes.get(instance.record.uuid)
        if found is None:
            found = InstanceDirectory(instance, self._instances, self._sights)
            if not instance.removed:  # as one of a list that was taken before may be
                self._nodes[instance.record.uuid] = found
        return found

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Make an instance. Its mode is 0700 whatever the caller's umask: a disk of a guest is nobody else's."""
        try:
            check_name(name)
            if name in self._instances.by_name:
                raise AlreadyExists(f"instance '{name}' exists")
            self.check(caller, os.W_OK | os.X_OK)
            instance = await self._instances.create(name, caller, 0o700)
        except ImagefsError as error:
            self._failures.note(caller, error)
            raise
        self._failures.clear(caller)
        self._changed_ns = time.time_ns()
        return self.node(instance)

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: instances are directories."""
        raise NotPermitted("only directories can be made in instances/: mkdir makes an instance")

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Refuse: instances are directories."""
        self._instances.get(name)
        raise NotPermitted(f"'{name}' is an instance: remove it with rmdir")

    async def remove_directory(self, caller: Caller, name: str) -> None:
        """Remove an instance with its disks. Raises Busy while a disk is open."""
        instance = self._instances.get(name)
        self.check(caller, os.W_OK | os.X_OK)
        if self._mode & stat.S_ISVTX and caller.uid not in (0, instance.record.uid, self._owner[0]):
            raise NotPermitted(f"instance '{name}' belongs to another user")
        try:
            await self._instances.remove(name)
        except ImagefsError as error:
            instance.error = str(error)
            raise
        self._nodes.pop(instance.record.uuid, None)
        self._changed_ns = time.time_ns()

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: why the caller's last mkdir failed."""
        error = self._failures.of(caller)
        return {} if error is None else {"user.imagefs.error": error.encode("utf-8", "replace")}


def disk_key(disk: Disk) -> str:
    """Return what names a disk in inode numbers."""
    return f"{disk.instance.record.uuid}\0{disk.record.name}"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_change(caller: Caller, changes: Changes, uid: int, gid: int, what: str) -> None:
    """Raise NotPermitted unless POSIX lets the caller change owner, group or mode of an object that belongs to uid and gid."""
    if caller.uid == 0:
        return
    new_owner = changes.uid not in (None, uid)
    foreign_group = changes.gid not in (None, gid) and changes.gid not in caller.groups
    if caller.uid != uid or new_owner or foreign_group:
        raise NotPermitted(f"uid {caller.uid} may not change the owner or mode of {what}")
