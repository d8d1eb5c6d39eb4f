"""This module is the connection to a Glance, and the only one that knows openstacksdk, keystoneauth and requests.

openstacksdk finds the cloud and its credentials (clouds.yaml, secure.yaml, OS_ variables), keystoneauth gets the token and renews
it before it expires; a 401 gets a new one, once. All requests go to the endpoint of [store] url and nowhere else: Glance's entry in
Keystone's catalog is not asked for, and no redirect is followed. Tokens stand in no message and in no log.
"""

import contextlib
import dataclasses
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import urllib3

from imagefs.counters import COUNTERS
from imagefs.errors import ConfigError, ImagefsError, StoreRefused, StoreUnavailable
from imagefs.store.glance.record import parse_object
from imagefs.store.glance.refusal import refusal, wait_asked
from imagefs.store.protocol import SMALL_LIMIT
from imagefs.store.retry import SmallRetry

try:
    import keystoneauth1.exceptions as keystone
    import requests
    import requests.adapters
    from keystoneauth1.session import Session
    from openstack.config.loader import OpenStackConfig
    from openstack.exceptions import ConfigException
except ImportError as error:
    raise ConfigError("[store]", [f"url: a store glance:... needs openstacksdk ({error}): pip install 'imagefs[glance]'"]) from error

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

POOL_CONNECTIONS: Final = 96
"""Above all lanes of `threads` that talk to the store together, so that no thread waits for a connection."""
KEYSTONE_TIMEOUT: Final = 10.0
UPLOAD_TIMEOUT: Final = 600.0
"""Seconds until the server must answer after the last byte of an image: it may write it through to slow disks first."""
JSON_PATCH: Final = "application/openstack-images-v2.1-json-patch"
_VARIABLES: Final = ("OS_CLOUD", "OS_AUTH_URL", "OS_AUTH_TYPE", "OS_TOKEN")
"""Any of them says that there is a cloud to authenticate at; with none of them requests go without a token."""
_CONFIG_ORIGIN: Final = "[store.glance]"
_HINT: Final = ": see that clouds.yaml ($OS_CLIENT_CONFIG_FILE, else in ., ~/.config/openstack or /etc/openstack) is there, readable and sound YAML"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for a connection, for the next bytes of an answer, and for the answer to a write."""

    connect: float = 3.0
    read: float = 10.0
    write: float = 30.0


class Connection:
    """Requests to one Glance. Thread-safe; connections are pooled."""

    def __init__(
        self,
        endpoint: str,
        cloud: str | None = None,
        *,
        source_address: str | None = None,
        timeouts: Timeouts | None = None,
        retry: SmallRetry | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Read the cloud's configuration; nothing is sent. Raises ConfigError.

        `endpoint` is Glance's URL without /v2. `source_address`: the local address for all traffic to it.
        """
        _quiet_loggers()
        self.endpoint = endpoint
        self.retry = retry or SmallRetry()
        self._timeouts = timeouts or Timeouts()
        self._sleep = sleep
        self._renewing = threading.Lock()
        self._session = _open_session(cloud)
        self._session.session.mount(f"{endpoint}/", _Pool(source_address))

    def get(self, doing: str, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the JSON object at `path` (below the endpoint); it is tried again while the server is unavailable."""
        return self.retry(lambda: self.send(doing, "GET", path, params=params))

    def send(
        self,
        doing: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: object = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Send one small request, once, and return the JSON object it is answered with ({} for an answer without a body).

        Raises what `refusal` says for an answer that is none, StoreUnavailable for one that is broken.
        """
        headers = {} if json is None else {"Content-Type": content_type}
        timeout = (self._timeouts.connect, self._timeouts.read if method == "GET" else self._timeouts.write)
        with self._exchange(doing, method, path, headers=headers, params=params, json=json, timeout=timeout) as response:
            return self._object_in(doing, method, response)

    def upload(self, doing: str, path: str, body: Iterable[bytes] | bytes) -> None:
        """PUT an image's bytes, once; `body` has a length, which is sent. What reading it raises passes through."""
        headers = {"Content-Type": "application/octet-stream"}
        timeout = (self._timeouts.connect, max(self._timeouts.read, UPLOAD_TIMEOUT))
        # The body can be read only once, so a token that ends just now cannot be renewed by sending it again.
        with self._exchange(doing, "PUT", path, headers=headers, data=body, timeout=timeout, renew=False) as response:
            self._object_in(doing, "PUT", response)

    @contextlib.contextmanager
    def read(self, doing: str, path: str, headers: Mapping[str, str]) -> Iterator["tuple[int, Mapping[str, str], BaseHTTPResponse]"]:
        """GET image data, once, and yield status, headers and the unread body, which may raise urllib3's HTTPError.

        The connection is used again if the body was read to its end and released; else it is closed.
        """
        timeout = (self._timeouts.connect, self._timeouts.read)
        with self._exchange(doing, "GET", path, headers=headers, timeout=timeout) as response:
            yield response.status_code, response.headers, response.raw

    def roles(self) -> frozenset[str] | None:
        """Return the roles of the account, in lower case; None where the way of authentication does not tell. Raises StoreError."""
        get_access: Callable[[Session], Any] | None = getattr(self._session.auth, "get_access", None)
        if get_access is None:
            return None
        with self._keystone_explained():
            return frozenset(role.lower() for role in get_access(self._session).role_names)

    @contextlib.contextmanager
    def _exchange(
        self,
        doing: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        timeout: tuple[float, float],
        renew: bool = True,
        **more: Any,  # noqa: ANN401 - what requests takes: params, json, data
    ) -> Iterator[requests.Response]:
        """Send a request, again with a new token after a 401 if `renew`, and yield the answer with its body unread."""
        COUNTERS.store_requests += 1
        while True:
            token = self._token_headers()
            try:
                response = self._session.request(
                    f"{self.endpoint}{path}",
                    method,
                    headers={**headers, **token, "Accept-Encoding": "identity"},
                    authenticated=False,
                    stream=True,
                    redirect=False,
                    raise_exc=False,
                    log=False,
                    timeout=timeout,
                    **more,
                )
            except (keystone.ConnectionError, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise self._unreachable(doing, error) from None
            with contextlib.closing(response):
                if response.status_code == 401 and renew and self._renew(token):
                    renew = False
                    continue
                yield response
                return

    def _token_headers(self) -> dict[str, str]:
        if self._session.auth is None:
            return {}
        with self._keystone_explained():
            return dict(self._session.get_auth_headers() or {})

    def _renew(self, refused: Mapping[str, str]) -> bool:
        """Tell whether there is another token than the one that was refused, or can be. Raises StoreError if Keystone gives none."""
        if self._session.auth is None:
            return False
        with self._renewing:  # of many requests that are refused at once one drops the token, and the others must not give up over that
            return self._token_headers() != refused or bool(self._session.invalidate())

    def _object_in(self, doing: str, method: str, response: requests.Response) -> dict[str, Any]:
        """Return the JSON object of a good answer, bounded in size. Raises what a bad one means."""
        try:
            body = response.raw.read(SMALL_LIMIT + 1, decode_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(doing, error) from None
        if response.status_code not in (200, 201, 202, 204):
            if wait := wait_asked(response.status_code, response.headers):
                self._sleep(wait)
            raise refusal(doing, response.status_code, response.headers, body, self.endpoint, method=method)
        if len(body) > SMALL_LIMIT:
            raise TooLong(f"{doing}: the answer of {self.endpoint} has more than {SMALL_LIMIT} bytes")
        response.raw.release_conn()
        if response.status_code == 204 and method != "GET":
            return {}
        try:
            return parse_object(body)
        except ValueError:
            raise StoreUnavailable(f"{doing}: {self.endpoint} answered what is not JSON of Glance: is [store] url the URL of a Glance?") from None

    @contextlib.contextmanager
    def _keystone_explained(self) -> Iterator[None]:
        """Say what a failed authentication means; the text of what keystoneauth raises may hold more than a log should."""
        doing = f"getting a token for {self.endpoint}"
        try:
            yield
        except (keystone.ConnectionError, keystone.HttpServerError, keystone.TooManyRequests, requests.RequestException) as error:
            raise StoreUnavailable(f"{doing}: the cloud's Keystone does not answer ({type(error).__name__})") from None
        except keystone.Unauthorized:
            raise StoreRefused(f"{doing}: the cloud's Keystone refuses the credentials: mend them in clouds.yaml or the OS_ variables") from None
        except ValueError:
            raise StoreRefused(f"{doing}: the URL of the cloud's Keystone is none: mend auth_url in clouds.yaml or the OS_ variables") from None
        except keystone.ClientException as error:
            raise StoreRefused(
                f"{doing}: the cloud's Keystone does not give one ({type(error).__name__}): check the cloud of [store.glance]"
            ) from None

    def _unreachable(self, doing: str, error: Exception) -> ImagefsError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return StoreRefused(f"{doing}: the certificate of {self.endpoint} is not trusted: set cacert of the cloud in clouds.yaml")
        return unreachable(doing, error, self.endpoint)


class TooLong(StoreRefused):
    """An answer has more bytes than may be kept in memory; a shorter page may be asked for."""


def unreachable(doing: str, error: Exception, endpoint: str) -> StoreUnavailable:
    """Return what a failed exchange means, in words of its own: the text of `error` may hold a URL with secrets."""
    words = {"ConnectTimeout": "does not answer in time", "ReadTimeoutError": "stopped sending"}
    return StoreUnavailable(f"{doing}: {endpoint} {words.get(type(error).__name__, 'does not answer')} ({type(error).__name__})")


class _Pool(requests.adapters.HTTPAdapter):
    """Pooled connections from one local address."""

    def __init__(self, source_address: str | None) -> None:
        self._binding: dict[str, Any] = {} if source_address is None else {"source_address": (source_address, 0)}
        super().__init__(pool_connections=1, pool_maxsize=POOL_CONNECTIONS)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:  # noqa: ANN401 - requests' own
        """As requests' own, with the local address."""
        super().init_poolmanager(connections, maxsize, block, **options, **self._binding)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:  # noqa: ANN401 - requests' own
        """As requests' own, with the local address."""
        return super().proxy_manager_for(proxy, **options, **self._binding)


def _open_session(cloud: str | None) -> Session:
    """Return a session for the cloud, for what the environment names, or without authentication. Raises ConfigError."""
    if cloud is None and not any(os.environ.get(name) for name in _VARIABLES):
        session = Session()
    else:
        try:
            # It warns of what it will stop to support, which nobody here uses; whatever is wrong with the cloud is an error.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                session = OpenStackConfig().get_one(cloud=cloud).get_session()
        except (ConfigException, keystone.ClientException, OSError, ValueError) as error:
            raise ConfigError(_CONFIG_ORIGIN, [f"cloud: {' '.join(str(error).split())[:300].rstrip('.')}{_HINT}"]) from error
        except (AttributeError, KeyError, TypeError) as error:  # what openstacksdk makes of a file whose parts are not of the kind they should be
            raise ConfigError(_CONFIG_ORIGIN, [f"cloud: what clouds.yaml has of {cloud or 'it'} is not as it should be{_HINT}"]) from error
    _check_certificates(session)
    session.timeout = session.timeout or KEYSTONE_TIMEOUT
    return session


def _check_certificates(session: Session) -> None:
    """Log that certificates are not checked, if so. Raises ConfigError for a file that is not there: requests would say so at each request."""
    certificate = session.cert if isinstance(session.cert, tuple) else (session.cert,)
    for path in (session.verify, *certificate):
        if isinstance(path, str) and not os.access(path, os.R_OK):
            raise ConfigError(_CONFIG_ORIGIN, [f"cloud: {path} cannot be read: mend cacert, cert and key of the cloud in clouds.yaml"])
    if session.verify is False:
        warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)  # one for each request
        _log.warning("certificates are not checked, so that anybody on the way may read the token: set cacert and not verify in clouds.yaml")


def _quiet_loggers() -> None:
    """Keep the libraries' DEBUG lines out of every log: they hold hashes of tokens, and bodies."""
    for name in ("keystoneauth", "openstack", "urllib3", "requests", "stevedore"):
        logging.getLogger(name).setLevel(logging.INFO)
