"""This module stores what snapshots have captured as new images: it tries again what fails, and never leaves half an image behind."""

import contextlib
import functools
import logging
import threading
import uuid
from typing import BinaryIO, Final

import msgspec
import trio

from imagefs.catalog import Catalog
from imagefs.errors import AlreadyExists, ImagefsError, NotFound, StoreError, StoreRefused
from imagefs.instances.capture import Capture
from imagefs.instances.instance import Instance
from imagefs.instances.record import SnapshotState
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = (2.0, 10.0, 30.0, 60.0)
"""Pauses before a store that failed is tried again; after the last the snapshot is given up."""


class _Ending(Exception):
    """Raised in the uploading thread when the daemon ends."""


class Storing:
    """Stores the captured disks of instances, each under the image's record that its instance's has. All methods run on the event loop."""

    def __init__(self, store: ImageStore, catalog: Catalog, nursery: trio.Nursery) -> None:
        """Take where images go, the catalog that shows them, and the nursery in which it looks at them."""
        self._store = store
        self._catalog = catalog
        self._nursery = nursery
        self._ending = threading.Event()

    def end(self) -> None:
        """Let threads that store come to an end; the tasks that wait for them are for the caller to cancel."""
        self._ending.set()

    async def give_up(self, instance: Instance, reason: str) -> None:
        """Make the snapshot `killed`; where that cannot be written, the next daemon tries to store it once more."""
        try:
            await self.keep(instance, status="killed", error=reason)
        except (ImagefsError, OSError) as error:
            log.error("that a snapshot was given up cannot be written instance=%s error=%s", instance.record.name, error)
            state = msgspec.structs.replace(self.state(instance), status="killed", error=reason)
            instance.record = msgspec.structs.replace(instance.record, snapshot=state)

    async def store(self, instance: Instance, capture: Capture) -> None:
        """Store what was captured, and say so in the instance's record; StoreErrors that may pass are put up with for a while.

        Raises StoreError, ImagefsError and OSError if it cannot be stored; nothing of it is in the store then. Safe to cancel, and to be called
        again, also by the next daemon.
        """
        for pause in (*RETRY_SECONDS, None):
            try:
                if not await self.is_stored(instance):
                    await self._upload_anew(instance, capture)
            except StoreRefused:
                raise
            except StoreError as error:
                if pause is None:
                    raise
                log.warning("a snapshot could not be stored, and is tried again instance=%s pause=%.0f error=%s", instance.record.name, pause, error)
                await self.keep(instance, status="queued", error=f"tried again in {pause:.0f} s: {error}")
                await trio.sleep(pause)
            else:
                return

    async def is_stored(self, instance: Instance) -> bool:
        """Tell whether an earlier attempt has succeeded without our knowing; what is left of one that has not is removed."""
        image_id = self.state(instance).image.id
        try:
            stored = await run(Lane.STORE, self._store.find, image_id)
        except NotFound:
            return False
        if stored.record.status == "active":
            await self._finished(instance, stored.record)
            return True
        await run(Lane.UPLOAD, self._store.delete, image_id)
        await self._reread(image_id)
        await self._rename(instance)
        return False

    async def _rename(self, instance: Instance) -> None:
        """Choose another id: a store may never give out one again."""
        await self.keep(instance, image=msgspec.structs.replace(self.state(instance).image, id=str(uuid.uuid4())))

    async def _upload_anew(self, instance: Instance, capture: Capture) -> None:
        try:
            await self._upload(instance, capture)
        except AlreadyExists:  # an earlier attempt had the id, and has removed what it had stored
            await self._rename(instance)
            await self._upload(instance, capture)

    async def _upload(self, instance: Instance, capture: Capture) -> None:
        image = self.state(instance).image
        token = trio.lowlevel.current_trio_token()
        note = functools.partial(self.note, instance)

        async def fill() -> tuple[BinaryIO, int]:
            await self._reread(image.id)  # it is queued by now
            size = await capture.fill(note)
            note(0, size)
            await self.keep(instance, status="saving", error=None)
            return capture.reader(), size

        def look() -> None:
            self._nursery.start_soon(self._reread, image.id)

        def advance(count: int) -> None:  # called in any thread of the store's
            if self._ending.is_set():
                raise _Ending
            done, total = instance.progress
            if done == 0:
                token.run_sync_soon(look)
            note(done + count, total)

        try:
            stored = await run(Lane.UPLOAD, lambda: self._store.create(image, lambda: trio.from_thread.run(fill), advance))
        except _Ending:
            await trio.sleep_forever()  # until this is cancelled: the next daemon goes on
        except Exception:
            await self._reread(image.id)  # it is gone again
            raise
        await self._finished(instance, stored.record)

    def note(self, instance: Instance, done: int, total: int) -> None:
        """Take down how far it is: bytes done and in all."""
        instance.progress = (done, total)

    async def _reread(self, image_id: str) -> None:
        with contextlib.suppress(StoreError, ImagefsError):  # the next look finds it
            await self._catalog.reread(image_id)

    async def _finished(self, instance: Instance, stored: ImageRecord) -> None:
        await self._reread(stored.id)  # first: who sees that it is active may open it at once
        await self.keep(instance, status="active", error=None, image=stored, size=stored.size or 0)

    def state(self, instance: Instance) -> SnapshotState:
        """Return the state of the instance's snapshot. Raises NotFound if it has none."""
        state = instance.record.snapshot
        if state is None:
            raise NotFound(f"{instance.label} has no snapshot")
        return state

    async def keep(self, instance: Instance, **changes: object) -> None:
        """Write changes of the snapshot's state, durably. Raises NoSpace, ImagefsError."""
        async with instance.lock:
            state = msgspec.structs.replace(self.state(instance), **changes)
            await instance.write(msgspec.structs.replace(instance.record, snapshot=state))
