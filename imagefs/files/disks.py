"""This module is a writable disk as a file: of a fixed size, whatever is written; its bytes are the guest's and are never looked at."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Final

from imagefs.disks.disk import Disk
from imagefs.errors import ImagefsError, InvalidInput, NotFound, NotPermitted
from imagefs.files.node import Attributes, Changes, Node, OpenMode
from imagefs.identity.caller import Caller
from imagefs.properties.change import Mode


def _kernel() -> tuple[int, int]:
    """Return the version of the kernel, (0, 0) if it is not written as one."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)


DIRECT_IS_COHERENT: Final = _kernel() >= (6, 8)
"""Whether a disk may be open uncached in the kernel. That saves the question for the attribute security.capability that else comes with each
write, and with it two fifths of a write's time (measured).

Since Linux 6.6 such a write takes what it covers out of the page cache before it goes out, but only since 6.19 (and some stable releases)
once more when it has ended, and still not if it is asynchronous (xfstests generic/209 and 451). A page that somebody reads meanwhile would keep
the old bytes for ever. So all who have a disk open at one time have it open in the same way, that of the first: see `DiskFile.open`.
"""


class DiskFile(Node):
    """A disk of an instance or a volume. `key` is what names it for ever."""

    kind = "disk"
    read_only = False

    def __init__(self, key: str, disk: Disk) -> None:
        """Take the disk."""
        super().__init__(key)
        self.disk = disk

    def attributes(self) -> Attributes:
        """As Node says; `allocated` is what the disk's own blocks take on the host."""
        record = self.disk.record
        try:
            allocated, modified_ns = self.disk.status()
        except FileNotFoundError:
            raise NotFound(f"{self!r} was removed") from None
        return Attributes(self.inode, stat.S_IFREG | record.mode, record.uid, record.gid, record.size, allocated, modified_ns, modified_ns)

    async def open(self, caller: Caller, flags: int) -> OpenMode:
        """As Node says. Raises StateDamaged if the overlay's files are not sound, NotPermitted for O_TRUNC, which the kernel leaves to open.

        A disk that is first opened with O_DIRECT is uncached for all until the last of them has closed it: no page of it is read that a write
        could make stale. (They cannot share a mapping of it meanwhile: ENODEV.) Where somebody has it open otherwise, O_DIRECT takes the
        kernel's usual way, which looks after the page cache.
        """
        access = flags & os.O_ACCMODE
        wanted = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK}.get(access, os.R_OK | os.W_OK)
        self.check(caller, wanted)
        if flags & os.O_TRUNC:
            raise NotPermitted(f"{self!r} cannot be truncated")
        if not self.disk.opens:
            self.disk.uncached = bool(flags & os.O_DIRECT) and DIRECT_IS_COHERENT
        try:
            await self.disk.hold()  # counts this one before it waits
        except ImagefsError as error:
            self.disk.holder.error = f"{self.disk.record.name} cannot be opened: {error}"
            raise
        return OpenMode(keep_pages=not self.disk.uncached, uncached=self.disk.uncached)

    async def close(self) -> None:
        """As Node says."""
        await self.disk.let_go()

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Node says."""
        overlay = self.disk.overlay
        return overlay.read_nowait(offset, length) if overlay is not None else None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Node says. Raises StoreError where the image's bytes cannot be had."""
        overlay = self.disk.overlay or await self.disk.ready()
        try:
            return await overlay.read(offset, length)
        except ImagefsError as error:
            self._note(offset, error)
            raise

    def write_nowait(self, offset: int, body: bytes) -> int | None:
        """As Node says."""
        overlay = self.disk.overlay
        return overlay.write_nowait(offset, body) if overlay is not None else None

    async def write(self, offset: int, body: bytes) -> int:
        """As Node says. Raises NoSpace past the end, with nothing changed, or when the host's disk is full."""
        try:
            return await self.disk.write(offset, body)
        except ImagefsError as error:
            self._note(offset, error)
            raise

    def _note(self, offset: int, error: ImagefsError) -> None:
        self.disk.holder.error = f"{self.disk.record.name} at {offset}: {error}"

    async def flush(self) -> None:
        """As Node says."""
        await self.disk.flush()

    async def change(self, caller: Caller, changes: Changes) -> None:
        """As Node says: owner and mode, never the size."""
        if changes.size is not None:
            raise NotPermitted(f"{self!r} has a fixed size")
        await self.change_owner(caller, changes)

    async def change_owner(self, caller: Caller, changes: Changes) -> None:
        """Change owner, group and permission bits."""
        record = self.disk.record
        check_change(caller, changes, record.uid, record.gid, repr(self))
        if (changes.mode, changes.uid, changes.gid) != (None, None, None):
            await self.disk.set_owner(uid=changes.uid, gid=changes.gid, mode=changes.mode)

    def xattrs(self, caller: Caller) -> Mapping[str, bytes]:
        """As Node says: root's trusted.* attributes, to root."""
        return self.disk.record.xattrs if caller.uid == 0 else {}

    async def set_xattr(self, caller: Caller, name: str, value: bytes, mode: Mode) -> None:
        """Keep one of root's trusted.* attributes."""
        if not name.startswith("trusted.") or caller.uid != 0:
            raise NotPermitted(f"attribute {name} of {self!r} cannot be set")
        if not _is_utf8(name):
            raise InvalidInput(f"{name!r} cannot be the name of an attribute: it is not UTF-8")
        await self.disk.set_xattrs(self.disk.record.xattrs | {name: value})

    async def remove_xattr(self, caller: Caller, name: str) -> None:
        """Drop one of root's trusted.* attributes."""
        await self.xattr(caller, name)
        await self.disk.set_xattrs({key: value for key, value in self.disk.record.xattrs.items() if key != name})


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_change(caller: Caller, changes: Changes, uid: int, gid: int, what: str) -> None:
    """Raise NotPermitted unless POSIX lets the caller change owner, group or mode of an object that belongs to uid and gid."""
    if caller.uid == 0:
        return
    new_owner = changes.uid not in (None, uid)
    foreign_group = changes.gid not in (None, gid) and changes.gid not in caller.groups
    if caller.uid != uid or new_owner or foreign_group:
        raise NotPermitted(f"uid {caller.uid} may not change the owner or mode of {what}")
