"""This module is the bytes of one image, read from Glance by ranges over pooled connections."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import urllib3

from imagefs.errors import StoreUnavailable, VersionChanged
from imagefs.store.glance.connection import Connection, unreachable
from imagefs.store.glance.refusal import data_refusal
from imagefs.units import KIB

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

_PIECE: Final = 256 * KIB
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class GlanceData:
    """A DataObject: the bytes of an image, which Glance never changes. May be used by many threads at once."""

    path: Path | None = None

    def __init__(self, connection: Connection, image_id: str, size: int, version: str, checksum: str | None = None) -> None:
        """`checksum`: the MD5 that answers must name, if they name one."""
        self._connection = connection
        self._path = f"/v2/images/{image_id}/file"
        self._doing = f"reading the bytes of image {image_id}"
        self._checksum = checksum
        self.size = size
        self.version = version

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of [offset, offset+length), cut at the end, as they arrive: one attempt.

        Raises StoreUnavailable (refused, broken, short, slow, 5xx), VersionChanged, NotFound, StoreRefused.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return
        with self._connection.read(self._doing, self._path, {"Range": f"bytes={offset}-{end - 1}"}) as (status, headers, body):
            skipped = self._check(status, headers, offset, end)
            try:
                for _ in _pieces(body, skipped, self._doing):
                    pass
                left = end - offset
                for piece in _pieces(body, left, self._doing):
                    left -= len(piece)
                    if not left:
                        _finish(body)  # before the last yield, after which the consumer may not come back
                    yield piece
            except urllib3.exceptions.HTTPError as error:
                raise unreachable(self._doing, error, self._connection.endpoint) from None

    def _check(self, status: int, headers: Mapping[str, str], offset: int, end: int) -> int:
        """Return how many bytes to skip of an answer that is the range asked for, or the whole image; raise for any other."""
        if status not in (200, 206):
            raise data_refusal(self._doing, status, headers, self._connection.endpoint)
        named = headers.get("Content-MD5")
        if named is not None and self._checksum is not None and named != self._checksum:
            raise VersionChanged(f"{self._doing}: it has other bytes now: open the image again")
        if status == 200:
            total = headers.get("Content-Length", str(self.size))
            if total != str(self.size):
                raise VersionChanged(f"{self._doing}: it has {total[:20]} bytes now, not {self.size}: open the image again")
            return offset
        header = headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(header)
        if match is None or (int(match[1]), int(match[2]) + 1) != (offset, end):
            raise StoreUnavailable(f"{self._doing}: asked for bytes {offset}-{end - 1}, answered '{header[:60]}'")
        if match[3] not in ("*", str(self.size)):
            raise VersionChanged(f"{self._doing}: it has {match[3][:20]} bytes now, not {self.size}: open the image again")
        return 0


def _pieces(body: "BaseHTTPResponse", length: int, doing: str) -> Iterator[bytes]:
    """Yield exactly the next `length` bytes. Raises StoreUnavailable if the answer ends before."""
    while length:
        piece = body.read(min(_PIECE, length), decode_content=False)
        if not piece:
            raise StoreUnavailable(f"{doing}: the answer ended {length} bytes short")
        length -= len(piece)
        yield piece


def _finish(body: "BaseHTTPResponse") -> None:
    """Give the connection back to the pool, unless the server sends more than it was asked for."""
    if not body.read(1, decode_content=False):
        body.release_conn()
