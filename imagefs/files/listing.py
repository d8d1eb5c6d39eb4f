"""This module is .imagefs/images, all images that the caller sees, and .imagefs/cache, what is cached: a line of JSON each, for programs."""

import os
import stat
import time
from typing import ClassVar

from imagefs.errors import Denied, NotFound
from imagefs.files.images import check_may_list
from imagefs.files.node import Attributes, Node, OpenMode, check_read_only
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.scroll import Scroll
from imagefs.sight import Sight, Sights
from imagefs.upkeep import Upkeep


class Listing(Node):
    """The list of one identity at one state of the catalog: a later state is another node, so that a reader never gets half of each."""

    kind = "listing"
    mode: ClassVar[int] = 0o444

    def __init__(self, identity: Identity, name: str, sights: Sights, owner: tuple[int, int]) -> None:
        """`name` is what tells the list of this identity at this state from all others."""
        super().__init__(name)
        self._identity = identity
        self._sights = sights
        self._owner = owner
        self._opens = 0
        self._body = Scroll()
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says; the size is 0, as in /proc."""
        return Attributes(self.inode, stat.S_IFREG | self.mode, *self._owner, 0, 0, self._made_ns, self._made_ns, attributes_timeout=0.0)

    def check(self, caller: Caller, wanted: int) -> None:
        """As Node says. Raises NotFound for a caller with another identity, Denied without the policy get_images."""
        sight = self._sights.of(caller)
        if sight.identity != self._identity:
            raise NotFound("this is another caller's list")
        self.check_sight(sight)
        if wanted & ~os.R_OK:
            raise Denied(f"{self!r} is never written or run")

    def check_sight(self, sight: Sight) -> None:
        """Raise Denied unless the identity may read the list at all."""
        check_may_list(sight)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says."""
        check_read_only(self, flags)
        self.check(caller, os.R_OK)
        sight = self._sights.of(caller)
        async with sight.listing_lock:
            if not self._body:
                self._body = await self.produce(sight)
        self._opens += 1
        return OpenMode(uncached=True)

    async def produce(self, sight: Sight) -> Scroll:
        """Return the text as an identity sees it."""
        return await sight.listing()

    async def close(self) -> None:
        """As Node says: the text, which may be megabytes, goes with its last reader."""
        self._opens = max(0, self._opens - 1)
        if self._opens == 0:
            self._body = Scroll()

    def read_nowait(self, offset: int, length: int) -> bytes:
        """As Node says."""
        return self._body.read(offset, length)


class CacheListing(Listing):
    """The caches that one identity sees: made anew for the first of several who have it open at once."""

    kind = "cache listing"
    mode = 0o440
    """The policy decides who reads it, not the mode; but this is what most policies come to."""

    def __init__(self, identity: Identity, name: str, sights: Sights, upkeep: Upkeep, owner: tuple[int, int]) -> None:
        """`name` is what tells the list of this identity from those of others."""
        super().__init__(identity, name, sights, owner)
        self._upkeep = upkeep

    def check_sight(self, sight: Sight) -> None:
        """As Listing says: the policy cache_list."""
        if not sight.access.may_manage("cache_list", sight.identity):
            raise Denied("the policy cache_list does not let this caller see what is cached")

    async def produce(self, sight: Sight) -> Scroll:
        """As Listing says."""
        return Scroll(await self._upkeep.listing(sight))
