"""This module is the process of the link simulator: it relays connections to one server, at a link's delay and rate and with its faults.

`python -m tools.relay HOST PORT DELAY RATE` listens on a port of loopback, says which on standard output, and then obeys commands, one JSON
object a line on standard input, each answered by a line; it ends with its input. `tools.link` speaks to it.

One thread and one epoll: bytes go from server to client by splice, so this process never touches them, and relaying 1 Gb/s costs a few percent
of a CPU; threads that receive and send cost most of one, which is then missing to what is measured.
"""

import collections
import contextlib
import dataclasses
import fcntl
import heapq
import itertools
import json
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from tools.faults import Counts, Faults, Kind, Lot, Pace

CHUNK: Final = 256 * 1024
DRIP_EVERY: Final = 0.1
"""Seconds between the drops of an answer that drips."""
_RANGE: Final = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d+)", re.IGNORECASE)
_PIPE_SIZE: Final = 1024 * 1024
_PORTS: Final = range(31000, 32500)
"""Below those that the kernel gives to outgoing connections: while the link is down nobody else may get its port."""
_SLOW_DOWN_BODY: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_SLOW_DOWN: Final = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(_SLOW_DOWN_BODY)
) + _SLOW_DOWN_BODY


@dataclasses.dataclass(slots=True)
class Ranged:
    """A GET of a part of an image's data, and the bytes of its answer that have passed, headers included."""

    path: str
    start: int
    end: int
    answered: int = 0


class Connection:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, relay: "Relay", client: socket.socket, server: socket.socket) -> None:
        self.relay = relay
        self.client, self.server = client, server
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # without privilege pipes may be small: it is only slower then
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self.is_open = True
        self.fault: Kind | None = None
        self.record: Ranged | None = None
        self.waits_for_request = True
        self.held = bytearray()
        """What the client sent and the server has not got."""
        self.answered = 0
        """Bytes of the present answer that were taken from the server."""
        self.piped = 0
        self.is_holding = False
        self.is_resting = False
        """Whether its answer drips, and waits for the next drop."""

    # What the client sends.

    def client_event(self, events: int) -> None:
        """Take what the client has sent, or go on with what it can take now."""
        if events & select.EPOLLOUT and self.piped:
            self.drain()
        if self.is_open and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._take()

    def _take(self) -> None:
        try:
            body = self.client.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            body = b""
        if not body:
            self.close()
            return
        self.relay.counts.sent += len(body)
        self.held += body
        if self.waits_for_request:
            self._begin()
        elif not self.is_holding:
            self.forward()
        self.watch()

    def _begin(self) -> None:
        """Hold a request for as long as the link takes."""
        self.waits_for_request = False
        self.answered = 0
        head = bytes(self.held.partition(b"\r\n\r\n")[0])
        self.fault = self.relay.note_request(head.partition(b"\r\n")[0])
        self.record = self.relay.record(head)
        self.is_holding = True
        stall = self.relay.lot.faults.stall_seconds if self.fault is Kind.STALL else 0.0
        self.relay.later(self.relay.delay + stall, self._release)

    def _release(self) -> None:
        if not self.is_open:
            return
        self.is_holding = False
        if self.fault is Kind.SLOW_DOWN and self.held.endswith(b"\r\n\r\n"):
            self.held.clear()
            self.waits_for_request = True
            self.relay.counts.received += len(_SLOW_DOWN)
            try:
                self.client.send(_SLOW_DOWN)
            except OSError:
                self.close()
                return
        else:
            self.forward()
        self.watch()

    def forward(self) -> None:
        """Give the server what it has not got."""
        try:
            while self.held:
                del self.held[: self.server.send(self.held)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    # What the server answers.

    def server_event(self, events: int) -> None:
        """Queue an answer for the link, or go on with a request."""
        if events & select.EPOLLOUT and self.held and not self.is_holding:
            self.forward()
        if self.is_open and not self.is_resting and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self.relay.queue(self)
        self.watch()

    def move(self) -> int:
        """Move one chunk of the answer; return the bytes that the link had to carry."""
        if not self.is_open or self.piped:
            return 0
        length = CHUNK
        if self.fault in (Kind.TRUNCATE, Kind.RESET):
            length = self.relay.lot.faults.after - self.answered
        elif self.fault is Kind.DRIP:
            length = max(1, int(self.relay.lot.faults.drip_rate * DRIP_EVERY))
        if length <= 0:
            self.close(reset=self.fault is Kind.RESET)
            return 0
        try:
            moved = os.splice(self.server.fileno(), self.writer, length, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            self.watch()
            return 0
        except OSError:
            moved = 0
        if moved == 0:
            self.close()
            return 0
        self.waits_for_request = True
        self.answered += moved
        if self.record is not None:
            self.record.answered = self.answered
        self.piped = moved
        self.relay.counts.received += moved
        self.drain()
        return moved

    def drain(self) -> None:
        """Send what is in the pipe, and queue for more."""
        try:
            while self.piped:
                self.piped -= os.splice(self.reader, self.client.fileno(), self.piped, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except BlockingIOError:
            self.watch()
            return
        except OSError:
            self.close()
            return
        if self.fault is Kind.DRIP:
            self.is_resting = True
            self.relay.later(DRIP_EVERY, self._go_on)
        else:
            self.relay.queue(self)
        self.watch()

    def _go_on(self) -> None:
        self.is_resting = False
        self.relay.queue(self)

    def watch(self) -> None:
        """Ask epoll for what can be used: nothing of a client whose request is held, nothing of a server whose answer is queued."""
        if not self.is_open:
            return
        takes = not self.is_holding and len(self.held) < CHUNK
        self.relay.watch(self.client, (select.EPOLLIN if takes else 0) | (select.EPOLLOUT if self.piped else 0))
        is_busy = self in self.relay.queued or self.piped or self.is_resting
        wants_out = self.held and not self.is_holding
        self.relay.watch(self.server, (0 if is_busy else select.EPOLLIN) | (select.EPOLLOUT if wants_out else 0))

    def close(self, *, reset: bool = False) -> None:
        """End both connections; with `reset` the client's breaks."""
        if not self.is_open:
            return
        self.is_open = False
        if reset:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.relay.forget(self)
        self.client.close()
        self.server.close()
        os.close(self.reader)
        os.close(self.writer)


class Relay:
    """The event loop, its connections, and what they have in common."""

    def __init__(self, target: tuple[str, int], delay: float, rate: float) -> None:
        self.target = target
        self.delay = delay
        self.pace = Pace(rate)
        self.lot = Lot(Faults())
        self.counts = Counts()
        self._ranges: list[Ranged] = []
        self.queued: set[Connection] = set()
        self._queue: collections.deque[Connection] = collections.deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._watched: dict[int, int] = {}
        self._connections: set[Connection] = set()
        self._listener = self._bind()
        self.port = self._listener.getsockname()[1]
        self._listen()
        self._commands = b""
        self._outages = 0
        self._is_over = False

    def run(self) -> None:
        """Relay until the input ends."""
        self._handlers[sys.stdin.fileno()] = self._command_event
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        print(self.port, flush=True)
        while not self._is_over:
            for descriptor, events in self._epoll.poll(self._timeout()):
                handler = self._handlers.get(descriptor)  # an earlier event of this turn may have ended it
                if handler is not None:
                    handler(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            self._pump()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), action))

    def queue(self, connection: Connection) -> None:
        """Let a connection wait for its turn on the link."""
        if connection.is_open and connection not in self.queued:
            self.queued.add(connection)
            self._queue.append(connection)

    def watch(self, end: socket.socket, events: int) -> None:
        """Ask for events of a socket; those of its end always come."""
        descriptor = end.fileno()
        if self._watched.get(descriptor) != events:
            self._epoll.modify(descriptor, events)
            self._watched[descriptor] = events

    def forget(self, connection: Connection) -> None:
        """Know no more of a connection that ends."""
        for end in (connection.client, connection.server):
            descriptor = end.fileno()
            self._epoll.unregister(descriptor)
            del self._handlers[descriptor], self._watched[descriptor]
        self._connections.discard(connection)

    def note_request(self, line: bytes) -> Kind | None:
        """Count a request and return what goes wrong with it."""
        if b" HTTP/1." not in line:
            return None  # a body that was held back until the server said that it may come
        self.counts.requests += 1
        if not line.startswith(b"GET "):
            return None
        self.counts.data_requests += b"/data" in line
        fault = self.lot.draw()
        self.counts.faults += fault is not None
        return fault

    def record(self, head: bytes) -> Ranged | None:
        """Keep which range a GET of data wants, for whoever asks for the ranges."""
        found = _RANGE.search(head)
        if found is None or not head.startswith(b"GET ") or b"/data" not in head.partition(b"\r\n")[0]:
            return None
        path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
        self._ranges.append(Ranged(path, int(found[1]), int(found[2]) + 1))
        return self._ranges[-1]

    def _timeout(self) -> float:
        now = time.monotonic()
        waits = [10.0]
        if self._timers:
            waits.append(max(0.0, self._timers[0][0] - now))
        if self._queue:
            waits.append(self.pace.wait(now))
        return min(waits)

    def _pump(self) -> None:
        """Let the queued answers take turns for as long as the link is free."""
        while self._queue and self.pace.is_free(now := time.monotonic()):
            connection = self._queue.popleft()
            self.queued.discard(connection)
            moved = connection.move()
            if moved:
                self.pace.pass_on(moved, now)

    # Connections come, or none may.

    def _bind(self) -> socket.socket:
        for port in _PORTS:
            listener = socket.socket()
            try:
                # First exclusively, so that no other link takes the port while this one is down; then so that it may be listened at again
                # while connections of before linger.
                listener.bind(("127.0.0.1", port))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.listen(512)
            except OSError:
                listener.close()
                continue
            return listener
        raise OSError(f"no free port between {_PORTS.start} and {_PORTS.stop}")

    def _listen(self) -> None:
        self._listener.listen(512)
        self._listener.setblocking(False)
        self._handlers[self._listener.fileno()] = self._accept
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _accept(self, events: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.socket()
        server.setblocking(False)
        client.setblocking(False)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.connect_ex(self.target)  # on loopback; a server that refuses ends the connection at its first event
        connection = Connection(self, client, server)
        self._connections.add(connection)
        self.counts.connections += 1
        for end, handler in ((client, connection.client_event), (server, connection.server_event)):
            self._handlers[end.fileno()] = handler
            self._epoll.register(end.fileno(), select.EPOLLIN)
            self._watched[end.fileno()] = select.EPOLLIN

    def down(self, seconds: float) -> None:
        """Break all connections and refuse new ones for so long from now. The port stays bound: nobody else can get it."""
        descriptor = self._listener.fileno()
        if descriptor in self._handlers:
            self._epoll.unregister(descriptor)
            del self._handlers[descriptor]
            self._listener.shutdown(socket.SHUT_RDWR)
        self._outages += 1
        outage = self._outages
        self.later(seconds, lambda: self._listen() if self._outages == outage else None)
        for connection in list(self._connections):
            connection.close(reset=True)

    # Commands.

    def _command_event(self, events: int) -> None:
        body = os.read(sys.stdin.fileno(), 65536)
        if not body:
            self._is_over = True
            return
        *lines, self._commands = (self._commands + body).split(b"\n")
        for line in lines:
            print(json.dumps(self._obey(json.loads(line))), flush=True)

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        match command:
            case {"faults": faults}:
                self.lot = Lot(Faults(**faults))
            case {"down": seconds}:
                self.down(seconds)
            case {"rate": rate, "delay": delay}:
                self.pace.rate, self.delay = rate, delay
            case {"ranges": True}:
                ranges, self._ranges = self._ranges, []
                return {"ranges": [dataclasses.astuple(ranged) for ranged in ranges]}
        return dataclasses.asdict(self.counts)


if __name__ == "__main__":
    Relay((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]), float(sys.argv[4])).run()
