"""This module is names/: the images' names as the caller sees them, as symbolic links."""

import os
import stat
import time

from imagefs.errors import NotFound
from imagefs.files.children import MadeChildren
from imagefs.files.images import check_may_list, listing_inode
from imagefs.files.node import PUBLIC_TIMEOUT, Attributes, Children, Node, directory_attributes
from imagefs.identity.caller import Caller
from imagefs.sight import Sight, Sights


class NameLink(Node):
    """names/<name>: a symbolic link to an image. What a name means depends on who asks.

    It is as small as can be: the kernel may know a hundred thousand of these.
    """

    __slots__ = ("_image_id", "_made_ns", "_owner", "_sights")
    kind = "names"

    def __init__(self, name: str, image_id: str, sights: Sights, owner: tuple[int, int], made_ns: int) -> None:
        """Take the file name and the image that it means now, and when there began to be links (nanoseconds)."""
        super().__init__(f"{name}\0{image_id}")
        self.key = name
        self._image_id = image_id
        self._sights = sights
        self._owner = owner
        self._made_ns = made_ns

    def attributes(self) -> Attributes:
        """As Node says; the size is that of the target, in bytes."""
        made, size = self._made_ns, len(self._target())
        return Attributes(self.inode, stat.S_IFLNK | 0o777, *self._owner, size, 0, made, made, attributes_timeout=0.0)

    async def target(self, caller: Caller) -> str:
        """As Node says. Raises NotFound if the name means another image, or nothing, to this caller."""
        if (await self._sights.of(caller).names()).get(self.key) != self._image_id:
            raise NotFound(f"no image is named '{self.key}'")
        return self._target()

    def _target(self) -> str:
        return f"../images/{self._image_id}"


class NamesDirectory(Node):
    """names/: image names made fit for files."""

    kind = "directory"

    def __init__(self, sights: Sights, owner: tuple[int, int]) -> None:
        """`owner` is the uid and gid of the links."""
        super().__init__("names")
        self._sights = sights
        self._owner = owner
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, self._made_ns, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        self.check(caller, os.X_OK)
        image_id = (await self._sights.of(caller).names()).get(name)
        if image_id is None:
            raise NotFound(f"no image is named '{name}'")
        return NameLink(name, image_id, self._sights, self._owner, self._made_ns)

    async def children(self, caller: Caller) -> Children:
        """As Node says. Raises Denied without the policy get_images."""
        return await self.children_of(self._sights.of(caller))

    async def children_of(self, sight: Sight) -> Children:
        """Return the children that an identity sees."""
        check_may_list(sight)
        names = await sight.names()
        return MadeChildren(list(names), lambda name: name, lambda name: NameLink(name, names[name], self._sights, self._owner, self._made_ns))

    def listing_version(self) -> object:
        """As Node says."""
        return self._sights.generation

    def listing_inode(self, caller: Caller) -> int:
        """As Node says."""
        return listing_inode(self, self._sights.of(caller).identity)
