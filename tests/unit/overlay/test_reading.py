"""Reads of a disk whose bytes are not in memory, by a ring that a test holds in its hand."""

import dataclasses
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.aio.engine import Engine, serving
from imagefs.errors import StateDamaged
from imagefs.overlay.calls import CALLS
from imagefs.overlay.key import NodeKey
from imagefs.units import BLOCK, MIB
from tests.support.overlay import NODE_KEY, PatternBase, new_disk, pattern
from tests.support.rings import HeldRing, Request, failing, halved, served

SIZE = MIB + 100
NOISE = random.Random(3).randbytes(SIZE)


def away(fd: int, buffers: object, offset: int, flags: int) -> int:
    """Have nothing in memory."""
    if flags:
        raise BlockingIOError(errno.EAGAIN, "not in memory")
    return os.preadv(fd, buffers, offset, flags)  # type: ignore[arg-type]  # whatever the disk passes


COLD_HOST = dataclasses.replace(CALLS, preadv=away)


@pytest.fixture
async def ring() -> AsyncIterator[HeldRing]:
    """A ring whose engine is the current one."""
    held = HeldRing(room=64)
    async with serving(Engine(held, None)):
        yield held


@pytest.mark.parametrize("by", [served, halved, failing(errno.EIO)], ids=["well", "short", "EIO"])
@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
async def test_reads_of_all_alignments(tmp_path: Path, ring: HeldRing, node_key: NodeKey | None, by: Callable[[Request], int]) -> None:
    """Data, zeros and base in one read, at any offset, are what was written, also where the ring brings a part only, or nothing."""
    ring.at_once = by
    disk = new_disk(tmp_path, SIZE, PatternBase(SIZE), COLD_HOST, node_key=node_key)
    expected = bytearray(pattern(0, SIZE))
    for start, stop in ((0, 40), (50, 60), (200, 257)):
        piece = NOISE[start * BLOCK : min(SIZE, stop * BLOCK)]
        await disk.write(start * BLOCK, piece)
        expected[start * BLOCK : start * BLOCK + len(piece)] = piece
    await disk.write_zeroes(10 * BLOCK, 5 * BLOCK)
    expected[10 * BLOCK : 15 * BLOCK] = bytes(5 * BLOCK)
    chance = random.Random(11)
    for _ in range(200):
        offset, length = chance.randrange(SIZE), chance.choice([1, 511, BLOCK, 3 * BLOCK, 100_000])
        if chance.random() < 0.5:
            offset -= offset % BLOCK
        assert await disk.read(offset, length) == expected[offset : offset + length]
    assert await disk.read(0, SIZE) == expected
    assert len(ring.asked) > 100
    disk.close()


@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
async def test_a_file_that_is_cut_short_is_damage(tmp_path: Path, ring: HeldRing, node_key: NodeKey | None) -> None:
    """Bytes that the map promises and the file has not are never made up, whoever reads."""
    ring.at_once = served
    disk = new_disk(tmp_path, SIZE, None, COLD_HOST, node_key=node_key)
    await disk.write(0, NOISE)
    os.truncate(tmp_path / "vda.data", 5 * BLOCK)
    assert await disk.read(4 * BLOCK, BLOCK) == NOISE[4 * BLOCK : 5 * BLOCK]
    with pytest.raises(StateDamaged, match="cut short"):
        await disk.read(4 * BLOCK, 2 * BLOCK)
    disk.close()


async def test_a_disk_is_settled_when_the_kernel_lets_go(tmp_path: Path, ring: HeldRing) -> None:
    """Whoever closes a disk waits for its reads, cancelled ones too: its descriptor may be another file's the next moment."""
    disk = new_disk(tmp_path, SIZE, None, COLD_HOST)
    await disk.write(0, NOISE)
    settled = trio.Event()

    async def settle() -> None:
        await disk.settled()
        settled.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def read() -> None:
            with scope:
                await disk.read(0, BLOCK)

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        assert len(ring.waiting) == 1
        scope.cancel()
        nursery.start_soon(settle)
        await wait_all_tasks_blocked()
        assert not settled.is_set()
        ring.finish()
        await settled.wait()
    disk.close()


async def test_a_flush_of_blocks_that_were_there_syncs_once(tmp_path: Path, ring: HeldRing) -> None:
    """The map is told, and synced, only when a block's state has changed; data is synced by the ring."""
    ring.at_once = served
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, NOISE)
    await disk.flush()
    ring.asked.clear()
    for turn in range(3):
        disk.write_nowait(turn * BLOCK, NOISE[:BLOCK])
        await disk.flush()
        await disk.flush()
    assert [request.address for request in ring.asked] == [0, 0, 0]
    disk.check_invariants()
    disk.close()


async def test_a_sync_that_fails_by_the_ring_fails_for_good(tmp_path: Path, ring: HeldRing) -> None:
    """As with a thread: later flushes fail until the disk is opened again."""
    ring.at_once = failing(errno.EIO)
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, NOISE)
    with pytest.raises(OSError, match="Input/output error"):
        await disk.flush()
    ring.at_once = served
    with pytest.raises(OSError, match="an earlier flush failed"):
        await disk.flush()
    disk.close()
