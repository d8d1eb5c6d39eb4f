"""This module holds the parts of the tree that are the same in every mount: the root, .imagefs/ and flavors/."""

import json
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from imagefs import __version__
from imagefs.errors import NotFound, NotPermitted
from imagefs.files.node import PUBLIC_TIMEOUT, ROOT_INODE, Attributes, Node, OpenMode, check_read_only, directory_attributes
from imagefs.flavors import Flavor
from imagefs.identity import Caller

_STARTED_NS: Final = time.time_ns()


class FixedDirectory(Node):
    """A directory whose children never change."""

    kind = "directory"

    def __init__(self, key: str, children: Mapping[str, Node], uid: int, gid: int) -> None:
        """Take the children by name, and the owner."""
        super().__init__(key)
        self._children = dict(children)
        self._owner = (uid, gid)

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, _STARTED_NS, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        try:
            return self._children[name]
        except KeyError:
            raise NotFound(f"there is no '{name}' in {self!r}") from None

    def children(self, caller: Caller) -> Sequence[tuple[str, Node]]:
        """As Node says."""
        return list(self._children.items())


class RootDirectory(FixedDirectory):
    """The root: its attributes speak for the whole mount, and setting user.imagefs.refresh rereads the catalog."""

    kind = "root"

    def __init__(self, children: Mapping[str, Node], uid: int, gid: int, refresh: Callable[[], Awaitable[None]]) -> None:
        """`refresh` looks at the store again."""
        super().__init__("", children, uid, gid)
        self.inode = ROOT_INODE
        self._refresh = refresh

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says."""
        return {"user.imagefs.version": __version__.encode(), "user.imagefs.pid": str(os.getpid()).encode()}

    async def set_xattr(self, caller: Caller, name: str, value: bytes) -> None:
        """Reread the catalog before returning, for user.imagefs.refresh."""
        if name != "user.imagefs.refresh":
            raise NotPermitted(f"attribute {name} of the mount cannot be set")
        await self._refresh()


class TextFile(Node):
    """A small read-only file whose text never changes."""

    kind = "text"

    def __init__(self, key: str, text: str, uid: int, gid: int) -> None:
        """Take the text, and the owner."""
        super().__init__(key)
        self._body = text.encode()
        self._owner = (uid, gid)

    def attributes(self) -> Attributes:
        """As Node says."""
        size = len(self._body)
        return Attributes(self.inode, stat.S_IFREG | 0o444, *self._owner, size, size, _STARTED_NS, _STARTED_NS, name_timeout=PUBLIC_TIMEOUT)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says."""
        check_read_only(self, flags)
        return OpenMode(keep_pages=True)

    def read_nowait(self, offset: int, length: int) -> bytes:
        """As Node says."""
        return self._body[offset : offset + length]


class LiveText(Node):
    """A read-only file whose text is made anew whenever it is read from its beginning."""

    kind = "live"

    def __init__(self, key: str, produce: Callable[[], bytes], uid: int, gid: int) -> None:
        """`produce` returns the text; it must not wait."""
        super().__init__(key)
        self._produce = produce
        self._body = b""
        self._owner = (uid, gid)

    def attributes(self) -> Attributes:
        """As Node says; the size is 0, as in /proc."""
        now = time.time_ns()
        return Attributes(self.inode, stat.S_IFREG | 0o444, *self._owner, 0, 0, now, now)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says."""
        check_read_only(self, flags)
        return OpenMode(uncached=True)

    def read_nowait(self, offset: int, length: int) -> bytes:
        """As Node says."""
        if offset == 0:
            self._body = self._produce()
        return self._body[offset : offset + length]


def flavors_directory(flavors: Mapping[str, Flavor], uid: int, gid: int) -> FixedDirectory:
    """Return flavors/: a JSON file for each flavor."""
    files = {name: TextFile(f"flavors/{name}", json.dumps(flavor.shown(), indent=2) + "\n", uid, gid) for name, flavor in flavors.items()}
    return FixedDirectory("flavors", files, uid, gid)


def status_directory(metrics: Callable[[], bytes], uid: int, gid: int) -> FixedDirectory:
    """Return .imagefs/: the version, and the statistics in Prometheus' text form."""
    files: dict[str, Node] = {
        "version": TextFile(".imagefs/version", __version__ + "\n", uid, gid),
        "stats": LiveText(".imagefs/stats", metrics, uid, gid),
    }
    return FixedDirectory(".imagefs", files, uid, gid)
