"""Tests of a record's view as flat names, and as xattrs within Linux's limits."""

from imagefs.properties.view import XATTR_LIST_LIMIT, as_xattrs, shown
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


def test_property_cannot_cover_a_core_attribute() -> None:
    """A property that has a core attribute's name is not shown in its place."""
    assert shown(record(status="deleted"))["status"] == "queued"


def test_names_and_values_beyond_the_limits_are_counted() -> None:
    """250 bytes of name and 64 KiB of value are shown; one byte more is omitted and counted, as are imagefs's own names."""
    view = as_xattrs(record(**{"n" * 250: "fits", "m" * 251: "no", "big": "v" * 65536, "bigger": "v" * 65537, "imagefs.cached": "forged"}))
    assert "user." + "n" * 250 in view.xattrs
    assert "user.big" in view.xattrs
    assert "user.imagefs.cached" not in view.xattrs
    assert view.omitted == 3


def test_list_of_names_stays_below_64_kib() -> None:
    """More names than one listxattr can return are left out in a fixed order."""
    view = as_xattrs(record(**{f"{number:04}" + "p" * 200: "v" for number in range(400)}))
    assert sum(len(name.encode()) + 1 for name in view.xattrs) < XATTR_LIST_LIMIT
    assert view.omitted > 0
    assert view == as_xattrs(record(**{f"{number:04}" + "p" * 200: "v" for number in reversed(range(400))}))
