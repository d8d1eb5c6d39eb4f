"""Keys of disks: how they are wrapped, what opens them, and how they are destroyed."""

import dataclasses
import errno
import os
import stat
import uuid
from pathlib import Path

import pytest

from imagefs.errors import AlreadyExists, InvalidInput, NoSpace, StateDamaged
from imagefs.overlay.calls import CALLS, Calls
from imagefs.overlay.cipher import KEY_SIZE
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import NodeKey, create_key, read_key, shred_keys
from imagefs.sealed import seal
from imagefs.units import BLOCK, MIB
from tests.support.overlay import NODE_KEY

DISK = uuid.UUID("0c7f3a52-5b1e-4f0e-9f4a-7d0d3b1c2e11")
OTHER = uuid.UUID("1d8f3a52-5b1e-4f0e-9f4a-7d0d3b1c2e11")


# The node's key.


def test_node_key_is_made_once(tmp_path: Path) -> None:
    """The file is made if it is not there, for its owner only, and is the same key from then on."""
    path = tmp_path / "node.key"
    first, second = NodeKey.load(path), NodeKey.load(path)
    assert second.unwrap(first.wrap(b"k" * KEY_SIZE, DISK), DISK, "vda") == b"k" * KEY_SIZE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["node.key"]
    assert NodeKey.load(tmp_path / "other.key").wrap(b"k", DISK) != first.wrap(b"k", DISK)


def test_node_key_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that make the key at once, both get the one that was there first: disks may depend on it already."""
    path = tmp_path / "node.key"
    winner: list[NodeKey] = []
    hardlink_to = Path.hardlink_to

    def late(self: Path, target: Path) -> None:
        if not winner:
            winner.append(NodeKey(bytes(32)))
            path.write_bytes(seal(b"IMFSNDKY", 1, bytes(32)))
            path.chmod(0o600)
        hardlink_to(self, target)

    monkeypatch.setattr(Path, "hardlink_to", late)
    loaded = NodeKey.load(path)
    assert winner[0].unwrap(loaded.wrap(b"k", DISK), DISK, "vda") == b"k"
    assert [found.name for found in tmp_path.iterdir()] == ["node.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_node_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that is not its owner's alone is no secret."""
    path = tmp_path / "node.key"
    NodeKey.load(path)
    path.chmod(mode)
    with pytest.raises(InvalidInput, match=f"has mode 0{mode:o}.*chmod 600"):
        NodeKey.load(path)


@pytest.mark.parametrize("body", [b"", b"x" * 56, seal(b"IMFSNDKY", 1, bytes(31)), seal(b"IMFSNDKY", 1, bytes(33)), seal(b"IMFSOVKY", 1, bytes(32))])
def test_damaged_node_key_is_refused_and_kept(tmp_path: Path, body: bytes) -> None:
    """What is no node key is never replaced by a new one: with it all disks would be lost."""
    path = tmp_path / "node.key"
    path.write_bytes(body)
    path.chmod(0o600)
    with pytest.raises(StateDamaged, match=r"node\.key"):
        NodeKey.load(path)
    assert path.read_bytes() == body


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_node_key_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A host that fails while the key is made leaves no file, and a full one is NoSpace."""

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NoSpace if number == errno.ENOSPC else OSError):
        NodeKey.load(tmp_path / "node.key")
    assert not list(tmp_path.iterdir())


def test_node_key_without_a_directory_names_it(tmp_path: Path) -> None:
    """One that is configured to lie elsewhere is not looked for in the state directory."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InvalidInput, match=f"there is no directory {directory}: make it, or set .instances. node_key"):
            NodeKey.load(directory / "key")


def test_node_key_does_not_show_itself() -> None:
    """Neither a log line nor a traceback with the object's text has the key."""
    assert repr(NODE_KEY) == str(NODE_KEY) == "NodeKey(...)"


def test_wrapped_key_has_its_committed_form() -> None:
    """The form never changes: a nonce of 12 bytes, and AES-256-GCM of the key with the disk's UUID as associated data."""
    wrapped = bytes.fromhex(
        "b889325b65bf3e1875143d30fcb745c8c65032ab552aae4c1a49ab81b0dc725be4d0c833f567d70110aaca62e4ba5010c1d1d96e95e64a26759c431d9244358e5a4fd6907c1daecb43e307ab23b0a9fb8b22e8f01d4d4dcc41ba251c"
    )
    assert NODE_KEY.unwrap(wrapped, DISK, "vda") == bytes(range(KEY_SIZE))
    assert len(NODE_KEY.wrap(bytes(KEY_SIZE), DISK)) == len(wrapped)


# The disk's key.


def written_key(path: Path) -> bytes:
    create_key(path, DISK, NODE_KEY, CALLS)
    return read_key(path, DISK, NODE_KEY, CALLS)


def test_key_is_random_and_kept(tmp_path: Path) -> None:
    """Each disk has a key of its own, which its file gives back."""
    first, second = written_key(tmp_path / "vda.key"), written_key(tmp_path / "vdb.key")
    assert len(first) == len(second) == KEY_SIZE
    assert first != second
    assert read_key(tmp_path / "vda.key", DISK, NODE_KEY, CALLS) == first
    assert stat.S_IMODE((tmp_path / "vda.key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "vda.key", DISK, NODE_KEY, CALLS)


def test_wrong_node_key_is_told_from_damage(tmp_path: Path) -> None:
    """Each reason why a key cannot be had has its own message, and says what to do."""
    path = tmp_path / "vda.key"
    written_key(path)
    with pytest.raises(StateDamaged, match=r"vda\.key: the disk's key was wrapped under another node key: mount with the node key"):
        read_key(path, DISK, NodeKey(bytes(32)), CALLS)
    with pytest.raises(StateDamaged, match="is encrypted, and no node key is given"):
        read_key(path, DISK, None, CALLS)
    with pytest.raises(StateDamaged, match="the key of another disk"):
        read_key(path, OTHER, NODE_KEY, CALLS)
    body = path.read_bytes()
    for damaged in (b"", body[:-1], body[:60] + b"\0" * 4 + body[64:], bytes(len(body))):
        path.write_bytes(damaged)
        with pytest.raises(StateDamaged, match=r"vda\.key"):
            read_key(path, DISK, NODE_KEY, CALLS)
    path.unlink()
    with pytest.raises(StateDamaged, match="the key of an encrypted disk is missing"):
        read_key(path, DISK, NODE_KEY, CALLS)


def test_key_is_bound_to_its_disk(tmp_path: Path) -> None:
    """A key file whose UUID was rewritten to another disk's does not open: the UUID is authenticated with the key."""
    path = tmp_path / "vda.key"
    written_key(path)
    payload = path.read_bytes()[24:]
    path.write_bytes(seal(b"IMFSOVKY", 1, OTHER.bytes + payload[16:]))
    with pytest.raises(StateDamaged, match="another node key"):
        read_key(path, OTHER, NODE_KEY, CALLS)


def test_wrapped_key_of_another_length_is_refused(tmp_path: Path) -> None:
    """A key that unwraps and is too short is not used."""
    path = tmp_path / "vda.key"
    path.write_bytes(seal(b"IMFSOVKY", 1, DISK.bytes + NODE_KEY.wrap(b"k" * 32, DISK)))
    with pytest.raises(StateDamaged, match="a key has 64 bytes, not 32"):
        read_key(path, DISK, NODE_KEY, CALLS)


# Destroying keys.


class Steps:
    """Notes in which order a key is overwritten, synced and removed; `fail` names the step that fails."""

    def __init__(self, path: Path, fail: str = "") -> None:
        self.path = path
        self.fail = fail
        self.seen: list[tuple[str, bool]] = []

    def calls(self) -> Calls:
        return dataclasses.replace(CALLS, pwrite=self._pwrite, fdatasync=self._fdatasync)

    def _note(self, what: str) -> None:
        self.seen.append((what, self.path.exists()))
        if what == self.fail:
            raise OSError(errno.EIO, "broken")

    def _pwrite(self, fd: int, body: bytes | bytearray | memoryview, offset: int) -> int:
        self._note("overwrite")
        return os.pwrite(fd, body, offset)

    def _fdatasync(self, fd: int) -> None:
        self._note("sync")
        os.fdatasync(fd)


def test_key_is_overwritten_in_place_before_it_goes(tmp_path: Path) -> None:
    """The very file is overwritten and synced, then removed; a second name of it shows that nothing is left."""
    path = tmp_path / "vda.key"
    secret = written_key(path)
    before = path.read_bytes()
    (tmp_path / "same").hardlink_to(path)
    steps = Steps(path)
    shred_keys([path], steps.calls())
    assert steps.seen == [("overwrite", True), ("sync", True)]
    assert not path.exists()
    assert (tmp_path / "same").read_bytes() == bytes(len(before))
    assert secret not in before


@pytest.mark.parametrize("fail", ["overwrite", "sync"])
def test_key_stays_until_it_is_overwritten_durably(tmp_path: Path, fail: str) -> None:
    """If a step fails the file is not removed, nothing else of the disk is, and deleting again goes on."""
    OverlayDisk.create(tmp_path, "vda", MIB, "", node_key=NODE_KEY)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="broken"):
        OverlayDisk.delete(tmp_path, "vda", Steps(tmp_path / "vda.key", fail).calls())
    assert sorted(tmp_path.iterdir()) == before
    OverlayDisk.delete(tmp_path, "vda")
    assert not list(tmp_path.iterdir())


def test_only_keys_are_destroyed(tmp_path: Path) -> None:
    """Other files, and what is no regular file, stay as they are; a key that is gone is no error."""
    (tmp_path / "vda.data").write_bytes(b"data")
    (tmp_path / "link.key").symlink_to(tmp_path / "vda.data")
    (tmp_path / "directory.key").mkdir()
    shred_keys([*tmp_path.iterdir(), tmp_path / "missing.key"])
    assert (tmp_path / "vda.data").read_bytes() == b"data"
    assert {path.name for path in tmp_path.iterdir()} == {"vda.data", "link.key", "directory.key"}


# Disks and their keys.


def test_deleted_disk_is_noise_whatever_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key goes before the data: a deletion that breaks off right after it leaves a disk that nobody can read."""
    OverlayDisk.create(tmp_path, "vda@1", MIB, "", node_key=NODE_KEY)
    disk = OverlayDisk.open(tmp_path, "vda@1", None, node_key=NODE_KEY)
    disk.write_nowait(0, b"x" * BLOCK)
    disk.close()
    unlink = Path.unlink

    def breaks_off(self: Path, missing_ok: bool = False) -> None:
        if not self.name.endswith(".key"):
            raise OSError(errno.EIO, "broken")
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", breaks_off)
        with pytest.raises(OSError, match="broken"):
            OverlayDisk.delete(tmp_path, "vda@1")
    assert (tmp_path / "vda@1.data").exists()
    with pytest.raises(StateDamaged, match="the key of an encrypted disk is missing"):
        OverlayDisk.open(tmp_path, "vda@1", None, node_key=NODE_KEY)
    OverlayDisk.delete(tmp_path, "vda@1")
    assert not list(tmp_path.iterdir())


def test_encrypted_disk_needs_its_node_key(tmp_path: Path) -> None:
    """Without the node key, or with another, the disk is not opened, and no descriptor is left open."""
    OverlayDisk.create(tmp_path, "vda", MIB, "", node_key=NODE_KEY)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StateDamaged, match="no node key is given"):
        OverlayDisk.open(tmp_path, "vda", None)
    with pytest.raises(StateDamaged, match="another node key"):
        OverlayDisk.open(tmp_path, "vda", None, node_key=NodeKey(bytes(32)))
    assert len(os.listdir("/proc/self/fd")) == before
    OverlayDisk.open(tmp_path, "vda", None, node_key=NODE_KEY).close()


def test_left_over_key_is_in_the_way(tmp_path: Path) -> None:
    """A key file of the name is a disk of the name: it is never replaced."""
    (tmp_path / "vda.key").write_bytes(b"")
    with pytest.raises(AlreadyExists, match=r"vda\.key"):
        OverlayDisk.create(tmp_path, "vda", MIB, "", node_key=NODE_KEY)


def test_plain_disk_has_no_key(tmp_path: Path) -> None:
    """Without a node key nothing is encrypted, and no key file is made."""
    OverlayDisk.create(tmp_path, "vda", MIB, "")
    assert {path.name for path in tmp_path.iterdir()} == {"vda.data", "vda.map"}
