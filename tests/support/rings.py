"""A ring that a test holds in its hand: requests wait until the test ends them, well or not."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple


class Request(NamedTuple):
    """What a ring was asked for; a sync has no address."""

    fd: int
    address: int
    length: int
    offset: int
    token: int


def served(request: Request) -> int:
    """Do what the kernel does with a request, as well as the file allows it."""
    if not request.address:
        os.fdatasync(request.fd)
        return 0
    body = os.pread(request.fd, request.length, request.offset)
    ctypes.memmove(request.address, body, len(body))
    return len(body)


def halved(request: Request) -> int:
    """Give half of what a read asks for."""
    return served(request._replace(length=request.length // 2))


def failing(number: int) -> Callable[[Request], int]:
    """Return what fails each request with an errno."""
    return lambda request: -number


class HeldRing:
    """A ring of `room` requests. With `at_once` each ends at once by it, else the test ends them by `finish`; `refuse` makes it take none."""

    def __init__(self, room: int = 8, at_once: Callable[[Request], int] | None = None) -> None:
        self.room = room
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.at_once = at_once
        self.refuse = False
        self.closed = False
        self.asked: list[Request] = []
        self.waiting: list[Request] = []
        self._ended: list[tuple[int, int]] = []

    def read(self, fd: int, address: int, length: int, offset: int, token: int) -> bool:
        return self._take(Request(fd, address, length, offset, token))

    def sync(self, fd: int, token: int) -> bool:
        return self._take(Request(fd, 0, 0, 0, token))

    def _take(self, request: Request) -> bool:
        assert not self.closed
        if self.refuse:
            return False
        assert len(self.waiting) + len(self._ended) < self.room, "more requests than the ring has room for"
        self.asked.append(request)
        self.waiting.append(request)
        if self.at_once is not None:
            self.finish(self.at_once)
        return True

    def finish(self, by: Callable[[Request], int] = served) -> None:
        """End all requests, the last one first: a ring keeps no order."""
        while self.waiting:
            request = self.waiting.pop()
            self._ended.append((request.token, by(request)))
            os.eventfd_write(self.fd, 1)

    def results(self) -> list[tuple[int, int]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        assert not self.closed
        assert not self.waiting
        self.closed = True
        os.close(self.fd)
