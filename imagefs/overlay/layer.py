"""This module is what all layers of a disk have in common: what they show can be read, made durable, and frozen."""

import abc
import contextlib
from collections.abc import Iterator

import trio

from imagefs.errors import LayerFrozen


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
