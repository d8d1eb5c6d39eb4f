"""This module holds the parts of the tree that are the same in every mount: the root and .imagefs/."""

import functools
import os
import stat
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from imagefs import __version__
from imagefs.errors import ImagefsError, NotFound, NotPermitted
from imagefs.files.images import listing_inode
from imagefs.files.listing import CacheListing, Listing
from imagefs.files.node import PUBLIC_TIMEOUT, ROOT_INODE, Attributes, Children, Failures, Node, OpenMode, check_read_only, directory_attributes
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.properties.change import Mode
from imagefs.sight import Sight, Sights
from imagefs.upkeep import Order, Upkeep

CACHE: Final = "user.imagefs.cache"
"""Of the mount: written, it begins a job on the cache; read, it says how far the caller's last one is."""
POLICIES: Final = {"prune": "cache_delete", "verify": "manage_image_cache"}
"""What guards each job."""
STARTED_NS: Final = time.time_ns()


class FixedDirectory(Node):
    """A directory whose children never change."""

    kind = "directory"

    def __init__(self, key: str, children: Mapping[str, Node], uid: int, gid: int) -> None:
        """Take the children by name, and the owner."""
        super().__init__(key)
        self._children = dict(children)
        self._owner = (uid, gid)

    @property
    def fixed(self) -> Iterable[Node]:
        """The children that are the same for every caller."""
        return self._children.values()

    def attributes(self) -> Attributes:
        """As Node says."""
        return directory_attributes(self.inode, 0o555, *self._owner, STARTED_NS, name_timeout=PUBLIC_TIMEOUT)

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        try:
            return self._children[name]
        except KeyError:
            raise NotFound(f"there is no '{name}' in {self!r}") from None

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        return [(name, functools.partial(self._children.__getitem__, name)) for name in self._children]


class RootDirectory(FixedDirectory):
    """The root: its attributes speak for the whole mount. user.imagefs.refresh rereads the catalog, user.imagefs.cache works on the cache."""

    kind = "root"

    def __init__(
        self, children: Mapping[str, Node], uid: int, gid: int, refresh: Callable[[], Awaitable[None]], sights: Sights, upkeep: Upkeep
    ) -> None:
        """`refresh` looks at the store again, for admins: a store with many images has work to do then."""
        super().__init__("", children, uid, gid)
        self.inode = ROOT_INODE
        self._refresh = refresh
        self._sights = sights
        self._upkeep = upkeep
        self._failures = Failures()

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says."""
        own = {"user.imagefs.version": __version__.encode(), "user.imagefs.pid": str(os.getpid()).encode()}
        if (error := self._failures.of(caller)) is not None:
            own["user.imagefs.error"] = error.encode("utf-8", "replace")
        if (result := self._upkeep.result(caller.uid)) is not None:
            own[CACHE] = result
        return own

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Reread the catalog before returning, for user.imagefs.refresh; begin a job, for user.imagefs.cache."""
        try:
            if name == "user.imagefs.refresh":
                await self._reread(caller)
            elif name == CACHE:
                await self._start(caller, value, mode)
            else:
                raise NotPermitted(f"attribute {name!r} of the mount cannot be set")
        except ImagefsError as error:
            self._failures.note(caller, error)
            raise
        self._failures.clear(caller)

    async def _reread(self, caller: Caller) -> None:
        sight = self._sights.of(caller)
        if not sight.access.is_admin(sight.identity):
            raise NotPermitted(f"uid {caller.uid} is no admin: the catalog is reread by itself")
        await self._refresh()

    async def _start(self, caller: Caller, value: bytes, mode: Mode) -> None:
        """Begin a job on the cache. Raises InvalidInput, NotPermitted, NotFound for an image that the caller does not see, Busy."""
        order, sight = Order.parse(value), self._sights.of(caller)
        policy = POLICIES[order.verb]
        mode.check(f"attribute {CACHE}", present=self._upkeep.result(caller.uid) is not None)
        if order.image_id is None:
            allowed = sight.access.may_manage(policy, sight.identity)
        else:
            try:
                image = await sight.find(order.image_id)
            except NotFound:
                # What is left of an image that is gone from the store is for admins to see to.
                if not sight.access.is_admin(sight.identity):
                    raise
                allowed = sight.access.may_manage(policy, sight.identity)
            else:
                allowed = sight.access.allows(policy, sight.identity, image.record)
        if not allowed:
            raise NotPermitted(f"cache {order.verb}: the policy {policy} does not let this caller do that")
        self._upkeep.start(caller.uid, order)


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
        return Attributes(self.inode, stat.S_IFREG | 0o444, *self._owner, size, size, STARTED_NS, STARTED_NS, name_timeout=PUBLIC_TIMEOUT)

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
        """`produce` returns the text; it must not wait. Only the owner and the group read it: it counts what others must not know of."""
        super().__init__(key)
        self._produce = produce
        self._body = b""
        self._owner = (uid, gid)

    def attributes(self) -> Attributes:
        """As Node says; the size is 0, as in /proc."""
        now = time.time_ns()
        return Attributes(self.inode, stat.S_IFREG | 0o440, *self._owner, 0, 0, now, now)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says."""
        check_read_only(self, flags)
        self.check(caller, os.R_OK)
        return OpenMode(uncached=True)

    def read_nowait(self, offset: int, length: int) -> bytes:
        """As Node says."""
        if offset == 0:
            self._body = self._produce()
        return self._body[offset : offset + length]


class StatusDirectory(FixedDirectory):
    """.imagefs/: the version, the statistics in Prometheus' text form, and lists of the images that the caller sees and of their caches."""

    IMAGES: Final = "images"
    CACHE: Final = "cache"

    def __init__(self, metrics: Callable[[], bytes], sights: Sights, upkeep: Upkeep, uid: int, gid: int) -> None:
        """`metrics` returns the statistics' text."""
        files: dict[str, Node] = {
            "version": TextFile(".imagefs/version", __version__ + "\n", uid, gid),
            "stats": LiveText(".imagefs/stats", metrics, uid, gid),
        }
        super().__init__(".imagefs", files, uid, gid)
        self._sights = sights
        self._upkeep = upkeep
        self._lists: weakref.WeakValueDictionary[str, Listing] = weakref.WeakValueDictionary()

    async def lookup(self, caller: Caller, name: str) -> Node:
        """As Node says."""
        if name in (self.IMAGES, self.CACHE):
            return self._list(name, self._sights.of(caller).identity)
        return await super().lookup(caller, name)

    async def children(self, caller: Caller) -> Children:
        """As Node says."""
        return await self.children_of(self._sights.of(caller))

    async def children_of(self, sight: Sight) -> Children:
        """Return the children as an identity sees them."""
        lists = [(name, functools.partial(self._list, name, sight.identity)) for name in (self.IMAGES, self.CACHE)]
        return [*await super().children(Caller(0, 0)), *lists]

    def listing_inode(self, caller: Caller) -> int:
        """As Node says."""
        return listing_inode(self, self._sights.of(caller).identity)

    def _list(self, kind: str, identity: Identity) -> Listing:
        whose = f"{kind}\0{listing_inode(self, identity)}"
        name = whose if kind == self.CACHE else f"{whose}\0{self._sights.generation}"
        found = self._lists.get(name)
        if found is None:
            if kind == self.CACHE:
                found = CacheListing(identity, name, self._sights, self._upkeep, self._owner)
            else:
                found = Listing(identity, name, self._sights, self._owner)
            self._lists[name] = found
        return found
