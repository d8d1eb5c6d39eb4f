"""This module reads an S3 object through presigned URLs over pooled connections: a third of the CPU of boto3 for each ranged GET.

A presigned URL is a secret for as long as it is valid: it never stands in a message, and errors are raised without their cause,
whose text may hold it.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import urllib3

from imagefs.errors import StoreRefused, StoreUnavailable, VersionChanged
from imagefs.store.answers import data_refusal
from imagefs.units import UNIT

URL_LIFETIME: Final = 6 * 3600
"""Seconds a URL is signed for. Temporary credentials may end sooner: a 403 signs again, once."""
_PIECE: Final = UNIT
"""Bytes asked of a connection at a time: one unit, so that each is handed on as it comes, and as the very bytes object that was read."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

Sign = Callable[[], str]
"""Returns a URL for GET of one object, valid for URL_LIFETIME seconds."""


class PresignedObject:
    """One S3 object at one ETag: a DataObject. May be used by many threads at once."""

    path: Path | None = None

    def __init__(
        self, name: str, size: int, etag: str | None, *, sign: Sign, pool: urllib3.PoolManager, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take what messages call it, its bytes, its ETag (None: that of the first answer), and what signs and sends requests."""
        self._name = name
        self.size = size
        self._etag = etag
        self._sign = sign
        self._pool = pool
        self._clock = clock
        self._lock = threading.Lock()
        self._url = ""
        self._signed_at = float("-inf")

    @property
    def version(self) -> str:
        """The ETag that every read is pinned to; empty until the first one was answered, if nobody said it before."""
        return self._etag or ""

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield the bytes of [offset, offset+length), cut at the object's end, as they arrive: one attempt.

        Raises StoreUnavailable (refused, broken, short, slow, 5xx), VersionChanged, NotFound, StoreRefused.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return
        response = self._get(offset, end)
        left = end - offset
        try:
            self._check(response, offset, end)
            while left:
                piece = response.read(min(_PIECE, left), decode_content=False)
                if not piece:
                    raise StoreUnavailable(f"reading {self._name}: the answer ended {left} bytes short")
                left -= len(piece)
                if not left:
                    _finish(response)  # before the last yield, after which the consumer may not come back
                yield piece
        except urllib3.exceptions.HTTPError as error:
            raise _unavailable(f"reading {self._name}", error) from None
        finally:
            # A connection with unread bytes must not be used again.
            if left:
                response.close()

    def _get(self, offset: int, end: int) -> urllib3.BaseHTTPResponse:
        """Send the ranged GET; on a 403 sign again and send once more."""
        response = self._send(self._current_url(), offset, end)
        if response.status == 403:
            response.close()
            response = self._send(self._current_url(renew=True), offset, end)
        return response

    def _send(self, url: str, offset: int, end: int) -> urllib3.BaseHTTPResponse:
        headers = {"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"}
        if self._etag is not None:
            headers["If-Match"] = f'"{self._etag}"'
        try:
            # No redirect is followed: image bytes come from the configured endpoint and from nowhere else.
            return self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise _unavailable(f"reading {self._name}", error) from None

    def _current_url(self, renew: bool = False) -> str:
        with self._lock:
            if renew or self._clock() - self._signed_at > URL_LIFETIME / 2:
                self._url = self._sign()
                self._signed_at = self._clock()
            return self._url

    def _check(self, response: urllib3.BaseHTTPResponse, offset: int, end: int) -> None:
        """Return if the answer is the range asked for, of the pinned version."""
        if response.status not in (200, 206):
            raise data_refusal(response.status, self._name, response.headers)
        etag = response.headers.get("ETag", "").strip('"')
        with self._lock:
            if self._etag is None and etag:
                self._etag = etag
        if etag != self._etag:
            raise VersionChanged(f"{self._name} is another version now (ETag {etag or 'missing'}): open the image again")
        if response.status == 200:
            if (offset, end) != (0, self.size):
                raise StoreRefused(f"reading {self._name}: the server ignores Range, without which imagefs cannot work")
            return
        header = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(header)
        if match is not None and match[3] not in ("*", str(self.size)):
            raise VersionChanged(f"{self._name} has {match[3]} bytes now, not {self.size}: open the image again")
        if match is None or (int(match[1]), int(match[2]) + 1) != (offset, end):
            raise StoreUnavailable(f"reading {self._name}: asked for bytes {offset}-{end - 1}, answered '{header[:60]}'")


def _finish(response: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back to the pool, unless the server sends more than it was asked for."""
    if response.read(1, decode_content=False):
        response.close()
    else:
        response.release_conn()


def _unavailable(doing: str, error: urllib3.exceptions.HTTPError) -> StoreUnavailable | StoreRefused:
    """Return what a failed exchange means, in words of its own: the text of `error` may hold the URL."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreRefused(f"{doing}: the server's certificate is not trusted: mend [store.s3] ca_bundle or endpoint_url")
    words = {
        urllib3.exceptions.NewConnectionError: "no connection to the server",  # a ConnectTimeoutError too: it comes first
        urllib3.exceptions.ConnectTimeoutError: "the server does not answer",
        urllib3.exceptions.ReadTimeoutError: "the server stopped sending",
    }
    said = next((text for kind, text in words.items() if isinstance(error, kind)), "the connection broke")
    return StoreUnavailable(f"{doing}: {said} ({type(error).__name__})")
