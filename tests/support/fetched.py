"""Objects of a store that break as a test wants, and a clock that moves only when told."""

import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from imagefs.errors import StoreUnavailable
from imagefs.store.record import HashTree
from imagefs.store.tree import TreeBuilder

Piece = bytes | Exception | float
"""What a scripted transfer does next: sends bytes, raises, or stands still for some seconds of the fake clock."""


def noise(size: int, seed: int = 1) -> bytes:
    """Return `size` bytes that are the same each time, and of which no 64 KiB are zeros."""
    return random.Random(seed).randbytes(size)


class FakeClock:
    """Seconds that pass only in `sleep`. Called, it tells the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class ScriptedObject:
    """A DataObject over `content`; `script(attempt, offset, length)` may replace what the transfer number `attempt` (from 0) does."""

    def __init__(self, content: bytes, clock: FakeClock | None = None, path: Path | None = None) -> None:
        self.content = content
        self.size = len(content)
        self.version = "v1"
        self.path = path
        self.requests: list[tuple[int, int]] = []
        self.closed = 0
        self.script: Callable[[int, int, int], list[Piece] | None] = lambda attempt, offset, length: None
        self._clock = clock if clock is not None else FakeClock()

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        attempt = len(self.requests)
        self.requests.append((offset, length))
        pieces = self.script(attempt, offset, length)
        if pieces is None:
            pieces = [self.content[start : min(start + 10_000, offset + length)] for start in range(offset, offset + length, 10_000)]
        try:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, float):
                    self._clock.now += piece
                else:
                    yield piece
        finally:
            self.closed += 1


def broken() -> StoreUnavailable:
    """Return what a connection that breaks raises."""
    return StoreUnavailable("the connection broke")


def hash_tree(content: bytes) -> tuple[HashTree, bytes]:
    """Return the hash tree over `content`, and its digests."""
    builder = TreeBuilder()
    builder.update(content)
    digests, tree = builder.finish()
    assert len(digests) % hashlib.sha256().digest_size == 0
    return tree, digests
