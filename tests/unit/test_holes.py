"""Holes in files, on the filesystem that the tests run on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.holes import allocated_bytes, data_ranges, punch_hole
from imagefs.units import KIB, MIB


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_punched_bytes_are_zeros_and_take_no_room(descriptor: int) -> None:
    """A hole reads as zeros, gives its room back, and leaves the size and what is around it alone."""
    os.pwrite(descriptor, b"x" * MIB, 0)
    os.fsync(descriptor)
    before = allocated_bytes(descriptor)
    punch_hole(descriptor, 256 * KIB, 512 * KIB)
    assert allocated_bytes(descriptor) <= before - 512 * KIB
    assert os.fstat(descriptor).st_size == MIB
    assert os.pread(descriptor, MIB, 0) == b"x" * (256 * KIB) + bytes(512 * KIB) + b"x" * (256 * KIB)


def test_punching_past_the_end_does_nothing(descriptor: int) -> None:
    """The file does not grow."""
    os.pwrite(descriptor, b"x", 0)
    punch_hole(descriptor, MIB, MIB)
    assert os.fstat(descriptor).st_size == 1


def test_errors_are_raised(descriptor: int, tmp_path: Path) -> None:
    """A descriptor that cannot be written to gives the host's error."""
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        punch_hole(fd, 0, 4096)
    os.close(fd)


def test_data_ranges(descriptor: int) -> None:
    """What is between holes is found, cut at the asked-for range; a file without data has none."""
    os.ftruncate(descriptor, 16 * MIB)
    assert list(data_ranges(descriptor, 0, 16 * MIB)) == []
    os.pwrite(descriptor, b"x" * 64 * KIB, MIB)
    os.pwrite(descriptor, b"x" * 64 * KIB, 3 * MIB)
    assert list(data_ranges(descriptor, 0, 16 * MIB)) == [(MIB, MIB + 64 * KIB), (3 * MIB, 3 * MIB + 64 * KIB)]
    assert list(data_ranges(descriptor, MIB + 4096, 3 * MIB)) == [(MIB + 4096, MIB + 64 * KIB)]
    assert list(data_ranges(descriptor, 0, MIB)) == []
