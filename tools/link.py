"""This module is a network link to measure over: a relay on loopback with a time to the first byte and a bandwidth.

It counts what passes, so that a measurement need not believe the program that it measures.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

CHUNK: Final = 256 * 1024


class Link:
    """A running relay to the HTTP server at `upstream`; `delay` in seconds is added to each request, `rate` is in bytes/s towards the client."""

    def __init__(self, upstream: str, *, delay: float, rate: float) -> None:
        target = urlsplit(upstream)
        self._target = (target.hostname or "", target.port or 80)
        self._delay = delay
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0
        self.received = 0
        """Bytes that went to the client, headers included."""
        self.requests = 0
        self.data_requests = 0
        """Requests for an image's data."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more connections; the open ones end with their clients."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answered = threading.Event()
            answered.set()
            back = threading.Thread(target=self._answers, args=(server, client, answered), daemon=True)
            back.start()
            while body := client.recv(CHUNK):
                if answered.is_set():  # what comes first after an answer begins a request
                    answered.clear()
                    self._count(body)
                    time.sleep(self._delay)
                server.sendall(body)
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _answers(self, server: socket.socket, client: socket.socket, answered: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while body := server.recv(CHUNK):
                answered.set()
                self._pace(len(body))
                client.sendall(body)
            client.shutdown(socket.SHUT_WR)

    def _count(self, head: bytes) -> None:
        line = head.partition(b"\r\n")[0]
        if b" HTTP/1." not in line:
            return  # a body that was held back until the server said that it may come
        with self._lock:
            self.requests += 1
            self.data_requests += line.startswith(b"GET ") and b"/data" in line

    def _pace(self, length: int) -> None:
        """Wait until the link has room for `length` bytes after all that were sent before."""
        with self._lock:
            self.received += length
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + length / self._rate
            wait = self._free_at - now
        time.sleep(wait)
