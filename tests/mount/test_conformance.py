"""What Glance 33.0.0 answered is what a mount answers: its rules files and requests, carried out by setxattr(2) and its kin.

Where imagefs differs on purpose the tests say so: it keeps what a caller cannot read, where Glance loses it.
"""

import base64
import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from imagefs.config import load
from imagefs.store.configured import open_configured
from imagefs.store.record import ImageRecord
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.user import User, open_the_way, user

pytestmark = pytest.mark.mount

VECTORS: Final = Path(__file__).parents[1] / "conformance"
PROTECTION: Final[list[dict[str, Any]]] = json.loads((VECTORS / "property_protection.json").read_text())["vectors"]
API: Final[dict[str, Any]] = json.loads((VECTORS / "property_api.json").read_text())
OPEN: Final[dict[str, str]] = API["meta"]["open_policy"]
IMAGE_ID: Final = "11111111-1111-4111-8111-111111111111"
FIRST_UID: Final = 61100
ROLES: Final = sorted(
    {tuple(case["roles"]) for vector in PROTECTION for case in vector.get("cases", ())} | {tuple(vector["roles"]) for vector in API["vectors"]}
)
PERMISSIVE: Final = "[.*]\ncreate = @\nread = @\nupdate = @\ndelete = @\n"


class Scene:
    """A mount whose rules are replaced between cases, with one image, and a user for each set of roles in the vectors."""

    def __init__(self, mount: Mounted, users: dict[tuple[str, ...], User]) -> None:
        self.mount = mount
        self.users = users
        self.image = str(mount.mountpoint / "images" / IMAGE_ID)
        self._store = open_configured(load(mount.config).store)

    def use(self, rules: bytes, policies: dict[str, str] | None) -> None:
        """Put other rules in force, as an operator does: write the files, send SIGHUP."""
        directory = self.mount.config.parent
        (directory / "rules.conf").write_bytes(rules)
        (directory / "policy.yaml").write_text(json.dumps({**OPEN, **(policies or {})}))
        before = self._count("the rules were read again")
        self.mount.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while self._count("the rules were read again") == before:
            assert time.monotonic() < deadline, self.mount.log.read_text()
            assert "the old ones stay in force" not in self.mount.log.read_text(), self.mount.log.read_text()
            time.sleep(0.01)

    def give(self, properties: dict[str, str]) -> None:
        """Give the image these properties and no others, past all rules, and let the mount know."""
        self._store.update(IMAGE_ID, lambda old: msgspec.structs.replace(old, properties=properties, owner="project-1"))
        os.setxattr(self.mount.mountpoint, "user.imagefs.refresh", b"")

    def stored(self) -> ImageRecord:
        """Return the record as the store has it."""
        return self._store.find(IMAGE_ID).record

    def _count(self, text: str) -> int:
        return self.mount.log.read_text().count(text)


@contextlib.contextmanager
def scene(directory: Path, rule_format: str) -> Iterator[Scene]:
    """Mount with this format of rules."""
    open_the_way(directory)
    entries = "".join(
        f'[[identity.map]]\nuid = {FIRST_UID + number}\nroles = {json.dumps(roles)}\nproject_id = "project-1"\nuser_id = "user-1"\n'
        for number, roles in enumerate(ROLES)
    )
    config = write_config(
        directory,
        extra=f'allow_other = true\n[protection]\nproperty_protection_file = "rules.conf"\nproperty_protection_rule_format = "{rule_format}"\n'
        f'[policy]\npolicy_file = "policy.yaml"\n{entries}',
    )
    (directory / "rules.conf").write_text(PERMISSIVE)
    (directory / "policy.yaml").write_text(json.dumps(OPEN))
    source = directory / "disk.raw"
    source.write_bytes(b"disk" * 1000)
    run_imagefs(config, "image", "create", "--private", "--disk-format", "raw", "--id", IMAGE_ID, "--file", str(source), "vectors")
    with contextlib.ExitStack() as stack:
        users = {roles: stack.enter_context(user(FIRST_UID + number, FIRST_UID + number)) for number, roles in enumerate(ROLES)}
        yield Scene(stack.enter_context(mounted(directory, config)), users)


@pytest.fixture(scope="module", params=["roles", "policies"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Scene]]:
    """A mount for each format of rules."""
    with scene(tmp_path_factory.mktemp(request.param), request.param) as made:
        yield request.param, made


def _body(vector: dict[str, Any]) -> bytes:
    return base64.b64decode(vector["rules_b64"]) if "rules_b64" in vector else vector["rules"].encode()


def test_rules_files_mean_on_a_mount_what_they_mean_in_glance(stage: tuple[str, Scene]) -> None:
    """Each case of each accepted file: what may be read is listed, what may not is ENODATA, and writes follow create, update and delete."""
    rule_format, made = stage
    wrong, checked = [], 0
    for vector in PROTECTION:
        if vector["format"] != rule_format or "cases" not in vector:
            continue
        made.use(_body(vector), vector["policies"])
        allowed: dict[tuple[str, tuple[str, ...]], dict[str, bool]] = {}
        for case in vector["cases"]:
            allowed.setdefault((case["property"], tuple(case["roles"])), {})[case["operation"]] = case["allowed"]
        for (name, roles), may in allowed.items():
            checked += len(may)
            got = _outcomes(made, made.users[roles], name)
            expected = _expected(name, may)
            wrong += [(vector["name"], name, roles, key, got[key], value) for key, value in expected.items() if got[key] != value]
    assert not wrong
    assert checked > (300 if rule_format == "roles" else 40)


def _outcomes(made: Scene, who: User, name: str) -> dict[str, object]:
    """Return what reading, replacing, removing and creating a property gives a user."""
    attribute = f"user.{name}"
    got: dict[str, object] = {}
    made.give({name: "old"})
    got["read"] = (who.errno("getxattr", made.image, attribute), attribute in who.call("listxattr", made.image))
    got["update"] = who.errno("setxattr", made.image, attribute, b"new")
    assert made.stored().properties == {name: "old" if got["update"] else "new"}
    got["delete"] = who.errno("removexattr", made.image, attribute)
    assert (name in made.stored().properties) is bool(got["delete"])
    made.give({})
    got["create"] = who.errno("setxattr", made.image, attribute, b"new")
    assert (name in made.stored().properties) is not bool(got["create"])
    return got


def _expected(name: str, may: dict[str, bool]) -> dict[str, object]:
    """Return the same by the vector: reading is a condition of update and delete; names that begin with os_glance are Glance's own."""
    reserved = name.startswith("os_glance")
    expected: dict[str, object] = {}
    if "read" in may:
        expected["read"] = (0, True) if may["read"] else (errno.ENODATA, False)
        if "update" in may:
            expected["update"] = 0 if may["read"] and may["update"] and not reserved else errno.EPERM
        if "delete" in may:
            expected["delete"] = errno.EPERM if reserved else errno.ENODATA if not may["read"] else 0 if may["delete"] else errno.EPERM
    if "create" in may:
        expected["create"] = 0 if may["create"] and not reserved else errno.EPERM
    return expected


@pytest.mark.parametrize("vector", [vector for vector in PROTECTION if "error" in vector], ids=lambda vector: vector["name"])
def test_a_rules_file_that_glance_refuses_stops_the_mount(vector: dict[str, Any], tmp_path: Path) -> None:
    """The mount ends with status 1 and one line that names the file, and nothing is left mounted."""
    config = write_config(
        tmp_path,
        extra=f'[protection]\nproperty_protection_file = "rules.conf"\nproperty_protection_rule_format = "{vector["format"]}"\n'
        '[policy]\npolicy_file = "policy.yaml"\n',
    )
    (tmp_path / "rules.conf").write_bytes(_body(vector))
    (tmp_path / "policy.yaml").write_text(json.dumps(vector["policies"] or {}))
    done = run_imagefs(config, "mount", str(tmp_path / "mnt"), check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "rules.conf") in line
    assert not os.path.ismount(tmp_path / "mnt")


def test_requests_are_answered_as_by_glance(stage: tuple[str, Scene]) -> None:
    """The steps of the API's scenarios: GET is listxattr and getxattr, PATCH is setxattr and removexattr, POST is `image create`."""
    rule_format, made = stage
    for vector in API["vectors"]:
        if vector["format"] != rule_format:
            continue
        made.use(vector["rules"].encode(), vector["policies"])
        made.give(vector["image_properties"])
        who = made.users[tuple(vector["roles"])]
        kept = dict(vector["image_properties"])
        for step in vector["steps"]:
            kind, *rest = step["do"]
            where = (vector["name"], step["do"])
            if kind in {"show", "index"}:
                visible = step["visible"] if kind == "show" else step["visible"][0]
                assert _shown(made, who) == visible, where
            elif kind == "patch":
                for operation in rest[0]:
                    _patch(who, made.image, operation, step, where)
                # What the step did not touch is kept, where Glance lost what the caller could not read.
                touched = {operation["path"].removeprefix("/") for operation in rest[0]}
                expected = {name: value for name, value in kept.items() if name not in touched} | {
                    name: value for name, value in step["stored_after"].items() if name in touched
                }
                assert made.stored().properties == expected, where
                kept = expected
            else:
                _post(made, vector, rest[0], step)


def _shown(made: Scene, who: User) -> dict[str, str]:
    names = [name for name in who.call("listxattr", made.image) if not name.startswith("user.imagefs.")]
    shown = {name.removeprefix("user."): who.call("getxattr", made.image, name).decode() for name in names}
    core = {field for field in ImageRecord.__struct_fields__ if field not in {"properties", "members", "tree", "key"}}
    return {name: value for name, value in shown.items() if name not in core}


def _patch(who: User, image: str, operation: dict[str, str], step: dict[str, Any], where: object) -> None:
    attribute = f"user.{operation['path'].removeprefix('/')}"
    if operation["op"] == "remove":
        got = who.errno("removexattr", image, attribute)
    else:
        got = who.errno("setxattr", image, attribute, operation["value"].encode(), os.XATTR_REPLACE if operation["op"] == "replace" else 0)
    assert got == {200: 0, 403: errno.EPERM, 409: errno.ENODATA}[step["status"]], where


def _post(made: Scene, vector: dict[str, Any], body: dict[str, str], step: dict[str, Any]) -> None:
    """Create an image as the caller of the scenario: the command goes by the configuration, whoever runs it."""
    uid = FIRST_UID + ROLES.index(tuple(vector["roles"]))
    config = made.mount.config
    as_caller = config.with_name("as-caller.toml")
    as_caller.write_text(config.read_text().replace(f"uid = {uid}\n", "uid = 0\n"))
    properties = [f"--property={name}={value}" for name, value in body.items() if name != "name"]
    source = config.with_name("disk.raw")
    done = run_imagefs(
        as_caller, "image", "create", "-f", "json", "--disk-format", "raw", "--file", str(source), *properties, body["name"], check=False
    )
    assert (done.returncode == 0) is (step["status"] == 201), done.stderr
    if done.returncode == 0:
        assert step["response_properties"].items() <= json.loads(done.stdout).items()
