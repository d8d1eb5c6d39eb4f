"""This module has a running QEMU copy a disk, as it is at one point in time, into another file while the guest writes on."""

import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.qmp.monitor import Monitor
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
"""How long looking up QEMU's files may take; their names are the caller's."""
START_SECONDS: Final = 60.0
"""How long QEMU may take to begin: it waits for requests of the guest that are under way."""
END_SECONDS: Final = 60.0
"""How long QEMU may take to give up a job and let go of the target."""
POLL_SECONDS: Final = 0.25
_MAX_DISKS: Final = 256
"""Disks of one guest that are looked at."""

Progress = Callable[[int, int], object]


class Backup:
    """A copy that QEMU is making. It shows the disk as it was when this object came to be, whatever the guest writes later."""

    def __init__(self, monitor: Monitor, device: str, target: Path) -> None:
        """`device` is the name of the disk's block node; `backup` starts the job and ends it."""
        self._monitor = monitor
        self._device = device
        self._target = target
        self._node = self._job = f"imagefs-{secrets.token_hex(6)}"
        self._ended = False

    async def completed(self, progress: Progress) -> None:
        """Return once the target is whole and QEMU has let go of it. `progress` gets what is done and what there is, in QEMU's units.

        Raises ImagefsError with QEMU's reason if the copy fails; whatever `progress` raises breaks it off.
        """
        while True:
            job = await self._find()
            if job is None:
                raise ImagefsError(
                    f"the copy of {self._device}: QEMU does not know of it any more: did another client dismiss it? Take the snapshot again"
                )
            done, total = (job.get(key) for key in ("current-progress", "total-progress"))
            if isinstance(done, int) and isinstance(total, int):
                progress(done, total)
            if job.get("status") == "concluded":
                break
            await trio.sleep(POLL_SECONDS)
        if "error" in job:
            raise ImagefsError(
                f"the copy of {self._device} failed in QEMU: {str(job['error'])[:300]}: look at the guest's disk, and take the snapshot again"
            )
        await self._monitor.execute("job-dismiss", {"id": self._job})
        await self._monitor.execute("blockdev-del", {"node-name": self._node}, END_SECONDS)  # closing it writes what is still in memory
        self._ended = True

    async def start(self) -> None:
        """Have QEMU open the target and begin: when this returns the point in time has passed. Raises ImagefsError."""
        file = {"driver": "file", "filename": str(self._target)}
        await self._monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": self._node, "file": file})
        arguments = {"job-id": self._job, "device": self._device, "target": self._node, "sync": "full", "compress": True, "auto-dismiss": False}
        await self._monitor.execute("blockdev-backup", arguments, START_SECONDS)

    async def end(self) -> None:
        """Break off what is not completed and have QEMU forget it. Whatever hinders that is logged; never raises an ImagefsError."""
        if self._ended:
            return
        self._ended = True
        try:
            job = await self._find()
            if job is not None and job.get("status") != "concluded":
                with contextlib.suppress(ImagefsError):  # it may conclude by itself just now
                    await self._monitor.execute("job-cancel", {"id": self._job})
            while job is not None and job.get("status") != "concluded":
                await trio.sleep(POLL_SECONDS)
                job = await self._find()
            if job is not None:
                await self._monitor.execute("job-dismiss", {"id": self._job})
            if await self._is_open():
                await self._monitor.execute("blockdev-del", {"node-name": self._node}, END_SECONDS)
        except ImagefsError as error:
            log.warning("QEMU may still have the target of a snapshot open until it ends node=%s reason=%s", self._node, error)

    async def _find(self) -> dict[str, Any] | None:
        jobs = await self._monitor.execute("query-jobs")
        if not isinstance(jobs, list):
            raise ImagefsError(f"the copy of {self._device}: QEMU's list of jobs is none: is this the right socket?")
        return next((job for job in jobs if isinstance(job, dict) and job.get("id") == self._job), None)

    async def _is_open(self) -> bool:
        nodes = await self._monitor.execute("query-named-block-nodes", {"flat": True})
        return isinstance(nodes, list) and any(isinstance(node, dict) and node.get("node-name") == self._node for node in nodes)


@contextlib.asynccontextmanager
async def backup(path: Path, caller_uid: int, disk: Path, target: Path) -> AsyncIterator[Backup]:
    """Have the QEMU whose QMP socket is at `path` copy `disk` into `target`, an empty qcow2 file of that size which QEMU may write.

    The body of `async with` begins when the point in time has passed; it waits with `completed`. When it is left before that, with an
    error or by cancellation, the copy is broken off and QEMU lets go of the target. The target's content is the caller's: QEMU is in its hands.
    Raises InvalidInput if the socket is not the caller's or QEMU does not have the disk, ImagefsError.
    """
    monitor = await Monitor.connect(path, caller_uid)
    try:
        running = Backup(monitor, await _device_of(monitor, path, disk), target)
        try:
            await running.start()
            yield running
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(END_SECONDS) as scope:
                    await running.end()
                if scope.cancelled_caught:
                    log.warning("QEMU did not end a copy in time, and has its target open until it ends qmp=%s target=%s", path, target)
    finally:
        await monitor.aclose()


async def _device_of(monitor: Monitor, path: Path, disk: Path) -> str:
    """Return the name of the topmost block node of the guest's disk that is in the file `disk`. Raises InvalidInput if there is none."""
    found = files_of(await monitor.execute("query-block"))
    try:
        with trio.fail_after(LOOK_SECONDS):
            same = await run(Lane.CALLER, _same_files, [name for name, _, _ in found], disk)
    except trio.TooSlowError:
        raise ImagefsError(
            f"QMP socket {path}: the files of its disks could not be looked up within {LOOK_SECONDS:.0f} s: are they on a disk that hangs?"
        ) from None
    for (_, driver, node), is_same in zip(found, same, strict=True):
        if is_same and driver == "raw":
            raise InvalidInput(f"QMP socket {path}: QEMU has opened {disk} as raw, and it is qcow2: start the guest with format=qcow2")
        if is_same:
            return node
    raise InvalidInput(f"QMP socket {path}: that QEMU does not have {disk} as a disk: name the socket of the guest that runs from it")


def files_of(blocks: object) -> list[tuple[str, str, str]]:
    """Return (file name, driver, node name) of each disk in QEMU's answer to query-block that is in a file. Pure; the answer may be anything."""
    found: list[tuple[str, str, str]] = []
    for block in blocks[:_MAX_DISKS] if isinstance(blocks, list) else []:
        inserted = block.get("inserted") if isinstance(block, dict) else None
        if not isinstance(inserted, dict):
            continue
        name, driver, node = (inserted.get(key) for key in ("file", "drv", "node-name"))
        plain = plain_name(name) if isinstance(name, str) else None
        if plain is not None and isinstance(driver, str) and isinstance(node, str):
            found.append((plain, driver, node))
    return found


def plain_name(name: str) -> str | None:
    """Return the path of the file that QEMU calls `name`; None if it is not a file's. What takes options to open it calls "json:{...}"."""
    if not name.startswith("json:"):
        return name if name.startswith("/") else None
    try:
        described = msgspec.json.decode(name.removeprefix("json:"))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    while isinstance(described, dict):
        filename = described.get("filename", described.get("file.filename"))
        if isinstance(filename, str):
            return filename if filename.startswith("/") else None
        described = described.get("file")
    return None


def _same_files(names: list[str], disk: Path) -> list[bool]:
    """Tell of each name whether it leads to the same file as `disk`, through symlinks, which a disk on the mount is."""
    ours = disk.stat()
    same: list[bool] = []
    for name in names:
        try:
            same.append(os.path.samestat(Path(name).stat(), ours))
        except (OSError, ValueError):
            same.append(False)
    return same
