"""Tests of what users can do to each other's instances on one mount, and of what an owner can write into the attributes of its own."""

import contextlib
import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagefs.instances.choices import CHOICES
from tests.mount.test_images import expect
from tests.support.mounted import Mounted, mounted, run_imagefs, write_config
from tests.support.pictures import MIB, disk_bytes, write_raw
from tests.support.user import User, open_the_way, user

pytestmark = pytest.mark.mount
OWNER, STRANGER = 61001, 61002
CONFIG = f"""
allow_other = true
[instances]
mode = "1777"
[protection]
property_protection_file = "rules.conf"
[[identity.map]]
uid = {OWNER}
roles = ["member", "reader"]
project_id = "ours"
[[identity.map]]
uid = {STRANGER}
roles = ["member", "reader"]
project_id = "theirs"
[flavors."hidden"]
vcpus = 1
ram = 64
disk = 0
is_public = false
"""
RULES = "".join(
    f"[{pattern}]\n" + "".join(f"{verb} = {role}\n" for verb in ("create", "read", "update", "delete"))
    for pattern, role in (("^x_secret", "admin"), (".*", "@"))
)
SNAPSHOT, PROPERTIES, ERROR = "user.imagefs.snapshot", "user.imagefs.image_properties", "user.imagefs.error"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """For all users, with the image base, one property of which is for admins, and big, whose properties are no attribute together."""
    open_the_way(tmp_path)
    (tmp_path / "rules.conf").write_text(RULES)
    config = write_config(tmp_path, extra=CONFIG)
    raw = write_raw(tmp_path / "base.raw", disk_bytes(MIB))
    create = ("image", "create", "--disk-format", "raw", "--public", "--file", str(raw), "--property", "hw_disk_bus=virtio")
    run_imagefs(config, *create, "base", "--property", "x_secret=classified")
    run_imagefs(config, *create, "big", "--property", f"first={'x' * 60_000}", "--property", f"second={'x' * 60_000}")
    return config


@pytest.fixture
def mount(config: Path) -> Iterator[Mounted]:
    """A mount of that configuration."""
    with mounted(config.parent, config) as made:
        yield made


def denied(number: int, caller: User, *call: object) -> None:
    """Make a call that must fail with this errno."""
    assert caller.errno(str(call[0]), *call[1:]) == number


def stored(caller: User, path: str) -> str:
    """Wait until the snapshot is stored and return its id."""
    deadline = time.monotonic() + 60
    while (state := json.loads(caller.call("getxattr", path, SNAPSHOT)))["status"] != "active":
        assert state["status"] in ("queued", "saving"), state
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return str(state["id"])


def test_an_instance_that_root_made_shows_its_new_owner_no_more_than_the_image_does(mount: Mounted) -> None:
    """Neither a protected property nor what root was told of private flavors; a snapshot of the new owner's has not that property either."""
    path = mount.mountpoint / "instances" / "web1"
    path.mkdir()
    expect(errno.EINVAL, os.setxattr, path, "user.flavor", b"none")
    assert b"hidden" in os.getxattr(path, ERROR)
    os.setxattr(path, "user.image", b"base")
    expect(errno.EINVAL, os.setxattr, path, SNAPSHOT, b"{}")
    for name in (path, path / "vda"):
        os.chown(name, OWNER, OWNER)
    assert json.loads(os.getxattr(path, PROPERTIES))["x_secret"] == "classified"
    with user(OWNER, OWNER) as owner:
        assert json.loads(owner.call("getxattr", str(path), PROPERTIES)) == {"hw_disk_bus": "virtio", "disk_format": "raw", "min_ram": "0"}
        denied(errno.ENODATA, owner, "getxattr", str(path), ERROR)
        owner.call("setxattr", str(path), SNAPSHOT, b'{"name": "mine"}')
        image = mount.mountpoint / "images" / stored(owner, str(path))
        assert os.getxattr(image, "user.owner") == b"ours"
        expect(errno.ENODATA, os.getxattr, image, "user.x_secret")
    with user(STRANGER, STRANGER) as stranger:
        assert not stranger.call("lookup", str(image))


@pytest.mark.parametrize("disk_format", ["raw", "qcow2"])
def test_who_may_write_to_the_directory_does_not_get_what_is_in_the_disks(mount: Mounted, disk_format: str) -> None:
    """A directory that is open to its group gives others neither a snapshot of disks that they cannot read, nor user data."""
    path = str(mount.mountpoint / "instances" / "web1")
    with user(OWNER, OWNER) as owner, user(STRANGER, OWNER) as colleague:
        owner.call("mkdir", path)
        for name, value in (("disk_format", disk_format), ("user_data", "password"), ("meta_data", '{"password": "1"}'), ("image", "base")):
            owner.call("setxattr", path, f"user.{name}", value.encode())
        owner.call("chmod", path, 0o770)
        assert colleague.call("getxattr", path, "user.status") == b"active"
        for name in ("user.user_data", "user.meta_data"):
            denied(errno.ENODATA, colleague, "getxattr", path, name)
            assert owner.call("getxattr", path, name)
        denied(errno.EACCES, colleague, "setxattr", path, SNAPSHOT, b'{"name": "stolen"}')
        assert b"uid 61002 may not" in colleague.call("getxattr", path, ERROR)
        denied(errno.ENODATA, owner, "getxattr", path, ERROR)
        if disk_format == "raw":
            owner.call("chmod", f"{path}/vda", 0o640)
            colleague.call("setxattr", path, SNAPSHOT, b'{"name": "given"}')
            stored(owner, path)


def test_properties_that_are_no_attribute_together_are_cut(mount: Mounted) -> None:
    """What a machine needs of an image is there however much else the image has, and every attribute that is listed can be read."""
    path = mount.mountpoint / "instances" / "web1"
    path.mkdir()
    os.setxattr(path, "user.image", b"big")
    found = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    assert json.loads(found[PROPERTIES]) == {"hw_disk_bus": "virtio", "disk_format": "raw", "min_ram": "0", "first": "x" * 60_000}


def test_a_lost_node_key_is_told_of_and_not_replaced(config: Path, tmp_path: Path) -> None:
    """Encrypted disks are EIO with the reason, no more are made, others work; with the key back, or without disks that need it, all is well."""
    instances, key = tmp_path / "mnt" / "instances", tmp_path / "state" / "node.key"
    with mounted(tmp_path, config):
        for name, encrypted in (("secret", b"true"), ("plain", b"false")):
            (instances / name).mkdir()
            os.setxattr(instances / name, "user.encrypted", encrypted)
            os.setxattr(instances / name, "user.image", b"base")
        assert key.stat().st_mode & 0o777 == 0o600
    key.rename(tmp_path / "kept")
    with mounted(tmp_path, config):
        expect(errno.EIO, (instances / "secret" / "vda").read_bytes)
        assert b"put it back" in os.getxattr(instances / "secret", ERROR)
        assert len((instances / "plain" / "vda").read_bytes()) == MIB
        (instances / "new").mkdir()
        os.setxattr(instances / "new", "user.encrypted", b"true")
        expect(errno.EIO, os.setxattr, instances / "new", "user.image", b"base")
        assert not key.exists()
        (tmp_path / "kept").rename(key)
        assert len((instances / "secret" / "vda").read_bytes()) == MIB
    key.unlink()
    with mounted(tmp_path, config):
        (instances / "secret").rmdir()
        os.setxattr(instances / "new", "user.image", b"base")
        assert key.exists()


NAMES = st.sampled_from([*(f"user.{name}" for name in sorted(CHOICES)), "user.flavor", "user.image", SNAPSHOT, ERROR, "user.status", "user.x"])
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=3))
TABLES = st.dictionaries(st.sampled_from(["name", "agent", "qmp", "properties", "disk_format", "hostname", "meta", "x"]), JSON, max_size=4)
VALUES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"base", b"big", b"m1.tiny", b"true", b"ext4", b"1,1", b"qcow2", b"disk", b"[" * 60_000, b'{"a":' * 10_000, b"9" * 65_536]),
    st.builds(lambda table: json.dumps(table).encode(), TABLES),
    st.builds(lambda name, path: json.dumps({"name": name, "agent": f"/{path}"}).encode(), st.text(max_size=300), st.text(max_size=300)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settings_made=st.lists(st.tuples(NAMES, VALUES, st.sampled_from([0, os.XATTR_CREATE, os.XATTR_REPLACE])), max_size=8))
def test_attributes_take_anything(mount: Mounted, settings_made: list[tuple[str, bytes, int]]) -> None:
    """Whatever is set, in whatever order, is taken or refused; all that is listed can be read; nothing goes wrong that nobody foresaw."""
    path = mount.mountpoint / "instances" / "fuzzed"
    path.mkdir()
    for name, value, flags in settings_made:
        with contextlib.suppress(OSError):
            os.setxattr(path, name, value, flags)
    for name in os.listxattr(path):
        os.getxattr(path, name)
    for disk in path.iterdir():
        disk.lstat()
    deadline = time.monotonic() + 60
    while path.exists():
        try:
            path.rmdir()
        except OSError as error:  # its snapshot is being stored
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    assert "Traceback" not in mount.log.read_text()
