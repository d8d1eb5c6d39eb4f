"""Tests of requests for snapshots that wait for processes of the caller's, which may be hostile: others do not wait with them."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from imagefs import threads
from imagefs.catalog import Catalog
from imagefs.disks.steps import make_directory
from imagefs.errors import Busy, ImagefsError, NotFound, StoreRefused
from imagefs.identity.caller import Caller
from imagefs.instances import snapshots
from imagefs.instances.capture import DirectCapture
from imagefs.instances.instance import Instance
from imagefs.instances.record import RECORD, BaseImage, InstanceRecord, encode
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.instances.snapshots import REQUEST_SECONDS, REQUESTS, Snapshots
from imagefs.store.protocol import ImageStore
from imagefs.store.record import ImageRecord

REQUEST = SnapshotRequest("a snapshot", agent="/run/agent")
IMAGE = ImageRecord(id=str(uuid.uuid4()), created_at="", updated_at="", name="a snapshot", disk_format="qcow2", container_format="bare")


def direct_instance(directory: Path, name: str = "web1") -> Instance:
    """Make an instance whose only disk is a direct one, or would be: nothing looks at it here."""
    key = str(uuid.uuid4())
    record = InstanceRecord(key, name, 1000, 1000, 0o700, "", image=BaseImage("an-id", "v1", 1), direct="/vda.qcow2", direct_size=1)
    make_directory(directory / key, RECORD, encode(record))
    return Instance(directory / key, record)


class Hanging:
    """An agent that never answers, and takes its time when it is let go of."""

    def __init__(self, letting_go: float = 0) -> None:
        self.letting_go = letting_go
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def frozen(self, path: Path, caller_uid: int, seconds: float) -> AsyncIterator[int]:
        """As imagefs.qmp.agent says."""
        self.waiting += 1
        try:
            await trio.sleep_forever()
            yield 0
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.letting_go)
            self.waiting -= 1


async def test_a_guest_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The request fails in time, for it holds up the directory of all instances; letting go of the guest goes on behind it, and nothing else."""
    agent = Hanging(letting_go=1000)
    monkeypatch.setattr(snapshots, "frozen", agent.frozen)
    instance = direct_instance(tmp_path)
    async with trio.open_nursery() as nursery:
        made = Snapshots(cast("ImageStore", None), cast("Catalog", None), nursery)
        begun = trio.current_time()
        with pytest.raises(ImagefsError, match="did not answer within 20 s"):
            await made.begin(instance, REQUEST, IMAGE, Caller(1000, 1000))
        assert trio.current_time() - begun == pytest.approx(REQUEST_SECONDS)
        for again in (made.begin(instance, REQUEST, IMAGE, Caller(1000, 1000)), made.stop(instance)):
            with pytest.raises(Busy):
                await again
        await trio.sleep(1001)
        assert not agent.waiting
        await made.stop(instance)


async def test_one_user_waits_for_so_many_guests_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests that wait take the place of others' requests: another user's, and root's, are taken on."""
    agent = Hanging()
    monkeypatch.setattr(snapshots, "frozen", agent.frozen)
    async with trio.open_nursery() as nursery:
        made = Snapshots(cast("ImageStore", None), cast("Catalog", None), nursery)

        def ask(uid: int) -> None:
            nursery.start_soon(made.begin, direct_instance(tmp_path), REQUEST, IMAGE, Caller(uid, uid))

        for uid in (0, *[1000] * REQUESTS, 0, 1001):
            ask(uid)
        await trio.testing.wait_all_tasks_blocked()
        assert agent.waiting == REQUESTS + 3
        with pytest.raises(Busy, match="user 1000 has 32 requests"):
            await made.begin(direct_instance(tmp_path), REQUEST, IMAGE, Caller(1000, 1000))
        nursery.cancel_scope.cancel()


class Endless:
    """A capture of a direct disk that its owner's process never completes, until `completed` is set."""

    outlasts = False

    def __init__(self) -> None:
        self.completed = trio.Event()
        self.closed = trio.Event()

    async def fill(self, note: Callable[[int, int], None]) -> int:
        """As Capture says."""
        await self.completed.wait()
        return 1

    async def close(self) -> None:
        """As Capture says."""
        self.closed.set()


class RefusingStore:
    """A store that has nothing and takes nothing."""

    def find(self, image_id: str) -> Any:
        """As ImageStore says."""
        raise NotFound(image_id)

    def create(self, *given: object) -> Any:
        """As ImageStore says."""
        raise StoreRefused("it is full")


class NoCatalog:
    """A catalog that nothing is read into."""

    async def reread(self, image_id: str) -> None:
        """As Catalog says."""


async def test_copies_that_never_end_keep_nobody_from_storing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many copies wait for their owners' processes, the threads that store images are free; a copy that ends is stored."""
    captures: list[Endless] = []

    async def begin(instance: Instance, request: SnapshotRequest, caller: Caller) -> Endless:
        captures.append(Endless())
        return captures[-1]

    monkeypatch.setattr(DirectCapture, "begin", begin)
    async with trio.open_nursery() as nursery:
        made = Snapshots(cast("ImageStore", RefusingStore()), cast("Catalog", NoCatalog()), nursery)
        instances = [direct_instance(tmp_path) for _ in range(threads.Lane.UPLOAD.value + 2)]
        for instance in instances:
            await made.begin(instance, SnapshotRequest("a snapshot"), IMAGE, Caller(1000, 1000))
        await trio.testing.wait_all_tasks_blocked(0.05)
        states = [instance.record.snapshot for instance in instances]
        assert all(state is not None and state.status == "queued" for state in states)
        for capture in captures:
            capture.completed.set()
            await capture.closed.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        states = [instance.record.snapshot for instance in instances]
        assert all(state is not None and (state.status, state.error) == ("killed", "it is full") for state in states)
