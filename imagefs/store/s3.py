"""This module is an S3 bucket as a Bucket, and with `s3_connector` the only one that knows boto3.

boto3 sends the small requests and the uploads and signs the URLs; image data goes through `presigned`. Small requests are tried
once by botocore and again by `retry`, since botocore's own retries of a conditional write would report the first try's success as
another writer's. Credentials come from the AWS chain (environment, files, instance role) and from nowhere else.
"""

import contextlib
import functools
import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import botocore.exceptions as aws
import urllib3
from boto3.s3.transfer import TransferConfig

from imagefs.counters import COUNTERS
from imagefs.errors import Conflict, ImagefsError, InvalidInput, NotFound, StoreError, StoreRefused, StoreUnavailable
from imagefs.store.crowd import GENTLE, THREADS, each, grown
from imagefs.store.moving import Moving
from imagefs.store.options import S3Options
from imagefs.store.presigned import URL_LIFETIME, PresignedObject
from imagefs.store.protocol import SMALL_LIMIT, Entry, Progress
from imagefs.store.retry import SmallRetry
from imagefs.store.s3_connector import Connector, Timeouts, code_of, explain, quiet_loggers, status_of
from imagefs.store.s3_fleet import Fleet
from imagefs.store.s3_page import Page
from imagefs.store.signing import Signer, place_of
from imagefs.units import MIB, align_up

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

T = TypeVar("T")

CROWD: Final = 16
"""Small objects from which on `bulk` reads them: below that its connections are not worth their making."""
UPLOAD_TRIES: Final = 6
UPLOAD_THREADS: Final = 4
SMALLEST_PART: Final = 8 * MIB
MOST_PARTS: Final = 9000
"""S3 allows 10,000 parts: 8 MiB parts reach 70 GiB, a tebibyte takes parts of 117 MiB, UPLOAD_THREADS of which are in memory."""
_WRITE_MARK: Final = "imagefs-write"
"""Metadata of conditional writes: a random mark by which a writer knows its own object after an answer was lost."""


def part_size(size: int) -> int:
    """Return the bytes in a part of an upload of `size` bytes, so that there are MOST_PARTS at most."""
    return max(SMALLEST_PART, align_up(-(-size // MOST_PARTS), MIB))


class S3Bucket:
    """A Bucket over the objects of `bucket` whose keys begin with `prefix` and `/` (no prefix: all of them)."""

    remote = True

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        options: S3Options | None = None,
        *,
        source_address: str | None = None,
        timeouts: Timeouts | None = None,
        retry: SmallRetry | None = None,
    ) -> None:
        """Build the clients; nothing is sent to the store. Raises ConfigError for an endpoint, profile, region or ca_bundle that cannot be right."""
        quiet_loggers()
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._retry = retry or SmallRetry()
        self._connector = Connector(options or S3Options(), source_address, timeouts or Timeouts())
        self._client = self._connector.client(tries=1)
        self._endpoint = self._client.meta.endpoint_url
        self._pool = self._connector.pool(self._endpoint)

    @property
    def url(self) -> str:
        """The store's URL."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def check(self) -> None:
        """Return if the bucket is there and may be listed; else NotFound, StoreRefused or StoreUnavailable."""
        self._list_page(f"opening {self.url}", {"MaxKeys": 1})

    def list(self) -> Iterator[Entry]:
        """Yield every object below the prefix, a thousand for each request."""
        more: dict[str, Any] = {}
        while True:
            page = self._list_page(f"listing {self.url}", more)
            for found in page.get("Contents", ()):
                key = found["Key"].removeprefix(self._prefix)
                yield Entry(key, found["Size"], found["ETag"].strip('"'), found["LastModified"].timestamp())
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def list_below(self, starts: Sequence[str], suffix: str, gently: bool = False) -> Iterator[tuple[str, str]]:
        """Yield (key, ETag) of what begins with one of `starts` and ends in `suffix`; if there are many pages, each start's beside the others'."""
        first = self._page("", suffix, None)
        if first.token is None:
            found = iter(first.found)
        else:
            shards: list[tuple[str, str | None]] = [(start, None) for start in starts]
            pages = grown(
                lambda asked: self._page(asked[0], suffix, asked[1]),
                shards,
                lambda asked, page: [(asked[0], page.token)] if page.token is not None else [],
                GENTLE if gently else THREADS,
            )
            found = (pair for _, page in pages for pair in page.found)
        below = tuple(starts)
        for name, etag in found:
            key = name.removeprefix(self._prefix)
            if key.startswith(below):
                yield key, etag

    def get_many(self, keys: Iterable[str], take: Callable[[str, bytes, str], None]) -> None:
        """Read many small objects, many at once, calling `take` for each; those that are gone by now are left out."""
        keys = iter(keys)
        few = list(itertools.islice(keys, CROWD))
        left: Iterable[str] = few
        if self._fleet is not None and len(few) == CROWD:
            whole = (self._prefix + key for key in itertools.chain(few, keys))
            failed = self._fleet.read(whole, lambda name, body, etag: take(name.removeprefix(self._prefix), body, etag))
            left = [name.removeprefix(self._prefix) for name in failed]
        for key, found in each(self._get_if_there, itertools.chain(left, keys)):
            if found is not None:
                take(key, *found)

    def get(self, key: str, limit: int = SMALL_LIMIT) -> tuple[bytes, str]:
        """Return a small object's bytes (cut after `limit`) and ETag."""
        return self._request(f"reading {self._name(key)}", lambda: self._get_once(key, 0, limit, {}))

    def peek(self, key: str, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset+length) as they are now, fewer at the end."""

        def ranged() -> bytes:
            try:
                return self._get_once(key, offset, length, {"Range": f"bytes={offset}-{offset + length - 1}"})[0]
            except aws.ClientError as error:
                if status_of(error) == 416:
                    return b""
                raise

        # A range of no bytes cannot be written in a Range header.
        return self._request(f"reading {self._name(key)}", ranged) if length > 0 else b""

    def put(self, key: str, body: bytes, expected: str | None) -> str:
        """Write the object if its ETag is `expected` (None: create it) and return the new ETag. Raises Conflict.

        Knows its own write by a random mark when an answer is lost, so that a retry never takes it for another writer's.
        Raises StoreUnavailable if it could not be found out; the object may then have been written.
        """
        mark = secrets.token_hex(16)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": f'"{expected}"'}
        sent = False

        def attempt() -> str:
            nonlocal sent
            if sent and (version := self._written(key, mark)):
                return version
            try:
                first, sent = not sent, True
                return self._try(f"writing {self._name(key)}", lambda: self._put_once(key, body, mark, condition))
            except Conflict:
                # The first try may have arrived after it was looked for.
                if not first and (version := self._written(key, mark)):
                    return version
                raise

        return self._retry(attempt)

    def upload(self, key: str, source: BinaryIO, size: int, progress: Progress) -> str:
        """Write `size` bytes of `source`, in parallel parts if they are many, and return the ETag; nothing is left after a failure."""
        part = part_size(size)
        transfer = TransferConfig(multipart_threshold=part, multipart_chunksize=part, max_concurrency=UPLOAD_THREADS)
        transfer.max_in_memory_upload_chunks = UPLOAD_THREADS
        doing = f"storing {self._name(key)}"
        moving = Moving(source, progress)
        try:
            self._try(
                doing,
                lambda: self._uploader.upload_fileobj(
                    cast("IO[bytes]", moving), self._bucket, self._prefix + key, Callback=moving.moved, Config=transfer
                ),
            )
        except KeyError as error:
            if error.args != ("UploadId",):
                raise
            raise StoreUnavailable(f"{doing}: {self._endpoint} gave an empty answer") from error
        except Exception:
            if moving.error is not None:
                raise moving.error from None
            raise
        try:
            if moving.error is not None:  # `progress` refused the last bytes, when there was nothing more to read
                raise moving.error
            return self._stored_version(key, size)
        except BaseException:
            with contextlib.suppress(StoreError):
                self.delete(key)
            raise

    def open(self, key: str, size: int | None = None) -> PresignedObject:
        """Return the object pinned at its present ETag, or with `size` at that of its first read."""
        name = self._name(key)
        if size is not None:
            return PresignedObject(name, size, None, sign=lambda: self._sign(key), pool=self._pool)
        head = self._request(f"opening {name}", lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))
        return PresignedObject(name, head["ContentLength"], head["ETag"].strip('"'), sign=lambda: self._sign(key), pool=self._pool)

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._request(f"deleting {self._name(key)}", lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    @functools.cached_property
    def _uploader(self) -> "S3Client":
        """A client whose requests are retried: parts of an upload may be sent twice without harm."""
        return self._connector.client(tries=UPLOAD_TRIES)

    @functools.cached_property
    def _fleet(self) -> Fleet | None:
        """What lists and reads much at once; None where requests go through a proxy, or botocore signs them in some way of its own."""
        probe = f"{self._prefix}probe"
        try:
            place = place_of(self._sign("probe"), probe)
            credentials = self._connector.credentials()
        except ImagefsError:
            return None
        if place is None or credentials is None or self._connector.proxy(self._endpoint) is not None:
            return None
        tls = self._connector.tls() if place.secure else None
        return Fleet(Signer(place, credentials), self._pool, tls, self._connector.source_address)

    def _page(self, start: str, suffix: str, token: str | None) -> Page:
        """Return a page of the keys below the prefix that begin with `start`, those only that end in `suffix`."""
        page = self._fleet.page(self._prefix + start, suffix, token) if self._fleet is not None else None
        if page is None:
            more = {"Prefix": self._prefix + start} | ({} if token is None else {"ContinuationToken": token})
            answer = self._list_page(f"listing {self.url}", more)
            found = [(entry["Key"], entry["ETag"].strip('"')) for entry in answer.get("Contents", ()) if entry["Key"].endswith(suffix)]
            page = Page(found, answer["NextContinuationToken"] if answer.get("IsTruncated") else None)
        return page

    def _get_if_there(self, key: str) -> tuple[bytes, str] | None:
        try:
            return self.get(key)
        except NotFound:
            return None

    def _list_page(self, doing: str, more: dict[str, Any]) -> "ListObjectsV2OutputTypeDef":
        def page() -> "ListObjectsV2OutputTypeDef":
            found = self._client.list_objects_v2(**{"Bucket": self._bucket, "Prefix": self._prefix, **more})
            if "Name" not in found and "IsTruncated" not in found:
                # botocore takes an answer that broke before its first byte for a bucket without objects.
                raise StoreUnavailable(f"{doing}: {self._endpoint} gave an empty answer")
            return found

        return self._request(doing, page)

    def _stored_version(self, key: str, size: int) -> str:
        """Return the ETag of what was uploaded. Raises InvalidInput if it has not `size` bytes."""
        stored = self.open(key)
        if stored.size != size:
            raise InvalidInput(f"storing {self._name(key)}: the source ended after {stored.size} of {size} bytes")
        return stored.version

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _sign(self, key: str) -> str:
        target = {"Bucket": self._bucket, "Key": self._prefix + key}
        try:
            return self._client.generate_presigned_url("get_object", Params=target, ExpiresIn=URL_LIFETIME)
        except aws.BotoCoreError as error:
            raise explain(error, f"signing for {self._name(key)}", self._bucket, self._endpoint) from error

    def _request(self, doing: str, work: Callable[[], T]) -> T:
        return self._retry(lambda: self._try(doing, work))

    def _try(self, doing: str, work: Callable[[], T]) -> T:
        """Return `work()`, once; its errors become imagefs's."""
        COUNTERS.store_requests += 1
        try:
            return work()
        except (aws.ClientError, aws.BotoCoreError, urllib3.exceptions.HTTPError) as error:
            raise explain(error, doing, self._bucket, self._endpoint) from error

    def _get_once(self, key: str, offset: int, limit: int, extra: dict[str, Any]) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key, **extra)
        with contextlib.closing(answer["Body"]) as body:
            if extra and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
                raise StoreRefused(f"reading {self._name(key)}: the server ignores Range, without which imagefs cannot work")
            found = body.read(limit)
        if len(found) != min(limit, answer["ContentLength"]):
            raise StoreUnavailable(f"reading {self._name(key)} at byte {offset}: the answer ended after {len(found)} bytes")
        return found, answer["ETag"].strip('"')

    def _put_once(self, key: str, body: bytes, mark: str, condition: dict[str, Any]) -> str:
        try:
            answer = self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, Metadata={_WRITE_MARK: mark}, **condition)
        except aws.ClientError as error:
            # 404 for a key: If-Match on an object that was deleted meanwhile.
            if status_of(error) in (409, 412) or code_of(error) == "NoSuchKey":
                raise Conflict(f"writing {self._name(key)}: another writer was there first") from error
            raise
        return answer["ETag"].strip('"')

    def _written(self, key: str, mark: str) -> str | None:
        """Return the object's ETag if it is the one written with `mark`."""
        try:
            head = self._try(f"opening {self._name(key)}", lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))
        except NotFound:
            return None
        return head["ETag"].strip('"') if head["Metadata"].get(_WRITE_MARK) == mark else None
