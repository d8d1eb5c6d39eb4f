"""This module is what instances/ and volumes/ have in common: who may make and remove what is in them, and why the last attempt failed."""

import contextlib
import functools
import os
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from imagefs.disks.disk import Holder
from imagefs.errors import ImagefsError, NotPermitted
from imagefs.files.node import Attributes, Children, Failures, Node, directory_attributes
from imagefs.identity.caller import Caller

H = TypeVar("H", bound=Holder)


class Registry(Protocol[H]):
    """What is needed of the registry of instances, or of volumes."""

    by_name: dict[str, H]

    def get(self, name: str) -> H:
        """Return what has the name. Raises NotFound."""
        ...


class HoldersDirectory(Node, Generic[H]):
    """A directory of instances or volumes: who may make one is decided by the directory's owner, group and mode."""

    kind = "directory"
    read_only = False

    def __init__(self, key: str, registry: Registry[H], uid: int, gid: int, mode: int) -> None:
        """Take the registry, and the directory's owner, group and permission bits."""
        super().__init__(key)
        self._registry = registry
        self._owner = (uid, gid)
        self._mode = mode
        self._nodes: dict[str, Node] = {}
        self._failures = Failures()
        self._changed_ns = time.time_ns()

    def new_node(self, holder: H) -> Node:
        """Return a new node of an instance or volume."""
        raise NotPermitted(f"{holder.label} cannot be shown in {self!r}")

    def node(self, holder: H) -> Node:
        """Return the node of an instance or volume; always the same one."""
        key = holder.directory.name
        found = self._nodes.get(key)
        if found is None:
            found = self.new_node(holder)
            if not holder.removed:  # as one of a list that was taken before may be
                self._nodes[key] = found
        return found

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, self._mode, *self._owner, self._changed_ns)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        return self.node(self._registry.get(name))

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        self.check(caller, os.R_OK)
        return [(name, functools.partial(self.node, holder)) for name, holder in self._registry.by_name.items()]

    @contextlib.contextmanager
    def making(self, caller: Caller) -> Iterator[None]:
        """Make something in the body; why it failed is kept for the caller."""
        try:
            yield
        except ImagefsError as error:
            self._failures.note(caller, error)
            raise
        self._failures.clear(caller)
        self._changed_ns = time.time_ns()

    def check_removal(self, caller: Caller, holder: H, uid: int) -> None:
        """Raise Denied or NotPermitted unless the caller may remove what belongs to `uid`: as in any directory, sticky ones included."""
        self.check(caller, os.W_OK | os.X_OK)
        if self._mode & stat.S_ISVTX and caller.uid not in (0, uid, self._owner[0]):
            raise NotPermitted(f"{holder.label} belongs to another user")

    @contextlib.contextmanager
    def removing(self, holder: H) -> Iterator[None]:
        """Remove an instance or volume in the body; why it failed is kept with it."""
        try:
            yield
        except ImagefsError as error:
            holder.error = str(error)
            raise
        finally:
            if holder.removed:
                self._nodes.pop(holder.directory.name, None)
                self._changed_ns = time.time_ns()

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: why the caller's last attempt to make something failed."""
        error = self._failures.of(caller)
        return {} if error is None else {"user.imagefs.error": error.encode("utf-8", "replace")}
