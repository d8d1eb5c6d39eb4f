"""An overlay on a host whose calls fail: each of them, each time it is made; plain, encrypted, and while two layers are merged."""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagefs.errors import ImagefsError, NoSpace, StateDamaged
from imagefs.overlay.block_map import BASE, DATA
from imagefs.overlay.calls import Calls
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.key import NodeKey
from imagefs.overlay.merge import MergingDisk
from imagefs.units import BLOCK
from tests.support.overlay import BASE_IDENTITY, NODE_KEY, PatternBase, add_layer, new_disk, pattern

BLOCKS = 16
SIZE = BLOCKS * BLOCK
BASE_SIZE = 12 * BLOCK + 500
OLD = bytes(range(1, 129)) * 32
NEW = OLD[::-1]
HOST = Calls(fdatasync=lambda fd: None)
"""A host whose power stays on: what nobody loses need not be synced, a thousand times."""
OTHER_BOOT = dataclasses.replace(HOST, boot_id=lambda: bytes(16))

KINDS = ["pwrite", "preadv", "fdatasync", "punch_hole", "ftruncate"]
FAULTS = ["EIO", "ENOSPC", "short", "short then ENOSPC"]


class FaultyCalls:
    """The host's calls, of which the `nth` of one `kind` goes wrong; `hit` tells whether it came to that."""

    def __init__(self, kind: str, fault: str, nth: int) -> None:
        self.kind = kind
        self.fault = fault
        self.left = nth
        self.hit = False

    def calls(self) -> Calls:
        return dataclasses.replace(HOST, **{self.kind: self._call})

    def _call(self, *arguments: Any) -> Any:
        self.left -= 1
        call = getattr(HOST, self.kind)
        if self.left == -1 and self.fault == "short then ENOSPC":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.left:
            return call(*arguments)
        self.hit = True
        if self.fault.startswith("short"):
            return call(*self._half(arguments))
        number = getattr(errno, self.fault)
        raise OSError(number, os.strerror(number))

    def _half(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        fd, body, *rest = arguments
        if self.kind == "preadv":
            return fd, [memoryview(body[0])[: len(body[0]) // 2]], *rest
        return fd, bytes(body)[: (len(body) + 1) // 2], *rest


class Story:
    """A disk, and for each block what it held and what else it may hold since a write to it failed."""

    def __init__(self, directory: Path, node_key: NodeKey | None, merging: bool) -> None:
        self.directory = directory
        self.node_key = node_key
        self.merging = merging
        self.blocks = [pattern(block * BLOCK, max(0, min(BLOCK, BASE_SIZE - block * BLOCK))).ljust(BLOCK, b"\0") for block in range(BLOCKS)]
        self.failed: dict[int, list[bytes]] = {}
        self.torn: set[int] = set()
        self.errors: list[BaseException] = []

    def open(self, calls: Calls) -> OverlayDisk | MergingDisk:
        with contextlib.ExitStack() as on_failure:
            lower = OverlayDisk.open(self.directory, "vda", PatternBase(BASE_SIZE), calls, node_key=self.node_key)
            on_failure.callback(lower.close)
            disk = MergingDisk(OverlayDisk.open(self.directory, "vda@1", lower, calls, node_key=self.node_key), lower) if self.merging else lower
            on_failure.pop_all()
        return disk

    @staticmethod
    def may_tear(disk: OverlayDisk | MergingDisk, block: int) -> bool:
        """Tell whether a write to the block goes to bytes that are shown now."""
        if isinstance(disk, MergingDisk):
            return disk._upper.states_of(block, block + 1)[0] == BASE and disk._lower.states_of(block, block + 1)[0] == DATA
        return disk.states_of(block, block + 1)[0] == DATA

    async def change(self, disk: OverlayDisk | MergingDisk, offset: int, body: bytes, work: Callable[[], Awaitable[object]]) -> None:
        """Do `work`, which puts `body` at `offset`; note what each block may hold if it fails."""
        touched = range(offset // BLOCK, -(-(offset + len(body)) // BLOCK))
        whole = b"".join(self.blocks)
        whole = whole[:offset] + body + whole[offset + len(body) :]
        after = {block: whole[block * BLOCK : (block + 1) * BLOCK] for block in touched}
        had_data = {block for block in touched if self.may_tear(disk, block)}
        try:
            await work()
        except (OSError, NoSpace) as error:
            self.errors.append(error)
            for block in touched:
                self.failed.setdefault(block, []).append(after[block])
            self.torn |= had_data
        else:
            for block in touched:
                if block in self.failed and after[block] != body[max(0, block * BLOCK - offset) :][:BLOCK]:
                    self.failed[block] = [self.merge(block, old, offset, body) for old in [self.blocks[block], *self.failed[block]]]
                else:
                    self.failed.pop(block, None)
                    self.torn.discard(block)
                self.blocks[block] = after[block]

    @staticmethod
    def merge(block: int, old: bytes, offset: int, body: bytes) -> bytes:
        start = max(0, offset - block * BLOCK)
        piece = body[max(0, block * BLOCK - offset) :][: BLOCK - start]
        return old[:start] + piece + old[start + len(piece) :]

    async def check(self, disk: OverlayDisk | MergingDisk) -> None:
        """Each block holds what it must or, where a write failed, what it may."""
        for block, expected in enumerate(self.blocks):
            found = bytes(await disk.read(block * BLOCK, BLOCK))
            allowed = [expected, *self.failed.get(block, [])]
            if block in self.torn:
                assert all(byte in {body[index] for body in allowed} for index, byte in enumerate(found)), f"block {block}"
            else:
                assert found in allowed, f"block {block}"


async def happen(story: Story, disk: OverlayDisk | MergingDisk) -> None:
    """Do everything that a disk can do, once."""

    async def write(offset: int, body: bytes) -> None:
        await story.change(disk, offset, body, lambda: disk.write(offset, body))

    async def attempt(work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except (OSError, NoSpace) as error:
            story.errors.append(error)

    await write(0, NEW)  # over data
    await write(2 * BLOCK, NEW)  # over base
    await write(4 * BLOCK, NEW + bytes(BLOCK) + NEW)  # over base, zeros within
    await write(8 * BLOCK - 100, b"x" * 200)  # parts of two blocks of the base
    await write(100, b"y" * 50)  # a part of data
    await write(9 * BLOCK + 5, NEW)  # parts of a zero block and of the base
    await attempt(disk.flush)
    await attempt(lambda: disk.read(0, SIZE))
    if isinstance(disk, MergingDisk):
        await attempt(disk.merge)
    else:
        await story.change(disk, 0, bytes(3 * BLOCK), lambda: disk.write_zeroes(0, 3 * BLOCK))
    await write(BLOCK, OLD)  # over zero
    await write(12 * BLOCK, NEW * 2)
    await attempt(disk.flush)
    if isinstance(disk, MergingDisk):
        await attempt(disk.merge)  # again, after one that failed


async def prepare(directory: Path, node_key: NodeKey | None, merging: bool) -> Story:
    """Make a disk with data in blocks 0 and 1 and zeros in block 9, flushed; if it is to be merged, more of both in a layer above."""
    story = Story(directory, node_key, merging)
    disk = new_disk(directory, SIZE, PatternBase(BASE_SIZE), HOST, node_key=node_key)
    await story.change(disk, 0, OLD * 2, lambda: disk.write(0, OLD * 2))
    await story.change(disk, 9 * BLOCK, bytes(BLOCK), lambda: disk.write(9 * BLOCK, bytes(BLOCK)))
    if merging:
        await story.change(disk, 10 * BLOCK, OLD * 2, partial(disk.write, 10 * BLOCK, OLD * 2))
        upper = add_layer(directory, "vda@1", disk, HOST, node_key=node_key)
        for offset, body in ((BLOCK, NEW), (4 * BLOCK, OLD * 2), (10 * BLOCK, bytes(2 * BLOCK)), (14 * BLOCK, OLD * 2)):
            await story.change(upper, offset, body, partial(upper.write, offset, body))
        await upper.flush()
        upper.close()
    await disk.flush()
    disk.close()
    return story


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("merging", [False, True], ids=["single", "merging"])
async def test_failing_call_leaves_blocks_old_or_new(tmp_path: Path, kind: str, fault: str, node_key: NodeKey | None, merging: bool) -> None:
    """Whichever call fails, nobody but its caller is hurt: other blocks stay, the maps fit, and after a restart all is the same and writable."""
    if fault.startswith("short") and kind not in {"pwrite", "preadv"}:
        fault = "EIO"
    for nth in range(1, 200):
        directory = tmp_path / str(nth)
        directory.mkdir()
        story = await prepare(directory, node_key, merging)
        faulty = FaultyCalls(kind, fault, nth)
        try:
            disk = story.open(faulty.calls())
        except (OSError, ImagefsError):
            assert faulty.hit
            disk = story.open(HOST)
        else:
            await happen(story, disk)
            faulty.left = 1 << 30
            await story.check(disk)
            disk.check_invariants()
        disk.close()
        disk = story.open(HOST)
        await story.check(disk)
        await disk.flush()
        disk.check_invariants()
        disk.close()
        disk = story.open(OTHER_BOOT)
        await story.check(disk)
        if isinstance(disk, MergingDisk):
            await disk.merge()
            assert disk.remaining == 0
            await story.check(disk)
        assert await disk.write(0, NEW * BLOCKS) == SIZE
        assert await disk.read(0, SIZE) == NEW * BLOCKS
        disk.close()
        if not faulty.hit:
            assert not story.errors
            assert nth > (0 if kind == "ftruncate" else 1)
            return
    pytest.fail("the story never ends")


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", ["pwrite", "fdatasync", "ftruncate"])
@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
def test_creation_that_fails_leaves_nothing(tmp_path: Path, kind: str, fault: str, node_key: NodeKey | None) -> None:
    """Whichever call fails while a disk is made, no file is left and making it again works."""
    for nth in range(1, 20):
        faulty = FaultyCalls(kind, fault, nth)
        try:
            OverlayDisk.create(tmp_path, "vda", SIZE, BASE_IDENTITY, faulty.calls(), node_key=node_key)
        except (OSError, NoSpace):
            assert not list(tmp_path.iterdir())
            continue
        assert not faulty.hit
        assert nth > 1
        OverlayDisk.delete(tmp_path, "vda")
        return
    pytest.fail("creation never succeeds")


@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
async def test_full_host_is_no_space(tmp_path: Path, node_key: NodeKey | None) -> None:
    """ENOSPC and EDQUOT of the host are NoSpace, with the disk and the remedy in the message."""
    for fault in ("ENOSPC", "EDQUOT"):
        faulty = FaultyCalls("pwrite", fault, 1 << 30)
        disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE), faulty.calls(), node_key=node_key)
        faulty.left = 1
        with pytest.raises(NoSpace, match=r"vda: cannot write at offset 0: .* is full; free space"):
            disk.write_nowait(0, NEW)
        assert disk.read_nowait(0, BLOCK) == pattern(0, BLOCK)
        disk.close()
        OverlayDisk.delete(tmp_path, "vda")


async def test_mark_that_fails_leaves_the_block_as_it_was(tmp_path: Path) -> None:
    """If the live map has no room, the write fails and the block still shows its base, although its bytes were written."""
    for nth in (2, 3):  # the flag, then the state; the first write is the data
        faulty = FaultyCalls("pwrite", "ENOSPC", 1 << 30)
        disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE), faulty.calls())
        faulty.left = nth
        with pytest.raises(NoSpace):
            disk.write_nowait(0, NEW)
        assert disk.read_nowait(0, BLOCK) == pattern(0, BLOCK)
        assert disk.write_nowait(10, b"x") == 1
        assert disk.read_nowait(0, BLOCK) == pattern(0, 10) + b"x" + pattern(11, BLOCK - 11)
        await disk.flush()
        disk.check_invariants()
        disk.close()
        OverlayDisk.delete(tmp_path, "vda")


async def test_a_map_that_cannot_be_read_is_an_error_of_its_disk(tmp_path: Path) -> None:
    """EIO of the live map's pages fails reads, writes and flushes, and changes nothing; short answers are read on; a cut file is damage."""
    answers = ["whole"]

    def pread(fd: int, length: int, offset: int) -> bytes:
        match answers[-1]:
            case "error":
                raise OSError(errno.EIO, "bad sector")
            case "short":
                return os.pread(fd, min(length, 1), offset)
            case "cut":
                return b""
        return os.pread(fd, length, offset)

    disk = new_disk(tmp_path, SIZE, PatternBase(BASE_SIZE), Calls(pread=pread))
    disk.write_nowait(0, NEW)
    answers.append("error")
    for operation in (lambda: disk.read_nowait(0, BLOCK), lambda: disk.read_nowait(0, 3 * BLOCK), lambda: disk.write_nowait(0, b"x" * BLOCK)):
        with pytest.raises(OSError, match="bad sector"):
            operation()
    with pytest.raises(OSError, match="bad sector"):
        await disk.flush()
    answers.append("short")
    assert disk.read_nowait(0, 3 * BLOCK) == NEW + pattern(len(NEW), 3 * BLOCK - len(NEW))
    answers.append("cut")
    with pytest.raises(StateDamaged, match="cut short"):
        disk.read_nowait(0, BLOCK)
    answers.append("whole")
    assert disk.read_nowait(0, BLOCK) == NEW[:BLOCK]
    await disk.flush()
    disk.check_invariants()
    disk.close()


@pytest.mark.parametrize("node_key", [None, NODE_KEY], ids=["plain", "encrypted"])
async def test_merge_into_a_full_host_goes_on_once_there_is_room(tmp_path: Path, node_key: NodeKey | None) -> None:
    """A merge that finds no room raises NoSpace with nothing lost, whichever of its writes it was, and the next one ends it."""
    for nth in range(1, 50):
        directory = tmp_path / str(nth)
        directory.mkdir()
        faulty = FaultyCalls("pwrite", "ENOSPC", 1 << 30)
        lower = new_disk(directory, SIZE, None, faulty.calls(), node_key=node_key)
        upper = add_layer(directory, "vda@1", lower, faulty.calls(), node_key=node_key)
        upper.write_nowait(0, NEW * 4)
        pair = MergingDisk(upper, lower)
        faulty.left = nth
        with contextlib.suppress(NoSpace):  # a flag that cannot be taken back is no error
            await pair.merge()
        hit, faulty.left = faulty.hit, 1 << 30
        assert pair.read_nowait(0, 4 * BLOCK) == NEW * 4
        await pair.merge()
        assert pair.remaining == 0
        assert lower.read_nowait(0, 4 * BLOCK) == NEW * 4
        pair.check_invariants()
        pair.close()
        if not hit:
            assert nth > 4  # data, flag and states below, states above
            return
    pytest.fail("the merge never ends")
