"""This module is the reads that are under way by io_uring, and the tasks that wait for them. One engine serves a whole daemon.

There are two rings. Through the plain one a read begins within the system call that hands it over: that is the least work, and right for
one read at a time. But beginning a read takes longer than all that Python does for it (memory, the filesystem's tables, waking the disk),
so where reads come while others are under way they go through a ring that a thread of the kernel polls, on another processor.

Measured on 2026-11-23, 4 KiB random reads at depth 16 of a file that was not in memory, a bare loop of pyfuse3, ratio to the native file:
inline pread 0.11, thread for each 0.09, plain ring 0.13, its requests handed to kernel workers 0.12, Linux AIO with O_DIRECT 0.18, polled
ring 0.32 (with O_DIRECT 0.28). At depth 1: inline 0.45, plain ring 0.36, polled 0.37 with twice the processor time. So the polled one is
used at depth only.
"""

import contextlib
import ctypes
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio

from imagefs.aio.ring import Requests, Ring

log = logging.getLogger(__name__)

ROOM: Final = 512
"""Reads that one ring may have under way: as many as the kernel sends requests of FUSE in the background. What is more goes to threads."""

MEMORY: Final = 16
"""For how many reads it is remembered that one came while others were under way. The disk is faster than we are, so that at any depth many a
read has ended before the next one begins; at depth 1 none ever comes while another is under way."""

_NOT_DONE: Final = frozenset({-errno.ECANCELED, -errno.EINTR})
"""Results of a sync that say nothing about the disk. The kernel gives up with ECANCELED what it finds no worker for, such as where the process
may have no more tasks: a disk must not count as broken for that."""

current: "Engine | None" = None
"""The daemon's; None where the kernel has none to offer, and in most tests."""


class _Flight:
    """A read that is under way: whose it is, what keeps its buffer where it is, and once it has ended, what came of it."""

    __slots__ = ("held", "result", "task")

    def __init__(self, task: trio.lowlevel.Task, held: ctypes.c_char | None) -> None:
        self.task = task
        self.held = held
        self.result = 0


class Engine:
    """Reads through one or two rings. Used on the event loop only.

    Invariants: a read's buffer and its task are in `_flights` from before the kernel knows of it until its result is there, and its task
    waits that long, whoever cancels it; so a descriptor whose readers are waited for is not closed under a read.
    """

    def __init__(self, plain: Requests, polled: Requests | None) -> None:
        """Take over the rings; `polled` is for reads that come while others are under way, if there is one."""
        self._plain = plain
        self._polled = polled
        self._flights: dict[int, _Flight] = {}
        self._last = 0
        self._deep = 0
        self._room = min(plain.room, polled.room) if polled is not None else plain.room
        self._idle = trio.lowlevel.ParkingLot()

    async def read(self, fd: int, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill `buffer`, which is not empty, from `offset` bytes of a file; return the bytes read.

        Fewer than asked for mean the end of the file, or that something was in the way: the caller reads what is missing in another way, and
        is told there. Not to be cancelled: it returns when the kernel lets go of the buffer. Raises nothing.
        """
        flights = self._flights
        if len(flights) >= self._room:
            return 0
        if flights:
            self._deep = MEMORY
        ring = self._plain
        if self._deep and self._polled is not None:
            self._deep -= 1
            ring = self._polled
        held = ctypes.c_char.from_buffer(buffer)  # keeps the buffer where it is
        self._last = token = self._last + 1
        flights[token] = flight = _Flight(trio.lowlevel.current_task(), held)
        if not ring.read(fd, ctypes.addressof(held), len(buffer), offset, token):
            del flights[token]
            return 0
        await trio.lowlevel.wait_task_rescheduled(_not_yet)
        return max(0, flight.result)

    async def sync(self, fd: int) -> bool:
        """Do what os.fdatasync does; tell whether it was done at all, or has to be done in another way. Not to be cancelled. Raises OSError.

        A worker of the kernel does it, and so it takes no thread of ours. An error is final: the kernel tells it once.
        """
        if len(self._flights) >= self._room:
            return False
        self._last = token = self._last + 1
        self._flights[token] = flight = _Flight(trio.lowlevel.current_task(), None)
        if not self._plain.sync(fd, token):
            del self._flights[token]
            return False
        await trio.lowlevel.wait_task_rescheduled(_not_yet)
        if flight.result in _NOT_DONE:
            return False
        if flight.result < 0:
            raise OSError(-flight.result, os.strerror(-flight.result))
        return True

    def land(self, ring: Requests) -> None:
        """Wake the tasks whose reads have ended."""
        for token, result in ring.results():
            flight = self._flights.pop(token)
            flight.result = result
            trio.lowlevel.reschedule(flight.task)
        if not self._flights:
            self._idle.unpark_all()

    async def settled(self) -> None:
        """Return when no read is under way."""
        while self._flights:
            await self._idle.park()

    async def watch(self, ring: Requests) -> None:
        """Wake tasks as reads end, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(ring.fd)
            self.land(ring)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve reads for the time of the block, and those that it began; then give the rings back."""
        try:
            async with trio.open_nursery() as nursery:
                scopes = []  # shielded: whoever is cancelled, what the kernel has begun is waited for
                for ring in self._rings():
                    scopes.append(trio.CancelScope(shield=True))
                    nursery.start_soon(self._watch_within, scopes[-1], ring)
                try:
                    yield
                finally:
                    with trio.CancelScope(shield=True):
                        await self.settled()
                    for scope in scopes:
                        scope.cancel()
        finally:
            for ring in self._rings():
                ring.close()

    async def _watch_within(self, scope: trio.CancelScope, ring: Requests) -> None:
        with scope:
            await self.watch(ring)

    def _rings(self) -> list[Requests]:
        return [self._plain] if self._polled is None else [self._plain, self._polled]


def _not_yet(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
    """Say that a read cannot be cancelled: the kernel writes into its buffer."""
    return trio.lowlevel.Abort.FAILED


def open_engine() -> Engine | None:
    """Return an engine, or None if the kernel has none to offer; says so in the log."""
    try:
        plain = Ring(ROOM, polled=False)
    except OSError as error:
        log.info("no io_uring here, so that each read of the disk takes a thread error=%s", error)
        return None
    try:
        return Engine(plain, Ring(ROOM, polled=True))
    except OSError as error:
        log.info("no polled io_uring here, so that many reads of the disk at once take longer error=%s", error)
        return Engine(plain, None)


@contextlib.asynccontextmanager
async def serving(engine: Engine | None) -> AsyncIterator[None]:
    """Make `engine` the current one for the time of the block; with None all reads that wait go to threads."""
    global current
    if engine is None:
        yield
        return
    async with engine.running():
        current = engine
        try:
            yield
        finally:
            current = None
