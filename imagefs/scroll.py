"""This module is a long text that is read a little at a time and kept compressed: a list of a hundred thousand images is 140 MB, and 10 packed."""

import bisect
import zlib
from typing import Final

_PIECE: Final = 128 * 1024
"""Bytes that are packed together: what one read unpacks takes less than a millisecond."""


class Scroll:
    """A text that is appended to and then read anywhere. Both take no waiting."""

    def __init__(self, text: bytes = b"") -> None:
        self._starts: list[int] = []
        self._pieces: list[bytes] = []
        self._rest = bytearray()
        self._packed_length = 0
        self._open: tuple[int, bytes] = (-1, b"")
        self.append(text)

    def __len__(self) -> int:
        return self._packed_length + len(self._rest)

    def append(self, text: bytes) -> None:
        """Add to the end."""
        self._rest += text
        if len(self._rest) >= _PIECE:
            self._starts.append(self._packed_length)
            self._pieces.append(zlib.compress(self._rest, 1))
            self._packed_length += len(self._rest)
            self._rest = bytearray()

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset+length), fewer at the end."""
        end = min(offset + length, len(self))
        found = bytearray()
        while (at := offset + len(found)) < end:
            start, piece = self._piece_at(at)
            found += piece[at - start : end - start]
        return bytes(found)

    def _piece_at(self, offset: int) -> tuple[int, bytes | bytearray]:
        """Return the piece that has the byte at `offset`, unpacked, and where it starts."""
        if offset >= self._packed_length:
            return self._packed_length, self._rest
        index = bisect.bisect_right(self._starts, offset) - 1
        if self._open[0] != index:
            self._open = (index, zlib.decompress(self._pieces[index]))
        return self._starts[index], self._open[1]
