"""One disk: what reads and writes do, what they ask of the base, and what opening refuses."""

import errno
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
import trio

from imagefs.errors import AlreadyExists, InvalidInput, NoSpace, NotPermitted, StateDamaged, WrongBytes
from imagefs.overlay.block_map import DAMAGED, LiveHeader, block_count, decode_live_header, encode_live_header, page_offset
from imagefs.overlay.calls import Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.units import BLOCK, GIB, KIB, MIB, TIB
from tests.support.overlay import PatternBase, new_disk, pattern

SIZE = 2 * MIB
BASE_SIZE = MIB + 1000
NOISE = bytes(range(1, 129)) * 32
OTHER_BOOT = Calls(boot_id=lambda: bytes(16))


def reopen(directory: Path, base: PatternBase | None, calls: Calls | None = None) -> OverlayDisk:
    return OverlayDisk.open(directory, "vda", base, calls or Calls())


# The base.


async def test_fresh_disk_shows_its_base_and_zeros_behind(tmp_path: Path) -> None:
    """Unwritten blocks are the base's bytes; what the disk has more than the base is zeros."""
    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    assert await disk.read(0, SIZE) == pattern(0, BASE_SIZE) + bytes(SIZE - BASE_SIZE)
    assert disk.read_nowait(BASE_SIZE - 10, 20) == pattern(BASE_SIZE - 10, 10) + bytes(10)
    assert disk.read_nowait(BASE_SIZE + 5000, 7) == bytes(7)
    disk.close()


async def test_whole_blocks_never_ask_the_base(tmp_path: Path) -> None:
    """Writing whole blocks, reading them, flushing and opening the disk make no call to the base."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)
    assert disk.write_nowait(8 * BLOCK, NOISE) == BLOCK
    assert await disk.write(9 * BLOCK, NOISE * 30 + bytes(2 * BLOCK)) == 32 * BLOCK
    assert disk.read_nowait(8 * BLOCK, 33 * BLOCK) == NOISE * 31 + bytes(2 * BLOCK)
    await disk.write_zeroes(0, 4 * BLOCK)
    await disk.discard(10 * BLOCK, BLOCK)
    await disk.flush()
    disk.close()
    disk = reopen(tmp_path, base, OTHER_BOOT)
    assert disk.read_nowait(8 * BLOCK, 2 * BLOCK) == NOISE * 2
    assert base.calls == 0
    disk.close()


async def test_last_short_block_written_to_the_end_does_not_ask_the_base(tmp_path: Path) -> None:
    """Where the disk ends within a block, writing up to the end covers the block."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, BLOCK + 100, base)
    assert disk.write_nowait(BLOCK, NOISE[:100]) == 100
    assert disk.read_nowait(BLOCK, BLOCK) == NOISE[:100]
    assert base.calls == 0
    disk.close()


async def test_part_of_a_block_keeps_the_rest_of_the_base(tmp_path: Path) -> None:
    """A write across two blocks keeps what the base shows before and behind it."""
    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    assert disk.write_nowait(BLOCK - 10, b"x" * 30) == 30
    assert disk.read_nowait(0, 2 * BLOCK) == pattern(0, BLOCK - 10) + b"x" * 30 + pattern(BLOCK + 20, BLOCK - 20)
    disk.close()


async def test_part_of_a_block_waits_for_a_slow_base(tmp_path: Path) -> None:
    """write_nowait changes nothing if the base has to be waited for; write fetches one block and merges."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)
    assert disk.write_nowait(5, b"x") is None
    assert disk.read_nowait(0, BLOCK) is None
    assert await disk.write(5, b"x") == 1
    assert disk.read_nowait(0, BLOCK) == pattern(0, 5) + b"x" + pattern(6, BLOCK - 6)
    disk.close()


async def test_block_written_while_its_base_is_fetched_keeps_both_writes(tmp_path: Path) -> None:
    """A write that waits for the base looks at the block again: what was written there meanwhile stays."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)
    base.on_read = lambda: disk.write_nowait(0, NOISE)
    assert await disk.write(5, b"x") == 1
    assert disk.read_nowait(0, BLOCK) == NOISE[:5] + b"x" + NOISE[6:]
    disk.close()


async def test_block_zeroed_while_its_base_is_fetched_stays_zero_around_the_write(tmp_path: Path) -> None:
    """A write that waits for the base does not bring it back under zeros."""
    base = PatternBase(BASE_SIZE, slow=True)
    disk = new_disk(tmp_path, SIZE, base)
    base.on_read = lambda: disk.write_nowait(0, bytes(BLOCK))
    await disk.write(5, b"x")
    assert disk.read_nowait(0, BLOCK) == bytes(5) + b"x" + bytes(BLOCK - 6)
    disk.close()


async def test_mixed_range_waits_only_for_the_base(tmp_path: Path) -> None:
    """A read over all three states gives None while the base is slow, and the same bytes with and without waiting otherwise."""
    base = PatternBase(BASE_SIZE)
    disk = new_disk(tmp_path, SIZE, base)
    disk.write_nowait(BLOCK, NOISE)
    disk.write_nowait(2 * BLOCK, bytes(BLOCK))
    expected = (pattern(0, BLOCK) + NOISE + bytes(BLOCK) + pattern(3 * BLOCK, BLOCK))[100:-100]
    assert disk.read_nowait(100, 4 * BLOCK - 200) == expected
    base.slow = True
    assert disk.read_nowait(100, 4 * BLOCK - 200) is None
    assert await disk.read(100, 4 * BLOCK - 200) == expected
    disk.close()


async def test_base_that_is_short_of_bytes_is_not_filled_up(tmp_path: Path) -> None:
    """Zeros stand only for what is behind the base's end, never for bytes that it failed to give."""

    class ShortBase(PatternBase):
        def read_nowait(self, offset: int, length: int) -> bytes | None:
            return (super().read_nowait(offset, length) or b"")[:-1]

    disk = new_disk(tmp_path, SIZE, ShortBase(BASE_SIZE))
    with pytest.raises(WrongBytes, match="the base gave 99 bytes of 100"):
        disk.read_nowait(0, 100)
    disk.close()


# The ends of the disk.


async def test_reads_are_cut_at_the_end(tmp_path: Path) -> None:
    """At and past the end there is nothing."""
    disk = new_disk(tmp_path, 5000, None)
    assert disk.write_nowait(4090, b"x" * 910) == 910
    assert disk.read_nowait(4999, 10) == b"x"
    assert disk.read_nowait(5000, 10) == b""
    assert await disk.read(9000, 10) == b""
    assert disk.read_nowait(0, 0) == b""
    disk.close()


@pytest.mark.parametrize("offset", [4999, 5000, 1 << 50])
async def test_writes_across_the_end_change_nothing(tmp_path: Path, offset: int) -> None:
    """A write that crosses the end fails as a whole."""
    disk = new_disk(tmp_path, 5000, None)
    with pytest.raises(NoSpace, match="end of the disk at 5000"):
        disk.write_nowait(offset, b"xx")
    with pytest.raises(NoSpace, match="end of the disk at 5000"):
        await disk.write(offset, b"xx")
    with pytest.raises(NoSpace, match="end of the disk at 5000"):
        await disk.write_zeroes(offset, 2)
    assert disk.read_nowait(0, 5000) == bytes(5000)
    assert disk.write_nowait(0, b"") == 0
    disk.close()


# Zeros.


async def test_whole_blocks_of_zeros_are_not_stored(tmp_path: Path) -> None:
    """Zeros over unwritten blocks take no room, and hide the base."""
    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    disk.write_nowait(0, bytes(MIB))
    assert disk.read_nowait(0, MIB) == bytes(MIB)
    assert disk.allocated_bytes() == 0
    disk.close()


async def test_zeros_on_an_empty_disk_leave_it_as_it_is(tmp_path: Path) -> None:
    """Without a base unwritten blocks are zeros already: nothing is marked, nothing will be flushed."""
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, bytes(MIB))
    await disk.write_zeroes(0, SIZE)
    await disk.discard(0, SIZE)
    assert not disk._live.behind()
    disk.close()


@pytest.mark.parametrize("verb", ["write_zeroes", "discard"])
async def test_zeroed_blocks_give_their_room_back(tmp_path: Path, verb: str) -> None:
    """Zeroing and discarding whole blocks frees them on the host; the neighbours stay."""
    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    disk.write_nowait(0, NOISE * 256)
    await disk.flush()
    assert disk.allocated_bytes() >= MIB
    await getattr(disk, verb)(64 * KIB, MIB - 128 * KIB)
    assert disk.allocated_bytes() <= 192 * KIB
    assert await disk.read(0, MIB) == NOISE * 16 + bytes(MIB - 128 * KIB) + NOISE * 16
    disk.close()


async def test_zeroing_parts_of_blocks(tmp_path: Path) -> None:
    """write_zeroes is exact to the byte; discard leaves blocks alone that it covers in part, and what is past the end."""
    disk = new_disk(tmp_path, 5 * BLOCK + 100, PatternBase(BASE_SIZE))
    before = pattern(0, 5 * BLOCK + 100)
    await disk.discard(10, BLOCK)
    await disk.discard(6 * BLOCK, MIB)
    assert disk.read_nowait(0, SIZE) == before
    await disk.write_zeroes(10, 2 * BLOCK)
    assert disk.read_nowait(0, SIZE) == before[:10] + bytes(2 * BLOCK) + before[10 + 2 * BLOCK :]
    await disk.discard(4 * BLOCK, MIB)
    assert disk.read_nowait(4 * BLOCK, SIZE) == bytes(BLOCK + 100)
    disk.close()


async def test_filesystem_without_holes_keeps_the_room(tmp_path: Path) -> None:
    """Where the host cannot punch, zeroed blocks are zeros all the same, also around a later write."""

    def no_holes(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes")

    disk = new_disk(tmp_path, SIZE, None, Calls(punch_hole=no_holes))
    disk.write_nowait(0, NOISE)
    await disk.discard(0, BLOCK)
    assert disk.read_nowait(0, BLOCK) == bytes(BLOCK)
    disk.write_nowait(5, b"x")
    assert disk.read_nowait(0, BLOCK) == bytes(5) + b"x" + bytes(BLOCK - 6)
    disk.close()


# The host's page cache.


async def test_data_that_is_not_in_memory_is_read_in_a_thread(tmp_path: Path) -> None:
    """EAGAIN, or a part only, means None without waiting, and the bytes with waiting; a part of a block is written after such a read."""
    answers: list[int | Exception] = []

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        answers.append(os.preadv(fd, buffers, offset, flags))  # type: ignore[arg-type]  # whatever the disk passes
        return answers[-1]  # type: ignore[return-value]  # an int, as just appended

    disk = new_disk(tmp_path, SIZE, None, Calls(preadv=preadv))
    disk.write_nowait(0, NOISE)
    answers.clear()
    assert disk.read_nowait(0, BLOCK) is None
    assert disk.read_nowait(0, 2 * BLOCK) is None
    assert disk.write_nowait(5, b"x") is None
    assert answers == []
    assert await disk.read(0, 2 * BLOCK) == NOISE + bytes(BLOCK)
    assert await disk.write(5, b"x") == 1
    assert await disk.read(0, BLOCK) == NOISE[:5] + b"x" + NOISE[6:]
    disk.close()


async def test_filesystem_without_nowait_is_read_plainly(tmp_path: Path) -> None:
    """Where the host does not know RWF_NOWAIT the disk asks once, and reads without it from then on."""
    refused = []

    def preadv(fd: int, buffers: object, offset: int, flags: int) -> int:
        if flags:
            refused.append(flags)
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        return os.preadv(fd, buffers, offset, flags)  # type: ignore[arg-type]  # whatever the disk passes

    disk = new_disk(tmp_path, SIZE, None, Calls(preadv=preadv))
    disk.write_nowait(0, NOISE)
    assert disk.read_nowait(0, BLOCK) == NOISE
    assert disk.read_nowait(1, 2 * BLOCK) == NOISE[1:] + bytes(BLOCK + 1)
    assert len(refused) == 1
    disk.close()


async def test_data_file_that_shrank_under_an_open_disk_is_damage(tmp_path: Path) -> None:
    """Bytes that the map promises and the data file has not are never made up."""
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(BLOCK, NOISE)
    os.truncate(tmp_path / "vda.data", BLOCK)
    assert disk.read_nowait(BLOCK, BLOCK) is None
    with pytest.raises(StateDamaged, match=r"vda\.data: cut short"):
        await disk.read(BLOCK, BLOCK)
    with pytest.raises(StateDamaged, match=r"vda\.data: cut short"):
        disk.check_invariants()
    disk.close()


# Making, opening, removing.


def test_huge_disk_takes_no_room(tmp_path: Path) -> None:
    """A disk of 16 TiB (less one block: ext4 has no larger files) takes less than 1 MiB made, opened and written at its ends."""
    size = 16 * TIB - BLOCK
    disk = new_disk(tmp_path, size, None)
    disk.write_nowait(0, NOISE)
    disk.write_nowait(size - BLOCK, NOISE)
    trio.run(disk.flush)
    disk.close()
    disk = reopen(tmp_path, None, OTHER_BOOT)
    assert disk.read_nowait(size - BLOCK, MIB) == NOISE
    disk.check_invariants()
    disk.close()
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < MIB


def test_disk_is_made_once(tmp_path: Path) -> None:
    """A second disk of the name is refused and leaves the first alone."""
    new_disk(tmp_path, SIZE, None).close()
    with pytest.raises(AlreadyExists, match="vda"):
        OverlayDisk.create(tmp_path, "vda", SIZE, "")
    reopen(tmp_path, None).close()


@pytest.mark.parametrize("size", [0, -4096, 1 << 60])
def test_impossible_disk_leaves_no_file(tmp_path: Path, size: int) -> None:
    """A size that no disk has is refused, and no file is left."""
    with pytest.raises(InvalidInput):
        OverlayDisk.create(tmp_path, "vda", size, "")
    assert not list(tmp_path.iterdir())


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    """Guests' bytes are nobody else's."""
    new_disk(tmp_path, SIZE, None).close()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"vda.data": 0o600, "vda.map": 0o600, "vda.live": 0o600}


def test_delete_leaves_nothing(tmp_path: Path) -> None:
    """All files of the disk go, those of another stay; deleting again is no error."""
    new_disk(tmp_path, SIZE, None).close()
    OverlayDisk.create(tmp_path, "vdb", SIZE, "")
    OverlayDisk.delete(tmp_path, "vda")
    OverlayDisk.delete(tmp_path, "vda")
    assert {path.name for path in tmp_path.iterdir()} == {"vdb.map", "vdb.data"}


@pytest.mark.parametrize("suffix", [".data", ".map"])
@pytest.mark.parametrize("cut", [None, 0, 4096])
def test_missing_or_cut_file_is_damage(tmp_path: Path, suffix: str, cut: int | None) -> None:
    """A disk whose data file or map is gone or too short is not opened."""
    new_disk(tmp_path, SIZE, None).close()
    if cut is None:
        (tmp_path / f"vda{suffix}").unlink()
    else:
        os.truncate(tmp_path / f"vda{suffix}", cut)
    with pytest.raises(StateDamaged, match=f"vda\\{suffix}"):
        reopen(tmp_path, None)


@pytest.mark.parametrize("over_image", [True, False])
def test_base_must_be_given_as_made(tmp_path: Path, over_image: bool) -> None:
    """A disk over an image does not open without it, nor an empty one with a base: either would show wrong bytes."""
    base = PatternBase(BASE_SIZE)
    new_disk(tmp_path, SIZE, base if over_image else None).close()
    with pytest.raises(StateDamaged, match="without a base" if over_image else "with a base"):
        reopen(tmp_path, None if over_image else base)


def test_damaged_disk_leaks_no_descriptor(tmp_path: Path) -> None:
    """A failed open closes what it had opened."""
    new_disk(tmp_path, SIZE, None).close()
    (tmp_path / "vda.live").write_bytes(encode_live_header(LiveHeader(SIZE, uuid.uuid4(), Calls().boot_id())))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StateDamaged):
        reopen(tmp_path, None)
    with pytest.raises(StateDamaged):
        reopen(tmp_path, PatternBase(1))
    assert len(os.listdir("/proc/self/fd")) == before


# The live map.


def written_disk(directory: Path) -> None:
    """Make a disk with one block flushed and one not."""
    disk = new_disk(directory, SIZE, PatternBase(BASE_SIZE))
    disk.write_nowait(0, NOISE)
    trio.run(disk.flush)
    disk.write_nowait(BLOCK, NOISE)
    disk.close()


def test_same_boot_trusts_the_live_map(tmp_path: Path) -> None:
    """After a crash of the daemon nothing is missing, and what the durable map lacks is still to be told."""
    written_disk(tmp_path)
    disk = reopen(tmp_path, PatternBase(BASE_SIZE))
    assert disk.read_nowait(0, 2 * BLOCK) == NOISE * 2
    assert disk._live.behind() == [0]
    trio.run(disk.flush)
    assert disk._live.behind() == []
    disk.close()
    disk = reopen(tmp_path, PatternBase(BASE_SIZE), OTHER_BOOT)
    assert disk.read_nowait(0, 2 * BLOCK) == NOISE * 2
    disk.close()


@pytest.mark.parametrize("how", ["other boot", "missing", "empty", "torn header"])
def test_other_live_maps_are_made_anew(tmp_path: Path, how: str) -> None:
    """A live map of another boot, or none, or a torn one, is replaced by what the durable map says."""
    written_disk(tmp_path)
    live = tmp_path / "vda.live"
    if how == "missing":
        live.unlink()
    elif how == "empty":
        os.truncate(live, 0)
    elif how == "torn header":
        with live.open("r+b") as file:
            file.write(bytes(30))
    (tmp_path / "vda.live.new").write_bytes(b"left over" * 10000)
    disk = reopen(tmp_path, PatternBase(BASE_SIZE), OTHER_BOOT if how == "other boot" else None)
    assert disk.read_nowait(0, 2 * BLOCK) == NOISE + pattern(BLOCK, BLOCK)
    disk.check_invariants()
    disk.close()
    assert not (tmp_path / "vda.live.new").exists()


@pytest.mark.parametrize("change", [{"disk_uuid": uuid.UUID(int=1)}, {"size": SIZE - 1}])
def test_live_map_of_another_disk_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    """A live map of this boot that is of another disk, or has no room for the disk, is never believed."""
    written_disk(tmp_path)
    with (tmp_path / "vda.live").open("r+b") as file:
        header = decode_live_header(file.read(4096), "vda.live")
        file.seek(0)
        file.write(encode_live_header(header._replace(**change)))
    with pytest.raises(StateDamaged, match="mixed"):
        reopen(tmp_path, PatternBase(BASE_SIZE))


# The durable map.


async def test_damaged_map_page_takes_its_blocks_only(tmp_path: Path) -> None:
    """Blocks of a page that fails its checksum can be neither read nor written; other pages' can; nothing is guessed."""
    size = GIB
    disk = new_disk(tmp_path, size, None)
    second = 16000 * BLOCK
    disk.write_nowait(second - BLOCK, NOISE * 2)
    await disk.flush()
    disk.close()
    with (tmp_path / "vda.map").open("r+b") as file:
        file.seek(page_offset(1) + 2000)
        file.write(b"x")
    disk = reopen(tmp_path, None, OTHER_BOOT)
    assert disk.read_nowait(second - BLOCK, BLOCK) == NOISE
    assert disk.write_nowait(0, NOISE) == BLOCK
    assert disk._state(16000) == DAMAGED
    last = 2 * second - BLOCK
    for offset in (second, second + 10 * BLOCK, last):
        with pytest.raises(StateDamaged, match="damaged page of the map"):
            disk.read_nowait(offset, 100)
        with pytest.raises(StateDamaged, match="damaged page of the map"):
            await disk.read(offset, BLOCK)
        with pytest.raises(StateDamaged, match="damaged page of the map"):
            disk.write_nowait(offset, NOISE)
        with pytest.raises(StateDamaged, match="damaged page of the map"):
            await disk.write(offset + 1, b"x")
        with pytest.raises(StateDamaged, match="damaged page of the map"):
            await disk.discard(offset, BLOCK)
    with pytest.raises(StateDamaged, match="damaged page of the map"):
        disk.read_nowait(second - BLOCK, 2 * BLOCK)
    with pytest.raises(StateDamaged, match="page 1 of the durable map is damaged"):
        disk.check_invariants()
    assert disk.read_nowait(2 * second, BLOCK) == bytes(BLOCK)
    await disk.flush()
    disk.close()
    disk = reopen(tmp_path, None)
    with pytest.raises(StateDamaged, match="damaged page of the map"):
        disk.read_nowait(second, BLOCK)
    disk.close()


async def test_check_sees_maps_that_differ(tmp_path: Path) -> None:
    """A durable map that says other than the live map, without a flush to come, is found; so are states that there are not."""
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, NOISE)
    disk.check_invariants()
    disk._live.take([0])
    with pytest.raises(StateDamaged, match="no flush would tell it"):
        disk.check_invariants()
    disk._live.put_back([0])
    disk.check_invariants()
    disk._live.mark(3, b"\7")
    with pytest.raises(StateDamaged, match="states in page 0 that there are not"):
        disk.check_invariants()
    disk.close()


# Growing.


async def test_disk_grows_and_keeps_its_bytes(tmp_path: Path) -> None:
    """The new bytes are zeros, the old ones stay, and both survive a power loss."""
    disk = new_disk(tmp_path, 5000, None)
    disk.write_nowait(0, b"x" * 5000)
    await disk.grow(GIB)
    assert disk.size == GIB
    assert disk.read_nowait(0, 2 * BLOCK) == b"x" * 5000 + bytes(2 * BLOCK - 5000)
    disk.write_nowait(GIB - BLOCK, NOISE)
    await disk.flush()
    disk.check_invariants()
    disk.close()
    disk = reopen(tmp_path, None, OTHER_BOOT)
    assert disk.size == GIB
    assert disk.read_nowait(0, 5000) == b"x" * 5000
    assert disk.read_nowait(GIB - BLOCK, BLOCK) == NOISE
    disk.close()


async def test_disk_does_not_shrink_nor_grow_over_an_image(tmp_path: Path) -> None:
    """Both are refused and change nothing."""
    disk = new_disk(tmp_path, SIZE, None)
    with pytest.raises(InvalidInput, match="cannot shrink"):
        await disk.grow(SIZE - 1)
    disk.close()
    OverlayDisk.delete(tmp_path, "vda")
    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE))
    with pytest.raises(NotPermitted, match="fixed size"):
        await disk.grow(2 * SIZE)
    assert disk.size == SIZE
    disk.close()


async def test_two_grows_at_once_leave_the_larger_size(tmp_path: Path) -> None:
    """The second waits for the first, and does not shrink the disk."""
    disk = new_disk(tmp_path, SIZE, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.grow, GIB)
        nursery.start_soon(disk.grow, GIB)
    with pytest.raises(InvalidInput, match="cannot shrink"):
        await disk.grow(GIB - 1)
    assert disk.size == GIB
    disk.close()


async def test_grow_after_a_failed_larger_one(tmp_path: Path) -> None:
    """What a failed grow left behind is no obstacle for a smaller one."""
    disk = new_disk(tmp_path, SIZE, None)
    with pytest.raises(InvalidInput):
        await disk.grow(100 * TIB)
    await disk.grow(GIB)
    disk.write_nowait(GIB - BLOCK, NOISE)
    await disk.flush()
    disk.check_invariants()
    disk.close()


async def test_grow_that_is_cut_short_leaves_a_disk_that_opens(tmp_path: Path) -> None:
    """A crash between the live map's growth and the durable map's leaves the old size."""
    disk = new_disk(tmp_path, SIZE, None)
    disk.write_nowait(0, NOISE)
    disk._live.grow(GIB)
    disk.close()
    disk = reopen(tmp_path, None)
    assert disk.size == SIZE
    assert len(disk._states(0, block_count(GIB))) == block_count(SIZE)
    assert disk.read_nowait(0, BLOCK) == NOISE
    disk.check_invariants()
    disk.close()
