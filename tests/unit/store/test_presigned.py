"""Which answers to a ranged GET are accepted; the server is a few lines here, so that it can lie."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import urllib3

from imagefs.errors import ImagefsError, NotFound, StoreBusy, StoreRefused, StoreUnavailable, VersionChanged
from imagefs.store.presigned import URL_LIFETIME, PresignedObject

BODY = b"0123456789" * 10
GOOD = {"ETag": '"v1"', "Content-Range": "bytes 10-19/100", "Content-Length": "10"}


class Liar(HTTPServer):
    """Answers every GET with `status`, `headers` and `body`."""

    status = 206
    headers: dict[str, str] = GOOD
    body = BODY[10:20]
    asked: list[dict[str, str]]


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Liar)
        self.server.asked.append({"path": self.path, **dict(self.headers.items())})
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def liar() -> Iterator[Liar]:
    """A server that answers as a test tells it."""
    server = Liar(("127.0.0.1", 0), _Answer)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Signer:
    """Signs for the server, and a clock."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.count = 0
        self.now = 0.0

    def __call__(self) -> str:
        self.count += 1
        return f"http://127.0.0.1:{self.port}/object?X-Amz-Signature=secret{self.count}"


def data_object(signer: Signer, etag: str | None = "v1") -> PresignedObject:
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2, read=0.5))
    return PresignedObject("s3://b/k", 100, etag, sign=signer, pool=pool, clock=lambda: signer.now)


def test_the_request_names_range_and_version(liar: Liar) -> None:
    """A GET asks for exactly the range, of exactly the version, unencoded."""
    data = data_object(Signer(liar.server_port))
    assert b"".join(data.stream(10, 10)) == BODY[10:20]
    asked = liar.asked[0]
    assert (asked["Range"], asked["If-Match"], asked["Accept-Encoding"]) == ("bytes=10-19", '"v1"', "identity")


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (206, {**GOOD, "ETag": '"v2"'}, VersionChanged),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}, VersionChanged),
        (206, {**GOOD, "Content-Range": "bytes 0-9/100"}, StoreUnavailable),
        (206, {**GOOD, "Content-Range": "bytes 10-18/100"}, StoreUnavailable),
        (206, {**GOOD, "Content-Range": "nonsense"}, StoreUnavailable),
        (206, {"ETag": '"v1"', "Content-Length": "10"}, StoreUnavailable),
        (206, {**GOOD, "Content-Range": "bytes 10-19/99"}, VersionChanged),
        (200, {"ETag": '"v1"', "Content-Length": "10"}, StoreRefused),
        (307, {"Location": "http://127.0.0.1:1/elsewhere", "Content-Length": "10"}, StoreRefused),
        (412, {"Content-Length": "10"}, VersionChanged),
        (206, {**GOOD, "Content-Length": "11"}, StoreUnavailable),
    ],
)
def test_an_answer_that_is_not_the_range_is_refused(liar: Liar, status: int, headers: dict[str, str], kind: type[ImagefsError]) -> None:
    """Another version, range, size or place is an error, and a redirect is never followed."""
    liar.status, liar.headers = status, headers
    data = data_object(Signer(liar.server_port))
    with pytest.raises(kind, match="s3://b/k") as caught:
        list(data.stream(10, 10))
    assert "secret" not in str(caught.value)


def test_the_first_answer_pins_the_version(liar: Liar) -> None:
    """Who does not know the ETag asks without, and from then on for the one that was answered; another one is another object."""
    data = data_object(Signer(liar.server_port), None)
    assert data.version == ""
    assert b"".join(data.stream(10, 10)) == BODY[10:20]
    assert data.version == "v1"
    assert "If-Match" not in liar.asked[0]
    list(data.stream(10, 10))
    assert liar.asked[1]["If-Match"] == '"v1"'
    liar.headers = {**GOOD, "ETag": '"v2"'}
    with pytest.raises(VersionChanged):
        list(data.stream(10, 10))


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (206, {**GOOD, "Content-Range": "bytes 10-19/101"}, VersionChanged),
        (206, {**GOOD, "Content-Range": "bytes 10-14/15", "Content-Length": "5"}, VersionChanged),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}, VersionChanged),
        (404, {"Content-Length": "10"}, NotFound),
    ],
)
def test_an_object_that_is_not_what_was_recorded(liar: Liar, status: int, headers: dict[str, str], kind: type[ImagefsError]) -> None:
    """The first read finds out what opening did not ask: another size, no version to pin, no object."""
    liar.status, liar.headers = status, headers
    with pytest.raises(kind, match="s3://b/k"):
        list(data_object(Signer(liar.server_port), None).stream(10, 10))


@pytest.mark.parametrize(("asked", "seconds"), [("7", 7.0), ("7000", 30.0), ("soon", 0.0), ("-1", 0.0), (None, 0.0)])
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_says_for_how_long(liar: Liar, status: int, asked: str | None, seconds: float) -> None:
    """Retry-After in seconds is told, within reason."""
    liar.status, liar.headers = status, {"Content-Length": "10"} | ({"Retry-After": asked} if asked is not None else {})
    with pytest.raises(StoreBusy) as caught:
        list(data_object(Signer(liar.server_port)).stream(10, 10))
    assert caught.value.retry_after == seconds


def test_a_whole_object_may_come_without_a_range(liar: Liar) -> None:
    """A server may answer 200 to a request for all of it."""
    liar.status, liar.headers, liar.body = 200, {"ETag": '"v1"', "Content-Length": "100"}, BODY
    assert b"".join(data_object(Signer(liar.server_port)).stream(0, 100)) == BODY


def test_an_unknown_total_size_is_accepted(liar: Liar) -> None:
    """Content-Range may leave the size open."""
    liar.headers = {**GOOD, "Content-Range": "bytes 10-19/*"}
    assert b"".join(data_object(Signer(liar.server_port)).stream(10, 10)) == BODY[10:20]


def test_a_url_serves_until_half_its_life(liar: Liar) -> None:
    """One URL serves all reads of an object, and a new one is signed well before it expires."""
    signer = Signer(liar.server_port)
    data = data_object(signer)
    for now, signed in ((0, 1), (URL_LIFETIME / 2 - 1, 1), (URL_LIFETIME / 2 + 1, 2), (URL_LIFETIME, 2)):
        signer.now = now
        list(data.stream(10, 10))
        assert signer.count == signed


def test_a_refused_url_is_signed_once_more(liar: Liar) -> None:
    """On 403 the URL is signed again and the request sent again, once."""
    liar.status, liar.headers = 403, {"Content-Length": "10"}
    signer = Signer(liar.server_port)
    with pytest.raises(StoreRefused):
        list(data_object(signer).stream(10, 10))
    assert [asked["path"].rpartition("=")[2] for asked in liar.asked] == ["secret1", "secret2"]
