"""This module lists and reads the small objects of a whole fleet of images in an S3 bucket, with little work for each.

It is an accelerator: requests are signed here and sent past botocore. Whatever one of them meets but success is done again by the
bucket itself, which retries and explains. So nothing depends on this module but time.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

import urllib3

from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError
from imagefs.store.bulk import Answer, Server, get_all
from imagefs.store.s3_page import MAX_PAGE, Page, parse_page
from imagefs.store.signing import Signer, encoded_query

PAGE: Final = 1000
"""Keys of a page: the most that S3 gives."""


class Fleet:
    """One bucket's objects. `tls` is what HTTPS trusts. Thread-safe."""

    def __init__(self, signer: Signer, pool: urllib3.PoolManager, tls: ssl.SSLContext | None, source_address: str | None) -> None:
        self._signer = signer
        self._pool = pool
        place = signer.place
        self._origin = f"{'https' if place.secure else 'http'}://{place.host}"
        parts = urlsplit(self._origin)
        self._server = Server(parts.hostname or "", parts.port or (443 if place.secure else 80), tls, source_address)

    def page(self, start: str, suffix: str, token: str | None) -> Page | None:
        """Return a page of the keys that begin with `start`, those only that end in `suffix`; None if that did not work."""
        asked = {"encoding-type": "url", "list-type": "2", "max-keys": str(PAGE), "prefix": start}
        query = encoded_query(asked if token is None else {**asked, "continuation-token": token})
        path = self._signer.bucket_target()
        COUNTERS.store_requests += 1
        # ImagefsError: there are no credentials any more, and new ones cannot be had.
        with contextlib.suppress(urllib3.exceptions.HTTPError, ValueError, ImagefsError):
            answer = self._pool.request(
                "GET",
                f"{self._origin}{path}?{query}",
                headers=self._signer.headers(path, query),
                preload_content=False,
                redirect=False,
                retries=False,
            )
            body = answer.read(MAX_PAGE + 1, decode_content=False)
            if len(body) > MAX_PAGE:
                answer.close()
                return None
            answer.release_conn()
            if answer.status == 200:
                return parse_page(body, suffix)
        return None

    def read(self, keys: Iterable[str], take: Callable[[str, bytes, str], None]) -> list[str]:
        """Read objects, calling `take` with key, bytes and ETag of each; return the keys of those for which that did not work.

        Raises what `take` raises, and StoreRefused or StoreUnavailable if there are no credentials any more.
        """
        failed: list[str] = []

        def answered(answer: Answer) -> None:
            COUNTERS.store_requests += 1
            if answer.status == 200 and answer.etag:
                take(answer.key, answer.body, answer.etag)
            else:
                failed.append(answer.key)

        def request(key: str) -> tuple[str, dict[str, str]]:
            target = self._signer.object_target(key)
            return target, self._signer.headers(target)

        get_all(self._server, keys, request, answered)
        return failed
