"""This module is an S3 bucket as a Bucket, and the only one that knows boto3.

boto3 sends the small requests and the uploads and signs the URLs; image data goes through `presigned`. Small requests are tried
once by botocore and again by `retry`, since botocore's own retries of a conditional write would report the first try's success as
another writer's. Credentials come from the AWS chain (environment, files, instance role) and from nowhere else.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import boto3
import botocore.exceptions as aws
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from imagefs.counters import COUNTERS
from imagefs.errors import ConfigError, Conflict, ImagefsError, InvalidInput, NotFound, StoreError, StoreRefused, StoreUnavailable
from imagefs.store.answers import refusal
from imagefs.store.options import S3Options
from imagefs.store.presigned import URL_LIFETIME, PresignedObject
from imagefs.store.protocol import SMALL_LIMIT, Entry, Progress
from imagefs.store.retry import SmallRetry
from imagefs.units import MIB, align_up

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

T = TypeVar("T")

POOL_CONNECTIONS: Final = 64
"""Above all lanes of `threads` that talk to the store together, so that no thread waits for a connection."""
UPLOAD_TRIES: Final = 6
UPLOAD_THREADS: Final = 4
UPLOAD_READ_TIMEOUT: Final = 60.0
"""Seconds until the server must answer a part: it may write it through to slow disks first."""
SMALLEST_PART: Final = 8 * MIB
MOST_PARTS: Final = 9000
"""S3 allows 10,000 parts: 8 MiB parts reach 70 GiB, a tebibyte takes parts of 117 MiB, UPLOAD_THREADS of which are in memory."""
_WRITE_MARK: Final = "imagefs-write"
"""Metadata of conditional writes: a random mark by which a writer knows its own object after an answer was lost."""
_CONFIG_ORIGIN: Final = "[store.s3]"


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection and for the next bytes of an answer."""

    connect: float = 3.0
    read: float = 10.0


def part_size(size: int) -> int:
    """Return the bytes in a part of an upload of `size` bytes, so that there are MOST_PARTS at most."""
    return max(SMALLEST_PART, align_up(-(-size // MOST_PARTS), MIB))


class S3Bucket:
    """A Bucket over the objects of `bucket` whose keys begin with `prefix` and `/` (no prefix: all of them)."""

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
        _quiet_loggers()
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._retry = retry or SmallRetry()
        self._connector = _Connector(options or S3Options(), source_address, timeouts or Timeouts())
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

    def get(self, key: str) -> tuple[bytes, str]:
        """Return a small object's bytes (cut after SMALL_LIMIT) and ETag."""
        return self._request(f"reading {self._name(key)}", lambda: self._get_once(key, 0, SMALL_LIMIT, {}))

    def peek(self, key: str, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset+length) as they are now, fewer at the end."""

        def ranged() -> bytes:
            try:
                return self._get_once(key, offset, length, {"Range": f"bytes={offset}-{offset + length - 1}"})[0]
            except aws.ClientError as error:
                if _status(error) == 416:
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
        moving = _Moving(source, progress)
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

    def open(self, key: str) -> PresignedObject:
        """Return the object pinned at its present ETag."""
        name = self._name(key)
        head = self._request(f"opening {name}", lambda: self._client.head_object(Bucket=self._bucket, Key=self._prefix + key))
        return PresignedObject(name, head["ContentLength"], head["ETag"].strip('"'), sign=lambda: self._sign(key), pool=self._pool)

    def delete(self, key: str) -> None:
        """Remove the object."""
        self._request(f"deleting {self._name(key)}", lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    @functools.cached_property
    def _uploader(self) -> "S3Client":
        """A client whose requests are retried: parts of an upload may be sent twice without harm."""
        return self._connector.client(tries=UPLOAD_TRIES)

    def _list_page(self, doing: str, more: dict[str, Any]) -> "ListObjectsV2OutputTypeDef":
        def page() -> "ListObjectsV2OutputTypeDef":
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **more)
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
            raise _explain(error, f"signing for {self._name(key)}", self._bucket, self._endpoint) from error

    def _request(self, doing: str, work: Callable[[], T]) -> T:
        return self._retry(lambda: self._try(doing, work))

    def _try(self, doing: str, work: Callable[[], T]) -> T:
        """Return `work()`, once; its errors become imagefs's."""
        COUNTERS.store_requests += 1
        try:
            return work()
        except (aws.ClientError, aws.BotoCoreError, urllib3.exceptions.HTTPError) as error:
            raise _explain(error, doing, self._bucket, self._endpoint) from error

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
            if _status(error) in (409, 412) or _code(error) == "NoSuchKey":
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


class _Connector:
    """Makes clients and pools that share one configuration."""

    def __init__(self, options: S3Options, source_address: str | None, timeouts: Timeouts) -> None:
        self._options = options
        self._source_address = source_address
        self._timeouts = timeouts
        if options.ca_bundle is not None and not Path(options.ca_bundle).is_file():
            raise ConfigError(_CONFIG_ORIGIN, [f"ca_bundle: {options.ca_bundle} is not a file"])
        try:
            self._session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
        except aws.BotoCoreError as error:
            raise ConfigError(_CONFIG_ORIGIN, [f"profile: {_one_line(error)}"]) from error

    def client(self, tries: int) -> "S3Client":
        """Return a client that sends each request up to `tries` times."""
        options = self._options
        try:
            client = self._session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                region_name=self._session.region_name or "us-east-1",
                verify=options.ca_bundle,
                config=self._config(tries),
            )
        except (*_UNREACHABLE, *_NO_CREDENTIALS) as error:
            # The AWS chain may have asked the instance's metadata service for credentials, or a proxy on the way to it.
            raise _explain(error, "looking for AWS credentials", "", "the credentials' service") from error
        except (aws.BotoCoreError, ValueError) as error:
            raise ConfigError(_CONFIG_ORIGIN, [_one_line(error)]) from error
        if self._source_address is not None:
            # botocore has no option for it; urllib3, which it sends through, has.
            internals: Any = client
            internals._endpoint.http_session._manager.connection_pool_kw["source_address"] = (self._source_address, 0)
        return client

    def _config(self, tries: int) -> Config:
        # Servers other than AWS seldom have a host name for each bucket.
        style: Any = self._options.addressing_style or ("path" if self._options.endpoint_url else "auto")
        return Config(
            signature_version="s3v4",
            retries={"mode": "standard", "total_max_attempts": tries},
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.read if tries == 1 else max(UPLOAD_READ_TIMEOUT, self._timeouts.read),
            max_pool_connections=POOL_CONNECTIONS,
            s3={"addressing_style": style},
            # The checksums that newer SDKs add by default break some servers; image bytes have their own digests.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    def pool(self, endpoint: str) -> urllib3.PoolManager:
        """Return the connections for image data: the same trust, proxy and source address as the clients'."""
        session: Any = self._session
        trusted = self._options.ca_bundle or session._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        settings: dict[str, Any] = {
            "maxsize": POOL_CONNECTIONS,
            "timeout": urllib3.Timeout(connect=self._timeouts.connect, read=self._timeouts.read),
            "ca_certs": trusted or get_cert_path(True),
        }
        if self._source_address is not None:
            settings["source_address"] = (self._source_address, 0)
        proxy = get_environ_proxies(endpoint).get(urllib3.util.parse_url(endpoint).scheme or "")
        return urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)


_UNREACHABLE: Final = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, urllib3.exceptions.HTTPError)
_NO_CREDENTIALS: Final = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.TokenRetrievalError)


def _quiet_loggers() -> None:
    """Keep the libraries' DEBUG lines out of every log: they hold signatures and presigned URLs."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(name).setLevel(logging.INFO)


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _explain(error: Exception, doing: str, bucket: str, endpoint: str) -> ImagefsError:
    """Return the error that says in words what a failed request means, and what to mend."""
    if isinstance(error, aws.ClientError):
        return refusal(doing, code=_code(error), status=_status(error), said=_one_line(error), bucket=bucket, endpoint=endpoint)
    if isinstance(error, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreRefused(f"{doing}: the certificate of {endpoint} is not trusted: mend [store.s3] ca_bundle or endpoint_url")
    if isinstance(error, _UNREACHABLE):
        return StoreUnavailable(f"{doing}: {endpoint} does not answer ({type(error).__name__})")
    if isinstance(error, _NO_CREDENTIALS):
        return StoreRefused(
            f"{doing}: no AWS credentials ({_one_line(error)}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or [store.s3] profile"
        )
    return StoreRefused(f"{doing}: {_one_line(error)}: mend [store] url or [store.s3]")


class _Moving:
    """A source that s3transfer reads in a thread of its own, and what it tells, in others, of the bytes that it has sent. `error` is the first
    that either raised.

    Of what reading raises s3transfer waits for ever for anything that is no Exception (KeyboardInterrupt, for one): so it gets an Exception in
    any case. What `progress` raises it would take for a broken connection, and try again: so that ends the reading instead.
    """

    def __init__(self, source: BinaryIO, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        if self.error is None:
            try:
                return self._source.read(size)
            except BaseException as error:
                self.error = error
        raise RuntimeError("the upload was broken off") from self.error

    def moved(self, count: int) -> None:
        if self.error is None:
            try:
                self._progress(count)
            except BaseException as error:
                self.error = error
