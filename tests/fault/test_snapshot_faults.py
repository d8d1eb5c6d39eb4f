"""Tests of snapshots whose store fails, or whose daemon is ended: they are stored in the end or given up, and nothing half is left."""

import dataclasses
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import pytest
import trio

from imagefs.disks.steps import make_directory
from imagefs.errors import AlreadyExists, NoSpace, NotFound, StoreRefused, StoreUnavailable
from imagefs.instances import snapshots, storing
from imagefs.instances.capture import DirectCapture
from imagefs.instances.instance import Instance
from imagefs.instances.record import RECORD, BaseImage, InstanceRecord, SnapshotState, encode
from imagefs.instances.registry import Instances
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.statedir import StateDirectory
from imagefs.store.protocol import ImageStore, StoredRecord
from imagefs.store.record import ImageRecord
from imagefs.units import BLOCK
from tests.fault.test_instance_crashes import IMAGE, ROOT, Images, make
from tests.support.instances import instances_of

SHOT = msgspec.structs.replace(IMAGE, id="22222222-2222-4222-8222-222222222222", name="shot", status="queued", size=None)


@dataclasses.dataclass
class Store:
    """A store in memory that, like Glance, gives out no id twice; `failures` are raised one after the other while bytes are stored."""

    failures: list[Exception] = dataclasses.field(default_factory=list)
    records: dict[str, ImageRecord] = dataclasses.field(default_factory=dict)
    used: set[str] = dataclasses.field(default_factory=set)
    on_failure: Callable[[], object] = lambda: None

    def find(self, image_id: str) -> StoredRecord:
        if image_id not in self.records:
            raise NotFound(image_id)
        return StoredRecord(self.records[image_id], "1")

    def delete(self, image_id: str) -> None:
        del self.records[image_id]

    def create(self, record: ImageRecord, content: Callable[[], tuple[BinaryIO, int]], progress: Callable[[int], None]) -> StoredRecord:
        if record.id in self.used:
            raise AlreadyExists(record.id)
        self.used.add(record.id)
        source, size = content()
        assert len(source.read()) == size
        if self.failures:
            self.on_failure()
            raise self.failures.pop(0)
        self.records[record.id] = msgspec.structs.replace(record, status="active", size=size)
        return self.find(record.id)


class Catalog(Images):
    """The images of the store, which are never listed here."""

    async def reread(self, image_id: str) -> None:
        """Do nothing."""


def registry(path: Path, store: Store, nursery: trio.Nursery) -> tuple[Instances, snapshots.Snapshots]:
    """Return the registry as a daemon that starts finds it, and its snapshots."""
    images: Any = Catalog()
    instances = instances_of(StateDirectory(path), catalog=images, library=images, store=cast("ImageStore", store), nursery=nursery)
    return instances, instances._snapshots


async def ended(instance: Instance) -> SnapshotState:
    """Return the snapshot's state once it is stored or given up."""
    with trio.fail_after(20):
        while True:
            state = instance.record.snapshot
            if state is not None and not state.running:
                return state
            await trio.sleep(0.01)


async def test_a_snapshot_whose_first_attempt_failed_is_stored_under_another_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails once, and gives out no id a second time, has the snapshot after the second attempt."""
    monkeypatch.setattr(storing, "RETRY_SECONDS", (0.0,))
    store = Store([StoreUnavailable("down")])
    async with trio.open_nursery() as nursery:
        instances, shots = registry(tmp_path, store, nursery)
        instance = await make(instances, plain=True)
        await shots.begin(instance, SnapshotRequest("shot"), SHOT, ROOT)
        state = await ended(instance)
        assert (state.status, state.error) == ("active", None)
        assert list(store.records) == [state.image.id] != [SHOT.id]
        nursery.cancel_scope.cancel()
    await instances.close()


async def test_a_snapshot_that_is_given_up_as_the_daemon_ends_lets_go_of_its_disk(tmp_path: Path) -> None:
    """The store refuses, and at that moment the daemon ends: nobody has the disk taken afterwards, so that it is flushed and closed."""
    store = Store([StoreRefused("no")])
    async with trio.open_nursery() as nursery:
        store.on_failure = lambda: trio.from_thread.run_sync(nursery.cancel_scope.cancel)
        instances, shots = registry(tmp_path, store, nursery)
        instance = await make(instances, plain=True)
        await instance.disks["vda"].write(0, b"x" * BLOCK)
        await shots.begin(instance, SnapshotRequest("shot"), SHOT, ROOT)
        await trio.sleep(math.inf)
    disk = instance.disks["vda"]
    assert (disk.jobs, disk.overlay) == (0, None)


@pytest.mark.parametrize(("found", "status"), [("active", "active"), ("saving", "killed"), (None, "killed")])
async def test_what_a_killed_daemon_has_stored_of_a_direct_disk_is_kept_if_it_is_whole(tmp_path: Path, found: str | None, status: str) -> None:
    """The copy of a direct disk ends with its daemon: the next one takes up what was stored as a whole, and removes what was not."""
    instance_uuid = str(uuid.uuid4())
    state = StateDirectory(tmp_path)
    base = BaseImage(IMAGE.id, "1", BLOCK)
    snapshot = SnapshotState(SnapshotRequest("shot"), SHOT, status="saving")
    record = InstanceRecord(instance_uuid, "web1", 0, 0, 0o700, "2026-01-01T00:00:00Z", image=base, direct="/nowhere/vda.qcow2", snapshot=snapshot)
    make_directory(state.instances / instance_uuid, RECORD, encode(record))
    store = Store()
    if found is not None:
        store.records[SHOT.id] = msgspec.structs.replace(SHOT, status=found, size=BLOCK)
    async with trio.open_nursery() as nursery:
        instances, shots = registry(tmp_path, store, nursery)
        shots.resume(instances.by_name.values())
        assert (await ended(instances.get("web1"))).status == status
    assert [one.status for one in store.records.values()] == ["active"] * (status == "active")


async def test_a_direct_disk_whose_snapshot_cannot_be_recorded_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record cannot be written, as in a full state directory, the copying that has begun is ended, and the request fails."""
    capture = _Capture()

    async def begin(*_: object) -> _Capture:
        return capture

    async def full(_: object) -> None:
        raise NoSpace("full")

    monkeypatch.setattr(DirectCapture, "begin", begin)
    async with trio.open_nursery() as nursery:
        _, shots = registry(tmp_path, Store(), nursery)
        record = InstanceRecord("x", "web1", 0, 0, 0o700, "", image=BaseImage(IMAGE.id, "1", BLOCK), direct="/nowhere/vda.qcow2")
        instance = Instance(tmp_path, record)
        monkeypatch.setattr(instance, "write", full)
        with pytest.raises(NoSpace):
            await shots.begin(instance, SnapshotRequest("shot"), SHOT, ROOT)
    assert capture.closed


class _Capture:
    closed = False

    async def close(self) -> None:
        self.closed = True
