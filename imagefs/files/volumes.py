"""This module is volumes/: persistent disks as files, which truncate(1) makes and grows, and rm removes."""

import os
from collections.abc import Mapping
from typing import Final

from imagefs.disks.record import DISK_MODE
from imagefs.errors import ImagefsError, NotPermitted
from imagefs.files.disks import DiskFile
from imagefs.files.holders import HoldersDirectory
from imagefs.files.node import REASON_LIMIT, Changes, Node, OpenMode
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


class VolumesDirectory(HoldersDirectory[Volume]):
    """volumes/, whose owner, group and mode are those of instances/."""

    def __init__(self, volumes: Volumes, uid: int, gid: int, mode: int) -> None:
        """Take the registry, and the directory's owner, group and permission bits."""
        super().__init__("volumes", volumes, uid, gid, mode)
        self._volumes = volumes

    def new_node(self, holder: Volume) -> VolumeFile:
        """As HoldersDirectory says."""
        return VolumeFile(holder, self._volumes)

    async def make_file(self, caller: Caller, name: str, mode: int) -> Node:
        """Make a volume of size 0. Its mode is 0600 whatever the caller's umask: a disk of a guest is nobody else's."""
        with self.making(caller):
            self._volumes.check_free(name)
            self.check(caller, os.W_OK | os.X_OK)
            return self.node(await self._volumes.create(name, caller, DISK_MODE))

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Refuse: volumes are files."""
        with self.making(caller):
            raise NotPermitted("there are no directories in volumes/: truncate -s SIZE makes a volume")

    async def make_link(self, caller: Caller, name: str, target: str) -> Node:
        """Refuse: volumes are files."""
        with self.making(caller):
            raise NotPermitted("there are no links in volumes/: a volume is attached by a link in an instance's directory")

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Remove a volume with what is in it. Raises Busy while it is attached or open."""
        volume = self._volumes.get(name)
        self.check_removal(caller, volume, volume.disk.record.uid)
        with self.removing(volume):
            await self._volumes.remove(name)

    async def remove_directory(self, caller: Caller, name: str) -> None:
        """Refuse: volumes are files."""
        self._volumes.get(name)
        raise NotPermitted(f"'{name}' is a volume: remove it with rm")
