"""This module is a file of the mount as the kernel's protocol needs it, but free of that protocol: plain ids, ranges and bytes.

`Node` answers every operation with the refusal that fits a read-only tree; the modules beside this one say what their files
can do. Permissions are checked here and there, never by the kernel (the mount has no default_permissions): by mode bits.
"""

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from imagefs.errors import Denied, NoAttribute, NotFound, NotPermitted, ReadOnly, Unsupported
from imagefs.identity.caller import Caller, mode_allows
from imagefs.properties.change import Mode

ROOT_INODE: Final = 1
PUBLIC_TIMEOUT: Final = 300.0
"""Seconds for which the kernel may keep names and attributes that are the same for every caller."""
SHARED_ATTRIBUTES_TIMEOUT: Final = 1.0
"""Seconds for which the kernel may keep attributes of a disk whose name it may not keep. The way to them leads through the
name, which is looked up and checked each time; with 0 the kernel would ask for attributes before each read of an open disk,
which halves its IOPS."""


Children = Sequence[tuple[str, Callable[[], "Node"]]]
"""Names in a directory, with what gives their nodes: of a hundred thousand, few are asked for."""

REASON_LIMIT: Final = 4096
"""Characters of a reason in user.imagefs.error."""


def inode_of(kind: str, key: str) -> int:
    """Return the inode number of an object: 62 bits of a hash of what it is, so that it outlives the daemon.

    Two objects out of a million collide with a probability of one in ten million.
    """
    digest = hashlib.blake2b(f"{kind}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") & (2**62 - 1)) | 1 << 61


@dataclasses.dataclass(slots=True)
class Attributes:
    """What stat(2) shows of a node (sizes in bytes, times in nanoseconds), and for how long the kernel may believe it (seconds)."""

    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    allocated: int
    modified_ns: int
    changed_ns: int
    links: int = 1
    name_timeout: float = 0.0
    attributes_timeout: float = SHARED_ATTRIBUTES_TIMEOUT


@dataclasses.dataclass(frozen=True, slots=True)
class OpenMode:
    """How the kernel should treat an open file: keep its pages over opens, or ask for every read (a file without a size)."""

    keep_pages: bool = False
    uncached: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What chmod, chown, truncate and utimens ask for; None where they do not."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None


class Node:
    """One file or directory. `kind` and `key` name it for ever; `inode` derives from them. Nobody writes to it if it is `read_only`."""

    __slots__ = ("__weakref__", "inode", "key")
    kind: ClassVar[str]
    read_only: ClassVar[bool] = True

    def __init__(self, key: str) -> None:
        """Take what names the node among those of its kind."""
        self.key = key
        self.inode = inode_of(self.kind, key)

    def __repr__(self) -> str:
        return f"{self.kind}/{self.key}"

    # -- what every node must say ---------------------------------------------------------------

    def attributes(self) -> Attributes:
        """Return what stat(2) shows. Never waits."""
        raise Unsupported(f"{self!r} has no attributes")

    def check(self, caller: Caller, wanted: int) -> None:
        """Raise Denied unless the caller may do `wanted` (os.R_OK | os.W_OK | os.X_OK) here."""
        shown = self.attributes()
        if not mode_allows(caller, wanted, shown.mode, shown.uid, shown.gid):
            raise Denied(f"uid {caller.uid} may not do this to {self!r}")

    # -- directories ----------------------------------------------------------------------------

    async def lookup(self, caller: Caller, name: str) -> "Node":
        """Return the child of this name. Raises NotFound, Denied."""
        raise NotFound(f"{self!r} has no files in it")

    async def children(self, caller: Caller) -> Children:
        """Return the children that the caller sees, in any order; checked when the directory is opened."""
        raise Unsupported(f"{self!r} is not a directory")

    def listing_inode(self, caller: Caller) -> int:
        """Return what names the list of children that the caller sees: callers who may see different ones have different numbers."""
        return self.inode

    def listing_version(self) -> object:
        """Return what is equal as long as no caller's list of children changes, nor who may have one; None if nothing tells."""
        return None

    async def make_directory(self, caller: Caller, name: str, mode: int) -> "Node":
        """Make a directory in this one."""
        raise ReadOnly(f"directories cannot be made in {self!r}")

    async def make_file(self, caller: Caller, name: str, mode: int) -> "Node":
        """Make a file in this directory."""
        raise ReadOnly(f"files cannot be made in {self!r}")

    async def make_link(self, caller: Caller, name: str, target: str) -> "Node":
        """Make a symbolic link in this directory, which leads to `target`."""
        raise self.refusal("symbolic links")

    def refusal(self, what: str) -> ReadOnly | NotPermitted:
        """Return what to raise when somebody asks for something that cannot be in this directory."""
        return ReadOnly(f"{what} cannot be made in {self!r}") if self.read_only else NotPermitted(f"{what} cannot be made in {self!r}")

    async def remove_directory(self, caller: Caller, name: str) -> None:
        """Remove a directory from this one."""
        raise ReadOnly(f"directories cannot be removed from {self!r}")

    async def remove_file(self, caller: Caller, name: str) -> None:
        """Remove a file from this directory."""
        raise ReadOnly(f"files cannot be removed from {self!r}")

    # -- files ----------------------------------------------------------------------------------

    async def target(self, caller: Caller) -> str:
        """Return where a symbolic link leads."""
        raise Unsupported(f"{self!r} is not a symbolic link")

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """Open for reading or writing as `flags` say, after checking that the caller may."""
        raise Unsupported(f"{self!r} cannot be opened")

    async def close(self) -> None:
        """Give back what `open` took."""

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return bytes if that takes no waiting, else None. See Source."""
        return None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return bytes; empty at or past the end."""
        raise Unsupported(f"{self!r} cannot be read")

    def write_nowait(self, offset: int, body: bytes) -> int | None:
        """Write all of `body` and return its length if that takes no waiting, else None."""
        return None

    async def write(self, offset: int, body: bytes) -> int:
        """Write all of `body` and return its length."""
        raise ReadOnly(f"{self!r} is never written")

    async def flush(self) -> None:
        """Make everything written durable."""

    async def change(self, caller: Caller, changes: Changes) -> None:
        """Change mode, owner or size."""
        raise ReadOnly(f"{self!r} is never changed")

    # -- extended attributes --------------------------------------------------------------------

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """Return all extended attributes that the caller sees, by full name ("user.name")."""
        return {}

    def xattr_names(self, caller: Caller) -> Sequence[bytes]:
        """Return the full names of all extended attributes that the caller sees, as the kernel has them."""
        return [os.fsencode(name) for name in self.xattrs(caller)]

    def xattr_nowait(self, caller: Caller, name: bytes) -> bytes | None:
        """Return one extended attribute if that takes no waiting and it is there, else None: then `xattr` says what there is to say."""
        return None

    async def xattr(self, caller: Caller, name: str) -> bytes:
        """Return one extended attribute. Raises NoAttribute."""
        try:
            return self.xattrs(caller)[name]
        except KeyError:
            raise NoAttribute(f"{self!r} has no attribute {name}") from None

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Set one extended attribute; `mode` is what the flags of setxattr(2) say of one that is, or is not, there."""
        raise NotPermitted(f"attribute {name} of {self!r} cannot be set")

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Remove one extended attribute. Raises NoAttribute if it is not there."""
        await self.xattr(caller, name)
        raise NotPermitted(f"attribute {name} of {self!r} cannot be removed")


class Failures:
    """Why the last operation on an object failed, for the caller it failed for, and nobody else but root: it may name what others must not see."""

    __slots__ = ("_reasons",)
    LIMIT: Final = 64

    def __init__(self) -> None:
        self._reasons: dict[int, str] | None = None

    def note(self, caller: Caller, error: Exception) -> None:
        """Keep the reason for this caller."""
        reasons = self._reasons = self._reasons or {}
        reasons.pop(caller.uid, None)
        if len(reasons) >= self.LIMIT:
            del reasons[next(iter(reasons))]
        reasons[caller.uid] = str(error)[:REASON_LIMIT]

    def clear(self, caller: Caller) -> None:
        """Forget this caller's: an operation of its has succeeded."""
        if self._reasons is not None:
            self._reasons.pop(caller.uid, None)

    def of(self, caller: Caller) -> str | None:
        """Return this caller's reason; root's, if it has none of its own, is the newest of all."""
        if not self._reasons:
            return None
        if caller.uid in self._reasons or caller.uid != 0:
            return self._reasons.get(caller.uid)
        return self._reasons[next(reversed(self._reasons))]


def check_read_only(node: Node, flags: int) -> None:
    """Raise ReadOnly if `flags` of open(2) ask for writing."""
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        raise ReadOnly(f"{node!r} is never written")


def directory_attributes(inode: int, mode: int, uid: int, gid: int, changed_ns: int, *, name_timeout: float = 0.0) -> Attributes:
    """Return a directory's attributes."""
    return Attributes(inode, stat.S_IFDIR | mode, uid, gid, 0, 0, changed_ns, changed_ns, links=2, name_timeout=name_timeout)
