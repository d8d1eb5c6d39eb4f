"""Layers: what freezing refuses, what waits for what, what flushes in which order, and which layers belong together."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.errors import LayerFrozen, StateDamaged
from imagefs.overlay.block_map import PAGE_BLOCKS, page_offset
from imagefs.overlay.calls import CALLS, Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK, MIB, TIB
from tests.support.overlay import PatternBase, add_layer, new_disk, pattern

SIZE = 2 * MIB
BASE_SIZE = MIB + 1000
NOISE = bytes(range(1, 129)) * 32
OTHER_BOOT = Calls(boot_id=lambda: bytes(16))


# Freezing.


async def test_frozen_layer_refuses_every_change(tmp_path: Path) -> None:
    """Nothing that changes what a layer shows goes through while it is frozen; after thawing all does."""
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, NOISE)
    disk.freeze()
    assert disk.frozen
    with pytest.raises(LayerFrozen, match="write to the layer above"):
        disk.write_nowait(0, b"x")
    with pytest.raises(LayerFrozen):
        await disk.write(0, b"x")
    with pytest.raises(LayerFrozen):
        await disk.write_zeroes(0, BLOCK)
    with pytest.raises(LayerFrozen):
        await disk.discard(0, BLOCK)
    with pytest.raises(LayerFrozen):
        await disk.grow(2 * SIZE)
    assert disk.read_nowait(0, BLOCK) == NOISE
    await disk.flush()
    disk.thaw()
    assert not disk.frozen
    assert disk.write_nowait(0, b"x") == 1
    disk.close()


@pytest.mark.parametrize("thawed", [False, True])
async def test_write_that_waited_while_its_layer_was_frozen_changes_nothing(tmp_path: Path, thawed: bool) -> None:
    """Also if the layer was thawed meanwhile: what it shows may be hidden by the layer above by then."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)

    def freeze() -> None:
        disk.freeze()
        if thawed:
            disk.thaw()

    base.on_read = freeze
    with pytest.raises(LayerFrozen):
        await disk.write(5, b"x")
    base.on_read = lambda: None
    assert await disk.read(0, BLOCK) == pattern(0, BLOCK)
    disk.close()


async def test_long_zeroing_stops_where_its_layer_is_frozen(tmp_path: Path) -> None:
    """A zeroing of many pages that is under way ends with LayerFrozen; who asked for it does all of it again above."""
    size = 3 * PAGE_BLOCKS * BLOCK
    disk = new_disk(tmp_path, size, PatternBase(BASE_SIZE))
    raised = []

    async def zero() -> None:
        with pytest.raises(LayerFrozen):
            await disk.write_zeroes(0, size)
        raised.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(zero)
        await trio.lowlevel.checkpoint()
        disk.freeze()
    assert raised == [True]
    disk.close()


async def test_settled_waits_for_what_runs(tmp_path: Path) -> None:
    """A read that waits for the base keeps its layer from being settled, and so does each layer that it runs in."""
    base = PatternBase(BASE_SIZE, slow=True)
    lower = new_disk(tmp_path, SIZE, base)
    upper = add_layer(tmp_path, "vda@1", lower)
    go_on = trio.Event()
    order: list[str] = []

    class Waiting(PatternBase):
        async def read(self, offset: int, length: int) -> bytes:
            await go_on.wait()
            return pattern(offset, length)

    lower._base = Waiting(BASE_SIZE, slow=True)

    async def read() -> None:
        assert await upper.read(0, BLOCK) == pattern(0, BLOCK)
        order.append("read")

    async def settled(layer: OverlayDisk) -> None:
        await layer.settled()
        order.append("settled")

    await upper.settled()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        nursery.start_soon(settled, upper)
        nursery.start_soon(settled, lower)
        await wait_all_tasks_blocked()
        assert order == []
        go_on.set()
    assert order in (["read", "settled", "settled"], ["settled", "read", "settled"])
    upper.close()
    lower.close()


async def test_cancelled_call_lets_its_layer_settle(tmp_path: Path) -> None:
    """What is cancelled does not run any more."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)

    class Forever(PatternBase):
        async def read(self, offset: int, length: int) -> bytes:
            await trio.sleep_forever()
            return b""

    disk._base = Forever(BASE_SIZE, slow=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.read, 0, 10)
        nursery.start_soon(disk.write, 5, b"x")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await disk.settled()
    disk.close()


# Which layers belong together.


def test_layers_of_a_stack_have_one_identity(tmp_path: Path) -> None:
    """A layer names the lowest layer of its stack, so that merging any of them leaves those above as they are."""
    lowest = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    middle = add_layer(tmp_path, "vda@1", lowest)
    top = add_layer(tmp_path, "vda@2", middle)
    assert lowest.identity == middle.identity == top.identity == f"stack/{lowest.disk_uuid}"
    assert len({lowest.disk_uuid, middle.disk_uuid, top.disk_uuid}) == 3
    top.close()
    OverlayDisk.open(tmp_path, "vda@2", lowest).close()
    middle.close()
    lowest.close()


def test_layer_over_a_layer_of_another_disk_is_damage(tmp_path: Path) -> None:
    """Layers of two disks never show each other's bytes."""
    disk = new_disk(tmp_path, SIZE, None)
    add_layer(tmp_path, "vda@1", disk).close()
    OverlayDisk.create(tmp_path, "vdb", SIZE, "")
    other = OverlayDisk.open(tmp_path, "vdb", None)
    with pytest.raises(StateDamaged, match=f"shows stack/{disk.disk_uuid}, but is opened with a base that is stack/{other.disk_uuid}"):
        OverlayDisk.open(tmp_path, "vda@1", other)
    with pytest.raises(StateDamaged, match="without a base"):
        OverlayDisk.open(tmp_path, "vda@1", None)
    disk.close()
    other.close()


# Flushing.


class Syncs:
    """Notes which file is synced and written, in order; `before` runs before each sync and may raise."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.before: Callable[[str], None] = lambda name: None

    def calls(self) -> Calls:
        return dataclasses.replace(CALLS, fdatasync=self._fdatasync)

    def _fdatasync(self, fd: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
        self.seen.append(name)
        self.before(name)


async def test_lower_layers_are_durable_first(tmp_path: Path) -> None:
    """What was written before a snapshot is flushed with what was written after it, below first; what is clean is not synced again."""
    syncs = Syncs()
    lower = new_disk(tmp_path, SIZE, None, syncs.calls())
    lower.write_nowait(0, NOISE)
    upper = add_layer(tmp_path, "vda@1", lower, syncs.calls())
    upper.write_nowait(BLOCK, NOISE)
    syncs.seen.clear()
    await upper.flush()
    assert syncs.seen == ["vda.data", "vda.map", "vda@1.data", "vda@1.map"]
    syncs.seen.clear()
    await upper.flush()
    assert syncs.seen == []
    upper.write_nowait(2 * BLOCK, NOISE)
    await upper.flush()
    assert syncs.seen == ["vda@1.data", "vda@1.map"]
    syncs.seen.clear()
    lower.thaw()
    lower.write_nowait(5 * BLOCK, NOISE)
    await upper.flush()
    assert syncs.seen == ["vda.data", "vda.map"]
    upper.close()
    lower.close()


async def test_failed_flush_below_fails_the_flush(tmp_path: Path) -> None:
    """Nobody is told that all is durable while a lower layer is not, then or later; the upper's map is not told either."""
    syncs = Syncs()
    lower = new_disk(tmp_path, SIZE, None, syncs.calls())
    lower.write_nowait(0, NOISE)
    upper = add_layer(tmp_path, "vda@1", lower, syncs.calls())
    upper.write_nowait(BLOCK, NOISE)

    def fail(name: str) -> None:
        if name == "vda.data":
            raise OSError(errno.EIO, "the disk is broken")

    syncs.before = fail
    for _ in range(2):
        with pytest.raises(OSError, match=r"broken|an earlier flush failed"):
            await upper.flush()
    upper.close()
    lower.close()
    lower = OverlayDisk.open(tmp_path, "vda", None)
    upper = OverlayDisk.open(tmp_path, "vda@1", lower)
    await upper.flush()
    upper.close()
    lower.close()
    lower = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    upper = OverlayDisk.open(tmp_path, "vda@1", lower, OTHER_BOOT)
    assert upper.read_nowait(0, 2 * BLOCK) == NOISE * 2
    upper.close()
    lower.close()


# Extents.


async def test_extents_are_the_data_and_what_the_base_says(tmp_path: Path) -> None:
    """Data counts, zeros do not, and what was never written is as the base says, cut to the range and to the base's end."""

    class Holes(PatternBase):
        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            self.calls += 1
            return [
                (max(first, offset), min(last, offset + length))
                for first, last in ((0, 100), (5 * BLOCK, 9 * BLOCK), (12 * BLOCK, BASE_SIZE))
                if first < offset + length and last > offset
            ]

    base = Holes(BASE_SIZE)
    disk = new_disk(tmp_path, SIZE, base)
    assert await disk.extents(0, SIZE) == [(0, 100), (5 * BLOCK, 9 * BLOCK), (12 * BLOCK, BASE_SIZE)]
    disk.write_nowait(2 * BLOCK, NOISE)
    disk.write_nowait(6 * BLOCK, bytes(2 * BLOCK))
    disk.write_nowait(SIZE - BLOCK, NOISE)
    assert await disk.extents(0, SIZE) == [
        (0, 100),
        (2 * BLOCK, 3 * BLOCK),
        (5 * BLOCK, 6 * BLOCK),
        (8 * BLOCK, 9 * BLOCK),
        (12 * BLOCK, BASE_SIZE),
        (SIZE - BLOCK, SIZE),
    ]
    assert await disk.extents(50, 2 * BLOCK) == [(50, 100), (2 * BLOCK, 2 * BLOCK + 50)]
    assert await disk.extents(SIZE - 10, MIB) == [(SIZE - 10, SIZE)]
    assert await disk.extents(SIZE, 10) == []
    assert await disk.extents(3 * BLOCK, 0) == []
    upper = add_layer(tmp_path, "vda@1", disk)
    upper.write_nowait(0, bytes(BLOCK))
    assert await upper.extents(0, 6 * BLOCK) == [(2 * BLOCK, 3 * BLOCK), (5 * BLOCK, 6 * BLOCK)]
    upper.close()
    disk.close()


async def test_extents_of_a_huge_disk_ask_for_what_was_written_only(tmp_path: Path) -> None:
    """A disk of 1 TiB with three writes costs some questions, not one for each of its 268 million blocks."""
    base = PatternBase(TIB)
    disk = new_disk(tmp_path, TIB, base)
    for offset in (0, TIB // 2, TIB - BLOCK):
        disk.write_nowait(offset, bytes(BLOCK))
    assert await disk.extents(0, TIB) == [(BLOCK, TIB // 2), (TIB // 2 + BLOCK, TIB - BLOCK)]
    assert base.calls <= 7
    empty = add_layer(tmp_path, "vda@1", disk)
    base.calls = 0
    assert await empty.extents(TIB // 4, TIB // 8) == [(TIB // 4, TIB // 4 + TIB // 8)]
    assert base.calls == 1
    empty.close()
    disk.close()


async def test_blocks_whose_state_is_lost_are_extents(tmp_path: Path) -> None:
    """They are never taken for zeros: reading them tells."""
    disk = new_disk(tmp_path, 2 * PAGE_BLOCKS * BLOCK, None)
    disk.write_nowait(PAGE_BLOCKS * BLOCK, NOISE)
    await disk.flush()
    disk.close()
    with (tmp_path / "vda.map").open("r+b") as file:
        file.seek(page_offset(1) + 2000)
        file.write(b"x")
    disk = OverlayDisk.open(tmp_path, "vda", None, OTHER_BOOT)
    assert await disk.extents(0, disk.size) == [(PAGE_BLOCKS * BLOCK, 2 * PAGE_BLOCKS * BLOCK)]
    disk.close()
