"""This module mounts, serves until the mount is gone, and unmounts."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from imagefs.errors import MountFailed
from imagefs.files.tree import Tree
from imagefs.fuse.operations import Operations
from imagefs.identity.caller import Groups
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024
"""The kernel's read-ahead: 1024 KiB gives 2.3 times the sequential throughput of the default of 128, 16 MiB less (measured)."""
BACKGROUND_REQUESTS: Final = 512
"""Reads that the kernel sends before it waits for answers. Its default of 12 lets one guest whose image does not come stop the disks of all."""
TASKS: Final = 2 * BACKGROUND_REQUESTS
"""Requests that are answered at once, those besides reads too; one that waits takes about 10 KiB."""
READY_TASKS: Final = 32
"""Tasks that stay when there is nothing to do. With the one of pyfuse3's default each request that waits for something makes a new task and
ends another one: a tenth of what a read of the disk costs at depth 16 (measured)."""
WRITE_BACK_SECONDS: Final = 20.0
"""How long the kernel may take to write what is dirty in mapped disks, before `serve` is told to return."""
GRACE_SECONDS: Final = 5.0
"""How long requests under way may take to end once `serve` has been told to return."""
SUBTYPE: Final = "imagefs"


class Server:
    """The mount of one tree at one directory. Use in this order: `mount`, `serve`, `unmount`."""

    def __init__(self, tree: Tree, groups: Groups, state_path: Path, mountpoint: Path, *, allow_other: bool) -> None:
        """`groups` are those of callers; `state_path` is what statfs speaks of."""
        self._tree = tree
        self._operations = Operations(tree, groups, str(state_path))
        self._mountpoint = mountpoint
        self._allow_other = allow_other
        self._mounted = False
        self._serving = trio.CancelScope()

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
            with self._serving:
                await pyfuse3.main(min_tasks=READY_TASKS, max_tasks=TASKS)
        finally:
            self._tree.invalidate = lambda inode, name: None
            self._serving.cancel()

    async def terminate(self) -> None:
        """Make `serve` return soon, after what the kernel holds of memory-mapped files was written; requests that wait for a store are given up."""
        with trio.move_on_after(WRITE_BACK_SECONDS):  # what is left of it then ends with the connection
            await run(Lane.KERNEL, self._write_back, self._tree.open_disks())
        if self._mounted and not self._serving.cancel_called:
            pyfuse3.terminate()
            self._serving.deadline = trio.current_time() + GRACE_SECONDS

    def _write_back(self, disks: list[str]) -> None:
        """Let the kernel write the dirty pages of disks that are open. Blocks, and asks the mount itself.

        fsync of each and not syncfs of all: for FUSE the kernel starts writing then, and does not wait for it.
        """
        for disk in disks:
            with contextlib.suppress(OSError):
                descriptor = os.open(self._mountpoint / disk, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def tune(self) -> None:
        """Raise what the kernel sends at once and, as root, its read-ahead. Blocks, and asks the mount: call it in a thread while `serve` runs."""
        device = self._mountpoint.stat().st_dev
        connection = Path("/sys/fs/fuse/connections") / str(os.minor(device))
        waiting = "a guest that waits for its image may hold up others"
        _set(connection / "max_background", BACKGROUND_REQUESTS, waiting)
        _set(connection / "congestion_threshold", BACKGROUND_REQUESTS * 3 // 4, waiting)
        if os.getuid() == 0:
            _set(Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"), READ_AHEAD_KIB, "sequential reads are slower")

    def unmount(self) -> None:
        """Unmount if that has not happened from outside."""
        if self._mounted:
            self._mounted = False
            with contextlib.suppress(RuntimeError):
                pyfuse3.close(unmount=True)


def _set(setting: Path, value: int, otherwise: str) -> None:
    try:
        setting.write_text(str(value), encoding="ascii")
    except OSError as error:
        log.info("a setting of the kernel stays at its default: %s setting=%s error=%s", otherwise, setting, error)


def _invalidate(inode: int, name: str) -> None:
    with contextlib.suppress(RuntimeError, OSError):
        pyfuse3.invalidate_entry_async(pyfuse3.InodeT(inode), pyfuse3.FileNameT(os.fsencode(name)), ignore_enoent=True)
