"""This module is a fake Keystone on loopback: it gives tokens for a password, which the test's Glance takes while they are good.

    with FakeKeystone(glance) as keystone:      # writes clouds.yaml; keystone.cloud is the name of its cloud in it
        keystone.revoke_all()

The real one needs a database and a web server of its own, and all that imagefs has of it is POST /v3/auth/tokens.
"""

import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.glance import Glance

PASSWORD = "keystone-password-canary"


class FakeKeystone:
    """A running Keystone with one account. `lifetime`: seconds that new tokens are good for."""

    cloud = "keystone"

    def __init__(self, glance: Glance, *, roles: tuple[str, ...] = ("admin", "member", "reader"), lifetime: float = 3600.0) -> None:
        self.roles = roles
        self.lifetime = lifetime
        self.failing = False
        self.issued: list[str] = []
        self._tokens: dict[str, dict[str, Any]] = {}
        self._file = glance.directory / "tokens.json"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"keystone": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v3"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self._glance = glance
        self.write_cloud(PASSWORD)

    def write_cloud(self, password: str) -> None:
        """Write clouds.yaml with this Keystone's cloud."""
        account = {"username": "imagefs", "password": password, "project_name": "service"}
        domains = {"user_domain_id": "default", "project_domain_id": "default"}
        self._glance.write_clouds({self.cloud: {"auth_type": "v3password", "auth": {"auth_url": self.url, **account, **domains}}})

    def issue(self) -> tuple[str, dict[str, Any]]:
        """Return a new token and its description, and let Glance know it."""
        token = f"token-canary-{uuid.uuid4().hex}"
        self.issued.append(token)
        self._tokens[token] = {"roles": ",".join(self.roles), "project": "service", "user": "imagefs", "expires": time.time() + self.lifetime}
        self._write()
        return token, {
            "methods": ["password"],
            "issued_at": _iso(time.time()),
            "expires_at": _iso(time.time() + self.lifetime),
            "roles": [{"id": role, "name": role} for role in self.roles],
            "user": {"id": "imagefs", "name": "imagefs", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "service", "name": "service", "domain": {"id": "default", "name": "Default"}},
            "catalog": [],
        }

    def revoke_all(self) -> None:
        """Let no token that was given be good any more."""
        self._tokens.clear()
        self._write()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _write(self) -> None:
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(json.dumps(self._tokens), encoding="utf-8")
        unfinished.rename(self._file)


class _Handler(BaseHTTPRequestHandler):
    keystone: FakeKeystone

    def do_GET(self) -> None:
        version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": self.keystone.url}]}
        self._answer(200, {"version": version})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.keystone.failing:
            self._answer(503, {"error": {"message": "the database is away", "code": 503}})
        elif asked["auth"]["identity"]["password"]["user"]["password"] != PASSWORD:
            self._answer(401, {"error": {"message": "The request you have made requires authentication.", "code": 401}})
        else:
            token, described = self.keystone.issue()
            self._answer(201, {"token": described}, token)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: dict[str, Any], token: str | None = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if token is not None:
            self.send_header("X-Subject-Token", token)
        self.end_headers()
        self.wfile.write(text)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(seconds))
