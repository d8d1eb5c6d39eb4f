"""What may be asked of a snapshot, and what is said to who asks for something else."""

import json

import msgspec
import pytest

from imagefs.errors import ImagefsError, InvalidInput, QuotaExceeded
from imagefs.instances.snapshot_request import OWN, SnapshotRequest, parse_request


def refused(document: object) -> str:
    """Return the reason that a request is refused for."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(ImagefsError) as found:
        parse_request(body)
    assert "\n" not in str(found.value)
    assert str(found.value).count("user.imagefs.snapshot") == 1
    assert type(found.value) in (InvalidInput, QuotaExceeded)
    return str(found.value)


def test_a_name_is_enough() -> None:
    """All else has its default: a private qcow2; a newline at the end is what echo writes."""
    assert parse_request(b'{"name": "web1-before"}\n') == SnapshotRequest("web1-before", "qcow2", "private", {}, None, None, False)


def test_everything_can_be_said() -> None:
    """Each key comes out as it went in."""
    document = {
        "name": "web1 \u00fc",
        "disk_format": "raw",
        "visibility": "shared",
        "properties": {"os_distro": "debian", "empty": ""},
        "qmp": "/run/qmp.sock",
        "agent": "/run/agent.sock",
        "allow_plain": True,
    }
    request = parse_request(json.dumps(document).encode())
    assert msgspec.to_builtins(request) == document
    assert msgspec.json.decode(msgspec.json.encode(request), type=SnapshotRequest) == request


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated"),
        (b"web1-before", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `name`"),
        (b'{"name": "x"} x', "trailing characters"),
        (b'{"name": "\xff"}', "user.imagefs.snapshot"),
        (b'{"name": ' + b"[" * 30_000, "user.imagefs.snapshot"),
        ({"name": 5}, "$.name"),
        ({"name": None}, "$.name"),
        ({"name": "x", "nmae": "y"}, "unknown field `nmae`"),
        ({"name": "x", "disk_format": "vmdk"}, "$.disk_format"),
        ({"name": "x", "visibility": "everybody"}, "$.visibility"),
        ({"name": "x", "allow_plain": "yes"}, "$.allow_plain"),
        ({"name": "x", "allow_plain": 1}, "$.allow_plain"),
        ({"name": "x", "properties": []}, "$.properties"),
        ({"name": "x", "properties": {"min_age": 5}}, "$.properties[...]"),
        ({"name": "x", "qmp": 5}, "$.qmp"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "255"),
        ({"name": "x\0y"}, "name"),
        ({"name": "x", "qmp": "qmp.sock"}, "qmp: 'qmp.sock' is not the absolute path"),
        ({"name": "x", "agent": ""}, "agent: '' is not the absolute path"),
        ({"name": "x", "agent": "/a\0b"}, "agent: "),
        ({"name": "x", "qmp": "/" + "x" * 5000}, "qmp: "),
        ({"name": "x", "properties": {"": "y"}}, "properties"),
        ({"name": "x", "properties": {"p" * 256: "y"}}, "properties"),
        ({"name": "x", "properties": {"owner": "y"}}, "'owner' is not a property"),
        ({"name": "x", "properties": {"os_glance_x": "y"}}, "'os_glance_x' is not a property"),
        ({"name": "x", "properties": {"imagefs.x": "y"}}, "'imagefs.x' is not a property"),
        ({"name": "x", "properties": {"a": "\0"}}, "the value of 'a'"),
        ({"name": "x", "properties": {"a": "y" * 65537}}, "the value of 'a'"),
        ({"name": "x", "properties": {f"p{number}": "" for number in range(129)}}, "at most 128 properties"),
        *(({"name": "x", "properties": {name: "y"}}, f"'{name}' says where a snapshot comes from") for name in sorted(OWN)),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(body: object, words: str) -> None:
    """One line that names the key or the place."""
    assert words in refused(body)
