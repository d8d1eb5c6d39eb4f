"""This module is a small HTTP proxy in front of an S3 server or a Glance that injects faults, each exactly where a test wants it.

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.add(Fault.RESET, method="GET", contains="data", after=100_000)     # once; times=None: for ever
        ...  # use proxy.endpoint_url; proxy.requests lists what came

The host name that the client signed is passed on as it is, so signatures stay valid. It needs no pytest.
"""

import dataclasses
import enum
import http.client
import random
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urlsplit

REDIRECT_TARGET: Final = "http://elsewhere.invalid/secret?signature=canary"
_SLOW_DOWN: Final = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Fault(enum.Enum):
    """What goes wrong with one request."""

    RESET = "the connection is reset after `after` bytes of the body"
    TRUNCATE = "the connection is closed in an orderly way after `after` bytes of the body"
    STALL = "nothing more is sent after `after` bytes of the body, and the connection stays open until the proxy ends"
    UNAVAILABLE = "503 SlowDown, and the server never hears of it"
    WRONG_ETAG = "the answer has another ETag"
    FLIP = "one bit of the body's byte number `after` is wrong"
    LOST_ANSWER = "the server does it, and the connection is reset before the answer"
    FORBIDDEN = "403 with no body, and the server never hears of it"
    UNAUTHORIZED = "401 with no body, and the server never hears of it"
    REDIRECT = "307 to another host, and the server never hears of it"
    GARBAGE = "200 with a body that is not what any server would say"
    EMPTY = "200 with no body"
    WRONG_RANGE = "the answer's Content-Range is one byte further"
    OTHER_TOTAL = "the answer's Content-Range tells another size of the object"
    WHOLE = "the server never hears of the Range"


_OWN_ANSWERS: Final[dict[Fault | None, tuple[int, list[tuple[str, str]], bytes]]] = {
    Fault.UNAVAILABLE: (503, [("Content-Type", "application/xml")], _SLOW_DOWN),
    Fault.FORBIDDEN: (403, [], b""),
    Fault.UNAUTHORIZED: (401, [], b""),
    Fault.REDIRECT: (307, [("Location", REDIRECT_TARGET)], b""),
    Fault.GARBAGE: (200, [("Content-Type", "application/json")], b'[{"images": \xff'),
    Fault.EMPTY: (200, [], b""),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request that came: the path with its query, percent-decoded, and the client's address."""

    method: str
    path: str
    headers: dict[str, str]
    client_address: str


Plan = Callable[[Request], tuple[Fault, int] | None]
"""Decides for a request: None, or the fault and its `after`. Called once for each request, one at a time."""


@dataclasses.dataclass(slots=True)
class _Rule:
    fault: Fault
    method: str | None
    contains: str
    after: int
    times: int | None


class FaultProxy:
    """A running proxy on a port of its own of 127.0.0.1; threads serve it until `stop`."""

    def __init__(self, upstream: str) -> None:
        target = urlsplit(upstream)
        self.upstream_host, self.upstream_port = target.hostname or "", target.port or 80
        self.requests: list[Request] = []
        self.injected = 0
        self.ended = threading.Event()
        self._rules: list[_Rule] = []
        self._plan: Plan | None = None
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def add(self, fault: Fault, method: str | None = None, contains: str = "", after: int = 0, times: int | None = 1) -> None:
        """Inject `fault` into the next `times` requests (None: all) of `method` whose path contains `contains`."""
        with self._lock:
            self._rules.append(_Rule(fault, method, contains, after, times))

    def set_plan(self, plan: Plan | None) -> None:
        """Let `plan` decide for every request that no rule takes."""
        with self._lock:
            self._plan = plan

    def clear(self) -> None:
        """Forget rules, plan and the requests seen."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self._plan = None
            self.injected = 0

    def decide(self, request: Request) -> tuple[Fault, int] | None:
        """Record a request and return the fault for it, if any."""
        with self._lock:
            self.requests.append(request)
            verdict = self._match(request)
            self.injected += verdict is not None
            return verdict

    def stop(self) -> None:
        """Close the port and every connection."""
        self.ended.set()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _match(self, request: Request) -> tuple[Fault, int] | None:
        for rule in self._rules:
            if rule.times != 0 and rule.method in (None, request.method) and rule.contains in request.path:
                if rule.times is not None:
                    rule.times -= 1
                return rule.fault, rule.after
        return self._plan(request) if self._plan is not None else None


def _other_range(header: str, fault: Fault) -> str:
    """Return a Content-Range that is wrong in its place, or in the size that it tells."""
    place, total = header.removeprefix("bytes ").split("/")
    first, last = map(int, place.split("-"))
    return f"bytes {first + 1}-{last + 1}/{total}" if fault is Fault.WRONG_RANGE else f"bytes {place}/{int(total) + 1}"


def random_faults(rate: float, seed: int, method: str = "GET", contains: str = "/data") -> Plan:
    """Return a plan that fails a share `rate` of the matching requests, in a way and at a place that the seed decides."""
    chance = random.Random(seed)
    kinds = (Fault.RESET, Fault.TRUNCATE, Fault.UNAVAILABLE)

    def plan(request: Request) -> tuple[Fault, int] | None:
        if request.method != method or contains not in request.path or chance.random() >= rate:
            return None
        return chance.choice(kinds), chance.randrange(65536)

    return plan


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        with self._open_lock:
            self._open.add(request)  # type: ignore[arg-type]  # typeshed allows a datagram too
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: object) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)  # type: ignore[arg-type]

    def close_connections(self) -> None:
        """Wake every thread that waits for its client's next request."""
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it is gone already

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that hang up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._relay()

    def do_HEAD(self) -> None:
        self._relay()

    def do_PUT(self) -> None:
        self._relay()

    def do_POST(self) -> None:
        self._relay()

    def do_PATCH(self) -> None:
        self._relay()

    def do_DELETE(self) -> None:
        self._relay()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _proxy(self) -> FaultProxy:
        assert isinstance(self.server, _Server)
        return self.server.proxy

    def _relay(self) -> None:
        proxy = self._proxy()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, unquote(self.path), dict(self.headers.items()), str(self.client_address[0]))
        fault, after = proxy.decide(request) or (None, 0)
        if fault in _OWN_ANSWERS:
            self._answer(*_OWN_ANSWERS[fault])
            return
        if fault is Fault.WHOLE:
            del self.headers["Range"]
        status, headers, answer = self._forward(body)
        if fault is Fault.LOST_ANSWER:
            self._break(reset=True)
            return
        if fault is Fault.WRONG_ETAG:
            headers = [(name, '"0123456789abcdef"' if name.lower() == "etag" else value) for name, value in headers]
        if fault in (Fault.WRONG_RANGE, Fault.OTHER_TOTAL):
            headers = [(name, _other_range(value, fault) if name.lower() == "content-range" else value) for name, value in headers]
        if fault is Fault.FLIP and after < len(answer):
            answer = answer[:after] + bytes([answer[after] ^ 1]) + answer[after + 1 :]
        if fault in (Fault.RESET, Fault.TRUNCATE, Fault.STALL):
            self._answer(status, headers, answer, only=after)
            if fault is Fault.STALL:
                proxy.ended.wait()
            self._break(reset=fault is Fault.RESET)
            return
        self._answer(status, headers, answer)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send the request on, byte for byte in what is signed, and return the whole answer."""
        proxy = self._proxy()
        upstream = http.client.HTTPConnection(proxy.upstream_host, proxy.upstream_port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            answer = response.read()
            kept = [
                (name, value) for name, value in response.getheaders() if name.lower() not in ("transfer-encoding", "connection", "date", "server")
            ]
            return response.status, kept, answer
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, only: int | None = None) -> None:
        """Send an answer, of the body `only` that many bytes."""
        self.send_response(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:only])

    def _break(self, reset: bool) -> None:
        """Close the connection now, by RST if `reset`."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The reader's reference too, or the socket would stay open and be shut down in an orderly way.
            self.rfile.close()
            self.connection.close()
