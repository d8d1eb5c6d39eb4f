"""This module runs a real Glance (glance-api from PyPI, in an environment of its own) on loopback.

    with start_glance(directory) as glance:
        glance.url, glance.cloud, glance.environment      # for [store] url, [store.glance] cloud, and the process that reads them
        glance.request("GET", "/v2/images", roles="reader", project="p1")

It needs no pytest. `python -m tests.support.glance` makes the environment, which the first start does otherwise: it lies in the
user's cache directory, is named by the list of versions in glance-constraints.txt, and is made once.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

CONSTRAINTS: Final = Path(__file__).with_name("glance-constraints.txt")
SERVER: Final = Path(__file__).with_name("glance_server.py")
READY_TIMEOUT: Final = 120.0
"""Seconds until a request must be answered; 5 on an idle machine."""
INSTALL_TRIES: Final = 5
CLOUD: Final = "glance"
_PASTE: Final = """\
[pipeline:glance-api]
pipeline = versionnegotiation context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
"""


def token_for(roles: str, project: str, user: str = "user-1") -> str:
    """Return a token that the test's Glance takes for the comma list of `roles` in `project`."""
    return "as?" + urllib.parse.urlencode({"roles": roles, "project": project, "user": user})


class Answer:
    """What Glance answered: `status`, `headers`, the `body`, and its JSON if it is JSON."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Glance:
    """A running glance-api. `environment` has what a client process needs to find `cloud` in clouds.yaml."""

    cloud = CLOUD

    def __init__(self, process: "subprocess.Popen[bytes]", directory: Path, port: int) -> None:
        self.process = process
        self.directory = directory
        self.port = port
        self.endpoint_url = f"http://127.0.0.1:{port}"
        self.url = f"glance:{self.endpoint_url}"
        self.images = directory / "images"
        self.environment: dict[str, str] = {}
        self.write_clouds({})

    def write_clouds(self, clouds: Mapping[str, Any]) -> None:
        """Write clouds.yaml (JSON is YAML) with the admin's cloud and `clouds`, and name it in `environment`."""
        path = self.directory / "clouds.yaml"
        own = {CLOUD: {"auth_type": "admin_token", "auth": {"endpoint": self.endpoint_url, "token": "admin"}}}
        path.write_text(json.dumps({"clouds": own | dict(clouds)}), encoding="utf-8")
        self.environment = {"OS_CLIENT_CONFIG_FILE": str(path)}

    def request(
        self,
        method: str,
        path: str,
        *,
        roles: str = "admin,member,reader",
        project: str = "admin-project",
        token: str | None = None,
        json: Any = None,
        body: bytes | None = None,
        content_type: str | None = None,
    ) -> Answer:
        """Send one request as any identity, behind imagefs's back."""
        headers = {"X-Auth-Token": token_for(roles, project) if token is None else token}
        if json is not None:
            body = _encode(json)
            headers["Content-Type"] = "application/openstack-images-v2.1-json-patch" if method == "PATCH" else "application/json"
        if content_type is not None:
            headers["Content-Type"] = content_type
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def add_image(self, image_id: str, body: bytes | None = None, *, owner: str | None = None, **attributes: Any) -> None:
        """Make an image through Glance's own API; with a body it becomes active."""
        wanted = {"id": image_id, "disk_format": "raw", "container_format": "bare", **attributes}
        if owner is not None:
            wanted["owner"] = owner
        made = self.request("POST", "/v2/images", json=wanted)
        assert made.status == 201, made.body
        if body is not None:
            stored = self.request("PUT", f"/v2/images/{image_id}/file", body=body, content_type="application/octet-stream")
            assert stored.status == 204, stored.body

    def show(self, image_id: str) -> Any:
        """Return an image as Glance shows it to an admin."""
        answer = self.request("GET", f"/v2/images/{image_id}")
        assert answer.status == 200, answer.body
        return answer.json

    def set_location(self, image_id: str, url: str) -> None:
        """Let Glance's database say that an image lies at `url`: what its API allows and what once was in it are more than its driver writes."""
        with contextlib.closing(sqlite3.connect(self.directory / "glance.db", timeout=10)) as database, database:
            database.execute("UPDATE image_locations SET value = ? WHERE image_id = ?", (url, image_id))

    def set_hashes(self, image_id: str, checksum: str | None, os_hash_value: str | None) -> None:
        """Let Glance's database have these hashes of an image: none is what it has of one that was registered by its location."""
        algorithm = None if os_hash_value is None else "sha512"
        with contextlib.closing(sqlite3.connect(self.directory / "glance.db", timeout=10)) as database, database:
            database.execute(
                "UPDATE images SET checksum = ?, os_hash_algo = ?, os_hash_value = ? WHERE id = ?", (checksum, algorithm, os_hash_value, image_id)
            )

    def leftovers(self, image_id: str) -> list[str]:
        """Return what there is of an image: its record, its file."""
        found = [f"record {image_id}"] if self.request("GET", f"/v2/images/{image_id}").status != 404 else []
        return found + [str(path) for path in self.images.rglob(f"*{image_id}*")]

    def stop(self) -> None:
        """End the server at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start_glance(
    directory: Path,
    *,
    protections: str | None = None,
    rule_format: str = "roles",
    policies: Mapping[str, str] | None = None,
    show_locations: bool = True,
) -> Glance:
    """Start a Glance with its database, images and configuration in `directory`, and return when it answers.

    `protections` and `policies` are the content of its property protection file and of its policy.yaml.
    Raises RuntimeError with the end of its log.
    """
    python = prepare()
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "port").unlink(missing_ok=True)
    _write_configuration(directory, protections, rule_format, policies, show_locations)
    _make_database(python, directory)
    command = [str(python), "-P", str(SERVER), str(directory)]  # -P: the module beside it is not the package glance
    setpriv = shutil.which("setpriv")
    if setpriv is not None:
        command = [setpriv, "--pdeathsig", "KILL", *command]  # so that it never outlives its tests
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, env=_environment(), start_new_session=True
        )
    end = time.monotonic() + READY_TIMEOUT
    try:
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                return Glance(process, directory, int((directory / "port").read_text(encoding="ascii")))
            time.sleep(0.05)
    except BaseException:
        process.kill()
        raise
    process.kill()
    process.wait()
    log_text = (directory / "log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"Glance did not become ready in {directory}; the end of its log:\n{log_text[-3000:]}")


def prepare() -> Path:
    """Return the interpreter of Glance's environment, making it if it is not there. Raises RuntimeError if pip fails for good."""
    key = hashlib.sha256(CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagefs"
    venv = cache / f"glance-{key}"
    python = venv / "bin" / "python"
    if (venv / "complete").exists():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "glance.lock"):
        if not (venv / "complete").exists():
            print(f"installing Glance for the tests in {venv}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True, env=_environment())
            _install(python)
            (venv / "complete").touch()
    return python


def _install(python: Path) -> None:
    command: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", CONSTRAINTS, "glance", "waitress"]
    for attempt in range(1, INSTALL_TRIES + 1):
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment())
        if done.returncode == 0:
            return
        if attempt < INSTALL_TRIES:
            time.sleep(2 * attempt**2)  # package mirrors hiccup
    raise RuntimeError(f"Glance could not be installed by {python} -m pip:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _environment() -> dict[str, str]:
    """Return the environment without what belongs to this interpreter."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONWARNINGS")}


def _make_database(python: Path, directory: Path) -> None:
    """Copy the empty database, which is made once for each environment: making the tables takes most of a start."""
    if (directory / "glance.db").exists():
        return
    template = python.parent.parent / "empty.db"
    if not template.exists():
        (directory / "glance.db").unlink(missing_ok=True)
        command: list[str | Path] = [python, "-m", "glance.cmd.manage", "--config-dir", directory, "db_sync"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment(), cwd=directory)
        if done.returncode != 0:
            raise RuntimeError(f"the database of Glance could not be made:\n{done.stderr[-3000:]}")
        unfinished = template.with_name(f"empty.db.{os.getpid()}")
        shutil.copyfile(directory / "glance.db", unfinished)
        unfinished.rename(template)
    else:
        shutil.copyfile(template, directory / "glance.db")


def _write_configuration(
    directory: Path, protections: str | None, rule_format: str, policies: Mapping[str, str] | None, show_locations: bool
) -> None:
    for name in ("images", "staging", "tasks"):
        (directory / name).mkdir(exist_ok=True)
    lines = [
        "[DEFAULT]",
        "enabled_backends = fs:file",
        f"show_multiple_locations = {show_locations}",
        f"show_image_direct_url = {show_locations}",
    ]
    if protections is not None:
        (directory / "protections.conf").write_text(protections, encoding="utf-8")
        lines += [f"property_protection_file = {directory}/protections.conf", f"property_protection_rule_format = {rule_format}"]
    lines += [
        *("[database]", f"connection = sqlite:///{directory}/glance.db"),
        *("[glance_store]", "default_backend = fs"),
        *("[fs]", f"filesystem_store_datadir = {directory}/images"),
        *("[os_glance_staging_store]", f"filesystem_store_datadir = {directory}/staging"),
        *("[os_glance_tasks_store]", f"filesystem_store_datadir = {directory}/tasks"),
        *("[paste_deploy]", "flavor =", f"config_file = {directory}/paste.ini"),
        *("[oslo_policy]", "enforce_scope = false", f"policy_file = {directory}/policy.yaml"),
    ]
    (directory / "policy.yaml").write_text(json.dumps(dict(policies or {})), encoding="utf-8")
    (directory / "paste.ini").write_text(_PASTE, encoding="utf-8")
    (directory / "glance-api.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


if __name__ == "__main__":
    prepare()
