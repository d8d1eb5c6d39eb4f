"""This module is the process before an S3 server that answers GETs of images' bytes in its place, from the files that the images were made of.

`python -m tools.front UPSTREAM PATH=FILE ...` listens on a port of loopback, says which on standard output, and ends with its standard input.
What is not a GET of one of the PATHs is passed on to the HTTP server at UPSTREAM, whose ETags are those of the answers from files.

A service in a network takes none of the node's processors. SeaweedFS compresses what can be compressed, in chunks of 4 MiB, and
so takes 17 ms of a processor for a part of a raw disk, however small; peers that ask for many small parts would look slow for that.
"""

import functools
import http.client
import http.server
import os
import re
import sys
import threading
from typing import Final, cast
from urllib.parse import urlsplit

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_OF_CONNECTION: Final = {"connection", "transfer-encoding", "keep-alive"}


class Front(http.server.ThreadingHTTPServer):
    """The server: which files it has, and who has the rest."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, upstream: str, files: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream = urlsplit(upstream).netloc
        self.files = {path: os.open(file, os.O_RDONLY | os.O_CLOEXEC) for path, file in files.items()}

    @functools.cache  # noqa: B019 - there is one, for as long as the process
    def etag(self, path: str) -> str:
        """Return what the upstream calls this version of an object."""
        connection = http.client.HTTPConnection(self.upstream)
        try:
            connection.request("HEAD", path)
            return connection.getresponse().headers["ETag"]
        finally:
            connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def front(self) -> Front:
        """The server."""
        return cast("Front", self.server)

    def do_GET(self) -> None:
        """Answer from a file if there is one, and if what is asked for is plain."""
        path = self.path.partition("?")[0]
        descriptor = self.front.files.get(path)
        wanted = self.headers.get("Range")
        match = _RANGE.fullmatch(wanted) if wanted is not None else None
        if descriptor is None or (wanted is not None and match is None):
            self._pass_on()
            return
        size = os.fstat(descriptor).st_size
        start = int(match[1]) if match is not None else 0
        stop = min(int(match[2]) + 1, size) if match is not None and match[2] else size
        etag = self.front.etag(path)
        if start >= stop or self.headers.get("If-Match", etag) not in (etag, etag.strip('"')):
            self._pass_on()  # the upstream knows how to say no
            return
        self.send_response(206 if match is not None else 200)
        if match is not None:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        for name, value in (("Content-Length", str(stop - start)), ("ETag", etag), ("Accept-Ranges", "bytes")):
            self.send_header(name, value)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        while start < stop:
            start += os.sendfile(self.connection.fileno(), descriptor, start, stop - start)

    def _pass_on(self) -> None:
        """Let the upstream answer."""
        length = int(self.headers.get("Content-Length", 0))
        connection = http.client.HTTPConnection(self.front.upstream)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(self.rfile.read(length) if length else None)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _OF_CONNECTION:
                self.send_header(name, value)
        if "Content-Length" not in answer.headers and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """Let the upstream answer: its headers are what is asked for."""
        self._pass_on()

    def do_PUT(self) -> None:
        """Let the upstream take it."""
        self._pass_on()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def main() -> None:
    """Serve until the input ends."""
    front = Front(sys.argv[1], dict(word.rsplit("=", 1) for word in sys.argv[2:]))
    threading.Thread(target=front.serve_forever, daemon=True).start()
    print(front.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
