"""Tests on a real mount of I/O past the kernel's page cache, alone and beside other I/O, and of bytes that are on the disk only."""

import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagefs.files.disks import DIRECT_IS_COHERENT
from tests.mount.conftest import RAW_ID, World
from tests.mount.test_snapshots import make

pytestmark = pytest.mark.mount
BLOCK = 4096
SPAN = 8 * 1024 * 1024


@pytest.fixture
def vda(world: World, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The disk of an instance of its own."""
    path = make(world.mount, f"direct{abs(hash(request.node.name)) % 10**9}", image=RAW_ID, flavor="same")
    yield path / "vda"
    path.rmdir()


def direct(path: Path, offset: int, body: bytes | None = None) -> bytes:
    """Read a block with O_DIRECT, or write `body`, which is whole blocks."""
    with mmap.mmap(-1, len(body) if body is not None else BLOCK) as room:
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            if body is not None:
                room[:] = body
                assert os.pwritev(descriptor, [room], offset) == len(body)
            else:
                assert os.preadv(descriptor, [room], offset) == BLOCK
            return room[:]
        finally:
            os.close(descriptor)


def test_direct_writes_are_seen_by_those_who_read_through_the_page_cache(vda: Path) -> None:
    """Also by those who had the pages before, by read(2) and by mmap(2), private and shared, and stay open meanwhile."""
    with (
        vda.open("rb", buffering=0) as file,
        mmap.mmap(file.fileno(), SPAN, mmap.MAP_PRIVATE, mmap.PROT_READ) as private,
        mmap.mmap(file.fileno(), SPAN, mmap.MAP_SHARED, mmap.PROT_READ) as shared,
    ):
        for turn in range(20):
            offset, body = turn * 5 * BLOCK, bytes([turn + 1]) * BLOCK
            for where in (offset, offset + BLOCK):
                assert os.pread(file.fileno(), BLOCK, where) == private[where : where + BLOCK] == shared[where : where + BLOCK]
            direct(vda, offset, body)
            assert os.pread(file.fileno(), BLOCK, offset) == body
            assert private[offset : offset + BLOCK] == body
            assert shared[offset : offset + BLOCK] == body


def test_direct_reads_see_what_was_written_through_the_page_cache(vda: Path) -> None:
    """By write(2) at once, through a mapping once it was synced."""
    with vda.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), SPAN) as mapped:
        os.pwrite(file.fileno(), b"w" * BLOCK, 3 * BLOCK)
        assert direct(vda, 3 * BLOCK) == b"w" * BLOCK
        mapped[7 * BLOCK : 8 * BLOCK] = b"m" * BLOCK
        mapped.flush()
        assert direct(vda, 7 * BLOCK) == b"m" * BLOCK


def test_a_disk_that_is_open_directly_is_in_no_page_cache(vda: Path, world: World) -> None:
    """While it is, all who open it ask the daemon: a page that is read while a direct write is under way would keep old bytes.

    Those who come after the last of them find what was written last.
    """
    with vda.open("rb", buffering=0) as before:
        os.pread(before.fileno(), BLOCK, 0)
    writer = os.open(vda, os.O_RDWR | os.O_DIRECT)
    with vda.open("rb", buffering=0) as file, mmap.mmap(-1, BLOCK) as room:
        asked = world.mount.stats()["reads"]
        for turn in range(5):
            room[:] = bytes([turn + 1]) * BLOCK
            assert os.pwritev(writer, [room], 0) == BLOCK
            assert os.pread(file.fileno(), BLOCK, 0) == os.pread(file.fileno(), BLOCK, 0) == room[:]
        assert world.mount.stats()["reads"] - asked >= 10 or not DIRECT_IS_COHERENT
        os.close(writer)
    with vda.open("rb", buffering=0) as after, mmap.mmap(after.fileno(), SPAN, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        assert os.pread(after.fileno(), BLOCK, 0) == shared[:BLOCK] == b"\5" * BLOCK


def test_bytes_that_are_on_the_disk_only(vda: Path, world: World) -> None:
    """16 readers at once of blocks that were written and of such of the image, none of them in memory, get what is there."""
    written = random.Random(5).randbytes(SPAN // 2)
    direct(vda, SPAN // 2, written)
    expected = world.disk[: SPAN // 2] + written
    with vda.open("rb") as file:
        os.fsync(file.fileno())
    for path in (*(world.mount.state / "instances").rglob("*.data"), *(world.mount.mountpoint.parent / "store").rglob("data")):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    wrong: list[int] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            offset = chance.randrange(SPAN // BLOCK) * BLOCK
            if direct(vda, offset) != expected[offset : offset + BLOCK]:
                wrong.append(offset)

    before = world.mount.stats()
    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(16)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong
    after = world.mount.stats()
    counted = [after[name] - before[name] for name in ("disk_reads_by_ring", "disk_reads_by_thread")]
    assert sum(counted) > 0
