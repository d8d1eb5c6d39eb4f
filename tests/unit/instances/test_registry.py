"""Tests of the registry of instances without a mount: what broken steps leave, and callers who meet at the wrong moment."""

import os
import shutil
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imagefs.catalog import CatalogImage
from imagefs.disks.disk import Disk
from imagefs.errors import NotFound, StoreUnavailable
from imagefs.flavors import BUILT_IN
from imagefs.identity.caller import Caller
from imagefs.identity.map import ADMIN
from imagefs.instances import registry
from imagefs.library import Library, OpenImage
from imagefs.statedir import StateDirectory
from imagefs.store.record import ImageRecord
from tests.support.instances import instances_of, made

ROOT = Caller(0, 0)
ONE, TWO = (f"{digit * 8}-1111-4111-8111-111111111111" for digit in "12")


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """An empty state directory."""
    return StateDirectory(tmp_path / "state")


def test_directory_without_a_record_is_removed_only_if_nothing_is_in_it(state: StateDirectory) -> None:
    """What mkdir left before its record is removed; disks whose record is lost, and what is no instance, are never touched."""
    crashed = state.instances / ONE
    crashed.mkdir()
    (crashed / ".instance.abcdef").write_bytes(b"half")
    lost = made(state, TWO, "lost")
    (lost / "instance").unlink()
    (state.instances / "lost+found").mkdir()
    (state.instances / "notes.txt").write_text("of the operator")
    instances = instances_of(state)
    assert instances.by_name == {}
    assert not crashed.exists()
    assert (lost / "vdb.data").exists()
    assert (state.instances / "lost+found").is_dir()
    assert (state.instances / "notes.txt").exists()


def test_state_directory_is_closed_once_there_is_no_direct_disk(state: StateDirectory) -> None:
    """The next mount removes what is left of the last one, and the way to it that everybody had."""
    (state.direct / ONE).mkdir(parents=True)
    state.path.chmod(0o711)
    instances_of(state)
    assert not state.direct.exists()
    assert state.path.stat().st_mode & 0o777 == 0o700


def test_copy_of_an_instance_never_takes_its_place(state: StateDirectory, caplog: pytest.LogCaptureFixture) -> None:
    """A copy that an operator made beside an instance is not shown, is not removed, and is named in the log."""
    original = made(state, ONE, "web1")
    shutil.copytree(original, state.instances / f"{ONE}.bak")
    made(state, TWO, "web1")
    instances = instances_of(state)
    assert [instance.directory for instance in instances.by_name.values()] == [original]
    assert len(list(state.instances.iterdir())) == 3
    assert "copy" in caplog.text
    assert "taken" in caplog.text


def test_strays_that_cannot_be_removed_do_not_stop_the_mount(state: StateDirectory) -> None:
    """A directory inside an instance's is left there, and the instance is shown."""
    (made(state, ONE, "web1") / "stray").mkdir()
    assert list(instances_of(state).by_name) == ["web1"]


async def test_removal_waits_for_the_making(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An rmdir that meets a mkdir which then fails finds nothing, and both end with an answer that makes sense."""
    instances = instances_of(state)

    def failing(directory: Path, record: str, body: bytes) -> None:
        trio.from_thread.run(trio.sleep, 0.05)
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(registry, "make_directory", failing)
    outcomes: list[str] = []

    async def attempt(name: str, work: object) -> None:
        assert callable(work)
        try:
            await work()
        except Exception as error:
            outcomes.append(f"{name} {type(error).__name__}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, "mkdir", lambda: instances.create("web1", ROOT, 0o700))
        await wait_all_tasks_blocked()
        nursery.start_soon(attempt, "rmdir", lambda: instances.remove("web1"))
    assert sorted(outcomes) == ["mkdir NoSpace", "rmdir NotFound"]
    assert instances.by_name == {}


async def test_disk_of_a_removed_instance_cannot_be_opened(state: StateDirectory) -> None:
    """An open that comes while an instance is being removed is refused: nobody may write to what is being deleted."""
    made(state, ONE, "web1")
    instances = instances_of(state)
    web1 = instances.get("web1")
    disk = web1.disks["vdb"]
    await instances.remove("web1")
    with pytest.raises(NotFound):
        await disk.hold()
    assert disk.opens == 0
    with pytest.raises(NotFound):
        await instances.set_flavor(web1, BUILT_IN["m1.tiny"])


async def test_closing_flushes_the_other_disks_after_a_failure(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the mount a disk whose flush fails in any way does not keep the others from being flushed."""
    made(state, ONE, "web1")
    made(state, TWO, "web2")
    instances = instances_of(state)
    for name in ("web1", "web2"):
        await instances.get(name).disks["vdb"].hold()
    first, second = (instances.get(name).disks["vdb"] for name in ("web1", "web2"))
    overlay = first.overlay
    assert overlay is not None

    async def broken() -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(overlay, "flush", broken)
    await instances.close()
    assert first.overlay is None
    assert second.overlay is None


async def test_descriptors_come_back(state: StateDirectory) -> None:
    """Making, opening, closing and removing instances leaves no descriptor open."""
    instances = instances_of(state)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        made(state, ONE, "web1")
        instances.load()
        disk: Disk = instances.get("web1").disks["vdb"]
        await disk.hold()
        await (await disk.ready()).write(0, bytes([number + 1]) * 4096)
        await disk.let_go()
        directory = disk.holder.directory
        await instances.remove("web1")
        assert not directory.exists()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_an_image_that_does_not_open_is_given_up(state: StateDirectory, mock_clock: MockClock) -> None:
    """Setting the image of an instance ends with a reason if the store hangs, and the instance can then be removed."""
    begun = trio.Event()

    class Hanging:
        async def open(self, image: CatalogImage) -> OpenImage:
            begun.set()
            await trio.sleep_forever()
            raise AssertionError

    instances = instances_of(state, library=cast("Library", Hanging()))
    instance = await instances.create("web1", ROOT, 0o700)
    now = "2026-01-01T00:00:00Z"
    image = CatalogImage(ImageRecord(id=ONE, created_at=now, updated_at=now, status="active"), "1")

    async def wait() -> None:
        await begun.wait()
        mock_clock.jump(registry.OPENING_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        with pytest.raises(StoreUnavailable, match="try again"):
            await instances.set_image(instance, image, {}, ADMIN)
    assert instance.status == "new"
    await instances.remove("web1")
