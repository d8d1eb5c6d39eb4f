"""Filesystems of a test's own, on a file."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

MAKERS = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
}


@contextlib.contextmanager
def mounted(kind: str, directory: Path, size: int) -> Iterator[Path]:
    """Mount a new filesystem of this kind and size for the time of the block, and give where."""
    picture, where = directory / f"{kind}.img", directory / kind
    where.mkdir()
    with picture.open("wb") as file:
        file.truncate(size)
    subprocess.run([*MAKERS[kind], picture], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", picture, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)
        picture.unlink()
