"""This module mounts, serves until the mount is gone, and unmounts."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

import pyfuse3

from imagefs.errors import MountFailed
from imagefs.files.tree import Tree
from imagefs.fuse.operations import Operations

log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024
"""The kernel's read-ahead: 1024 KiB gives 2.3 times the sequential throughput of the default of 128, 16 MiB less (measured)."""
SUBTYPE: Final = "imagefs"


class Server:
    """The mount of one tree at one directory. Use in this order: `mount`, `serve`, `unmount`."""

    def __init__(self, tree: Tree, state_path: Path, mountpoint: Path, *, allow_other: bool) -> None:
        """`state_path` is what statfs speaks of."""
        self._tree = tree
        self._operations = Operations(tree, str(state_path))
        self._mountpoint = mountpoint
        self._allow_other = allow_other
        self._mounted = False

    def mount(self) -> None:
        """Mount. Raises MountFailed; libfuse has then said why on standard error.

        Without default_permissions: with it the kernel refuses setxattr on a 0444 file to everybody but root before anyone is asked.
        """
        options = {f"fsname={SUBTYPE}", f"subtype={SUBTYPE}", "nosuid", "nodev"}
        if self._allow_other:
            options.add("allow_other")
        try:
            pyfuse3.init(self._operations, str(self._mountpoint), options)
        except RuntimeError as error:
            hint = (
                "allow_other for users needs user_allow_other in /etc/fuse.conf"
                if self._allow_other and os.getuid()
                else "is /dev/fuse there and fuse3 installed?"
            )
            raise MountFailed(f"mounting at {self._mountpoint}: {error}: {hint}") from error
        self._mounted = True
        self._tree.invalidate = _invalidate

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone."""
        try:
            await pyfuse3.main()
        finally:
            self._tree.invalidate = lambda inode, name: None

    def tune(self) -> None:
        """Raise the mount's read-ahead, as root. Blocks, and asks the mount itself: call it in a thread while `serve` runs."""
        device = self._mountpoint.stat().st_dev
        if os.getuid() != 0:
            return
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        try:
            setting.write_text(str(READ_AHEAD_KIB), encoding="ascii")
        except OSError as error:
            log.info("the kernel's read-ahead stays at its default, sequential reads are slower setting=%s error=%s", setting, error)

    def unmount(self) -> None:
        """Unmount if that has not happened from outside."""
        if self._mounted:
            self._mounted = False
            with contextlib.suppress(RuntimeError):
                pyfuse3.close(unmount=True)


def terminate() -> None:
    """Make `serve` return soon; call it on the event loop."""
    pyfuse3.terminate()


def _invalidate(inode: int, name: str) -> None:
    with contextlib.suppress(RuntimeError, OSError):
        pyfuse3.invalidate_entry_async(pyfuse3.InodeT(inode), pyfuse3.FileNameT(os.fsencode(name)), ignore_enoent=True)
