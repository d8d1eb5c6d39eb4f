"""This module is how an S3 bucket is reached: boto3's clients, the connections beside them, and what their errors mean in words.

Credentials come from the AWS chain (environment, files, instance role) and from nowhere else.
"""

import dataclasses
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as aws
import urllib3
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from imagefs.errors import ConfigError, ImagefsError, StoreRefused, StoreUnavailable
from imagefs.store.answers import refusal
from imagefs.store.options import S3Options
from imagefs.store.signing import Keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

POOL_CONNECTIONS: Final = 64
"""Above all lanes of `threads` that talk to the store together, so that no thread waits for a connection."""
UPLOAD_READ_TIMEOUT: Final = 60.0
"""Seconds until the server must answer a part: it may write it through to slow disks first."""
_CONFIG_ORIGIN: Final = "[store.s3]"


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection and for the next bytes of an answer."""

    connect: float = 3.0
    read: float = 10.0


class Connector:
    """Makes clients and pools that share one configuration."""

    def __init__(self, options: S3Options, source_address: str | None, timeouts: Timeouts) -> None:
        self._options = options
        self.source_address = source_address
        self._timeouts = timeouts
        if options.ca_bundle is not None and not Path(options.ca_bundle).is_file():
            raise ConfigError(_CONFIG_ORIGIN, [f"ca_bundle: {options.ca_bundle} is not a file"])
        try:
            self._session = boto3.session.Session(profile_name=options.profile, region_name=options.region)
        except aws.BotoCoreError as error:
            raise ConfigError(_CONFIG_ORIGIN, [f"profile: {one_line(error)}"]) from error

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
        except (*UNREACHABLE, *NO_CREDENTIALS) as error:
            # The AWS chain may have asked the instance's metadata service for credentials, or a proxy on the way to it.
            raise explain(error, "looking for AWS credentials", "", "the credentials' service") from error
        except (aws.BotoCoreError, ValueError) as error:
            raise ConfigError(_CONFIG_ORIGIN, [one_line(error)]) from error
        if self.source_address is not None:
            # botocore has no option for it; urllib3, which it sends through, has.
            internals: Any = client
            internals._endpoint.http_session._manager.connection_pool_kw["source_address"] = (self.source_address, 0)
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
        settings: dict[str, Any] = {
            "maxsize": POOL_CONNECTIONS,
            "timeout": urllib3.Timeout(connect=self._timeouts.connect, read=self._timeouts.read),
            "ca_certs": self._trusted(),
        }
        if self.source_address is not None:
            settings["source_address"] = (self.source_address, 0)
        proxy = self.proxy(endpoint)
        return urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)

    def proxy(self, endpoint: str) -> str | None:
        """Return the URL of the proxy through which the endpoint is reached, if there is one."""
        return get_environ_proxies(endpoint).get(urllib3.util.parse_url(endpoint).scheme or "") or None

    def tls(self) -> ssl.SSLContext:
        """Return what HTTPS trusts."""
        return ssl.create_default_context(cafile=self._trusted())

    def credentials(self) -> Callable[[], Keys] | None:
        """Return what gives the credentials as they are at the moment, as the clients sign with them; None if there are none.

        What is returned raises StoreRefused, StoreUnavailable.
        """
        found: Any = self._session.get_credentials()
        if found is None:
            return None

        def keys() -> Keys:
            try:
                now = found.get_frozen_credentials()  # asks for new ones if these are temporary and about to end
            except (aws.BotoCoreError, RuntimeError, OSError) as error:  # RuntimeError: the new ones had ended, too
                raise explain(error, "looking for AWS credentials", "", "the credentials' service") from error
            return Keys(now.access_key, now.secret_key, now.token)

        return keys

    def _trusted(self) -> str:
        session: Any = self._session
        trusted = self._options.ca_bundle or session._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
        return str(trusted or get_cert_path(True))


UNREACHABLE: Final = (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, urllib3.exceptions.HTTPError)
NO_CREDENTIALS: Final = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError, aws.TokenRetrievalError)


def quiet_loggers() -> None:
    """Keep the libraries' DEBUG lines out of every log: they hold signatures and presigned URLs."""
    for name in ("boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(name).setLevel(logging.INFO)


def code_of(error: aws.ClientError) -> str:
    """Return S3's word for the error, empty if the answer had none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: aws.ClientError) -> int:
    """Return the HTTP status of the answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def one_line(error: Exception) -> str:
    """Return what the error says, in one line."""
    return " ".join(str(error).split())[:300]


def explain(error: Exception, doing: str, bucket: str, endpoint: str) -> ImagefsError:
    """Return the error that says in words what a failed request means, and what to mend."""
    if isinstance(error, aws.ClientError):
        return refusal(doing, code=code_of(error), status=status_of(error), said=one_line(error), bucket=bucket, endpoint=endpoint)
    if isinstance(error, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreRefused(f"{doing}: the certificate of {endpoint} is not trusted: mend [store.s3] ca_bundle or endpoint_url")
    if isinstance(error, UNREACHABLE):
        return StoreUnavailable(f"{doing}: {endpoint} does not answer ({type(error).__name__})")
    if isinstance(error, NO_CREDENTIALS):
        return StoreRefused(
            f"{doing}: no AWS credentials ({one_line(error)}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or [store.s3] profile"
        )
    return StoreRefused(f"{doing}: {one_line(error)}: mend [store] url or [store.s3]")
