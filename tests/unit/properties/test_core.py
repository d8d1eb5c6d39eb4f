"""Tests of the table of core attributes: what their text means, and which names are reserved."""

import json

import pytest

from imagefs.errors import InvalidInput, QuotaExceeded
from imagefs.properties.core import (
    CORE,
    MEMBER_LIMIT,
    NUMBER_LIMIT,
    PROPERTY_LIMIT,
    TAG_LIMIT,
    VALUE_LIMIT,
    WRITABLE,
    check_property_quota,
    check_text,
    is_reserved,
    parse_core,
    parse_text,
)
from imagefs.store.record import ImageRecord


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [
        ("name", b"debian", "debian"),
        ("name", b"debian\n", "debian"),
        ("name", b"debian\n\n", "debian\n"),
        ("name", b"", ""),
        ("name", "ü".encode() * 255, "ü" * 255),
        ("visibility", b"community\n", "community"),
        ("protected", b"TRUE", True),
        ("protected", b"false\n", False),
        ("os_hidden", b"True", True),
        ("min_disk", b"0", 0),
        ("min_ram", b"0512\n", 512),
        ("min_ram", b"2147483647", NUMBER_LIMIT),
        ("tags", b"[]", ()),
        ("tags", b'["b", "a", "b"]\n', ("b", "a")),
        ("tags", b' [ "\\u00fc" ] ', ("ü",)),
        ("tags", json.dumps(["t" * 255]).encode(), ("t" * 255,)),
        ("tags", json.dumps([f"t{number}" for number in range(TAG_LIMIT)] * 2).encode(), tuple(f"t{number}" for number in range(TAG_LIMIT))),
    ],
)
def test_text_has_its_meaning(name: str, value: bytes, meaning: object) -> None:
    """Each attribute's text is read with its type; one newline at its end does not count, and tags count once, in their order."""
    found = parse_core(name, value, "x")
    assert found == meaning
    assert type(found) is type(meaning)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", b"n" * 256),
        ("name", b"\xff"),
        ("name", b"a\0b"),
        ("visibility", b"Public"),
        ("visibility", b""),
        ("visibility", b"public "),
        ("protected", b"1"),
        ("protected", b"yes"),
        ("protected", b""),
        ("os_hidden", b" true"),
        ("min_disk", b"-1"),
        ("min_disk", b"1.5"),
        ("min_disk", b"2147483648"),
        ("min_disk", b"99999999999999999999"),
        ("min_ram", b""),
        ("min_ram", b"+5"),
        ("min_ram", b"1_000"),
        ("min_ram", "\uff15".encode()),
        ("tags", b""),
        ("tags", b"a"),
        ("tags", b'"a"'),
        ("tags", b"{}"),
        ("tags", b"[1]"),
        ("tags", b"[null]"),
        ("tags", b'[["a"]]'),
        ("tags", b'["a",]'),
        ("tags", b'[""]'),
        ("tags", b'["a\\u0000"]'),
        ("tags", b'["\\ud800"]'),
        ("tags", json.dumps(["t" * 256]).encode()),
        ("tags", b"[" * 60_000),
        ("min_ram", b"0" * (VALUE_LIMIT + 1)),
    ],
)
def test_text_without_meaning_is_refused(name: str, value: bytes) -> None:
    """What is not exactly a value of the attribute's type is refused, in one line that says of what."""
    with pytest.raises(InvalidInput) as refused:
        parse_core(name, value, "image 1: user.x")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_too_many_tags_exceed_the_quota() -> None:
    """One tag more than the quota is another error than a wrong value."""
    with pytest.raises(QuotaExceeded, match="129 tags are more than 128"):
        parse_core("tags", json.dumps([f"t{number}" for number in range(TAG_LIMIT + 1)]).encode(), "x")


def test_a_property_keeps_its_newline_and_may_be_empty() -> None:
    """Only core attributes are forgiven a newline: a property's value is what was written."""
    assert parse_text(b"a\n", "x") == "a\n"
    assert parse_text(b"", "x") == ""
    assert len(parse_text(b"v" * VALUE_LIMIT, "x")) == VALUE_LIMIT


@pytest.mark.parametrize(
    "name", [*CORE, "location", "locations", "deleted", "deleted_at", "direct_url", "self", "file", "schema", "os_glance_x", "os_glance", "imagefs.x"]
)
def test_reserved_names(name: str) -> None:
    """Names that Glance or imagefs gives a meaning cannot be properties."""
    assert is_reserved(name)


@pytest.mark.parametrize("name", ["stores", "Name", "location_x", "my_os_glance_x", "imagefs", "hw_disk_bus", "a/b", "member", "image_id"])
def test_names_that_are_not_reserved(name: str) -> None:
    """Everything else can be a property, also what looks like a reserved name."""
    assert not is_reserved(name)


def test_every_core_attribute_is_in_the_record() -> None:
    """The table and the stored record speak of the same attributes."""
    assert set(CORE) <= set(ImageRecord.__struct_fields__)
    assert set(WRITABLE) <= set(CORE)


def test_quota_of_properties_leaves_glance_its_own() -> None:
    """128 properties may be there beside any number of Glance's own."""
    names = [f"p{number}" for number in range(PROPERTY_LIMIT)] + [f"os_glance_{number}" for number in range(10)]
    check_property_quota(names, "x")
    with pytest.raises(QuotaExceeded):
        check_property_quota([*names, "one_more"], "x")
    assert (PROPERTY_LIMIT, TAG_LIMIT, MEMBER_LIMIT) == (128, 128, 128)


@pytest.mark.parametrize("text", ["", "t" * 256, "a\0", "\udcff"])
def test_text_that_cannot_be_a_name(text: str) -> None:
    """Names, tags and projects have 1 to 255 characters of UTF-8 without NUL."""
    with pytest.raises(InvalidInput, match="cannot be a tag"):
        check_text(text, "a tag")
