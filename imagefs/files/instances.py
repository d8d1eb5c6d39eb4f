"""This module is instances/: directories made by mkdir and removed by rmdir."""

import os
from collections.abc import Callable

from imagefs.disks.record import check_name
from imagefs.errors import AlreadyExists, NotPermitted
from imagefs.files.holders import HoldersDirectory
from imagefs.files.instance import InstanceDirectory, InstanceParts
from imagefs.files.node import Node
from imagefs.identity.caller import Caller
from imagefs.instances.instance import Instance


class InstancesDirectory(HoldersDirectory[Instance]):
    """instances/."""

    def __init__(self, parts: InstanceParts, volume_file: Callable[[str], Node], uid: int, gid: int, mode: int) -> None:
        """Take what its instances share, what gives the node of a volume, and the directory's owner, group and permission bits."""
        super().__init__("instances", parts.instances, uid, gid, mode)
        self._parts = parts
        self._instances = parts.instances
        self._volume_file = volume_file

    def new_node(self, holder: Instance) -> InstanceDirectory:
        """As HoldersDirectory says."""
        return InstanceDirectory(holder, self._parts, self._volume_file)

    def nodes_of(self, instance: Instance) -> list[Node]:
        """Return the node of an instance, and those of all that is in it."""
        directory = self.node(instance)
        return [directory, *(directory.nodes() if isinstance(directory, InstanceDirectory) else ())]

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Make an instance. Its mode is 0700 whatever the caller's umask: a disk of a guest is nobody else's."""
        with self.making(caller):
            check_name(name, "an instance")
            if name in self._instances.by_name:
                raise AlreadyExists(f"instance '{name}' exists")
            self.check(caller, os.W_OK | os.X_OK)
            return self.node(await self._instances.create(name, caller, 0o700))

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
        self.check_removal(caller, instance, instance.record.uid)
        with self.removing(instance):
            await self._instances.remove(name)
