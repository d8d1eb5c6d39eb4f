"""This module reads one open file of the host: on the spot where its bytes are in memory, and else while others go on."""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from imagefs.aio import engine
from imagefs.counters import COUNTERS
from imagefs.threads import Lane, run

COLD: Final = 8
"""Reads in a row that found nothing in memory, after which the next ones do not try."""
PROBE: Final = 16
"""Of the reads of a cold file every so-and-so-many-th tries all the same. An attempt that fails is no loss if the read goes on alone, since it
has begun to read from the disk; but at depth it does so on the event loop, where the kernel's thread could do it."""

Preadv = Callable[[int, Sequence[bytearray | memoryview], int, int], int]
"""As os.preadv."""


class Reader:
    """Reads of one descriptor, which is the caller's. `nowait` is the path of every hit: no locks, no logging, no allocation but the bytes."""

    __slots__ = ("_flags", "_misses", "_preadv", "fd")

    def __init__(self, fd: int, preadv: Preadv | None = None) -> None:
        """Read `fd`, by `preadv` where that is given."""
        self.fd = fd
        self._preadv = preadv
        self._flags = os.RWF_NOWAIT
        self._misses = 0

    def nowait(self, length: int, offset: int) -> bytearray | None:
        """Return `length` bytes (not 0) at `offset` if they are in memory and in the file, or None. Raises OSError."""
        if self._misses >= COLD and engine.current is not None:
            self._misses += 1
            if self._misses % PROBE:
                return None
        body = bytearray(length)
        try:
            if (self._preadv or os.preadv)(self.fd, (body,), offset, self._flags) == length:
                self._misses = 0
                return body
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not self._flags:
                raise
            # tmpfs, for one, does not know RWF_NOWAIT, and needs it least: from now on without.
            self._flags = 0
            return self.nowait(length, offset)
        self._misses += 1
        return None

    async def fill(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` bytes; return the bytes read, fewer only at the end of the file.

        On cancellation it returns when nobody writes into the buffer any more. Raises OSError.
        """
        length, done = len(buffer), 0
        if engine.current is not None and length:
            done = await engine.current.read(self.fd, buffer, offset)
            if done == length:
                COUNTERS.disk_reads_by_ring += 1
                return done
        COUNTERS.disk_reads_by_thread += 1
        rest = memoryview(buffer)[done:]
        return done + await run(Lane.DISK, read_wholly, self._preadv or os.preadv, self.fd, rest, offset + done)


def read_wholly(preadv: Preadv, fd: int, body: bytearray | memoryview, offset: int) -> int:
    """Fill `body` from `offset` bytes, going on after short reads; return the bytes read, fewer only at the end of the file.

    Blocks. Raises OSError.
    """
    rest = memoryview(body)
    done = 0
    while done < len(rest):
        got = preadv(fd, [rest[done:]], offset + done, 0)
        if got == 0:
            break
        done += got
    return done
