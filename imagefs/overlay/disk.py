"""This module is an instance's writable disk: what was written over what its base shows.

Where the bytes and the states lie: `files`. A write is in the data file first and is acknowledged once it is marked in the live map; a flush
tells the durable map, after the data is durable (`flush`).

Reads and writes run on the event loop without waiting where they can (`read_nowait`, `write_nowait`). A state is looked up and acted on
without awaiting in between, so no locks are needed: the event loop is the only writer of the live map. Since in a disk that is written a
block never becomes `base` again, and the base never changes what it shows, bytes of the base that were fetched stay right as long as the
block is still `base`. (In the upper layer of a MergingDisk blocks do become `base` again; nothing is written there any more.)

A disk is one layer or a stack of them: each is an OverlayDisk whose base is the next lower one, and all but the top are frozen.

Not done: knowing which blocks of a damaged map page were written (they give StateDamaged).
"""

import errno
import uuid
from pathlib import Path

import trio

from imagefs.errors import InvalidInput, NoSpace, NotPermitted, StateDamaged, WrongBytes
from imagefs.extents import Extents
from imagefs.holes import allocated_bytes
from imagefs.overlay import plan
from imagefs.overlay.block_map import BASE, BLOCK_MASK, BLOCK_SHIFT, DAMAGED, DATA, ZERO, ZERO_BLOCK
from imagefs.overlay.calls import CALLS, Calls, write_wholly
from imagefs.overlay.extents import disk_extents
from imagefs.overlay.files import DiskFiles, create_files, delete_files
from imagefs.overlay.flush import Flusher
from imagefs.overlay.key import NodeKey
from imagefs.overlay.layer import Layer
from imagefs.source import Source
from imagefs.units import BLOCK

_STACK = "stack/"
"""What the identity of a layer begins with; no image's does."""


class OverlayDisk(Layer):
    """An open disk, or one layer of it; itself a Source. One process opens it once at a time (the state directory's lock sees to that).

    Invariants: a block in state `data` has all its bytes in the data file; a block in state `zero` or `base` reads the same whatever the
    data file holds there; the durable map differs from the live map only in pages that a flush will tell it of. A write or a zeroing that
    fails leaves each block in state `base` or `zero` as it was, or as asked for; blocks in state `data` may hold a part of it.
    """

    def __init__(self, files: DiskFiles, base: Source | None) -> None:
        """Use `open`. Takes over the files."""
        super().__init__()
        self._files = files
        self._origin = files.origin
        self._base = base
        self._fd = files.data_fd
        self._live = files.live
        self._state, self._states = files.live.state, files.live.states
        self._size = files.durable.header.size
        self._flusher = Flusher(files, self._flush_base)
        self._growing = trio.Lock()
        self._calls = files.data_calls
        self._reader = files.reader

    @staticmethod
    def create(directory: Path, name: str, size: int, base_identity: str, calls: Calls = CALLS, *, node_key: NodeKey | None = None) -> None:
        """Make the files of a disk of `size` bytes in which nothing is written; durable on return, in the same few milliseconds for any size.

        `base_identity` says which base its blocks show, such as `<image-id>@<version>`, or the `identity` of the layer below; empty for a
        disk of zeros. With a node key what is written will be encrypted, by a key of the disk's own that is wrapped under it. Blocks.
        Raises AlreadyExists, NoSpace, InvalidInput for a size that cannot be, and OSError; no file is left then.
        """
        create_files(directory, name, size, base_identity, calls, node_key)

    @staticmethod
    def open(directory: Path, name: str, base: Source | None, calls: Calls = CALLS, *, node_key: NodeKey | None = None) -> "OverlayDisk":
        """Open a disk. After a crash of the daemon nothing is missing; after a crash of the host, what was not flushed may be.

        `base`, an image or the layer below, is asked for nothing before a block is read that it must show. `node_key` is needed for
        encrypted disks, and of no use to others. Blocks; after a boot of the host the first open takes the longer, the more of the disk is
        written. Raises StateDamaged if a file is missing, too short or of another disk, if the disk has a base and none is given, or the
        other way round, if the base is a layer of another disk, or if the key cannot be had; NoSpace and OSError.
        """
        files = DiskFiles(directory, name, calls, node_key)
        identity = files.durable.header.base_identity
        given = base.identity if isinstance(base, Layer) else None
        if bool(identity) != (base is not None) or given not in (None, identity):
            files.close()
            shown = f"shows {identity}" if identity else "has no base"
            raise StateDamaged(
                f"{files.origin}: the disk {shown}, but is opened {'without' if base is None else 'with'} a base"
                f"{f' that is {given}' if given else ''}; its record is wrong"
            )
        return OverlayDisk(files, base)

    @staticmethod
    def delete(directory: Path, name: str, calls: Calls = CALLS) -> None:
        """Remove all files of a disk that is not open, and what it holds with them; files that are missing already are no error.

        The key of an encrypted disk is destroyed first, durably: what is left is noise, whatever comes between. Blocks: for a large disk
        until the host's filesystem has freed its extents. Raises NoSpace and OSError; to be called again then.
        """
        delete_files(directory, name, calls)

    def close(self) -> None:
        """Close the files, without flushing; no call may be running. Blocks."""
        self._files.close()

    # What the disk is.

    @property
    def size(self) -> int:
        """Bytes that the guest sees; changed only by `grow`."""
        return self._size

    @property
    def base_identity(self) -> str:
        """Which base the disk was made over; empty if none."""
        return self._files.durable.header.base_identity

    @property
    def disk_uuid(self) -> uuid.UUID:
        """Made with the layer; no other has it."""
        return self._files.durable.header.disk_uuid

    @property
    def identity(self) -> str:
        """As Layer says: the lowest layer's UUID, from there handed on upwards."""
        below = self.base_identity
        return below if below.startswith(_STACK) else f"{_STACK}{self.disk_uuid}"

    @property
    def encrypted(self) -> bool:
        """Whether what is written is encrypted at rest."""
        return self._files.durable.header.encrypted

    def allocated_bytes(self) -> int:
        """Return the bytes that the data file takes on the host. Blocks for a stat only."""
        return allocated_bytes(self._fd)

    def check_invariants(self) -> None:
        """Raise StateDamaged, saying what is wrong, unless the maps fit each other and the data file. Blocks; no flush may be running."""
        self._files.check()

    # Reading.

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return the bytes if they are in memory, or None; cut at the end of the disk. `offset` and `length` in bytes, not negative.

        Raises StateDamaged for blocks whose state is lost, WrongBytes if the base is short of bytes, and OSError.
        """
        stop = offset + length
        if stop > self._size:
            stop = self._size
            length = stop - offset
        if length <= 0:
            return b""
        first = offset >> BLOCK_SHIFT
        last = stop - 1 >> BLOCK_SHIFT
        if first == last:
            state = self._state(first)
        else:
            states = self._states(first, last + 1)
            state = states[0]
            if states.count(state) != len(states):
                return self._read_runs_nowait(offset, stop, states)
        if state == DATA:
            return self._reader.nowait(length, offset)
        if state == BASE and self._base is not None:
            found = self._base.read_nowait(offset, length)
            if found is None or len(found) == length:
                return found
            return self._behind_base(self._base, found, offset, length)
        if state == DAMAGED:
            raise self.damaged(offset, stop)
        return bytes(length)

    def _read_runs_nowait(self, offset: int, stop: int, states: bytes) -> bytearray | None:
        body = bytearray(stop - offset)
        for state, start, end in plan.runs(states, offset, stop):
            if state == ZERO:
                continue
            piece = self.read_nowait(start, end - start)
            if piece is None:
                return None
            body[start - offset : end - offset] = piece
        return body

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return the bytes, waiting for the base and the host's disk; cut at the end of the disk, empty past it. Safe to cancel.

        Bytes that are written meanwhile are in it or not, block by block. Raises what `read_nowait` does, and what the base raises.
        """
        stop = min(offset + length, self._size)
        if stop <= offset:
            return b""
        # The states of now hold across the awaits below: what they lead to are the bytes of now, or newer ones.
        states = self._states(offset >> BLOCK_SHIFT, (stop - 1 >> BLOCK_SHIFT) + 1)
        body = bytearray(stop - offset)
        with self._at_work():
            if states.count(DATA) == len(states):  # what guests read most often comes without a plan
                await self._fill(body, offset)
            else:
                await self._gather(body, offset, stop, states)
        return body

    async def _fill(self, piece: bytearray | memoryview, start: int) -> None:
        """Read what is wholly in the data file."""
        if await self._reader.fill(piece, start) != len(piece):
            stop = start + len(piece)
            raise StateDamaged(f"{self._origin}.data: cut short; a disk of {self._size} bytes has data up to offset {stop}")

    async def _gather(self, body: bytearray, offset: int, stop: int, states: bytes) -> None:
        """Read [offset, stop), whose states are `states`, from where each part lies."""
        for state, start, end in plan.runs(states, offset, stop):
            if state == DATA:
                await self._fill(memoryview(body)[start - offset : end - offset], start)
            elif state == BASE and self._base is not None:
                found = await self._base.read(start, end - start)
                body[start - offset : end - offset] = found if len(found) == end - start else self._behind_base(self._base, found, start, end - start)
            elif state == DAMAGED:
                raise self.damaged(start, end)

    def _behind_base(self, base: Source, found: bytes | bytearray, offset: int, length: int) -> bytes:
        """Return what the base gave, and zeros for what lies behind its end."""
        if len(found) > length or offset + len(found) < min(base.size, offset + length):
            raise WrongBytes(f"{self._origin}: the base gave {len(found)} bytes of {length} at offset {offset}, and has {base.size} bytes")
        return bytes(found).ljust(length, b"\0")

    def damaged(self, start: int, stop: int) -> StateDamaged:
        """Return the error for bytes [start, stop), of which the state of some is lost."""
        return StateDamaged(f"{self._origin}: bytes {start} to {stop} lie in a damaged page of the map: restore the disk from a backup")

    async def extents(self, offset: int, length: int) -> Extents:
        """Return what of the range may hold other than zeros, as Source says: what is in the data file, and of the rest what the base says."""
        stop = min(offset + length, self._size)
        if stop <= offset:
            return []
        with self._at_work():
            return await disk_extents(self._live, lambda: self._base, offset, stop)

    # Writing.

    def edge_nowait(self, block: int) -> bytes | bytearray | None:
        """As Layer says: of a block in state `data` only so much that it is in the page cache."""
        start = block << BLOCK_SHIFT
        return self.read_nowait(start, 1 if self._state(block) == DATA else BLOCK)

    def store(self, offset: int, body: bytes | bytearray, edges: dict[int, bytes | bytearray]) -> int:
        """As Layer says, frozen or not. An edge is used only for a block that is still `base`, hence was when the edge was read.

        For MergingDisk too. Raises what `write_nowait` does.
        """
        self._flusher.stale = True
        length = len(body)
        stop = offset + length
        first = offset >> BLOCK_SHIFT
        states = self._states(first, (stop - 1 >> BLOCK_SHIFT) + 1)
        if states.count(DATA) == len(states):
            write_wholly(self._calls, self._fd, body, offset, self._origin)
            return length
        if DAMAGED in states:
            raise self.damaged(offset, stop)
        after = plan.states_after_write(states, offset, body, self._base is None)
        for state, start, end in plan.runs(after, offset, stop):
            if state == DATA:
                piece = body if end - start == length else body[start - offset : end - offset]
                self._store_piece(start, piece, edges)
        if after != states:
            self._live.mark(first, after)
        return length

    def _store_piece(self, start: int, piece: bytes | bytearray, edges: dict[int, bytes | bytearray]) -> None:
        """Write a piece to the data file, and around it what the rest of blocks shows that hold no data yet."""
        stop = start + len(piece)
        if start & BLOCK_MASK and self._state(start >> BLOCK_SHIFT) != DATA:
            piece = self._around(start >> BLOCK_SHIFT, edges)[: start & BLOCK_MASK] + piece
            start -= start & BLOCK_MASK
        if stop & BLOCK_MASK and self._state(stop >> BLOCK_SHIFT) != DATA:
            piece = piece + (self._around(stop >> BLOCK_SHIFT, edges) if stop != self._size else ZERO_BLOCK)[stop & BLOCK_MASK :]
        write_wholly(self._calls, self._fd, piece, start, self._origin)

    def _around(self, block: int, edges: dict[int, bytes | bytearray]) -> bytes | bytearray:
        return edges[block].ljust(BLOCK, b"\0") if self._state(block) == BASE and self._base is not None else ZERO_BLOCK

    # Zeroing.

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make `length` bytes at `offset` zeros; whole blocks give their room back to the host's filesystem, where it knows how.

        After a power loss before the next flush each block holds what it did, or zeros. On cancellation a part may be done. Raises what
        `write` does.
        """
        stop = offset + length
        if stop > self._size:
            raise NoSpace(f"{self._origin}: zeroing {length} bytes at offset {offset} crosses the end of the disk at {self._size}")
        freezes = self._freezes
        for block in plan.partial_blocks(offset, stop, self._size):
            start, end = max(offset, block << BLOCK_SHIFT), min(stop, (block + 1) << BLOCK_SHIFT)
            await self.write(start, bytes(end - start))
        await self._zero_blocks(offset, stop, freezes)

    async def discard(self, offset: int, length: int) -> None:
        """Make the blocks that lie wholly in the range zeros, as `write_zeroes` does; the rest of the range, and what is past the end, stays."""
        await self._zero_blocks(offset, min(offset + length, self._size), self._freezes)

    async def _zero_blocks(self, offset: int, stop: int, freezes: int) -> None:
        with self._at_work():
            for start, end in plan.page_spans(*plan.whole_blocks(offset, stop, self._size)):
                self._check_not_frozen(freezes)
                self.zero_span(start, end)
                await trio.lowlevel.checkpoint()  # a large range must not keep other requests waiting

    def zero_span(self, first: int, stop: int) -> None:
        """Make blocks `zero`, frozen or not, then punch: the other order would be as good after a power loss, but this one shows zeros at once.

        Does not wait; for what zeroes and for MergingDisk.
        """
        self._flusher.stale = True
        states = self._states(first, stop)
        if DAMAGED in states:
            raise self.damaged(first << BLOCK_SHIFT, stop << BLOCK_SHIFT)
        after = plan.states_after_zeroing(states, self._base is None)
        if after != states:
            self._live.mark(first, after)
        if DATA in states:
            start = first + states.index(DATA)
            end = first + states.rindex(DATA) + 1
            try:
                self._calls.punch_hole(self._fd, start << BLOCK_SHIFT, (end - start) << BLOCK_SHIFT)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:  # without holes the room stays taken; the blocks are zeros all the same
                    raise

    # Layers, for MergingDisk and for who stacks them.

    def rebase(self, base: Layer) -> None:
        """Let the disk's unwritten blocks be shown by `base`, a layer of the same stack that shows the same: the one below was merged into it."""
        self._base = base

    def states_of(self, first: int, stop: int) -> bytes:
        """Return the states of the blocks [first, stop), one byte each."""
        return self._states(first, stop)

    def touched_pages(self) -> list[int]:
        """Return the pages of the map, of PAGE_BLOCKS blocks each, in which any block may be other than `base`, in order."""
        return self._live.touched_pages()

    def forget(self, first: int, stop: int) -> None:
        """Make the blocks [first, stop) `base` again: the base shows the same, or what was just written there.

        Their bytes stay in the data file, for reads that have begun. Raises NoSpace and OSError; some of the blocks may be `base` then.
        """
        self._flusher.stale = True
        self._live.mark(first, bytes(stop - first))

    # Durability.

    async def flush(self) -> None:
        """Make everything written before this call durable, here and in the layers below; see Flusher.flush."""
        with self._at_work():
            await self._flusher.flush()

    async def _flush_base(self) -> None:
        if isinstance(self._base, Layer):
            await self._base.flush()

    async def grow(self, size: int) -> None:
        """Make the disk `size` bytes long, durably; the new bytes are zeros. Only for a disk without a base.

        Raises NotPermitted for one with a base, InvalidInput if that would shrink it or the host has no files so long, LayerFrozen, NoSpace
        and OSError.
        If it fails, the disk has its old size until it is opened again, and then either.
        """
        if self._base is not None:
            raise NotPermitted(f"{self._origin}: a disk over an image has a fixed size")
        async with self._growing:
            self._check_not_frozen(self._freezes)
            if size < self._size:
                raise InvalidInput(f"{self._origin}: the disk has {self._size} bytes and cannot shrink to {size}")
            # The live map first: one that is ahead of the durable map is that of a grow that was cut short, one behind it would be damage.
            self._live.grow(size)
            await self._flusher.grow(size)
            self._size = size
