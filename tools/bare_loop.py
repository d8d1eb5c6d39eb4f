"""This module is the least that pyfuse3 can do: one file with constant attributes, one pread or pwrite a request. imagefs is measured against it.

`python tools/bare_loop.py FILE MOUNTPOINT` shows FILE as MOUNTPOINT/file until it is unmounted
"""

import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyfuse3
import trio

NAME: Final = pyfuse3.FileNameT(b"file")
INODE: Final = pyfuse3.InodeT(2)
HANDLE: Final = pyfuse3.FileHandleT(1)
ATTRIBUTES: Final = [pyfuse3.XAttrNameT(b"user.property_%d" % number) for number in range(30)]
TIMEOUT: Final = 300.0
"""Seconds that the kernel may keep names and attributes."""


class BareLoop(pyfuse3.Operations):
    """A directory with one file."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o644 if inode == INODE else stat.S_IFDIR | 0o555)
        entry.st_size = self._size if inode == INODE else 0
        entry.attr_timeout = entry.entry_timeout = TIMEOUT
        return entry

    async def lookup(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(INODE, ctx)

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        if name not in ATTRIBUTES:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return b"value"

    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> Sequence[pyfuse3.XAttrNameT]:
        return ATTRIBUTES

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=HANDLE, keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(self._descriptor, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        os.fdatasync(self._descriptor)


def main(file: Path, mountpoint: Path) -> None:
    """Mount and serve until the mount is gone."""
    pyfuse3.init(BareLoop(os.open(file, os.O_RDWR)), str(mountpoint), {"fsname=bare-loop"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
