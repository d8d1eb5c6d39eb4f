"""This module bounds how much of an image's layout is in memory: of all pieces, those that lie next in the stored bytes. Pure."""

from collections.abc import Iterable

from imagefs.errors import ImageRefused
from imagefs.image.qcow2.plan import Piece


class Window:
    """The pieces whose stored bytes begin in [start, end), by their place there; `end` is None if these are all from `start` on.

    Invariant: at most `2 * capacity` pieces are held, and all or none of those that begin at one place.
    """

    def __init__(self, start: int, capacity: int) -> None:
        """Take the stored offset from which on pieces count, and how many may be kept in the end."""
        self.start = start
        self.end: int | None = None
        self.pieces: list[Piece] = []
        self._capacity = capacity

    def add(self, pieces: Iterable[Piece]) -> None:
        """Take more pieces, in any order; those that lie furthest are dropped when there are too many. Raises ImageRefused."""
        for piece in pieces:
            if piece.host_offset >= self.start and (self.end is None or piece.host_offset < self.end):
                self.pieces.append(piece)
                if len(self.pieces) >= 2 * self._capacity:
                    self._cut()

    def close(self) -> None:
        """Put the pieces in order, once all were added. Raises ImageRefused."""
        self.pieces.sort()
        if len(self.pieces) > self._capacity:
            self._cut()

    def _cut(self) -> None:
        """Drop all pieces from the place of the first one that is too many on. Raises ImageRefused if that leaves none."""
        self.pieces.sort()
        self.end = self.pieces[self._capacity].host_offset
        self.pieces = [piece for piece in self.pieces if piece.host_offset < self.end]
        if not self.pieces:
            raise ImageRefused(f"more than {self._capacity} clusters share the stored bytes at offset {self.end}")
