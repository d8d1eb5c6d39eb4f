"""This module says what "bytes that can be read at any offset" means to all layers above the store."""

from typing import Protocol


class Source(Protocol):
    """A fixed sequence of `size` bytes. Offsets and lengths are in bytes; a read past the end is cut at the end."""

    @property
    def size(self) -> int:
        """Bytes in all; never changes."""
        ...

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        """Return the bytes if that takes no waiting (no thread, no fetch, no disk), else None.

        Runs on the event loop: this is the path of every cache hit. `offset` and `length` are not negative.
        """
        ...

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        """Return the bytes, fetching what is missing; empty at or past the end. Safe to cancel.

        Raises a StoreError if they cannot be had, ImageRefused if the image's own structure is wrong there.
        """
        ...

    async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Return (start, stop) of what may hold other than zeros within the range, in order and not overlapping; all else reads as zeros.

        Extents are cut to the range and to the source's end; two may touch. Reads tables at most, and fetches no image data. Ask for some
        GiB at a time: the answer grows with the number of extents. Raises what `read` raises. Safe to cancel.
        """
        ...
