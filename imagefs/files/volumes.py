"""This module is volumes/: persistent disks as files, which truncate(1) makes and grows, and rm removes."""

import functools
import os
import stat
import time
from collections.abc import Mapping
from typing import Final

from imagefs.disks.record import DISK_MODE
from imagefs.errors import ImagefsError, NotPermitted
from imagefs.files.disks import DiskFile
from imagefs.files.node import REASON_LIMIT, Attributes, Changes, Children, Failures, Node, OpenMode, directory_attributes
from imagefs.identity.caller import Caller
from imagefs.volumes.registry import Volumes
from imagefs.volumes.volume import Volume

ERROR: Final = "user.imagefs.error"


class VolumeFile(DiskFile):
    """One volume: a disk that may grow, and never shrinks."""

    kind = "volume"

    def __init__(self, volume: Volume, volumes: Volumes) -> None:
        """Take the volume, and the registry that its changes go through."""
        super().__init__(volume.record.uuid, volume.disk)
        self.volume = volume
        self._volumes = volumes

    def __repr__(self) -> str:
        return self.volume.label

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As DiskFile says. O_TRUNC is for a volume without a size only: what shells do for `>` must not wipe a disk."""
        if flags & os.O_TRUNC:
            self.check(caller, os.W_OK)
            if self.disk.size:
                self.volume.error = f"{self.volume.label} is not emptied by opening it: write into it without truncating it (dd conv=notrunc)"
                raise NotPermitted(self.volume.error)
        return await super().open(caller, flags & ~os.O_TRUNC)

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Node says; a volume without a size has nothing to read."""
        return await super().read(offset, length) if self.disk.size else b""

    async def change(self, caller: Caller, changes: Changes) -> None:
        """As Node says: owner, mode, and a size that is not smaller, for those who may write. Raises Denied, InvalidInput, NoSpace."""
        if changes.size is not None:
            self.check(caller, os.W_OK)
            try:
                await self._volumes.resize(self.volume, changes.size)
            except ImagefsError as error:
                self.volume.error = str(error)
                raise
            self.volume.error = None
        await self.change_owner(caller, changes)

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: what the volume is, to those who may read it, and root's trusted.* attributes, to root."""
        self.check(caller, os.R_OK)
        error = self.volume.error
        shown = {
            "user.volume_id": self.volume.record.uuid,
            "user.created_at": self.volume.record.created_at,
            "user.attached_to": self.volume.attached_to,
            ERROR: error[:REASON_LIMIT] if error is not None else None,
        }
        own = {name: value.encode("utf-8", "replace") for name, value in shown.items() if value is not None}
        return {**own, **super().xattrs(caller)}

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """As DiskFile says; what the volume is cannot be removed."""
        if not name.startswith("trusted."):
            await self.xattr(caller, name)
            raise NotPermitted(f"attribute {name} of {self!r} cannot be removed")
        await super().remove_xattr(caller, name)


class VolumesDirectory(Node):
    """volumes/: who may make a volume is decided by its owner, group and mode, which are those of instances/."""

    kind = "directory"
    read_only = False

    def __init__(self, volumes: Volumes, uid: int, gid: int, mode: int) -> None:
        """Take the registry, and the directory's owner, group and permission bits."""
        super().__init__("volumes")
        self._volumes = volumes
        self._owner = (uid, gid)
        self._mode = mode
        self._nodes: dict[str, VolumeFile] = {}
        self._failures = Failures()
        self._changed_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, self._mode, *self._owner, self._changed_ns)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        return self.node(self._volumes.get(name))

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        self.check(caller, os.R_OK)
        return [(name, functools.partial(self.node, volume)) for name, volume in self._volumes.by_name.items()]

    def node(self, volume: Volume) -> VolumeFile:
        """Return the node of a volume; always the same one."""
        found = self._nodes.get(volume.record.uuid)
        if found is None:
            found = VolumeFile(volume, self._volumes)
            if not volume.removed:  # as one of a list that was taken before may be
                self._nodes[volume.record.uuid] = found
        return found

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        """Make a volume of size 0. Its mode is 0600 whatever the caller's umask: a disk of a guest is nobody else's."""
        try:
            self._volumes.check_free(name)
            self.check(caller, os.W_OK | os.X_OK)
            volume = await self._volumes.create(name, caller, DISK_MODE)
        except ImagefsError as error:
            self._failures.note(caller, error)
            raise
        self._failures.clear(caller)
        self._changed_ns = time.time_ns()
        return self.node(volume)

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: volumes are files."""
        raise self._noted(caller, NotPermitted("there are no directories in volumes/: truncate -s SIZE makes a volume"))

    async def make_link(self, caller: Caller, name: str, target: str) -> Node:
        """Refuse: volumes are files."""
        raise self._noted(caller, NotPermitted("there are no links in volumes/: a volume is attached by a link in an instance's directory"))

    def _noted(self, caller: Caller, error: ImagefsError) -> ImagefsError:
        self._failures.note(caller, error)
        return error

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Remove a volume with what is in it. Raises Busy while it is attached or open."""
        volume = self._volumes.get(name)
        self.check(caller, os.W_OK | os.X_OK)
        if self._mode & stat.S_ISVTX and caller.uid not in (0, volume.disk.record.uid, self._owner[0]):
            raise NotPermitted(f"volume '{name}' belongs to another user")
        try:
            await self._volumes.remove(name)
        except ImagefsError as error:
            volume.error = str(error)
            raise
        finally:
            if volume.removed:
                self._nodes.pop(volume.record.uuid, None)
                self._changed_ns = time.time_ns()

    async def remove_directory(self, caller: Caller, name: str) -> None:
        """Refuse: volumes are files."""
        self._volumes.get(name)
        raise NotPermitted(f"'{name}' is a volume: remove it with rm")

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: why the caller's last volume was not made."""
        error = self._failures.of(caller)
        return {} if error is None else {ERROR: error.encode("utf-8", "replace")}
