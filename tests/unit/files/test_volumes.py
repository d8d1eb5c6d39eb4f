"""Tests of volumes/: who may do what there, and what is refused."""

import os
import stat
from pathlib import Path

import pytest

from imagefs.errors import AlreadyExists, Busy, Denied, InvalidInput, NoAttribute, NoSpace, NotFound, NotPermitted, ReadOnly
from imagefs.files.node import Changes, Node
from imagefs.files.volumes import VolumeFile, VolumesDirectory
from imagefs.identity.caller import Caller
from imagefs.properties.change import Mode
from imagefs.statedir import StateDirectory
from imagefs.volumes.registry import Volumes

ROOT, ALICE, BOB = Caller(0, 0), Caller(1001, 1001, umask=0), Caller(1002, 1002)
MIB = 1024**2


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """An empty registry."""
    return Volumes(StateDirectory(tmp_path / "state"))


@pytest.fixture
def directory(volumes: Volumes) -> VolumesDirectory:
    """volumes/ in which everybody makes volumes and removes their own."""
    return VolumesDirectory(volumes, 0, 0, 0o1777)


async def made(directory: VolumesDirectory, name: str = "db1", size: int = MIB, caller: Caller = ALICE) -> VolumeFile:
    """Make a volume as truncate(1) does."""
    node = await directory.make_file(caller, name, 0o666)
    assert isinstance(node, VolumeFile)
    if size:
        await node.change(caller, Changes(size=size))
    return node


async def test_volume_belongs_to_who_made_it(directory: VolumesDirectory) -> None:
    """Its mode is 0600 whatever was asked for, its size what it was given, and nothing of it is allocated."""
    shown = (await made(directory)).attributes()
    assert (stat.S_IMODE(shown.mode), shown.uid, shown.gid, shown.size) == (0o600, 1001, 1001, MIB)
    assert shown.allocated < 4096
    assert [name for name, _ in await directory.children(BOB)] == ["db1"]
    with pytest.raises(NotFound):
        await directory.lookup(BOB, "db2")


async def test_volume_without_a_size(directory: VolumesDirectory) -> None:
    """It is opened with O_TRUNC too, reads as an empty file, takes nothing, and takes all once it has a size."""
    node = await made(directory, size=0)
    await node.open(ALICE, os.O_RDWR | os.O_TRUNC)
    assert await node.read(0, 4096) == b""
    assert node.read_nowait(0, 4096) is None
    with pytest.raises(NoSpace):
        await node.write(0, b"x")
    await node.flush()
    assert (node.attributes().size, node.attributes().allocated) == (0, 0)
    await node.change(ALICE, Changes(size=MIB))
    assert await node.write(MIB - 4, b"end!") == 4
    assert await node.read(MIB - 6, 100) == b"\0\0end!"
    await node.close()


async def test_what_has_a_size_is_never_truncated(directory: VolumesDirectory) -> None:
    """Shrinking is a wrong value and O_TRUNC is not permitted; both leave the reason, and a change that succeeds takes it away."""
    node = await made(directory)
    with pytest.raises(InvalidInput):
        await node.change(ALICE, Changes(size=0))
    assert b"never shrinks" in node.xattrs(ALICE)["user.imagefs.error"]
    with pytest.raises(NotPermitted):
        await node.open(ALICE, os.O_WRONLY | os.O_TRUNC)
    assert b"conv=notrunc" in node.xattrs(ALICE)["user.imagefs.error"]
    assert node.volume.disk.opens == 0
    await node.change(ALICE, Changes(size=2 * MIB))
    assert "user.imagefs.error" not in node.xattrs(ALICE)


async def test_strangers_are_kept_out(directory: VolumesDirectory) -> None:
    """Who has no right by the mode neither opens, grows, changes nor removes a volume, nor reads what it is."""
    node = await made(directory)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(Denied):
            await node.open(BOB, flags)
    with pytest.raises(Denied):
        await node.change(BOB, Changes(size=2 * MIB))
    with pytest.raises(NotPermitted):
        await node.change(BOB, Changes(mode=0o666))
    with pytest.raises(Denied):
        node.xattrs(BOB)
    with pytest.raises(NotPermitted, match="another user"):
        await directory.remove_file(BOB, "db1")
    assert node.attributes().size == MIB
    await directory.remove_file(ALICE, "db1")
    with pytest.raises(NotFound):
        node.attributes()


async def test_mode_of_the_directory_decides_who_makes_and_removes(volumes: Volumes) -> None:
    """With 0755 it is the owner; without the sticky bit whoever may write removes what others made; without x nothing is found."""
    closed = VolumesDirectory(volumes, 1001, 1001, 0o755)
    with pytest.raises(Denied):
        await closed.make_file(BOB, "db1", 0o600)
    assert b"may not" in closed.xattrs(BOB)["user.imagefs.error"]
    assert "user.imagefs.error" not in closed.xattrs(ALICE)
    await made(closed)
    with pytest.raises(Denied):
        await closed.remove_file(BOB, "db1")
    shared = VolumesDirectory(volumes, 0, 0, 0o777)
    await shared.remove_file(BOB, "db1")
    hidden = VolumesDirectory(volumes, 0, 0, 0o700)
    for attempt in (hidden.lookup(BOB, "db1"), hidden.children(BOB)):
        with pytest.raises(Denied):
            await attempt


async def test_names_that_cannot_be(directory: VolumesDirectory) -> None:
    """A name that is taken or cannot be printed is refused, with the reason on the directory until a volume is made."""
    await made(directory)
    with pytest.raises(AlreadyExists):
        await directory.make_file(BOB, "db1", 0o600)
    with pytest.raises(InvalidInput):
        await directory.make_file(BOB, "a\x1bb", 0o600)
    assert b"printable" in directory.xattrs(BOB)["user.imagefs.error"]
    await made(directory, "db2", caller=BOB)
    assert directory.xattrs(BOB) == {}


async def test_only_volumes_are_made_there(directory: VolumesDirectory) -> None:
    """Directories, links and whatever is no plain file are refused."""
    await made(directory)
    for attempt in (
        directory.make_directory(ALICE, "d", 0o700),
        directory.make_link(ALICE, "l", "db1"),
        directory.remove_directory(ALICE, "db1"),
    ):
        with pytest.raises(NotPermitted):
            await attempt
    assert isinstance(directory.refusal("hard links"), NotPermitted)
    with pytest.raises(ReadOnly):
        await directory.change(ROOT, Changes(mode=0o777))


async def test_attributes(directory: VolumesDirectory, volumes: Volumes) -> None:
    """A volume says what it is and where; none of that is set or removed, and root's own attributes are root's."""
    node = await made(directory)
    volumes.attach("db1", "web1")
    shown = node.xattrs(ALICE)
    assert shown["user.volume_id"].decode() == node.volume.record.uuid
    assert shown["user.created_at"].endswith(b"Z")
    assert shown["user.attached_to"] == b"web1"
    await node.set_xattr(ROOT, "trusted.x", b"1", Mode.SET)
    assert "trusted.x" not in node.xattrs(ALICE)
    assert node.xattrs(ROOT)["trusted.x"] == b"1"
    await node.remove_xattr(ROOT, "trusted.x")
    for caller in (ALICE, ROOT):
        with pytest.raises(NotPermitted):
            await node.set_xattr(caller, "user.attached_to", b"web2", Mode.SET)
        with pytest.raises(NotPermitted):
            await node.remove_xattr(caller, "user.attached_to")
        with pytest.raises(NoAttribute):
            await node.remove_xattr(caller, "user.nothing")
    volumes.detach("db1", "web1")
    assert sorted(node.xattrs(ROOT)) == ["user.created_at", "user.volume_id"]


async def test_volume_in_use_is_not_removed(directory: VolumesDirectory, volumes: Volumes) -> None:
    """Neither while it is open nor while it is attached; the reason stays on it."""
    node = await made(directory)
    await node.open(ALICE, os.O_RDWR)
    with pytest.raises(Busy):
        await directory.remove_file(ALICE, "db1")
    await node.close()
    volumes.attach("db1", "web1")
    with pytest.raises(Busy):
        await directory.remove_file(ALICE, "db1")
    assert b"'web1'" in node.xattrs(ALICE)["user.imagefs.error"]
    found: Node = await directory.lookup(ALICE, "db1")
    assert found is node
