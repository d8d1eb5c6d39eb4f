"""This module is the snapshots of instances while they are stored, and the merging of disks' layers afterwards.

A snapshot goes on when the daemon was ended in the middle: what it shows is frozen on the host's disk, and what the store has of it by
then is removed and stored anew. Guests wait for none of this.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs.catalog import Catalog
from imagefs.disks.disk import Disk
from imagefs.disks.record import DiskRecord
from imagefs.errors import Busy, ImagefsError, InvalidInput, NotPermitted
from imagefs.identity.caller import Caller
from imagefs.instances.capture import Capture, DirectCapture, LayerCapture
from imagefs.instances.instance import Instance, with_disk
from imagefs.instances.properties import Properties
from imagefs.instances.record import SnapshotState
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.instances.storing import Storing
from imagefs.qmp.agent import frozen
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord

log = logging.getLogger(__name__)

MERGE_RETRY_SECONDS: Final = 30.0
LONGEST_MERGE_RETRY_SECONDS: Final = 3600.0
"""Pauses before layers that could not be merged are tried again, the first and the longest: a full disk gets room, a damaged one does not heal."""
FREEZE_SECONDS: Final = 10.0
"""How long the guest's agent may take to freeze its filesystems."""
REQUEST_SECONDS: Final = 20.0
"""How long a request may wait for the processes behind the caller's sockets. The kernel does nothing else with the instance meanwhile, and who
then removes it makes it hold up instances/ as a whole."""
REQUESTS: Final = 32
"""Requests of one user but root that wait so at once: the mount answers a limited number at a time."""
COPIES: Final = 4
"""Direct disks of one user that are copied at once."""


@dataclasses.dataclass
class _Job:
    """What goes on with an instance's snapshot or its layers; cancelled by `scope`, ended when `ended` is set."""

    scope: trio.CancelScope = dataclasses.field(default_factory=trio.CancelScope)
    ended: trio.Event = dataclasses.field(default_factory=trio.Event)
    capturing: bool = False
    uid: int = 0
    """Who asked for what is being captured."""
    merging: bool = False
    """Whether a merge was broken off for it."""
    taken: trio.Event = dataclasses.field(default_factory=trio.Event)
    """Set when capturing has ended, with `error` if it has failed."""
    error: Exception | None = None


class Snapshots:
    """All running snapshots and merges. All methods run on the event loop; the jobs run in `nursery`."""

    def __init__(self, store: ImageStore, catalog: Catalog, nursery: trio.Nursery) -> None:
        """Take where snapshots go."""
        self._storing = Storing(store, catalog, nursery)
        self._nursery = nursery
        self._jobs: dict[str, _Job] = {}
        self._copying: dict[int, trio.CapacityLimiter] = collections.defaultdict(lambda: trio.CapacityLimiter(COPIES))

    def end(self) -> None:
        """Let threads that store snapshots come to an end; the jobs themselves are cancelled with the nursery."""
        self._storing.end()

    def resume(self, instances: Iterable[Instance]) -> None:
        """Go on with what an earlier daemon has left: snapshots that were not stored yet, and layers that were not merged."""
        for instance in instances:
            if instance.record.uuid in self._jobs:
                continue
            state, root = instance.record.snapshot, instance.disks.get("vda")
            if (state is not None and state.running) or (root is not None and len(root.record.stems) > 1):
                self._start(instance, None)

    async def begin(self, instance: Instance, request: SnapshotRequest, image: ImageRecord, caller: Caller) -> None:
        """Take a snapshot of the root disk as it is at one moment of this call, and go on storing it as `image` in the background.

        Whether the caller may is for the caller of this to know. Raises InvalidInput without disks, Busy while another one is stored,
        NotPermitted for an encrypted disk unless the request allows it, NoSpace, Busy for a direct disk that is in use without a QMP socket,
        ImagefsError if the sockets of the request do not answer in time; nothing is changed then.
        """
        self._check(instance, request)
        if caller.uid and sum(job.capturing and job.uid == caller.uid for job in self._jobs.values()) >= REQUESTS:
            raise Busy(f"user {caller.uid} has {REQUESTS} requests for snapshots that wait for guests: try again when one of them has ended")
        merging = await self._pause(instance)
        job = self._jobs[instance.record.uuid] = _Job(capturing=True, uid=caller.uid, merging=merging)  # from here on no other one begins
        self._nursery.start_soon(self._take, instance, request, image, caller, job)
        in_time = False
        with trio.move_on_after(REQUEST_SECONDS if request.qmp or request.agent else math.inf):
            await job.taken.wait()
            in_time = True
        if not in_time:  # letting go of the guest goes on, and no other request begins before that has ended
            job.scope.cancel()
            raise ImagefsError(f"the guest of {instance.label} did not answer within {REQUEST_SECONDS:.0f} s: look whether it hangs")
        if job.error is not None:
            raise job.error

    async def _take(self, instance: Instance, request: SnapshotRequest, image: ImageRecord, caller: Caller, job: _Job) -> None:
        """Capture what the request asks for, then store it."""
        capture: Capture | None = None
        job.error = ImagefsError(f"imagefs was ended before the snapshot of {instance.label} was taken")
        try:
            with job.scope:
                async with self._quiesced(request, caller):
                    capture = await self._capture(instance, request, image, caller)
        except Exception as error:  # whatever it is, it is for who asked
            job.error = error
        finally:
            if capture is not None:
                job.error = None
            del self._jobs[instance.record.uuid]
            job.taken.set()
            job.ended.set()
        if capture is not None:
            self._start(instance, capture)
        elif job.merging:
            self._start(instance, None)

    def _check(self, instance: Instance, request: SnapshotRequest) -> None:
        if not instance.made:
            raise InvalidInput(f"{instance.label} has no disks yet: set its user.image first")
        self.check_idle(instance)
        root = instance.disks.get("vda")
        if root is not None and root.record.encrypted and not request.allow_plain:
            raise NotPermitted(f'{instance.label} is encrypted, and its snapshot would not be: say "allow_plain": true if that is meant')
        live = request.qmp is not None or (root is not None and root.opens > 0)
        if live and request.agent is None and Properties(instance.record.image_properties).is_on("os_require_quiesce"):
            raise InvalidInput(
                f"the image of {instance.label} has os_require_quiesce, and its guest runs: "
                'name the socket of its guest agent with "agent", or stop it'
            )
        if root is not None and request.qmp is not None:
            raise InvalidInput(f'"qmp" is for disks of the format qcow2: that of {instance.label} is snapshot without it')

    @contextlib.asynccontextmanager
    async def _quiesced(self, request: SnapshotRequest, caller: Caller) -> AsyncIterator[None]:
        """Hold the guest's filesystems frozen, if the request names the socket of its agent."""
        if request.agent is None:
            yield
            return
        async with frozen(Path(request.agent), caller.uid, FREEZE_SECONDS):
            yield

    async def _capture(self, instance: Instance, request: SnapshotRequest, image: ImageRecord, caller: Caller) -> Capture:
        root = instance.disks.get("vda")
        if root is None:
            capture = await DirectCapture.begin(instance, request, caller)
            try:
                async with instance.lock:
                    await instance.write(msgspec.structs.replace(instance.record, snapshot=SnapshotState(request, image)))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await capture.close()
                raise
            return capture
        await root.take()
        try:
            state = SnapshotState(request, image, frozen=len(root.record.stems))

            async def keep(disk: DiskRecord) -> None:
                await instance.write(msgspec.structs.replace(with_disk(instance.record, disk), snapshot=state))

            view = await root.add_layer(keep)
        except BaseException:
            with trio.CancelScope(shield=True):
                await root.release()
            raise
        return LayerCapture(root, view, request.disk_format)

    # -- jobs -----------------------------------------------------------------------------------

    def _start(self, instance: Instance, capture: Capture | None) -> None:
        job = self._jobs[instance.record.uuid] = _Job()
        self._nursery.start_soon(self._run, instance, capture, job)

    async def stop(self, instance: Instance) -> None:
        """End what goes on with an instance that is to be removed. Raises Busy while its snapshot is stored; `resume` undoes this."""
        self.check_idle(instance)
        await self._pause(instance)

    def check_idle(self, instance: Instance) -> None:
        """Raise Busy while a snapshot is taken or stored."""
        job, state = self._jobs.get(instance.record.uuid), instance.record.snapshot
        if (job is not None and job.capturing) or (state is not None and state.running):
            raise Busy(f"a snapshot of {instance.label} is being stored: wait until user.imagefs.snapshot says that it is active")

    async def _pause(self, instance: Instance) -> bool:
        """End what still goes on after a snapshot was stored, a merge above all; tell whether there was something."""
        job = self._jobs.get(instance.record.uuid)
        if job is None:
            return False
        job.scope.cancel()
        await job.ended.wait()
        return True

    async def _run(self, instance: Instance, capture: Capture | None, job: _Job) -> None:
        """Store what was captured, then merge the layers."""
        try:
            with job.scope:
                if capture is None:
                    capture = await self._recapture(instance)
                if capture is not None:
                    try:
                        await self._store_snapshot(instance, capture)
                    finally:
                        with trio.CancelScope(shield=True):
                            await capture.close()
                root = instance.disks.get("vda")
                if root is not None:
                    await self._merge(root)
        except Exception as error:  # whatever it is, the mount and its guests go on
            log.exception("a snapshot's job ended instance=%s", instance.record.name)
            if instance.record.snapshot is not None and instance.record.snapshot.running:
                await self._storing.give_up(instance, f"imagefs itself failed: {error!r}: see its log")
        finally:
            if self._jobs.get(instance.record.uuid) is job:
                del self._jobs[instance.record.uuid]
            job.ended.set()

    async def _recapture(self, instance: Instance) -> Capture | None:
        """Return what an earlier daemon has captured and not stored; None if there is none, or it cannot be had any more."""
        state = instance.record.snapshot
        if state is None or not state.running:
            return None
        root = instance.disks.get("vda")
        if root is None or not state.durable or not 0 < state.frozen < len(root.record.stems):
            await self._abandon(instance, "imagefs was ended before what the snapshot shows was on the host's disk: take it again")
            return None
        try:
            await root.take()
        except (ImagefsError, OSError) as error:
            await self._abandon(instance, f"the disk cannot be opened: {error}")
            return None
        return LayerCapture(root, root.view(state.frozen), state.request.disk_format)

    async def _abandon(self, instance: Instance, reason: str) -> None:
        """Give up what an earlier daemon had begun to store, unless it was stored as a whole; what the store has of it is removed."""
        try:
            if await self._storing.is_stored(instance):
                return
        except (ImagefsError, OSError) as error:
            reason = f"{reason} (see whether the store has an unfinished image {self._storing.state(instance).image.id}, and delete it: {error})"
        await self._storing.give_up(instance, reason)

    async def _merge(self, root: Disk) -> None:
        """Merge all layers into the first; what keeps it from that is tried again, for the layers are as good."""
        pause = MERGE_RETRY_SECONDS
        while len(root.record.stems) > 1:
            try:
                await root.take()
                try:
                    await root.merge()
                finally:
                    with trio.CancelScope(shield=True):
                        await root.release()
            except (ImagefsError, OSError) as error:
                root.holder.error = f"the layers of {root.label} cannot be merged: {error}"
                log.error("layers cannot be merged yet disk=%s error=%s", root.label, error)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_MERGE_RETRY_SECONDS)

    async def _store_snapshot(self, instance: Instance, capture: Capture) -> None:
        """Store what was captured; whatever hinders it for good makes the snapshot `killed`, with a reason, and leaves nothing in the store."""
        try:
            if capture.outlasts and not self._storing.state(instance).durable:
                await capture.flush()
                await self._storing.keep(instance, durable=True)
            if not capture.outlasts:
                # It waits for processes of the owner's, which may never end: not in one of the few threads that everybody's images need.
                async with self._copying[instance.record.uid]:
                    await capture.fill(functools.partial(self._storing.note, instance))
            await self._storing.store(instance, capture)
        except (ImagefsError, OSError) as error:
            log.error(
                "a snapshot cannot be stored instance=%s image=%s error=%s", instance.record.name, self._storing.state(instance).image.id, error
            )
            with trio.CancelScope(shield=True):
                await capture.close()  # which gives back room that the record may need
            await self._storing.give_up(instance, str(error))


def shown(state: SnapshotState, progress: tuple[int, int]) -> bytes:
    """Return what user.imagefs.snapshot says: done and total in bytes, of what is read while it is queued, and of what is stored after that."""
    done, total = progress if state.running else (state.size, state.size)
    document = {"id": state.image.id, "status": state.status, "done": done, "total": total, "error": state.error}
    return msgspec.json.encode(document)
