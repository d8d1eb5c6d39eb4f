"""Tests of a durable write that breaks off: in a crash at each of its steps, and in a failure of each."""

import errno
import functools
import io
import os
import subprocess
from pathlib import Path

import pytest
import trio

from imagefs.overlay.calls import CALLS
from imagefs.sealed import write_durably
from tests.support.crash import crashes, faults


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Wherever the process ends, the old file is there or the new one; what else is left is a file of its own."""
    seen = []
    for crash in crashes():
        path = tmp_path / str(crash.number) / "record"
        path.parent.mkdir()
        path.write_bytes(b"old")
        crash.run(functools.partial(write_durably, path, b"new" * 10_000))
        found = path.read_bytes()
        assert found in (b"old", b"new" * 10_000), crash
        assert all(other.name.startswith(".record.") for other in path.parent.iterdir() if other != path), crash
        seen.append((crash.before.partition("(")[0].partition(" ")[0], found == b"old"))
    assert seen == [("open", True), ("write", True), ("fsync", True), ("rename", True), ("fsync", False), ("", False)]


def test_failure_leaves_no_trace(tmp_path: Path) -> None:
    """Whichever step fails, that is said, and no other file is left; only when syncing the name has failed may the new one be there."""
    path = tmp_path / "record"
    for fault in faults(errno.ENOSPC):
        path.write_bytes(b"old")
        with fault:
            if fault.number <= 5:
                with pytest.raises(OSError, match="No space"):
                    write_durably(path, b"new")
            else:
                write_durably(path, b"new")
        assert path.read_bytes() == (b"old" if fault.number < 5 else b"new"), fault
        assert list(tmp_path.iterdir()) == [path], fault


def test_operation_that_fails_in_another_way_is_told(tmp_path: Path) -> None:
    """An error of the operation itself is not taken for a crash, nor for success."""
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        next(crashes()).run(lambda: 1 // 0)


def test_operation_that_changes_nothing_is_told() -> None:
    """A test of crashes that breaks nothing off proves nothing."""
    attempts = crashes()
    next(attempts).run(lambda: None)
    with pytest.raises(AssertionError, match="changes nothing"):
        next(attempts)


def test_all_kinds_of_changes_are_seen(tmp_path: Path) -> None:
    """Overlay calls, files opened as text, other programs and async work in threads are broken off as well, and all is as before afterwards."""
    before = (os.open, os.unlink, open, io.open, CALLS.pwrite, subprocess.Popen.__init__)

    async def change(directory: Path) -> None:
        await trio.to_thread.run_sync(directory.mkdir)
        (directory / "text").write_text("text")
        with (directory / "text").open("r+b") as file:
            CALLS.pwrite(file.fileno(), b"T", 0)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        await trio.run_process(["/bin/true"])
        (directory / "text").unlink()

    seen = []
    for crash in crashes():
        crash.run(functools.partial(change, tmp_path / str(crash.number)))
        seen.append(crash.before.partition("(")[0].partition(" ")[0])
    assert seen == ["mkdir", "open", "write", "open", "pwrite", "start", "unlink", ""]
    assert before == (os.open, os.unlink, open, io.open, CALLS.pwrite, subprocess.Popen.__init__)
