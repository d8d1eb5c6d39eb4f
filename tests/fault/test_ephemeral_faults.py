"""What becomes of a filesystem that is being made when the tool or the host's disk fails: nothing is left, and the reason is told."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from imagefs import child
from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.instances import ephemeral
from imagefs.instances.ephemeral import extents_of, make_filesystem
from imagefs.units import GIB, KIB, MIB


def install(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Put a shell script in the place of mkfs.ext4."""
    directory.mkdir()
    tool = directory / "mkfs.ext4"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(child, "PATH", str(directory))


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("echo words; echo 'the last words' >&2; exit 3", ImagefsError, "failed with status 3: the last words"),
        ("exit 1", ImagefsError, "no reason"),
        ("echo 'mkfs: No space left on device while writing'; exit 1", NoSpace, "free some room"),
        ("kill -9 $$", ImagefsError, "status -9"),
        ("eval 'file=${'$#'}'; : > \"$file\"", ImagefsError, "made it 0 bytes large"),
        ("exec /bin/sleep 100", ImagefsError, "did not end within 0 s"),
    ],
)
def test_a_failing_tool_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: type[ImagefsError], reason: str) -> None:
    """Its last words are told, and the file is gone."""
    monkeypatch.setattr(ephemeral, "TIME_LIMIT", 0.4 if "sleep" in script else 60)
    install(monkeypatch, tmp_path / "bin", script)
    with pytest.raises(error, match=reason):
        make_filesystem(tmp_path / "disk", "ext4", "ephemeral0", GIB)
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (errno.ENOSPC, NoSpace, "free some room"),
        (errno.EFBIG, InvalidInput, "choose a smaller one"),
        (errno.EIO, OSError, "Input/output"),
    ],
)
def test_a_failing_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, error: type[Exception], reason: str) -> None:
    """What the host's disk says is told, and the file is gone."""

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(error, match=reason):
        make_filesystem(tmp_path / "disk", "ext4", "ephemeral0", GIB)
    assert not (tmp_path / "disk").exists()


def test_short_reads_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read that returns less than was asked for is not taken for the end."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 64 * KIB), offset))
    assert list(extents_of(path)) == [(0, b"x" * MIB)]


def test_a_file_that_shrinks_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is not there any more is not read as zeros."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(OSError, match="became shorter"):
        list(extents_of(path))
