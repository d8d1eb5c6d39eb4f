"""Ephemeral disks: which an instance has, and what they begin with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imagefs import child
from imagefs.errors import InvalidInput
from imagefs.instances.ephemeral import MAX_DISKS, PIECE, Filesystem, check_filesystem, extents_of, make_filesystem, plan_ephemerals
from imagefs.units import BLOCK, GIB, KIB, MIB, TIB

CHECKS = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n", "-f"],
    "vfat": ["fsck.vfat", "-n"],
}


def probe(path: Path, tag: str) -> str:
    """Return what blkid finds of a file: its TYPE or LABEL."""
    tool = shutil.which("blkid", path=child.PATH)
    assert tool is not None
    return subprocess.run([tool, "-p", "-o", "value", "-s", tag, path], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("flavor", "asked", "sizes"),
    [
        (0, None, ()),
        (20, None, (20,)),
        (20, "20", (20,)),
        (20, "10,5", (10, 5)),
        (20, " 10 , 10 ", (10, 10)),
        (20, "1,1,1", (1, 1, 1)),
        (MAX_DISKS, ",".join(["1"] * MAX_DISKS), (1,) * MAX_DISKS),
    ],
)
def test_ephemeral_disks_are_planned(flavor: int, asked: str | None, sizes: tuple[int, ...]) -> None:
    """There are those that were asked for, or one of the flavor's size."""
    assert plan_ephemerals(flavor, asked) == sizes


@pytest.mark.parametrize(
    ("flavor", "asked", "reason"),
    [
        (20, "", "does not say"),
        (20, "10,,5", "does not say"),
        (20, "10G", "does not say"),
        (20, "-1", "does not say"),
        (20, "1.5", "does not say"),
        (20, "٣", "does not say"),
        (20, "1" * 5000, "does not say"),
        (20, "10,0", "0 GiB is none"),
        (20, "15,6", "21 GiB in all, the flavor has 20"),
        (0, "1", "the flavor has 0"),
        (100, ",".join(["1"] * (MAX_DISKS + 1)), "too many"),
    ],
)
def test_ephemeral_disks_that_cannot_be_are_refused(flavor: int, asked: str, reason: str) -> None:
    """What is no list of sizes, or more than the flavor has, is refused in one line that says why."""
    with pytest.raises(InvalidInput, match=reason) as caught:
        plan_ephemerals(flavor, asked)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("size", [GIB, 100 * GIB, TIB])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "vfat", "swap"])
def test_filesystems_are_sound_and_sparse(tmp_path: Path, filesystem: Filesystem, size: int) -> None:
    """Each has its type and label, passes its own check, belongs to nobody else and takes next to no room, also in a terabyte."""
    path = tmp_path / "disk"
    make_filesystem(path, filesystem, "ephemeral0", size)
    assert probe(path, "TYPE") == filesystem
    assert probe(path, "LABEL") == "ephemeral0"
    state = path.stat()
    assert state.st_size == size
    assert state.st_mode & 0o7777 == 0o600
    assert state.st_blocks * 512 <= 140 * MIB
    assert sum(len(piece) for _, piece in extents_of(path)) <= 20 * MIB
    if filesystem in CHECKS and (filesystem != "vfat" or size < TIB):  # fsck.vfat takes memory for each cluster
        tool = shutil.which(CHECKS[filesystem][0], path=child.PATH)
        assert tool is not None
        subprocess.run([tool, *CHECKS[filesystem][1:], path], check=True, capture_output=True)


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "vfat", "swap"])
def test_what_is_not_zeros_is_the_whole_filesystem(tmp_path: Path, filesystem: Filesystem) -> None:
    """The extents, written into an empty file, make the same bytes again, in order, in pieces of whole blocks."""
    path = tmp_path / "disk"
    make_filesystem(path, filesystem, "ephemeral1", 320 * MIB)
    end = 0
    with (tmp_path / "copy").open("wb") as copy:
        for offset, piece in extents_of(path):
            assert offset >= end
            assert offset % BLOCK == 0
            assert 0 < len(piece) <= PIECE
            copy.seek(offset)
            copy.write(piece)
            end = offset + len(piece)
        copy.truncate(320 * MIB)
    subprocess.run(["cmp", path, tmp_path / "copy"], check=True)


def test_zeros_between_data_are_left_out(tmp_path: Path) -> None:
    """Blocks of zeros are no extents even where the file has room for them, and the file may end within a block."""
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * BLOCK) + b"a" * BLOCK + b"b" + bytes(3 * BLOCK - 1) + bytes(PIECE) + b"c" * 10)
    assert [(offset, piece.strip(b"\0")) for offset, piece in extents_of(path)] == [(2 * BLOCK, b"a" * BLOCK + b"b"), (6 * BLOCK + PIECE, b"c" * 10)]


def test_an_empty_or_hollow_file_has_no_extents(tmp_path: Path) -> None:
    """Nothing but holes gives nothing."""
    path = tmp_path / "file"
    path.touch()
    assert list(extents_of(path)) == []
    os.truncate(path, TIB)
    assert list(extents_of(path)) == []


@pytest.mark.parametrize(
    ("filesystem", "label", "size", "reason"),
    [
        ("xfs", "ephemeral0", 299 * MIB, "too small for xfs: make it 300.0 MiB"),
        ("ext4", "ephemeral0", 64 * KIB, "too small"),
        ("vfat", "ephemeral0", 64 * KIB, "too small"),
        ("swap", "swap0", 39 * KIB, "too small"),
        ("vfat", "ephemeral0", 2 * TIB, "too large for vfat, .*: choose ext4 or xfs"),
        ("vfat", "ephemeral10x", GIB, "1 to 11 letters"),
        ("ext4", "", GIB, "1 to 16 letters"),
        ("ext4", "a b", GIB, "1 to 16 letters"),
        ("ext4", "a\n", GIB, "1 to 16 letters"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, filesystem: Filesystem, label: str, size: int, reason: str) -> None:
    """Bounds of filesystems are told before anything is made, with what to choose instead."""
    with pytest.raises(InvalidInput, match=reason):
        make_filesystem(tmp_path / "disk", filesystem, label, size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("filesystem", "package"), [("ext4", "e2fsprogs"), ("xfs", "xfsprogs"), ("vfat", "dosfstools"), ("swap", "util-linux")])
def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filesystem: Filesystem, package: str) -> None:
    """Without the tool the message says what to install."""
    monkeypatch.setattr(child, "PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match=f"not installed: install the package {package}"):
        check_filesystem(filesystem, "ephemeral0", GIB)


def test_the_smallest_that_are_promised_can_be_made(tmp_path: Path) -> None:
    """The bounds are those of the tools."""
    smallest: dict[Filesystem, int] = {"ext4": MIB, "xfs": 300 * MIB, "vfat": MIB, "swap": 40 * KIB}
    for filesystem, size in smallest.items():
        make_filesystem(tmp_path / filesystem, filesystem, "ephemeral0", size)
        assert probe(tmp_path / filesystem, "TYPE") == filesystem


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """Neither another file nor what a symlink points at is written over."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(victim)
    for name in ("victim", "link"):
        with pytest.raises(FileExistsError):
            make_filesystem(tmp_path / name, "ext4", "ephemeral0", GIB)
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "link").is_symlink()
