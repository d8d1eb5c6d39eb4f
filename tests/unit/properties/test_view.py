"""Tests of a record's view as flat names, as xattrs within Linux's limits, and as a line of JSON."""

import json

import pytest

from imagefs.properties.core import CORE
from imagefs.properties.view import XATTR_LIST_LIMIT, XattrView, as_xattrs, listing_line, shown
from imagefs.store.record import ImageRecord

IMAGE_ID = "0d5a3e3e-6a4c-4b11-9c6b-0f3c1d2e4f50"


def record(**properties: str) -> ImageRecord:
    """Return a record with these additional properties."""
    return ImageRecord(
        id=IMAGE_ID,
        created_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:00Z",
        name="debian",
        tags=("a", "ü"),
        protected=True,
        properties=properties,
    )


def view(**properties: str) -> XattrView:
    """Return the xattrs of a record with these properties, all of them readable."""
    return as_xattrs(record(), properties)


def line(image: ImageRecord, readable: dict[str, str], listed: bool = True, member_status: str | None = None) -> dict[str, object]:
    """Return the decoded line of an image; it is one line."""
    body = listing_line(image, readable, listed, member_status)
    assert body.endswith(b"\n")
    assert body.count(b"\n") == 1
    decoded = json.loads(body)
    assert isinstance(decoded, dict)
    return decoded


def test_shown_has_glance_names_and_values() -> None:
    """Booleans are true and false, tags a JSON list, and what the image does not have is left out."""
    values = shown(record(hw_firmware_type="uefi"))
    assert values["protected"] == "true"
    assert values["os_hidden"] == "false"
    assert values["tags"] == '["a", "ü"]'
    assert values["min_disk"] == "0"
    assert values["hw_firmware_type"] == "uefi"
    assert "owner" not in values
    assert "checksum" not in values


def test_shown_has_the_properties_that_are_given() -> None:
    """What may not be read is not given, and so not shown."""
    assert "secret" not in shown(record(secret="1", other="2"), {"other": "2"})
    assert shown(record(secret="1"), {}).keys() <= set(CORE)


def test_property_cannot_cover_a_core_attribute() -> None:
    """A property that has a core attribute's name is not shown in its place."""
    assert shown(record(status="deleted"))["status"] == "queued"
    assert view(status="deleted").xattrs["user.status"] == b"queued"
    assert line(record(), {"status": "deleted", "owner": "forged"}) == line(record(), {})


def test_what_glance_hides_is_not_shown() -> None:
    """Not even to who reads the store itself."""
    assert shown(record(os_glance_stage_host="http://x", os_glance_hash_op_host="y", os_glance_import_task="z")).keys() - set(CORE) == {
        "os_glance_import_task"
    }


def test_names_and_values_beyond_the_limits_are_counted() -> None:
    """250 bytes of name and 64 KiB of value are shown; one byte more is omitted and counted, as are imagefs's own names."""
    found = view(**{"n" * 250: "fits", "m" * 251: "no", "big": "v" * 65536, "bigger": "v" * 65537, "imagefs.cached": "forged"})
    assert "user." + "n" * 250 in found.xattrs
    assert "user.big" in found.xattrs
    assert "user.imagefs.cached" not in found.xattrs
    assert found.omitted == 3


def test_text_that_linux_has_no_bytes_for_is_counted() -> None:
    """Bytes that were no UTF-8 are given back; a lone surrogate and a NUL cannot be."""
    found = view(**{"bytes": "\udcff", "surrogate": "\ud800", "\ud800": "1", "n\0": "1", "": "1"})
    assert found.xattrs["user.bytes"] == b"\xff"
    assert found.omitted == 4


def test_only_what_is_readable_is_counted() -> None:
    """The count of what is omitted does not tell of properties that the caller may not read."""
    assert as_xattrs(record(**{"m" * 251: "no"}), {}).omitted == 0


def test_list_of_names_stays_below_64_kib() -> None:
    """More names than one listxattr can return are left out in a fixed order."""
    found = view(**{f"{number:04}" + "p" * 200: "v" for number in range(400)})
    assert sum(len(name.encode()) + 1 for name in found.xattrs) < XATTR_LIST_LIMIT
    assert found.omitted > 0
    assert found == view(**{f"{number:04}" + "p" * 200: "v" for number in reversed(range(400))})


def test_a_line_has_glance_s_types() -> None:
    """Numbers, booleans and a list of tags; null attributes are left out, properties are beside the attributes."""
    assert line(record(), {"hw_disk_bus": "scsi", "a": "line\nbreak"}) == {
        "id": IMAGE_ID,
        "name": "debian",
        "status": "queued",
        "visibility": "shared",
        "min_disk": 0,
        "min_ram": 0,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "protected": True,
        "os_hidden": False,
        "tags": ["a", "ü"],
        "hw_disk_bus": "scsi",
        "a": "line\nbreak",
        "imagefs.listed": True,
    }


@pytest.mark.parametrize(("listed", "status"), [(True, None), (False, "pending"), (True, "accepted")])
def test_a_line_says_what_the_image_is_to_the_caller(listed: bool, status: str | None) -> None:
    """Whether its lists have it, and its membership; properties cannot forge either."""
    found = line(record(), {"imagefs.listed": "forged", "imagefs.member_status": "forged", "imagefs.x": "1"}, listed, status)
    assert found["imagefs.listed"] is listed
    assert found.get("imagefs.member_status") == status
    assert "imagefs.x" not in found


def test_a_line_can_always_be_read() -> None:
    """What JSON cannot represent is replaced, in names, values and tags; the rest of the line is as ever."""
    image = ImageRecord(id=IMAGE_ID, created_at="", updated_at="", name="a\udcff", tags=("\udc80", "b"), size=5)
    found = line(image, {"p\ud800": "v\udcfe", "q": "1"})
    assert str(found["name"]).startswith("a\ufffd")
    assert str(found["tags"][0] if isinstance(found["tags"], list) else "").startswith("\ufffd")
    assert found["size"] == 5
    assert found["q"] == "1"
    assert len(found) == len(line(image, {})) + 2
