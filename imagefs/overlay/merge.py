"""This module is two layers of a disk while the upper one is merged into the lower one, and the guest goes on.

Reads look at the upper layer first. Guest writes go to the lower layer and make the upper's blocks `base` again, so that the lower ones
show; a background loop does the same with what the upper layer still has. Each such step changes both layers' states without awaiting in
between: there is always one layer that a block is read from, and it is the right one.

The upper's data file is not touched: reads that looked at its states before a step find there what the block held then. So the upper layer
takes its room until it is deleted.

After a crash of the daemon both live maps are as they were. After a power loss each block shows what it did when the last flush to end
began, or something newer: the upper's durable map says `data` for a block that was flushed there, whatever lies in the lower layer, until
a flush (of the upper, see `flush`) has first made the lower layer durable. A pair that was merged in part is opened as one again.
"""

from typing import Final

import trio

from imagefs.errors import Busy, StateDamaged
from imagefs.extents import Extents
from imagefs.overlay import plan
from imagefs.overlay.block_map import BASE, BLOCK_MASK, BLOCK_SHIFT, DAMAGED, DATA, PAGE_BLOCKS, ZERO, block_count
from imagefs.overlay.disk import OverlayDisk
from imagefs.overlay.layer import Layer
from imagefs.units import BLOCK, KIB, MIB

PIECE: Final = 64 * KIB
"""Bytes that are moved without letting others run. Longer pieces make merging no faster, and a guest's request wait: 64 KiB take 70 µs, or
0.3 ms encrypted."""
FLUSH_EVERY: Final = 64 * MIB
"""Bytes that are moved before they are flushed: many more of them dirty, and the kernel would stop the event loop to get them written."""

_PIECE_BLOCKS: Final = PIECE // BLOCK


class MergingDisk(Layer):
    """The pair of an upper layer and the one below it; itself a Source, and written like an OverlayDisk.

    Invariants: what a reader sees never changes by merging; no block of the upper layer becomes `data` or `zero`; a block that is `data` in
    the upper layer has there the bytes that it had when merging began; the lower layer is written by this only, and its blocks that are not
    `base` in the upper one are shown to nobody.
    """

    def __init__(self, upper: OverlayDisk, lower: OverlayDisk) -> None:
        """Merge `upper`, whose base is `lower` or shows the same, into `lower`. Both stay the caller's, who takes the lower one over once
        `merge` has returned; until then nobody else writes to either. Does not wait.

        The upper layer is frozen by this and the lower one thawed. Raises StateDamaged if they are not layers of one disk.
        """
        super().__init__()
        if upper.size != lower.size or upper.identity != lower.identity:
            raise StateDamaged(
                f"layers of two disks cannot be merged: {upper.size} bytes of {upper.identity}, {lower.size} of {lower.identity}; "
                "the disk's record is wrong"
            )
        self._upper = upper
        self._lower = lower
        self._merging = trio.Lock()
        self._unflushed = 0
        upper.freeze()
        lower.thaw()
        upper.rebase(lower)

    # What the pair shows.

    @property
    def size(self) -> int:
        """Bytes that the guest sees."""
        return self._upper.size

    @property
    def identity(self) -> str:
        """As Layer says."""
        return self._lower.identity

    def allocated_bytes(self) -> int:
        """Return the bytes that both data files take on the host. Blocks for two stats only."""
        return self._upper.allocated_bytes() + self._lower.allocated_bytes()

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As OverlayDisk does."""
        return self._upper.read_nowait(offset, length)

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As OverlayDisk does."""
        with self._at_work():
            return await self._upper.read(offset, length)

    async def extents(self, offset: int, length: int) -> Extents:
        """As OverlayDisk does."""
        with self._at_work():
            return await self._upper.extents(offset, length)

    async def flush(self) -> None:
        """Make everything written before this call durable: first the lower layer, then that the upper one lacks what went there."""
        with self._at_work():
            await self._upper.flush()

    def check_invariants(self) -> None:
        """Raise StateDamaged, saying what is wrong, unless each layer's maps fit. Blocks; no flush may be running."""
        self._upper.check_invariants()
        self._lower.check_invariants()

    def close(self) -> None:
        """Close both layers, without flushing; no call may be running in either. Blocks."""
        self._upper.close()
        self._lower.close()

    # Writing.

    def edge_nowait(self, block: int) -> bytes | bytearray | None:
        """As Layer says."""
        if self._upper.states_of(block, block + 1)[0] == BASE:
            return self._lower.edge_nowait(block)
        return self._upper.read_nowait(block << BLOCK_SHIFT, BLOCK)

    def store(self, offset: int, body: bytes | bytearray, edges: dict[int, bytes | bytearray]) -> int:
        """Store `body` in the lower layer, whole blocks where the upper one showed, and let the lower one show. Does not wait.

        A block that is `data` in the upper layer now was when its edge was read, with the same bytes. One that is `base` in both, over an
        image, was then too: what is merged or written never becomes `base` below, unless that is zeros. Any other needs no edge.

        If it fails, each block is as it was or as asked for, but that those which are `data` in the lower layer and `base` in the upper one
        may hold a part of it.
        """
        length, stop = len(body), offset + len(body)
        first, end = offset >> BLOCK_SHIFT, (stop - 1 >> BLOCK_SHIFT) + 1
        states = self._upper.states_of(first, end)
        if DAMAGED in states:
            raise self._upper.damaged(offset, stop)
        if stop & BLOCK_MASK and stop != self.size and states[-1] != BASE:
            body = bytes(body) + self._shown(end - 1, states[-1], edges)[stop & BLOCK_MASK :]
        if offset & BLOCK_MASK and states[0] != BASE:
            body = self._shown(first, states[0], edges)[: offset & BLOCK_MASK] + bytes(body)
            offset -= offset & BLOCK_MASK
        self._lower.store(offset, body, edges)
        self._uncover(first, states)
        return length

    def _shown(self, block: int, state: int, edges: dict[int, bytes | bytearray]) -> bytes:
        """Return what a block that is `data` or `zero` in the upper layer shows; where the disk ends within it, up to there."""
        return bytes(min(BLOCK, self.size - (block << BLOCK_SHIFT))) if state == ZERO else bytes(edges[block])

    def _uncover(self, first: int, states: bytes) -> None:
        """Let the lower layer show the blocks from `first` on, which have `states` in the upper one."""
        covered = states.strip(bytes((BASE,)))
        if covered:
            start = first + states.index(covered[0])
            self._upper.forget(start, start + len(covered))

    # Merging.

    @property
    def remaining(self) -> int:
        """Blocks that the upper layer still has. Takes 10 µs for each 62.5 MiB of the disk in which it ever had any."""
        pages = self._upper.touched_pages()
        return sum(len(states) - states.count(BASE) for states in (self._page_states(page) for page in pages))

    def _page_states(self, page: int) -> bytes:
        return self._upper.states_of(page * PAGE_BLOCKS, (page + 1) * PAGE_BLOCKS)

    async def merge(self) -> None:
        """Move all blocks of the upper layer into the lower one, and flush; after that the upper one holds nothing, durably.

        Ends whatever the guest writes, which never gives the upper layer a block. Lets others run after each piece. Safe to cancel, and to
        be called again: what was moved stays so.

        Raises StateDamaged if blocks could not be moved, because the state of theirs is lost in either layer or their bytes are: all others
        have been, and both layers must be kept. Raises NoSpace and OSError with the rest left to move; Busy if another merge has begun with
        the upper layer as its lower one.
        """
        with self._at_work():
            async with self._merging:
                damage: StateDamaged | None = None
                for page in self._upper.touched_pages():
                    damage = await self._merge_page(page) or damage
                await self.flush()
        if damage is not None:
            raise StateDamaged(f"{damage}; all other blocks of the layer have been merged") from damage

    async def _merge_page(self, page: int) -> StateDamaged | None:
        """Move the blocks that one page of the map has the states of; return the error if some cannot be."""
        damage = None
        position, stop = page * PAGE_BLOCKS, min((page + 1) * PAGE_BLOCKS, block_count(self.size))
        while (run := self._next_run(position, stop)) is not None:
            state, first, position = run
            try:
                await self._move(state, first, position)
            except StateDamaged as error:
                damage = error
            if self._unflushed >= FLUSH_EVERY:
                self._unflushed = 0
                await self.flush()
            await trio.lowlevel.checkpoint()
        return damage

    def _next_run(self, position: int, stop: int) -> tuple[int, int, int] | None:
        """Return (state, first, last + 1) of the next blocks of [position, stop) to be moved at once, all in one state; None if there are none."""
        rest = self._upper.states_of(position, stop).lstrip(bytes((BASE,)))
        if not rest:
            return None
        first, state = stop - len(rest), rest[0]
        if state == DATA:
            rest = rest[:_PIECE_BLOCKS]
        return state, first, first + len(rest) - len(rest.lstrip(bytes((state,))))

    async def _move(self, state: int, first: int, end: int) -> None:
        """Move blocks [first, end), all in one state. Those that the guest has written since are left out."""
        start, stop = first << BLOCK_SHIFT, min(end << BLOCK_SHIFT, self.size)
        if state == DAMAGED:
            raise self._upper.damaged(start, stop)
        if state == ZERO:
            self._check_upper()
            self._lower.zero_span(first, end)
            self._upper.forget(first, end)
            return
        body = self._upper.read_nowait(start, stop - start)
        if body is None:
            body = await self._upper.read(start, stop - start)
        self._check_upper()
        # What is still `data` in the upper layer was all the time, and nobody writes there: those bytes are right. From here on nothing waits.
        for state_now, run_start, run_stop in plan.runs(self._upper.states_of(first, end), start, stop):
            if state_now == DATA:
                self._lower.store(run_start, body[run_start - start : run_stop - start], {})
                self._upper.forget(run_start >> BLOCK_SHIFT, (run_stop - 1 >> BLOCK_SHIFT) + 1)
                self._unflushed += run_stop - run_start

    def _check_upper(self) -> None:
        """Raise Busy if the upper layer is written again: it is the lower one of a pair that was made after this one."""
        if not self._upper.frozen:
            raise Busy(f"{self._upper.identity}: another merge writes to the layer that was being merged")
