"""This module is instances/: directories made by mkdir and removed by rmdir."""

import functools
import os
import stat
import time
from collections.abc import Callable, Mapping

from imagefs.disks.record import check_name
from imagefs.errors import AlreadyExists, ImagefsError, NotPermitted
from imagefs.files.instance import InstanceDirectory, InstanceParts
from imagefs.files.node import Attributes, Children, Failures, Node, directory_attributes
from imagefs.identity.caller import Caller
from imagefs.instances.instance import Instance


class InstancesDirectory(Node):
    """instances/: who may make an instance is decided by its owner, group and mode."""

    kind = "directory"
    read_only = False

    def __init__(self, parts: InstanceParts, volume_file: Callable[[str], Node], uid: int, gid: int, mode: int) -> None:
        """Take what its instances share, what gives the node of a volume, and the directory's owner, group and permission bits."""
        super().__init__("instances")
        self._parts = parts
        self._instances = parts.instances
        self._volume_file = volume_file
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
            found = InstanceDirectory(instance, self._parts, self._volume_file)
            if not instance.removed:  # as one of a list that was taken before may be
                self._nodes[instance.record.uuid] = found
        return found

    async def make_directory(self, caller: Caller, name: str, mode: int) -> Node:
        """Make an instance. Its mode is 0700 whatever the caller's umask: a disk of a guest is nobody else's."""
        try:
            check_name(name, "an instance")
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
