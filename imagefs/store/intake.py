"""This module reads a new image once and learns on the way what its record must say: sha512, md5 and the hash tree."""

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import IO, BinaryIO, Final, Self, cast

from imagefs.errors import InvalidInput
from imagefs.store.record import HashTree
from imagefs.store.tree import TreeBuilder
from imagefs.units import MIB

_SPOOL: Final = 16 * MIB
"""Bytes of digests kept in memory, enough for an image of 32 GiB; more go to a temporary file."""


class Intake:
    """Exactly `size` bytes of `source`, hashed as they pass. As a context manager it forgets the digests at its end; the source stays open."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self._source = source
        self._size = size
        self._done = 0
        self._sha512 = hashlib.sha512()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._tree = TreeBuilder()
        # hashlib gives up the interpreter's lock: one after the other the three hashes would take twice as long
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="hash")
        self._digests: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL)  # noqa: SIM115 - closed in __exit__

    def stream(self) -> BinaryIO:
        """Return this as the stream that `Bucket.upload` reads; of a stream's methods it has `read` alone."""
        return cast(BinaryIO, self)

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes (negative: all that are left), fewer only at the end.

        Raises InvalidInput if the source ends early or fails, so that the upload fails too, with nothing stored.
        """
        wanted = self._size - self._done
        if size >= 0:
            wanted = min(size, wanted)
        pieces: list[bytes] = []
        while wanted:
            pieces.append(self._next_piece(min(wanted, MIB)))
            wanted -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> HashTree:
        """Return the tree, after the last byte was read."""
        rest, tree = self._tree.finish()
        self._digests.write(rest)
        return tree

    def digests(self) -> tuple[BinaryIO, int]:
        """Return the object `digests` as a stream, and its bytes; after `finish`."""
        size = self._digests.tell()
        self._digests.seek(0)
        return cast(BinaryIO, self._digests), size

    @property
    def sha512(self) -> str:
        """Hex SHA-512 of what was read."""
        return self._sha512.hexdigest()

    @property
    def md5(self) -> str:
        """Hex MD5 of what was read: Glance's `checksum`."""
        return self._md5.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hashing.shutdown()
        self._digests.close()

    def _next_piece(self, size: int) -> bytes:
        try:
            piece = self._source.read(size)
        except OSError as error:
            raise InvalidInput(f"the image's source cannot be read at byte {self._done}: {error.strerror}") from error
        if not piece:
            raise InvalidInput(f"the image's source ended after {self._done} of {self._size} bytes")
        self._done += len(piece)
        others = [self._hashing.submit(whole.update, piece) for whole in (self._sha512, self._md5)]
        self._tree.update(piece)
        self._digests.write(self._tree.take_digests())
        for other in others:
            other.result()
        return piece
