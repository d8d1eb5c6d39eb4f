"""This module is what all layers of a disk have in common: what they show can be read, written, made durable, and frozen."""

import abc
import contextlib
from collections.abc import Iterator

import trio

from imagefs.errors import LayerFrozen, NoSpace
from imagefs.overlay import plan
from imagefs.overlay.block_map import BLOCK_MASK, BLOCK_SHIFT
from imagefs.units import BLOCK


class Layer(abc.ABC):
    """One layer of a disk, or two that are being merged; itself a Source. Used on the event loop only.

    Invariants: a frozen layer never changes what it shows; a write that waited while its layer was frozen changes nothing, also if the
    layer has been thawed meanwhile: by then another layer lies above it.
    """

    def __init__(self) -> None:
        self._frozen = False
        self._freezes = 0
        self._running = 0
        self._waiting = trio.lowlevel.ParkingLot()

    # What a layer shows.

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Bytes that the guest sees."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """Text that names the stack of layers: the `base_identity` of a layer above. It stays while layers of the stack are merged."""

    @abc.abstractmethod
    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """As Source says."""

    @abc.abstractmethod
    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """As Source says."""

    @abc.abstractmethod
    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """As Source says."""

    @abc.abstractmethod
    async def flush(self) -> None:
        """Make everything durable that was written before this call, here and in the layers below."""

    # Writing.

    @abc.abstractmethod
    def edge_nowait(self, block: int) -> bytes | bytearray | None:
        """Return what a block shows that a write covers in part; or so much of it that what the write needs is in memory; or None."""

    @abc.abstractmethod
    def store(self, offset: int, body: bytes | bytearray, edges: dict[int, bytes | bytearray]) -> int:
        """Store `body`, which is not empty and ends within the disk, and return its length. Does not wait.

        `edges` has what the blocks show that are covered in part. It may have been read before the states were what they are now: an edge
        must not be used unless the block's state says that it cannot have changed since.
        """

    def write_nowait(self, offset: int, body: bytes | bytearray) -> int | None:
        """Write `body` at `offset` bytes and return its length; None, with nothing changed, if that takes bytes which are not in memory.

        Goes to the host's page cache: it outlives the daemon at once, and the host after a flush. Raises NoSpace if it crosses the end of
        the disk (nothing is changed) or the host is full, LayerFrozen, StateDamaged for blocks whose state is lost, and OSError.
        """
        if self._frozen:
            self._check_not_frozen(self._freezes)
        stop = offset + len(body)
        if stop > self.size:
            raise NoSpace(f"{self.identity}: a write of {len(body)} bytes at offset {offset} crosses the end of the disk at {self.size}")
        if not body:
            return 0
        edges = {}
        if (offset | stop) & BLOCK_MASK:
            for block in plan.partial_blocks(offset, stop, self.size):
                edge = self.edge_nowait(block)
                if edge is None:
                    return None
                edges[block] = edge
        return self.store(offset, body, edges)

    async def write(self, offset: int, body: bytes | bytearray) -> int:
        """Write `body` at `offset` bytes and return its length; blocks that are covered in part are read where need be.

        On cancellation nothing is written; nor if the layer is frozen while this waits, which raises LayerFrozen. Raises what
        `write_nowait` does, and what the base raises.
        """
        written = self.write_nowait(offset, body)
        if written is not None:
            return written
        freezes = self._freezes
        edges = {}
        with self._at_work():
            for block in plan.partial_blocks(offset, offset + len(body), self.size):
                edge = self.edge_nowait(block)
                if edge is None:
                    edge = await self.read(block << BLOCK_SHIFT, BLOCK)
                edges[block] = edge
        # States may have changed in the awaits above. From here on nothing waits, and `store` looks at them again.
        self._check_not_frozen(freezes)
        return self.store(offset, body, edges)

    # Freezing.

    @property
    def frozen(self) -> bool:
        """Whether writes are refused."""
        return self._frozen

    def freeze(self) -> None:
        """Refuse writes from now on with LayerFrozen, also those that wait for something now: their callers write again to the layer above."""
        self._frozen = True
        self._freezes += 1

    def thaw(self) -> None:
        """Take writes again."""
        self._frozen = False

    def _check_not_frozen(self, since: int) -> None:
        """Raise LayerFrozen if the layer is frozen, or was since `_freezes` was `since`."""
        if self._frozen or self._freezes != since:
            raise LayerFrozen(f"{self.identity}: this layer was frozen by a snapshot: write to the layer above it")

    # What is going on.

    async def settled(self) -> None:
        """Return when no read, write, flush or merge is running in this layer; one that goes on being used may never be settled."""
        while self._running:
            await self._waiting.park()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keep the layer from being settled."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._waiting.unpark_all()
