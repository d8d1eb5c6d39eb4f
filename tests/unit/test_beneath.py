"""Directories of hostile owners: what is opened in them, and how all of them are removed."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs import beneath
from imagefs.beneath import open_beneath, remove_beneath
from tests.support.peer import as_user
from tests.support.user import open_the_way

OWNER = 4001


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """A descriptor of an empty directory."""
    open_the_way(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory in it that belongs to somebody else."""
    path = tmp_path / "hostile"
    path.mkdir()
    os.chown(path, OWNER, OWNER)
    return path


def test_a_file_is_opened(top: int, tmp_path: Path) -> None:
    """An ordinary entry is opened as it is, not to be inherited by children."""
    (tmp_path / "file").write_bytes(b"content")
    descriptor = open_beneath(top, "file", os.O_RDONLY)
    assert os.read(descriptor, 100) == b"content"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("has_call", [True, False])
def test_nothing_is_followed_or_waited_for(top: int, tmp_path: Path, has_call: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symlinks and pipes are not what they lead to, with the kernel's newer call and without it."""
    if not has_call:
        monkeypatch.setattr(beneath, "_SYS_OPENAT2", 100_000)
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "here").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "here"):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            open_beneath(top, name, os.O_RDONLY)
    os.close(open_beneath(top, "pipe", os.O_RDONLY))
    with pytest.raises(FileNotFoundError):
        open_beneath(top, "missing", os.O_RDONLY)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x"])
def test_only_one_component_is_taken(top: int, name: str) -> None:
    """A path is no name in a directory."""
    for call in (lambda: open_beneath(top, name, os.O_RDONLY), lambda: remove_beneath(top, name)):
        with pytest.raises(OSError, match="not a name in a directory"):
            call()


@pytest.mark.mount
def test_a_mount_of_the_owners_is_not_entered(top: int, hostile: Path) -> None:
    """A filesystem of the owner's could hang: it is not asked for anything, and nothing in it is removed."""
    inner = hostile / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        (inner / "precious").touch()
        directory = open_beneath(top, "hostile", os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(OSError, match="cross-device"):
            open_beneath(directory, "inner", os.O_RDONLY | os.O_DIRECTORY)
        os.close(directory)
        with pytest.raises(OSError, match=r"cross-device|busy"):
            remove_beneath(top, "hostile")
        assert (inner / "precious").exists()
    finally:
        subprocess.run(["umount", inner], check=True)
    remove_beneath(top, "hostile")
    assert not hostile.exists()


def test_a_tree_is_removed_and_what_it_points_at_is_not(top: int, tmp_path: Path, hostile: Path) -> None:
    """Files, pipes, symlinks and directories go, with those that their owner made unreadable; victims stay."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"precious")
    with as_user(OWNER):
        (hostile / "file").touch()
        (hostile / "link").symlink_to(victim)
        (hostile / "file-link").symlink_to(victim / "precious")
        os.mkfifo(hostile / "pipe")
        for number in range(3):
            (hostile / f"directory{number}" / "nested" / "more").mkdir(parents=True)
            (hostile / f"directory{number}" / "nested" / "file").touch()
            (hostile / f"directory{number}" / "link").symlink_to(victim)
        (hostile / "directory0").chmod(0)
    os.link(victim / "precious", hostile / "hard")
    remove_beneath(top, "hostile")
    assert not hostile.exists()
    assert (victim / "precious").read_bytes() == b"precious"
    assert victim.stat().st_uid == 0


def test_a_symlink_and_a_file_are_removed_themselves(top: int, tmp_path: Path) -> None:
    """A name that is no directory goes as it is."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "link").symlink_to("victim")
    (tmp_path / "file").touch()
    remove_beneath(top, "link")
    remove_beneath(top, "file")
    assert os.listdir(tmp_path) == ["victim"]
    with pytest.raises(FileNotFoundError):
        remove_beneath(top, "link")


def test_depth_does_not_matter(top: int, hostile: Path) -> None:
    """Directories that are nested deeper than any path or stack are removed all the same."""
    descriptor = os.open(hostile, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    remove_beneath(top, "hostile")
    assert not hostile.exists()


def test_the_owner_is_locked_out_before_anything_goes(top: int, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first entry is removed, its owner cannot make new ones any more."""
    with as_user(OWNER):
        (hostile / "file").touch()
    unlink = os.unlink
    tried: list[int | None] = []

    def watched(name: str, *, dir_fd: int) -> None:
        if name == "file":
            with as_user(OWNER):
                try:
                    (hostile / "new").touch()
                except OSError as error:
                    tried.append(error.errno)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", watched)
    remove_beneath(top, "hostile")
    assert tried == [errno.EACCES]


def test_an_owner_who_goes_on_is_given_up(top: int, hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that never gets empty is an error and no loop."""
    monkeypatch.setattr(beneath, "_PASSES", 5)
    (hostile / "/".join("abcdefgh")).mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        remove_beneath(top, "hostile")
