"""This module is one io_uring: reads and syncs go in, results come out; memory that is shared with the kernel, and two system calls.

The kernel's side is io_uring_setup(2) and io_uring_enter(2), without a library: what a library would add is the order
of memory accesses, and that is argued here. Python gives no control of it, so nothing relies on the order of two accesses unless there is a
`_fence` between them: releasing and taking a lock are atomic operations, the first with release and the second with acquire semantics. On
x86-64 each is a locked instruction, a full barrier; on AArch64 a store-release and a later load-acquire are ordered with each other and with
what comes before and after them. For other processors nobody has argued it, so there is no Ring for them.

The words that both sides look at are aligned and of 32 bits; a memoryview reads and writes them with one instruction.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
import threading
from typing import Final, Protocol

_SETUP: Final = 425
_ENTER: Final = 426
"""Numbers of the system calls: the same on all processors that Linux got after it had them, and on those below."""
PROCESSORS: Final = frozenset({"x86_64", "aarch64"})

_SETUP_SQPOLL: Final = 1 << 1
_FEATURE_SINGLE_MMAP: Final = 1 << 0
_FEATURE_NATIVE_WORKERS: Final = 1 << 9
"""Since Linux 5.12, with which also came that rings do not count as locked memory and that polling needs no registered files."""
_ENTER_WAKE_POLLER: Final = 1 << 1
_POLLER_SLEEPS: Final = 1 << 0
_OPCODE_SYNC: Final = 3
_OPCODE_READ: Final = 22
_DATA_ONLY: Final = 1 << 0
"""Of a sync: as fdatasync(2)."""
_ENTRIES_OFFSET: Final = 0x10000000
"""Where mmap(2) finds the requests; what heads and tails are in is at 0."""

_PARAMETERS: Final = struct.Struct("<10I 8I8x 8I8x")
"""struct io_uring_params: ten words, then where the parts of the two queues lie."""
_REQUEST: Final = struct.Struct("<BBHiQQIIQ24x")
"""opcode, flags, priority, descriptor, offset, address, length, flags of the opcode, token."""
_RESULT: Final = struct.Struct("<QiI")
"""token, result, flags."""
_WORD: Final = 4
_WRAP: Final = 0xFFFF_FFFF

POLLER_IDLE_MS: Final = 2
"""How long the kernel's thread of a polled ring looks for requests before it sleeps: it takes a processor for that time, and a request that
finds it asleep costs a system call. Between two reads at a depth of 16 there is less than a tenth of that."""


class Requests(Protocol):
    """What an Engine needs of a Ring."""

    fd: int
    """A descriptor that is readable while there are results."""
    room: int
    """Requests that may be under way at once."""

    def read(self, fd: int, address: int, length: int, offset: int, token: int) -> bool:
        """Begin to read `length` bytes to `address`; tell whether the kernel took the request. Does not wait."""
        ...

    def sync(self, fd: int, token: int) -> bool:
        """Begin what fdatasync(2) does; tell whether the kernel took the request. Does not wait."""
        ...

    def results(self) -> list[tuple[int, int]]:
        """Return (token, bytes read or minus an errno) of each request that has ended since the last call."""
        ...

    def close(self) -> None:
        """Give the ring back. No request is under way."""
        ...


class Ring:
    """An io_uring. Used by one thread.

    Invariants: what a read writes to, and its descriptor, stay as they are until its result was returned (the caller sees to that); no more
    than `room` requests are under way (the caller again), so there is always a place for a result.
    """

    def __init__(self, entries: int, *, polled: bool) -> None:
        """Make a ring for `entries` requests, a power of two. If it is `polled`, a thread of the kernel takes them and begins them.

        Raises OSError if the kernel is too old, has no io_uring or does not let this process use it, or if the processor is not known.
        """
        if platform.machine() not in PROCESSORS:
            raise OSError(errno.ENOSYS, f"the order of memory accesses on {platform.machine()} is not known")
        # With the interpreter's lock held: a call that takes a few microseconds must not have to get it back from a thread that computes.
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long]
        self._order = threading.Lock()
        self._order.acquire()
        parameters = bytearray(_PARAMETERS.size)
        _PARAMETERS.pack_into(parameters, 0, 0, 0, _SETUP_SQPOLL if polled else 0, 0, POLLER_IDLE_MS, *[0] * 21)
        shared = ctypes.c_char.from_buffer(parameters)
        self.fd: int = self._syscall(_SETUP, entries, ctypes.addressof(shared), 0, 0, None, 0)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._ring = self._requests = mmap.mmap(-1, mmap.PAGESIZE)  # until there are better ones
        self._words = memoryview(b"")
        try:
            self._map(parameters)
        except BaseException:
            self.close()
            raise
        self._polled = polled

    def _map(self, parameters: bytearray) -> None:
        """Map what is shared with the kernel, and find the places in it."""
        submissions, completions, _, _, _, features, *rest = _PARAMETERS.unpack(parameters)
        needed = _FEATURE_SINGLE_MMAP | _FEATURE_NATIVE_WORKERS
        if features & needed != needed:
            raise OSError(errno.ENOSYS, "the kernel's io_uring is older than Linux 5.12")
        sq_head, sq_tail, sq_mask, _, sq_flags, _, sq_array, _ = rest[4:12]
        cq_head, cq_tail, cq_mask, _, _, cq_results, _, _ = rest[12:20]
        length = max(sq_array + submissions * _WORD, cq_results + completions * _RESULT.size)
        self._ring = mmap.mmap(self.fd, length, mmap.MAP_SHARED, offset=0)
        self._requests = mmap.mmap(self.fd, submissions * _REQUEST.size, mmap.MAP_SHARED, offset=_ENTRIES_OFFSET)
        self._words = memoryview(self._ring).cast("I")
        self._sq_head, self._sq_tail, self._sq_flags = sq_head // _WORD, sq_tail // _WORD, sq_flags // _WORD
        self._cq_head, self._cq_tail, self._results_at = cq_head // _WORD, cq_tail // _WORD, cq_results
        self._sq_mask: int = self._words[sq_mask // _WORD]
        self._cq_mask: int = self._words[cq_mask // _WORD]
        for index in range(submissions):  # the n-th request is always in the n-th place
            self._words[sq_array // _WORD + index] = index
        self._submitted: int = 0
        self._returned: int = 0
        self.room = submissions

    def close(self) -> None:
        """As Requests says."""
        self._words.release()
        self._requests.close()
        self._ring.close()
        os.close(self.fd)

    def _fence(self) -> None:
        """Order all accesses before this with all after it, for the other processors."""
        self._order.release()
        self._order.acquire()

    def read(self, fd: int, address: int, length: int, offset: int, token: int) -> bool:
        """As Requests says."""
        _REQUEST.pack_into(self._requests, self._place(), _OPCODE_READ, 0, 0, fd, offset, address, length, 0, token)
        return self._submit()

    def sync(self, fd: int, token: int) -> bool:
        """As Requests says."""
        _REQUEST.pack_into(self._requests, self._place(), _OPCODE_SYNC, 0, 0, fd, 0, 0, 0, _DATA_ONLY, token)
        return self._submit()

    def _place(self) -> int:
        """Return where the next request goes. It is free: `room` are under way at most, and the kernel took each out that has ended."""
        return (self._submitted & self._sq_mask) * _REQUEST.size

    def _submit(self) -> bool:
        """Let the kernel have the request that was put at its place; tell whether it took it."""
        submitted = self._submitted
        self._submitted = after = (submitted + 1) & _WRAP
        if self._polled:
            self._fence()  # whoever sees the new tail must see the request
            self._words[self._sq_tail] = after
            self._fence()  # the kernel's thread says that it sleeps, and looks once more; we do it the other way round
            if not self._words[self._sq_flags] & _POLLER_SLEEPS or self._enter(0, _ENTER_WAKE_POLLER) >= 0:
                return True
        else:
            # The kernel reads what we wrote in this very thread, within the call: there is nothing to be ordered.
            self._words[self._sq_tail] = after
            self._enter(1, 0)
            if self._words[self._sq_head] == after:
                return True
        # Nobody looks at the tail now: not between two calls, and not when the kernel's thread has ended, of which waking it tells. Take it back.
        self._words[self._sq_tail] = self._submitted = submitted
        return False

    def _enter(self, submit: int, flags: int) -> int:
        """Let the kernel look; return less than 0 if it cannot."""
        answer: int = self._syscall(_ENTER, self.fd, submit, 0, flags, None, 0)
        return answer

    def results(self) -> list[tuple[int, int]]:
        """As Requests says."""
        returned, tail = self._returned, self._words[self._cq_tail]
        if returned == tail:
            return []
        self._fence()  # the results that the tail counts, and the bytes that they stand for, not what was there before
        found = []
        while returned != tail:
            token, result, _ = _RESULT.unpack_from(self._ring, self._results_at + (returned & self._cq_mask) * _RESULT.size)
            found.append((token, result))
            returned = (returned + 1) & _WRAP
        self._fence()  # the places may be used again once the head says so: not before they were read
        self._words[self._cq_head] = self._returned = returned
        return found
