"""The config drive: its metadata, and the disk that guests read."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from imagefs import child
from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.instances import config_drive
from imagefs.instances.config_drive import MAX_META_DATA, MAX_USER_DATA, hostname_of, make_config_drive, meta_data, parse_meta_data

UUID = "0d6e5b1a-5f0c-4d3e-9a58-6f6a1c1f0f10"
USER_DATA = b"#cloud-config\nhostname: web1\n" + bytes(range(256))


def read(iso: Path, name: str, *options: str) -> bytes:
    """Return the content of a file on the drive by its Rock Ridge (or, with -J, Joliet) name."""
    return subprocess.run(["isoinfo", *(options or ("-R",)), "-i", iso, "-x", name], capture_output=True, check=True).stdout


def names(iso: Path, *options: str) -> list[str]:
    """Return all paths on the drive."""
    return sorted(subprocess.run(["isoinfo", *options, "-f", "-i", iso], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("options", ["-R", "-J"])
def test_the_drive_has_what_cloud_init_reads(tmp_path: Path, options: str) -> None:
    """All files are there by both kinds of names, and the volume has the id that cloud-init looks for."""
    iso = make_config_drive(tmp_path, UUID, "web1", USER_DATA, {})
    assert names(iso, options) == [
        "/openstack",
        "/openstack/latest",
        "/openstack/latest/meta_data.json",
        "/openstack/latest/user_data",
        "/openstack/latest/vendor_data.json",
    ]
    assert read(iso, "/openstack/latest/user_data", options) == USER_DATA
    assert json.loads(read(iso, "/openstack/latest/meta_data.json", options))["uuid"] == UUID
    assert json.loads(read(iso, "/openstack/latest/vendor_data.json", options)) == {}
    tool = shutil.which("blkid", path=child.PATH)
    assert tool is not None
    found = subprocess.run([tool, "-p", "-o", "export", iso], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"LABEL=config-2", "TYPE=iso9660"} <= set(found)


def test_the_drive_belongs_to_nobody_else_and_nothing_else_is_left(tmp_path: Path) -> None:
    """User data may hold secrets: the file has mode 0600, and the tree that it was made from is gone."""
    iso = make_config_drive(tmp_path, UUID, "web1", USER_DATA, {})
    assert list(tmp_path.iterdir()) == [iso]
    assert iso.stat().st_mode & 0o7777 == 0o600
    assert iso.stat().st_size < 2**20


def test_without_user_data_there_is_no_such_file(tmp_path: Path) -> None:
    """None is not the same as nothing in it."""
    assert "/openstack/latest/user_data" not in names(make_config_drive(tmp_path, UUID, "web1", None, {}), "-R")


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither the hour nor the names of temporary files are in it."""
    first = make_config_drive(tmp_path, UUID, "web1", USER_DATA * 20, {"b": 1, "a": 2})
    time.sleep(1.1)  # the dates on such a disk are in seconds
    (tmp_path / "elsewhere").mkdir()
    second = make_config_drive(tmp_path / "elsewhere", UUID, "web1", USER_DATA * 20, {"a": 2, "b": 1})
    assert first.read_bytes() == second.read_bytes()


def test_data_that_looks_like_dates_is_left_alone(tmp_path: Path) -> None:
    """Only dates are set to a fixed one, not what a file has in the form of one."""
    user_data = (b"TF\x1a\x01\x0e" + b"x" * 21 + b"CD001" * 10) * 500
    assert read(make_config_drive(tmp_path, UUID, "web1", user_data, {}), "/openstack/latest/user_data") == user_data


def test_the_metadata_is_novas() -> None:
    """What the instance is stands there; the caller adds keys, or replaces all but the uuid."""
    assert json.loads(meta_data(UUID, "Web 1", {})) == {
        "uuid": UUID,
        "name": "Web 1",
        "hostname": "web-1",
        "launch_index": 0,
        "availability_zone": "imagefs",
        "meta": {},
        "public_keys": {},
    }
    added: dict[str, Any] = {"hostname": "other.example", "public_keys": {"mine": "ssh-ed25519 AAAA"}, "meta": {"role": "db"}, "own": [1, None]}
    found = json.loads(meta_data(UUID, "web1", added))
    assert {key: found[key] for key in added} == added
    assert found["uuid"] == UUID


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("web1", "web1"),
        ("Web_1.example com", "web-1-example-com"),
        ("--a--", "a"),
        ("Zürich", "zurich"),
        ("日本", f"server-{UUID}"),
        ("...", f"server-{UUID}"),
        ("a" * 255, "a" * 63),
        ("a" * 62 + ".b", "a" * 62),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b;$(c)", "abc"),
    ],
)
def test_hostnames_are_valid(name: str, hostname: str) -> None:
    """Whatever the instance is called, its host's name is one label of DNS."""
    assert hostname_of(name, UUID) == hostname


@pytest.mark.parametrize(
    "text", ["{}", '{"meta": {"a": "b"}}', '{"public_keys": {}, "hostname": "x", "deep": {"a": [1.5, true, null]}}', '{"a": "\\ud800"}']
)
def test_json_objects_are_taken(text: str) -> None:
    """An object comes as it is."""
    assert parse_meta_data(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"a": NaN}', "not valid JSON: NaN"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 60000, "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('"a"', "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"uuid": "x"}', "has the key uuid"),
        ('{"files": []}', "has the key files"),
        ('{"network_config": {}}', "has the key network_config"),
        ('{"hostname": 5}', "hostname is not a text"),
        ('{"meta": []}', "meta is not an object with texts"),
        ('{"public_keys": {"mine": ["ssh"]}}', "public_keys is not an object with texts"),
        ('{"a": "' + "x" * MAX_META_DATA + '"}', "more than 65536 bytes"),
        ('{"a": "' + "\xe4" * (MAX_META_DATA // 2) + '"}', "more than 65536 bytes"),
    ],
)
def test_other_metadata_is_refused(text: str, reason: str) -> None:
    """What is no object, too long, or would break the guest's reading of the drive."""
    with pytest.raises(InvalidInput, match=reason):
        parse_meta_data(text)


def test_user_data_is_bounded(tmp_path: Path) -> None:
    """64 KiB are taken, one byte more is not, and nothing is left of it."""
    full = os.urandom(MAX_USER_DATA)
    assert read(make_config_drive(tmp_path, UUID, "web1", full, {}), "/openstack/latest/user_data") == full
    before = list(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match="65537 bytes, and 65536 is the most"):
        make_config_drive(tmp_path, UUID, "web1", full + b"x", {})
    assert list(tmp_path.iterdir()) == before


def test_a_missing_tool_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any of the three tools the message says what to install."""
    monkeypatch.setattr(child, "PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match="genisoimage or mkisofs or xorrisofs is not installed: install the package genisoimage"):
        make_config_drive(tmp_path, UUID, "web1", None, {})


def test_the_next_tool_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where genisoimage is missing, mkisofs does."""
    genisoimage = shutil.which("genisoimage")
    assert genisoimage is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mkisofs").symlink_to(genisoimage)
    monkeypatch.setattr(child, "PATH", str(tmp_path / "bin"))
    assert read(make_config_drive(tmp_path, UUID, "web1", USER_DATA, {}), "/openstack/latest/user_data") == USER_DATA


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("echo 'mkisofs: No space left on device'; exit 1", NoSpace, "free some room"),
        ("echo 'broken'; exit 2", ImagefsError, "'web1': .* failed with status 2: broken"),
        ("exec /bin/sleep 100", ImagefsError, "did not end within"),
    ],
)
def test_a_failing_tool_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, error: type[ImagefsError], reason: str) -> None:
    """Neither the drive nor the user's data in temporary files."""
    tool = tmp_path / "bin" / "genisoimage"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(child, "PATH", str(tool.parent))
    monkeypatch.setattr(config_drive, "TIME_LIMIT", 0.4 if "sleep" in script else 60)
    with pytest.raises(error, match=reason):
        make_config_drive(tmp_path, UUID, "web1", USER_DATA, {})
    assert list(tmp_path.iterdir()) == [tool.parent]


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the tree cannot be written, it is removed as well, and the reason is told."""

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(NoSpace, match="free some room"):
        make_config_drive(tmp_path, UUID, "web1", USER_DATA, {})
    assert list(tmp_path.iterdir()) == []
