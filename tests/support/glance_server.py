"""This module serves a real glance-api on loopback; the interpreter of Glance's own environment runs it, see `glance`.

    glance_server.py CONFIG_DIRECTORY

It stands where keystonemiddleware stands in production: it turns X-Auth-Token into the headers of an identity and refuses a
request without a token that is good, so that Glance and its client authenticate as they always do. Good are `admin`, what
`glance.token_for` makes, and the tokens in CONFIG_DIRECTORY/tokens.json, which a fake Keystone writes. The port that was taken
stands in CONFIG_DIRECTORY/port when requests are answered.
"""

import json
import os
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
THREADS = 8
PREFIX = "as?"
ADMIN = {"roles": "admin,member,reader", "project": "admin-project", "user": "admin-user"}


def identity_of(token: str, directory: Path) -> dict[str, str] | None:
    """Return roles (a comma list), project and user of a good token."""
    if token == "admin":
        return ADMIN
    if token.startswith(PREFIX):
        return dict(urllib.parse.parse_qsl(token.removeprefix(PREFIX), keep_blank_values=True))
    try:
        tokens = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    found = tokens.get(token)
    return found if found is not None and found["expires"] > time.time() else None


def with_identities(application: Application, directory: Path) -> Application:
    """Return the application behind the check of tokens."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        for name in [name for name in environ if name.startswith("HTTP_X_") and name != "HTTP_X_AUTH_TOKEN"]:
            del environ[name]
        identity = identity_of(environ.get("HTTP_X_AUTH_TOKEN", ""), directory)
        if identity is None:
            start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return []
        environ["HTTP_X_IDENTITY_STATUS"] = "Confirmed"
        environ["HTTP_X_ROLES"] = identity["roles"]
        environ["HTTP_X_PROJECT_ID"] = identity["project"]
        environ["HTTP_X_USER_ID"] = identity["user"]
        return application(environ, start_response)

    return checked


def main() -> None:
    """Serve until killed."""
    directory = Path(sys.argv[1])
    sys.argv = ["glance-api", "--config-dir", str(directory)]
    os.environ["OS_GLANCE_CONFIG_DIR"] = str(directory)
    from glance.common import wsgi_app  # type: ignore[import-not-found]  # it is in Glance's own environment
    from waitress.server import create_server

    server = create_server(with_identities(wsgi_app.init_app(), directory), host="127.0.0.1", port=0, threads=THREADS)
    unfinished = directory / "port.new"
    unfinished.write_text(str(server.effective_port), encoding="ascii")
    unfinished.rename(directory / "port")
    server.run()


if __name__ == "__main__":
    main()
