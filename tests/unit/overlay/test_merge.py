"""Merging: what readers and writers of a pair see, what moves, in which order it becomes durable, and what hinders it."""

import dataclasses
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs.errors import Busy, LayerFrozen, NoSpace, StateDamaged
from imagefs.overlay import merge
from imagefs.overlay.block_map import BASE, DATA, PAGE_BLOCKS, ZERO, page_offset
from imagefs.overlay.calls import CALLS, Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.merge import PIECE, MergingDisk
from imagefs.units import BLOCK, KIB, MIB
from tests.support.overlay import NODE_KEY, Host, PatternBase, add_layer, build, new_disk, pattern

SIZE = 2 * MIB
NOISE = bytes(range(1, 129)) * 32
OLD = NOISE[::-1]
OTHER_BOOT = Calls(boot_id=lambda: bytes(16))


def new_pair(directory: Path, base: PatternBase | None = None, calls: Calls = CALLS, size: int = SIZE) -> MergingDisk:
    """Make a pair: blocks 0 to 3 of the lower layer are old data, of which the upper one has 1 as new data and 2 as zeros; it has 5 and 6 too."""
    lower = new_disk(directory, size, base, calls)
    lower.write_nowait(0, OLD * 4)
    upper = add_layer(directory, "vda@1", lower, calls)
    upper.write_nowait(BLOCK, NOISE + bytes(BLOCK))
    upper.write_nowait(5 * BLOCK, NOISE * 2)
    return MergingDisk(upper, lower)


SHOWN = OLD + NOISE + bytes(BLOCK) + OLD + bytes(BLOCK) + NOISE * 2 + bytes(BLOCK)


def states(layer: OverlayDisk) -> list[int]:
    return list(layer.states_of(0, 8))


def reopen(directory: Path, base: PatternBase | None = None, calls: Calls = CALLS) -> OverlayDisk:
    """Open the lower layer alone: the upper one is gone."""
    return OverlayDisk.open(directory, "vda", base, calls)


# What readers and writers see.


async def test_merging_changes_nothing_that_is_shown(tmp_path: Path) -> None:
    """Before, after each piece and at the end the pair shows the same; then the lower layer alone does, also after a power loss."""
    pair = new_pair(tmp_path)
    assert pair.read_nowait(0, 8 * BLOCK) == SHOWN
    assert pair.remaining == 4
    assert states(pair._upper) == [BASE, DATA, ZERO, BASE, BASE, DATA, DATA, BASE]
    await pair.merge()
    assert pair.remaining == 0
    assert states(pair._upper) == [BASE] * 8
    assert states(pair._lower) == [DATA, DATA, ZERO, DATA, BASE, DATA, DATA, BASE]
    assert await pair.read(0, 8 * BLOCK) == SHOWN
    pair.check_invariants()
    assert pair._lower.read_nowait(0, 8 * BLOCK) == SHOWN
    pair.close()
    OverlayDisk.delete(tmp_path, "vda@1")
    lower = reopen(tmp_path, calls=OTHER_BOOT)
    assert lower.read_nowait(0, 8 * BLOCK) == SHOWN
    lower.close()


async def test_zeros_over_an_image_become_zeros_below(tmp_path: Path) -> None:
    """Zeros in the upper layer hide what the image has there after merging too, and give the room of old data back."""
    base = PatternBase(SIZE)
    lower = new_disk(tmp_path, SIZE, base)
    lower.write_nowait(0, OLD * 16)
    upper = add_layer(tmp_path, "vda@1", lower)
    upper.write_nowait(0, bytes(16 * BLOCK))
    upper.write_nowait(20 * BLOCK, bytes(BLOCK))
    await lower.flush()
    before = lower.allocated_bytes()
    pair = MergingDisk(upper, lower)
    await pair.merge()
    assert lower.states_of(0, 22) == bytes([ZERO] * 16 + [BASE] * 4 + [ZERO, BASE])
    assert lower.allocated_bytes() < before
    assert pair.read_nowait(0, 22 * BLOCK) == bytes(16 * BLOCK) + pattern(16 * BLOCK, 4 * BLOCK) + bytes(BLOCK) + pattern(21 * BLOCK, BLOCK)
    pair.close()


async def test_guest_writes_go_to_the_lower_layer(tmp_path: Path) -> None:
    """A whole block that is written is the lower layer's at once; the upper's old one is neither shown nor moved."""
    pair = new_pair(tmp_path)
    assert pair.write_nowait(BLOCK, OLD * 2) == 2 * BLOCK
    assert await pair.write(6 * BLOCK, OLD) == BLOCK
    assert states(pair._upper) == [BASE, BASE, BASE, BASE, BASE, DATA, BASE, BASE]
    assert pair.read_nowait(0, 8 * BLOCK) == OLD * 4 + bytes(BLOCK) + NOISE + OLD + bytes(BLOCK)
    await pair.merge()
    assert pair.read_nowait(0, 8 * BLOCK) == OLD * 4 + bytes(BLOCK) + NOISE + OLD + bytes(BLOCK)
    pair.close()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("over_image", [False, True])
@pytest.mark.parametrize("nowait", [False, True])
async def test_part_of_a_block_keeps_what_the_pair_shows(tmp_path: Path, encrypted: bool, over_image: bool, nowait: bool) -> None:
    """Whatever a block is in either layer: a write of some of its bytes leaves the others as they were shown."""
    node_key = NODE_KEY if encrypted else None
    size = 10 * BLOCK + 700
    base = PatternBase(size) if over_image else None
    lower = new_disk(tmp_path, size, base, node_key=node_key)
    for block in (0, 1, 2):
        lower.write_nowait(block * BLOCK, OLD)
    for block in (3, 4, 5):
        lower.write_nowait(block * BLOCK, bytes(BLOCK))
    upper = add_layer(tmp_path, "vda@1", lower, node_key=node_key)
    for block in (0, 3, 6):
        upper.write_nowait(block * BLOCK, NOISE)
    for block in (1, 4, 7):
        upper.write_nowait(block * BLOCK, bytes(BLOCK))
    upper.write_nowait(10 * BLOCK, NOISE[:700])
    expected = bytearray(upper.read_nowait(0, size) or b"")
    pair = MergingDisk(upper, lower)
    for offset, length in [(block * BLOCK + 10, 20) for block in range(11)] + [(10 * BLOCK + 690, 10), (BLOCK - 5, 5 * BLOCK + 10), (size - 1, 1)]:
        expected[offset : offset + length] = b"x" * length
        assert (pair.write_nowait(offset, b"x" * length) if nowait else await pair.write(offset, b"x" * length)) == length
        assert pair.read_nowait(0, size) == expected
    await pair.merge()
    assert pair.read_nowait(0, size) == expected
    assert lower.read_nowait(0, size) == expected
    pair.check_invariants()
    pair.close()


async def test_part_of_a_block_waits_for_a_slow_image(tmp_path: Path) -> None:
    """write_nowait changes nothing if the image has to be waited for; a block that the upper layer has needs no image."""
    base = PatternBase(SIZE, slow=True)
    pair = new_pair(tmp_path, base)
    assert pair.write_nowait(7 * BLOCK + 5, b"x") is None
    base.calls = 0
    assert pair.write_nowait(BLOCK + 5, b"x") == 1
    assert base.calls == 0
    assert await pair.write(7 * BLOCK + 5, b"x") == 1
    assert pair.read_nowait(7 * BLOCK, BLOCK) == pattern(7 * BLOCK, 5) + b"x" + pattern(7 * BLOCK + 6, BLOCK - 6)
    pair.close()


async def test_block_that_is_written_or_moved_while_a_write_waits_keeps_both(tmp_path: Path) -> None:
    """A write that waits for one block looks at all of its blocks again: what was written or merged meanwhile stays around it."""
    base = PatternBase(SIZE, slow=True)
    pair = new_pair(tmp_path, base)

    def meanwhile() -> None:
        base.on_read = lambda: None
        pair.write_nowait(6 * BLOCK, OLD * 2)

    base.on_read = meanwhile
    assert await pair.write(7 * BLOCK - 5, b"x" * 10) == 10  # the end of 6, in the upper layer; the start of 7, in the image
    assert pair.read_nowait(6 * BLOCK, 2 * BLOCK) == OLD[:-5] + b"x" * 10 + OLD[5:]
    pair.close()


async def test_writes_across_the_end_change_nothing(tmp_path: Path) -> None:
    """As with any disk; an empty write is one of nothing."""
    pair = new_pair(tmp_path)
    with pytest.raises(NoSpace, match=f"end of the disk at {SIZE}"):
        pair.write_nowait(SIZE - 1, b"xx")
    with pytest.raises(NoSpace, match=f"end of the disk at {SIZE}"):
        await pair.write(SIZE, b"x")
    assert pair.write_nowait(5, b"") == 0
    assert pair.read_nowait(SIZE - 1, 5) == b"\0"
    pair.close()


async def test_extents_and_room_are_those_of_both(tmp_path: Path) -> None:
    """What either layer shows counts, and the room that both take."""
    pair = new_pair(tmp_path)
    await pair.flush()
    assert await pair.extents(0, SIZE) == [(0, 2 * BLOCK), (3 * BLOCK, 4 * BLOCK), (5 * BLOCK, 7 * BLOCK)]
    assert pair.allocated_bytes() >= 7 * BLOCK
    assert (pair.size, pair.identity) == (SIZE, pair._lower.identity)
    pair.close()


# Reads that have begun.


def slow_file(name: str, after: Callable[[], None]) -> Calls:
    """Return calls to which nothing of the file is in memory; `after` is called in the thread after it was read there."""

    def preadv(fd: int, buffers: Any, offset: int, flags: int) -> int:
        found = Path(os.readlink(f"/proc/self/fd/{fd}")).name == name
        if found and flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        if found:
            after()
        return os.preadv(fd, buffers, offset, flags)

    return dataclasses.replace(CALLS, preadv=preadv)


async def test_read_that_began_before_a_block_moved_is_right(tmp_path: Path) -> None:
    """A read that has looked at the upper's states finds the bytes there, although the blocks are moved before it gets to them."""
    waiting: list[MergingDisk] = []

    def move() -> None:
        if waiting:
            trio.from_thread.run(waiting.pop().merge)

    pair = new_pair(tmp_path, calls=slow_file("vda@1.data", move))
    waiting.append(pair)
    assert await pair.read(0, 8 * BLOCK) == SHOWN
    assert not waiting
    assert pair.remaining == 0
    assert await pair.read(0, 8 * BLOCK) == SHOWN
    pair.close()


async def test_block_that_is_written_while_it_is_read_for_moving_keeps_the_write(tmp_path: Path) -> None:
    """Bytes of the upper layer that were read in a thread are moved only where the guest has not written meanwhile."""
    todo: list[Callable[[], object]] = []

    def write() -> None:
        if todo:
            trio.from_thread.run_sync(todo.pop(0))

    pair = new_pair(tmp_path, calls=slow_file("vda@1.data", write))
    todo.append(lambda: pair.write_nowait(BLOCK, OLD))
    todo.append(lambda: pair.write_nowait(6 * BLOCK, OLD))
    await pair.merge()
    assert not todo
    assert await pair.read(0, 8 * BLOCK) == OLD * 2 + bytes(BLOCK) + OLD + bytes(BLOCK) + NOISE + OLD + bytes(BLOCK)
    assert pair.remaining == 0
    pair.close()


async def test_part_of_a_block_that_moves_while_it_is_read_is_right(tmp_path: Path) -> None:
    """A write whose block has to be read from the upper layer composes with it, also if the block is the lower layer's by then."""
    waiting: list[MergingDisk] = []

    def move() -> None:
        if waiting:
            trio.from_thread.run(waiting.pop().merge)

    pair = new_pair(tmp_path, calls=slow_file("vda@1.data", move))
    waiting.append(pair)
    assert pair.write_nowait(BLOCK + 5, b"x") is None
    assert await pair.write(BLOCK + 5, b"x") == 1
    assert not waiting
    assert await pair.read(BLOCK, BLOCK) == NOISE[:5] + b"x" + NOISE[6:]
    pair.close()


# The loop.


async def test_merging_lets_others_run_between_pieces(tmp_path: Path) -> None:
    """No more than a piece is moved before others have their turn, and what they write stays."""
    lower = new_disk(tmp_path, SIZE, None)
    upper = add_layer(tmp_path, "vda@1", lower)
    upper.write_nowait(0, NOISE * (MIB // BLOCK))
    pair = MergingDisk(upper, lower)
    left: list[int] = []
    done = trio.Event()

    async def guest() -> None:
        while not done.is_set():
            left.append(pair.remaining)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest)
        await pair.merge()
        done.set()
    assert max(before - after for before, after in itertools.pairwise(left)) <= 2 * PIECE // BLOCK
    assert PIECE <= 256 * KIB
    assert pair.read_nowait(0, MIB) == NOISE * (MIB // BLOCK)
    pair.close()


async def test_merging_ends_whatever_the_guest_writes(tmp_path: Path) -> None:
    """A guest that writes behind and before the loop all the time gives it nothing to do again."""
    pair = new_pair(tmp_path)
    done = trio.Event()

    async def guest() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            pair.write_nowait(turn * 7 % 400 * BLOCK, bytes([turn % 255 + 1]) * BLOCK)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest)
        await pair.merge()
        assert pair.remaining == 0
        done.set()
    pair.close()


async def test_merge_that_is_cancelled_goes_on_when_called_again(tmp_path: Path) -> None:
    """What was moved stays so, also over a restart in between; the rest is shown from the upper layer."""
    lower = new_disk(tmp_path, SIZE, None)
    upper = add_layer(tmp_path, "vda@1", lower)
    upper.write_nowait(0, NOISE * (MIB // BLOCK))
    pair = MergingDisk(upper, lower)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.merge)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await pair.settled()
    assert 0 < pair.remaining < MIB // BLOCK
    assert pair.read_nowait(0, MIB) == NOISE * (MIB // BLOCK)
    left = pair.remaining
    pair.close()
    lower = reopen(tmp_path)
    pair = MergingDisk(OverlayDisk.open(tmp_path, "vda@1", lower), lower)
    assert pair.remaining == left
    await pair.merge()
    assert pair.remaining == 0
    assert lower.read_nowait(0, MIB) == NOISE * (MIB // BLOCK)
    pair.close()


async def test_two_merges_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    """The second finds nothing left to do."""
    pair = new_pair(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.merge)
        nursery.start_soon(pair.merge)
    assert pair.remaining == 0
    assert pair.read_nowait(0, 8 * BLOCK) == SHOWN
    pair.close()


async def test_long_merges_flush_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dirty bytes do not pile up: after each portion what was moved is made durable."""
    monkeypatch.setattr(merge, "FLUSH_EVERY", 256 * KIB)
    synced: list[str] = []

    def fdatasync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    calls = dataclasses.replace(CALLS, fdatasync=fdatasync)
    lower = new_disk(tmp_path, SIZE, None, calls)
    upper = add_layer(tmp_path, "vda@1", lower, calls)
    upper.write_nowait(0, NOISE * (MIB // BLOCK))
    synced.clear()
    pair = MergingDisk(upper, lower)
    await pair.merge()
    assert synced.count("vda.data") == 4
    pair.close()


# Durability.


async def test_upper_layer_is_told_last(tmp_path: Path) -> None:
    """Data and map of the lower layer are durable before the upper's map says that blocks are gone."""
    synced: list[str] = []

    def fdatasync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    pair = new_pair(tmp_path, calls=dataclasses.replace(CALLS, fdatasync=fdatasync))
    await pair.flush()
    synced.clear()
    await pair.merge()
    assert synced == ["vda.data", "vda.map", "vda@1.data", "vda@1.map"]
    synced.clear()
    await pair.flush()
    assert synced == []
    pair.write_nowait(0, NOISE)
    await pair.flush()
    assert synced == ["vda.data"]
    pair.close()


@pytest.mark.parametrize("file", ["vda.data", "vda.map", "vda@1.data", "vda@1.map"])
async def test_block_that_moves_while_a_flush_runs_is_told_by_the_next(tmp_path: Path, file: str) -> None:
    """Whenever within a flush a block moves: after a power loss right behind that flush the block shows what was flushed."""
    host = Host()
    (tmp_path / "0").mkdir()
    lower = new_disk(tmp_path / "0", SIZE, None, host.calls())
    lower.write_nowait(0, OLD * 4)
    upper = add_layer(tmp_path / "0", "vda@1", lower, host.calls())
    upper.write_nowait(0, NOISE)
    await upper.flush()
    upper.write_nowait(2 * BLOCK, NOISE)  # a reason for each file to be synced
    pair = MergingDisk(upper, lower)
    pair.write_nowait(4 * BLOCK, NOISE)

    def move(name: str) -> None:
        if name == file:
            host.during_sync = lambda name: None
            trio.from_thread.run(pair._move, DATA, 0, 1)

    host.during_sync = move
    assert upper.states_of(0, 1)[0] == DATA
    await pair.flush()
    assert upper.states_of(0, 1)[0] == BASE
    pair.close()

    class Oldest:
        """What was not synced is lost."""

        @staticmethod
        def choice(versions: list[tuple[int, bytes]]) -> tuple[int, bytes]:
            return versions[0]

    pages = host.after_power_loss(len(host.log), Oldest())  # type: ignore[arg-type]  # the one method that is called
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "0").iterdir() if path.suffix in {".data", ".map"}}
    build(tmp_path / "1", pages, sizes)
    lower = OverlayDisk.open(tmp_path / "1", "vda", None, OTHER_BOOT)
    upper = OverlayDisk.open(tmp_path / "1", "vda@1", lower, OTHER_BOOT)
    assert upper.read_nowait(0, 5 * BLOCK) == NOISE + OLD + NOISE + OLD + NOISE
    upper.close()
    lower.close()


# Snapshots during a merge, and what comes after.


async def test_pair_that_is_frozen_refuses_writes(tmp_path: Path) -> None:
    """Also one that waited meanwhile; merging may go on, and a layer above shows the same all the time."""
    base = PatternBase(SIZE, slow=True)
    pair = new_pair(tmp_path, base)
    base.on_read = pair.freeze
    with pytest.raises(LayerFrozen):
        await pair.write(7 * BLOCK + 5, b"x")
    base.on_read = lambda: None
    with pytest.raises(LayerFrozen):
        pair.write_nowait(0, NOISE)
    base.slow = False
    shown = pair.read_nowait(0, 8 * BLOCK)
    top = add_layer(tmp_path, "vda@2", pair)
    top.write_nowait(4 * BLOCK, b"y" * BLOCK)
    await pair.merge()
    assert pair.read_nowait(0, 8 * BLOCK) == shown
    top.rebase(pair._lower)
    pair._lower.freeze()
    await pair.settled()
    pair._upper.close()
    OverlayDisk.delete(tmp_path, "vda@1")
    assert shown is not None
    assert top.read_nowait(0, 8 * BLOCK) == shown[: 4 * BLOCK] + b"y" * BLOCK + shown[5 * BLOCK :]
    await top.flush()
    top.close()
    pair._lower.close()
    lower = reopen(tmp_path, base)
    top = OverlayDisk.open(tmp_path, "vda@2", lower)
    assert top.read_nowait(0, 8 * BLOCK) == shown[: 4 * BLOCK] + b"y" * BLOCK + shown[5 * BLOCK :]
    top.close()
    lower.close()


async def test_pair_given_up_for_another_stops_merging(tmp_path: Path) -> None:
    """If the upper layer of a merge is made the lower one of another, and so is written, the first ends before it moves stale bytes."""
    pair = new_pair(tmp_path)
    pair.freeze()
    top = add_layer(tmp_path, "vda@2", pair)
    top.write_nowait(BLOCK, OLD)
    second = MergingDisk(top, pair._upper)
    with pytest.raises(Busy, match="another merge"):
        await pair.merge()
    await second.merge()
    assert second.remaining == 0
    third = MergingDisk(pair._upper, pair._lower)
    await third.merge()
    assert pair._lower.read_nowait(0, 8 * BLOCK) == OLD * 2 + SHOWN[2 * BLOCK :]
    top.close()
    third.close()


def test_write_to_the_old_top_of_a_pair_is_refused(tmp_path: Path) -> None:
    """Once a pair is made nobody writes to its upper layer."""
    pair = new_pair(tmp_path)
    with pytest.raises(LayerFrozen):
        pair._upper.write_nowait(0, NOISE)
    assert not pair._lower.frozen
    pair.close()


def test_layers_of_two_disks_are_no_pair(tmp_path: Path) -> None:
    """Merging never mixes disks, nor layers of two sizes."""
    disk = new_disk(tmp_path, SIZE, None)
    OverlayDisk.create(tmp_path, "vdb", SIZE, "")
    other = OverlayDisk.open(tmp_path, "vdb", None)
    OverlayDisk.create(tmp_path, "vdc", 2 * SIZE, disk.identity)
    longer = OverlayDisk.open(tmp_path, "vdc", disk)
    with pytest.raises(StateDamaged, match="layers of two disks cannot be merged"):
        MergingDisk(other, disk)
    with pytest.raises(StateDamaged, match="layers of two disks cannot be merged"):
        MergingDisk(longer, disk)
    for each in (disk, other, longer):
        each.close()


async def test_settled_waits_for_the_merge_and_for_writes(tmp_path: Path) -> None:
    """A pair is settled when nothing runs in it, so that the upper layer can be closed."""
    go_on = trio.Event()

    class Waiting(PatternBase):
        async def read(self, offset: int, length: int) -> bytes:
            await go_on.wait()
            return await super().read(offset, length)

    pair = new_pair(tmp_path, Waiting(SIZE, slow=True))
    settled = trio.Event()

    async def wait() -> None:
        await pair.settled()
        settled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.write, 7 * BLOCK + 5, b"x")
        await wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not settled.is_set()
        go_on.set()
    assert settled.is_set()
    pair.close()


# Damage.


async def test_damaged_page_of_the_upper_layer_loses_nothing(tmp_path: Path) -> None:
    """Its blocks stay unreadable and unwritable, all others are merged, and merging says what is wrong, each time."""
    size = 3 * PAGE_BLOCKS * BLOCK
    second = PAGE_BLOCKS * BLOCK
    lower = new_disk(tmp_path, size, None)
    lower.write_nowait(second, OLD * 2)
    upper = add_layer(tmp_path, "vda@1", lower)
    for page in range(3):
        upper.write_nowait(page * second, NOISE)
    await upper.flush()
    upper.close()
    lower.close()
    with (tmp_path / "vda@1.map").open("r+b") as file:
        file.seek(page_offset(1) + 2000)
        file.write(b"x")
    lower = reopen(tmp_path, calls=OTHER_BOOT)
    pair = MergingDisk(OverlayDisk.open(tmp_path, "vda@1", lower, OTHER_BOOT), lower)
    for _ in range(2):
        with pytest.raises(StateDamaged, match=r"vda@1.*damaged page of the map.*all other blocks of the layer have been merged"):
            await pair.merge()
        assert pair.remaining == PAGE_BLOCKS
        assert lower.read_nowait(0, BLOCK) == NOISE
        assert lower.read_nowait(2 * second, BLOCK) == NOISE
        for offset in (second, second + BLOCK):
            with pytest.raises(StateDamaged, match="damaged page of the map"):
                pair.read_nowait(offset, BLOCK)
            with pytest.raises(StateDamaged, match="damaged page of the map"):
                await pair.write(offset, NOISE)
            with pytest.raises(StateDamaged, match="damaged page of the map"):
                pair.write_nowait(offset + 5, b"x")
    assert lower.read_nowait(second, 2 * BLOCK) == OLD * 2
    pair.close()


async def test_damaged_page_of_the_lower_layer_keeps_the_upper_ones(tmp_path: Path) -> None:
    """Blocks that the lower layer cannot take stay readable in the upper one; merging says so."""
    size = 2 * PAGE_BLOCKS * BLOCK
    second = PAGE_BLOCKS * BLOCK
    lower = new_disk(tmp_path, size, None)
    lower.write_nowait(second + 9 * BLOCK, OLD)
    await lower.flush()
    upper = add_layer(tmp_path, "vda@1", lower)
    upper.write_nowait(0, NOISE)
    upper.write_nowait(second, NOISE + bytes(BLOCK))
    await upper.flush()
    upper.close()
    lower.close()
    with (tmp_path / "vda.map").open("r+b") as file:
        file.seek(page_offset(1) + 2000)
        file.write(b"x")
    lower = reopen(tmp_path, calls=OTHER_BOOT)
    upper = OverlayDisk.open(tmp_path, "vda@1", lower, OTHER_BOOT)
    pair = MergingDisk(upper, lower)
    with pytest.raises(StateDamaged, match=r"vda: .*damaged page of the map"):
        await pair.merge()
    assert upper.states_of(0, 1)[0] == BASE
    assert pair.read_nowait(0, BLOCK) == NOISE
    assert pair.read_nowait(second, 2 * BLOCK) == NOISE + bytes(BLOCK)
    assert pair.remaining == 2
    pair.close()


async def test_data_of_the_upper_layer_that_is_gone_is_told(tmp_path: Path) -> None:
    """A data file that was cut short is never moved as zeros."""
    pair = new_pair(tmp_path)
    os.truncate(tmp_path / "vda@1.data", 6 * BLOCK)
    with pytest.raises(StateDamaged, match=r"vda@1\.data: cut short"):
        await pair.merge()
    assert states(pair._upper)[5:7] == [DATA, DATA]
    assert states(pair._lower)[1] == DATA
    pair.close()
