"""The server before the S3 server: what it answers from files, and what it leaves to the other."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tools.instruments import fronted

BODY = bytes(range(256)) * 64


class Upstream(http.server.BaseHTTPRequestHandler):
    """An upstream that says what it was asked, and answers with it."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(f"{self.command} {self.path} {self.headers['Host']} {body.decode()}")
        self.send_response(412 if self.headers.get("If-Match") else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", "5")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"other")

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def upstream() -> Iterator[str]:
    """The URL of an upstream."""
    Upstream.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def front(upstream: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a front that has one object in a file."""
    (tmp_path / "file").write_bytes(BODY)
    with fronted(upstream, {"/images/a/data": tmp_path / "file"}) as url:
        yield url


def get(url: str, **headers: str) -> urllib3.BaseHTTPResponse:
    """GET with headers, written with _ in their names."""
    return urllib3.PoolManager(retries=False).request("GET", url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_bytes_come_from_the_file(front: str) -> None:
    """All of them, parts, and what is left; with the ETag that the upstream has for the object, which is asked for that once."""
    whole = get(f"{front}/images/a/data?x-id=GetObject")
    assert (whole.status, whole.data, whole.headers["ETag"]) == (200, BODY, '"one"')
    part = get(f"{front}/images/a/data", Range="bytes=100-199", If_Match='"one"')
    assert (part.status, part.data, part.headers["Content-Range"]) == (206, BODY[100:200], f"bytes 100-199/{len(BODY)}")
    assert get(f"{front}/images/a/data", Range="bytes=100-").data == BODY[100:]
    assert get(f"{front}/images/a/data", Range=f"bytes=100-{2 * len(BODY)}").data == BODY[100:]
    assert [line.split()[0] for line in Upstream.asked] == ["HEAD"]


def test_the_rest_is_passed_on(front: str) -> None:
    """Other paths, other verbs with their bodies and the host that was signed, and what is to be refused."""
    pool = urllib3.PoolManager(retries=False)
    host = front.removeprefix("http://")
    assert get(f"{front}/images/b/data").data == b"other"
    assert pool.request("PUT", f"{front}/images/a/profile", body=b"hello").status == 200
    assert pool.request("HEAD", f"{front}/images/a/data").headers["Content-Length"] == "5"
    assert get(f"{front}/images/a/data", If_Match='"two"').status == 412
    assert get(f"{front}/images/a/data", Range=f"bytes={len(BODY)}-").data == b"other"
    asked = [line for line in Upstream.asked if host in line]
    assert [line.split()[0] for line in asked] == ["GET", "PUT", "HEAD", "GET", "GET"]
    assert asked[1] == f"PUT /images/a/profile {host} hello"
