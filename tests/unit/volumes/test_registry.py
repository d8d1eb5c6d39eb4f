"""Tests of the registry of volumes without a mount."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.disks.record import DISK_MODE
from imagefs.errors import AlreadyExists, Busy, InvalidInput, NameTooLong, NoSpace, NotFound
from imagefs.identity.caller import Caller
from imagefs.overlay.block_map import MAX_SIZE
from imagefs.overlay.disk import OverlayDisk
from imagefs.statedir import StateDirectory
from imagefs.volumes.record import RECORD, read_record
from imagefs.volumes.registry import Volumes
from imagefs.volumes.volume import Volume

CALLER = Caller(5, 6)
OTHER = "22222222-2222-4222-8222-222222222222"
MIB = 1024**2
TIB = 1024**4


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    """An empty state directory."""
    return StateDirectory(tmp_path / "state")


def volumes_of(state: StateDirectory) -> Volumes:
    """Return the registry that the next daemon would have."""
    volumes = Volumes(state)
    volumes.load()
    return volumes


async def made(volumes: Volumes, name: str = "db1", size: int = MIB) -> Volume:
    """Make a volume."""
    volume = await volumes.create(name, CALLER, DISK_MODE)
    await volumes.resize(volume, size)
    return volume


async def content(volume: Volume, offset: int, length: int) -> bytes:
    """Return what a volume holds."""
    await volume.disk.hold()
    try:
        return bytes(await (await volume.disk.ready()).read(offset, length))
    finally:
        await volume.disk.let_go()


async def store(volume: Volume, offset: int, body: bytes) -> None:
    """Write into a volume, durably."""
    await volume.disk.hold()
    await volume.disk.write(offset, body)
    await volume.disk.let_go()


async def test_volume_begins_without_a_size_and_files(state: StateDirectory) -> None:
    """A volume that was only made has a record, and no room for anything."""
    volume = await volumes_of(state).create("db1", CALLER, DISK_MODE)
    assert [path.name for path in volume.directory.iterdir()] == [RECORD]
    assert volume.disk.size == 0
    assert volume.disk.status()[0] == 0
    await volume.disk.hold()
    with pytest.raises(NoSpace, match="truncate -s"):
        await volume.disk.write(0, b"x")
    await volume.disk.flush()
    await volume.disk.let_go()
    record = volumes_of(state).get("db1").record
    assert (record.disk.uid, record.disk.gid, record.disk.mode, record.disk.kind) == (5, 6, 0o600, "volume")


async def test_volume_grows_and_keeps_what_is_in_it(state: StateDirectory) -> None:
    """What was written stays through growth and the next daemon; what is new reads as zeros and takes no room."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    await store(volume, MIB - 4096, b"end!" * 1024)
    await volumes.resize(volume, 1 * TIB)
    assert volume.disk.size == TIB
    assert volume.disk.status()[0] < MIB
    again = volumes_of(state).get("db1")
    assert again.disk.size == TIB
    assert await content(again, MIB - 4, 8) == b"end!" + bytes(4)
    assert await content(again, TIB - 4096, 8192) == bytes(4096)


async def test_volume_grows_while_it_is_open(state: StateDirectory) -> None:
    """Who has a volume open from before its first size can use all of it at once."""
    volumes = volumes_of(state)
    volume = await volumes.create("db1", CALLER, DISK_MODE)
    await volume.disk.hold()
    for size in (MIB, 3 * MIB + 512):
        await volumes.resize(volume, size)
        assert await volume.disk.write(size - 3, b"end") == 3
        with pytest.raises(NoSpace):
            await volume.disk.write(size - 3, b"past")
    await volume.disk.let_go()
    assert await content(volumes_of(state).get("db1"), 3 * MIB + 509, 10) == b"end"


async def test_volume_never_shrinks(state: StateDirectory) -> None:
    """A smaller size is refused and changes nothing, the same size is no change."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    for size in (0, 1, MIB - 1):
        with pytest.raises(InvalidInput, match="never shrinks"):
            await volumes.resize(volume, size)
    generation = volumes.generation
    await volumes.resize(volume, MIB)
    assert (volume.disk.size, volumes.generation) == (MIB, generation)


@pytest.mark.parametrize("grown", [False, True])
async def test_size_that_no_file_can_have_is_refused(state: StateDirectory, grown: bool) -> None:
    """A size beyond what the host can hold is a wrong value, and the volume stays as it was."""
    volumes = volumes_of(state)
    volume = await made(volumes) if grown else await volumes.create("db1", CALLER, DISK_MODE)
    before = volume.disk.size
    with pytest.raises(InvalidInput):
        await volumes.resize(volume, MAX_SIZE + 1)
    assert volumes_of(state).get("db1").disk.size == before
    await volumes.resize(volume, 2 * MIB)
    assert volume.disk.size == 2 * MIB


async def test_two_that_give_the_first_size_at_once(state: StateDirectory) -> None:
    """One comes after the other: the larger size holds, and the smaller one was first or is refused."""
    volumes = volumes_of(state)
    volume = await volumes.create("db1", CALLER, DISK_MODE)

    refused: dict[int, str] = {}

    async def attempt(size: int) -> None:
        try:
            await volumes.resize(volume, size)
        except InvalidInput as error:
            refused[size] = str(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt, MIB)
        nursery.start_soon(attempt, 2 * MIB)
    assert volume.disk.size == 2 * MIB
    assert volumes_of(state).get("db1").disk.size == 2 * MIB
    assert all(size == MIB and "never shrinks" in reason for size, reason in refused.items())


@pytest.mark.parametrize(
    ("name", "error"), [("", InvalidInput), (".", InvalidInput), ("a/b", InvalidInput), ("a\nb", InvalidInput), ("n" * 256, NameTooLong)]
)
async def test_bad_names(state: StateDirectory, name: str, error: type[Exception]) -> None:
    """A name that no directory entry may have makes no volume."""
    with pytest.raises(error):
        await volumes_of(state).create(name, CALLER, DISK_MODE)
    assert not list(state.volumes.iterdir())


async def test_name_is_taken_from_the_first_moment(state: StateDirectory) -> None:
    """Of two that make a volume of one name at once, one does."""
    volumes = volumes_of(state)
    refused = 0

    async def attempt() -> None:
        nonlocal refused
        try:
            await volumes.create("db1", CALLER, DISK_MODE)
        except AlreadyExists:
            refused += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        nursery.start_soon(attempt)
    assert refused == 1
    assert len(list(state.volumes.iterdir())) == 1


async def test_removed_volume_is_gone(state: StateDirectory) -> None:
    """Removing a volume leaves no file, and nobody opens, grows, attaches or changes it any more."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    await volumes.remove("db1")
    assert not list(state.volumes.iterdir())
    assert not list(state.trash.iterdir())
    for attempt in (volume.disk.hold, lambda: volumes.resize(volume, 2 * MIB), lambda: volume.disk.set_owner(uid=1, gid=None, mode=None)):
        with pytest.raises(NotFound):
            await attempt()
    with pytest.raises(NotFound):
        volumes.attach("db1", "web1")
    with pytest.raises(NotFound):
        await volumes.remove("db1")
    assert volume.disk.opens == 0


async def test_volume_without_a_size_is_not_opened_once_it_is_removed(state: StateDirectory) -> None:
    """The same holds for a volume that never had a size."""
    volumes = volumes_of(state)
    volume = await volumes.create("db1", CALLER, DISK_MODE)
    await volumes.remove("db1")
    with pytest.raises(NotFound):
        await volume.disk.hold()
    with pytest.raises(NotFound):
        await volumes.resize(volume, MIB)


async def test_volume_in_use_is_not_removed(state: StateDirectory) -> None:
    """A volume that is open or attached stays; one that is closed a moment later goes."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    volumes.attach("db1", "web1")
    with pytest.raises(Busy, match="attached to instance 'web1'"):
        await volumes.remove("db1")
    volumes.detach("db1", "web1")
    await volume.disk.hold()
    with pytest.raises(Busy, match="open"):
        await volumes.remove("db1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(volumes.remove, "db1")
        await wait_all_tasks_blocked()
        await volume.disk.let_go()
    assert volumes.by_name == {}


async def test_volume_has_one_place_at_a_time(state: StateDirectory) -> None:
    """An attached volume is not attached again, and only the instance that has it detaches it."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    volumes.attach("db1", "web1")
    assert volume.attached_to == "web1"
    for name in ("web1", "web2"):
        with pytest.raises(Busy, match="'web1' already"):
            volumes.attach("db1", name)
    with pytest.raises(Busy, match="not to 'web2'"):
        volumes.detach("db1", "web2")
    volumes.detach("db1", "web1")
    assert volume.attached_to is None
    with pytest.raises(NotFound):
        volumes.detach("db1", "web1")
    for wrong in (volumes.attach, volumes.detach):
        with pytest.raises(NotFound, match="no volume 'db2'"):
            wrong("db2", "web1")


async def test_generation_tells_of_every_change(state: StateDirectory) -> None:
    """Making, growing, attaching, detaching and removing each raise it."""
    volumes = volumes_of(state)
    seen = [volumes.generation]
    volume = await volumes.create("db1", CALLER, DISK_MODE)
    seen.append(volumes.generation)
    await volumes.resize(volume, MIB)
    seen.append(volumes.generation)
    volumes.attach("db1", "web1")
    seen.append(volumes.generation)
    volumes.detach("db1", "web1")
    seen.append(volumes.generation)
    await volumes.remove("db1")
    seen.append(volumes.generation)
    assert len(set(seen)) == len(seen)


async def test_what_is_no_volume_is_left_alone(state: StateDirectory, caplog: pytest.LogCaptureFixture) -> None:
    """A copy of a volume, another's files and a record that is damaged are named in the log and not touched; the volume itself is shown."""
    original = (await made(volumes_of(state))).directory
    shutil.copytree(original, state.volumes / f"{original.name}.bak")
    shutil.copytree(original, state.volumes / OTHER)
    (state.volumes / "lost+found").mkdir()
    damaged = (await made(volumes_of(state), "db2")).directory
    (damaged / RECORD).write_bytes(b"nonsense")
    volumes = volumes_of(state)
    assert [volume.directory for volume in volumes.by_name.values()] == [original]
    assert (damaged / "disk.data").exists()
    assert len(list(state.volumes.iterdir())) == 5
    assert "copy" in caplog.text
    assert "cut short" in caplog.text


@pytest.mark.parametrize("lost", ["disk.map", "disk.data"])
async def test_volume_without_its_files_is_never_taken_for_an_empty_one(state: StateDirectory, lost: str) -> None:
    """Where overlay files are missing, nothing is made in their place, neither by the next daemon nor by an open."""
    volume = await made(volumes_of(state))
    (volume.directory / lost).unlink()
    volumes = volumes_of(state)
    for left in volumes.by_name.values():
        with pytest.raises(Exception, match="missing"):
            await left.disk.hold()
    assert not (volume.directory / lost).exists()
    assert read_record(volume.directory / RECORD).disk.size == MIB


async def test_never_completed_volume_is_removed(state: StateDirectory) -> None:
    """What a mkdir without a record left goes at the next mount, and files of no disk with it."""
    (state.volumes / OTHER).mkdir()
    (state.volumes / OTHER / f".{RECORD}.abcdef").write_bytes(b"half")
    volume = await volumes_of(state).create("db1", CALLER, DISK_MODE)
    OverlayDisk.create(volume.directory, "disk", MIB, "")
    assert list(volumes_of(state).by_name) == ["db1"]
    assert [path.name for path in volume.directory.iterdir()] == [RECORD]
    assert not (state.volumes / OTHER).exists()


async def test_overlay_that_is_longer_than_the_record_counts(state: StateDirectory) -> None:
    """Growth that broke off between the overlay and the record is complete for the next daemon; a record that promises more is damage."""
    volume = await made(volumes_of(state))
    overlay = OverlayDisk.open(volume.directory, "disk", None)
    await overlay.grow(3 * MIB)
    overlay.close()
    volumes = volumes_of(state)
    again = volumes.get("db1")
    assert again.disk.size == 3 * MIB
    await again.disk.set_owner(uid=7, gid=None, mode=None)
    assert read_record(again.directory / RECORD).disk.size == 3 * MIB
    await again.keep_disk(msgspec.structs.replace(again.disk.record, size=4 * MIB))
    assert volumes_of(state).by_name == {}
    assert (again.directory / "disk.data").exists()


async def test_owner_and_attributes_last(state: StateDirectory) -> None:
    """Owner, mode and root's attributes survive the daemon, and growth keeps them."""
    volumes = volumes_of(state)
    volume = await made(volumes)
    await volume.disk.set_owner(uid=7, gid=8, mode=0o640)
    await volume.disk.set_xattrs({"trusted.libvirt": b"\0\xff"})
    await volumes.resize(volume, 2 * MIB)
    record = volumes_of(state).get("db1").disk.record
    assert (record.uid, record.gid, record.mode, record.xattrs, record.size) == (7, 8, 0o640, {"trusted.libvirt": b"\0\xff"}, 2 * MIB)


async def test_closing_flushes_the_other_volumes_after_a_failure(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the mount a volume whose flush fails in any way does not keep the others from being flushed."""
    volumes = volumes_of(state)
    first, second = await made(volumes, "db1"), await made(volumes, "db2")
    await first.disk.hold()
    await second.disk.hold()

    async def broken() -> None:
        raise RuntimeError("nobody foresaw this")

    overlay = first.disk.overlay
    assert overlay is not None
    monkeypatch.setattr(overlay, "flush", broken)
    await volumes.close()
    assert first.disk.overlay is None
    assert second.disk.overlay is None


async def test_descriptors_come_back(state: StateDirectory) -> None:
    """Making, opening, growing, closing and removing volumes leaves no descriptor open."""
    volumes = volumes_of(state)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        volume = await made(volumes)
        await store(volume, 0, bytes([number + 1]) * 4096)
        await volumes.resize(volume, 2 * MIB)
        await volume.disk.ready()  # as a request does that comes without an open
        await volumes.remove("db1")
    assert len(os.listdir("/proc/self/fd")) <= before + 1
