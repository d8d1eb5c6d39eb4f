"""This module is the process of an S3 server with a fleet of images, for measuring what a catalog of them costs.

`python -m tools.fleet_server COUNT` listens on a port of loopback, says which on standard output, and ends with its standard input. It makes the
objects of COUNT images as they are asked for, and takes one more object by PUT, the catalog bundle. It looks at no signature and at no header
but those of conditional writes.

A real server on the same two processors would be what is measured: SeaweedFS takes 0.9 ms of a processor for a GET and 100 ms for a
page of a listing, 115 s for a first mount of 100,000 images. This one takes a tenth of that.
"""

import asyncio
import bisect
import functools
import hashlib
import re
import sys
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from imagefs.store.record import ImageRecord, encode_record

PREFIX: Final = "fleet/"
PAGE: Final = 1000
NAMES: Final = ("data", "digests", "image.json")
"""In the order of a listing."""
_LENGTH: Final = re.compile(r"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_WHEN: Final = "Thu, 01 Jan 2026 00:00:00 GMT"
_RANGE: Final = re.compile(r"\r\nrange: *bytes=(\d+)-(\d+)", re.IGNORECASE)
_PROPERTIES: Final = {f"property_{key}": "value" for key in range(30)}


@functools.cache
def image_id(number: int) -> str:
    """Return the id of an image."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4000-8000-{digest[12:24]}"


def record(number: int) -> bytes:
    """Return the record of an image: thirty properties, and hashes that do not compress."""
    own_id = image_id(number)
    made = ImageRecord(
        id=own_id,
        created_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:00Z",
        name=f"image-{number}",
        status="active",
        visibility="public",
        disk_format="raw",
        container_format="bare",
        size=512,
        virtual_size=512,
        checksum=hashlib.md5(own_id.encode(), usedforsecurity=False).hexdigest(),
        os_hash_algo="sha512",
        os_hash_value=hashlib.sha512(own_id.encode()).hexdigest(),
        properties=_PROPERTIES,
    )
    return encode_record(made)


class Fleet:
    """The objects, and what is answered to a request for them."""

    def __init__(self, count: int) -> None:
        self._numbers = {image_id(number): number for number in range(count)}
        self._bodies = {own_id: record(number) for own_id, number in self._numbers.items()}
        self._etags = {own_id: _sum(body) for own_id, body in self._bodies.items()}
        self._keys = [f"{PREFIX}{own_id}/{name}" for own_id in sorted(self._numbers) for name in NAMES]
        self._others: dict[str, bytes] = {}

    def answer(self, method: str, path: str, query: str, head: str, body: bytes) -> tuple[int, str, bytes]:
        """Return status, ETag and body."""
        key = unquote(path).partition("/images")[2].removeprefix("/")
        if method == "PUT":
            return self._put(key, head, body)
        if not key:
            asked = {name: values[0] for name, values in parse_qs(query).items()}
            return 200, "", self._page(asked.get("prefix", ""), asked.get("continuation-token", ""), int(asked.get("max-keys", PAGE)))
        found = self._others.get(key)
        if found is None:
            own_id, _, name = key.removeprefix(PREFIX).partition("/")
            if own_id not in self._bodies or name not in NAMES:
                return 404, "", b"<Error><Code>NoSuchKey</Code></Error>"
            if name == "image.json":
                return 200, self._etags[own_id], self._bodies[own_id]
            found = bytes(512)
        return 200, _sum(found), found

    def _put(self, key: str, head: str, body: bytes) -> tuple[int, str, bytes]:
        lowered = head.lower()
        present = self._others.get(key)
        refused = present is not None if "\r\nif-none-match:" in lowered else present is None or _sum(present) not in lowered
        if refused:
            return 412, "", b"<Error><Code>PreconditionFailed</Code></Error>"
        self._others[key] = body
        return 200, _sum(body), b""

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - there is one, for as long as the process
    def _page(self, prefix: str, token: str, most: int) -> bytes:
        start = bisect.bisect_right(self._keys, token) if token else bisect.bisect_left(self._keys, prefix)
        keys = [key for key in self._keys[start : start + most + 1] if key.startswith(prefix)]
        shown, more = keys[:most], len(keys) > most
        lines = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self._etag(key)}&quot;</ETag><Size>512</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in shown
        ]
        following = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        head = f"<Name>images</Name><Prefix>{prefix}</Prefix><KeyCount>{len(shown)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{head}{following}{"".join(lines)}</ListBucketResult>'.encode()

    def _etag(self, key: str) -> str:
        own_id, _, name = key.removeprefix(PREFIX).partition("/")
        return self._etags[own_id] if name == "image.json" else "0" * 32


def _sum(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class Client(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._got = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0 and self._transport is not None:
            head = self._got[:end].decode("latin-1") + "\r\n"
            length = _LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length is not None else 0)
            if len(self._got) < whole:
                if "\r\nexpect: 100-continue" in head.lower() and len(self._got) == end + 4:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self._got[end + 4 : whole])
            del self._got[:whole]
            method, target, _ = head.partition("\r\n")[0].split(" ")
            parts = urlsplit(target)
            status, etag, found = self._fleet.answer(method, parts.path, parts.query, head, body)
            ranged = ""
            if status == 200 and (asked := _RANGE.search(head)) is not None:
                start, stop = int(asked[1]), min(int(asked[2]) + 1, len(found))
                status, ranged, found = 206, f"Content-Range: bytes {start}-{stop - 1}/{len(found)}\r\n", found[start:stop]
            said = f'HTTP/1.1 {status} OK\r\n{ranged}Content-Length: {len(found)}\r\nETag: "{etag}"\r\nLast-Modified: {_WHEN}\r\n\r\n'
            self._transport.write(said.encode() + (b"" if method == "HEAD" else found))


async def serve(count: int) -> None:
    """Serve until standard input ends."""
    fleet, loop = Fleet(count), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Client(fleet), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
