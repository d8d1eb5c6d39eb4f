"""This module is a symbolic link of the tree."""

import os
import stat
import time

from imagefs.files.node import SHARED_ATTRIBUTES_TIMEOUT, Attributes, Node
from imagefs.identity.caller import Caller


class SymlinkNode(Node):
    """A symbolic link that says the same to everybody. `key` is what names it for ever."""

    __slots__ = ("_attributes_timeout", "_made_ns", "_owner", "_target")
    kind = "link"

    def __init__(
        self, key: str, target: str, owner: tuple[int, int], made_ns: int | None = None, *, attributes_timeout: float = SHARED_ATTRIBUTES_TIMEOUT
    ) -> None:
        """Take what it leads to, its owner's uid and gid, and when it was made (nanoseconds; now, if that is not known)."""
        super().__init__(key)
        self._target = target
        self._owner = owner
        self._made_ns = time.time_ns() if made_ns is None else made_ns
        self._attributes_timeout = attributes_timeout

    def attributes(self) -> Attributes:
        """As Node says; the size is that of the target, in bytes."""
        size = len(os.fsencode(self._target))
        mode = stat.S_IFLNK | 0o777
        return Attributes(self.inode, mode, *self._owner, size, 0, self._made_ns, self._made_ns, attributes_timeout=self._attributes_timeout)

    async def target(self, caller: Caller) -> str:
        """As Node says."""
        return self._target
