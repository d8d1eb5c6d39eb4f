"""This module is .imagefs/images: all images that the caller sees, a line of JSON each, for programs that search and sort."""

import os
import stat
import time

from imagefs.errors import NotFound
from imagefs.files.images import check_may_list
from imagefs.files.node import Attributes, Node, OpenMode, check_read_only
from imagefs.identity.caller import Caller
from imagefs.identity.map import Identity
from imagefs.sight import Sights


class Listing(Node):
    """The list of one identity at one state of the catalog: a later state is another node, so that a reader never gets half of each."""

    kind = "listing"

    def __init__(self, identity: Identity, name: str, sights: Sights, owner: tuple[int, int]) -> None:
        """`name` is what tells the list of this identity at this state from all others."""
        super().__init__(name)
        self._identity = identity
        self._sights = sights
        self._owner = owner
        self._opens = 0
        self._body = b""
        self._made_ns = time.time_ns()

    def attributes(self) -> Attributes:
        """As Node says; the size is 0, as in /proc."""
        return Attributes(self.inode, stat.S_IFREG | 0o444, *self._owner, 0, 0, self._made_ns, self._made_ns, attributes_timeout=0.0)

    def check(self, caller: Caller, wanted: int) -> None:
        """As Node says. Raises NotFound for a caller with another identity, Denied without the policy get_images."""
        sight = self._sights.of(caller)
        if sight.identity != self._identity:
            raise NotFound("this is another caller's list")
        check_may_list(sight)
        super().check(caller, wanted)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says."""
        check_read_only(self, flags)
        self.check(caller, os.R_OK)
        sight = self._sights.of(caller)
        async with sight.listing_lock:
            if not self._body:
                self._body = await sight.listing()
        self._opens += 1
        return OpenMode(uncached=True)

    async def close(self) -> None:
        """As Node says: the text, which may be megabytes, goes with its last reader."""
        self._opens = max(0, self._opens - 1)
        if self._opens == 0:
            self._body = b""

    def read_nowait(self, offset: int, length: int) -> bytes:
        """As Node says."""
        return self._body[offset : offset + length]
