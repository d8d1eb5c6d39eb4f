"""What becomes of images as Glance shows them, however odd."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.errors import ImageRefused, InvalidInput
from imagefs.store.glance.record import decode_image, decode_members, encode_new, locations, parse_object, stored
from imagefs.store.record import ImageRecord, Member, decode_record, encode_record

ID = "11111111-2222-4333-8444-555555555555"
SHOWN = {
    "id": ID,
    "name": "debian",
    "status": "active",
    "visibility": "shared",
    "owner": "p1",
    "disk_format": "raw",
    "container_format": "bare",
    "size": 5,
    "virtual_size": 5,
    "min_disk": 1,
    "min_ram": 2,
    "checksum": "c",
    "os_hash_algo": "sha512",
    "os_hash_value": "h",
    "protected": True,
    "os_hidden": False,
    "tags": ["b", "a", "b"],
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-02T00:00:00Z",
    "self": f"/v2/images/{ID}",
    "file": f"/v2/images/{ID}/file",
    "schema": "/v2/schemas/image",
    "direct_url": "file:///a",
    "locations": [{"url": "file:///a", "metadata": {}}, {"url": "file:///b"}, {"url": 5}, "x"],
    "stores": "fs",
    "os_distro": "debian",
    "os_glance_importing": "fs",
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé/~\0\ud800\U0001f600", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\udfff", max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_attributes_properties_and_links_are_told_apart() -> None:
    """Core attributes are typed, links left out, and all else is a property."""
    record = decode_image(SHOWN, "test", (Member("p2"),))
    assert (record.name, record.size, record.min_disk, record.protected, record.tags) == ("debian", 5, 1, True, ("a", "b"))
    assert record.properties == {"os_distro": "debian", "os_glance_importing": "fs"}
    assert record.members == (Member("p2"),)
    assert decode_image({**SHOWN, "visibility": "private"}, "test", (Member("p2"),)).members == ()
    assert locations(SHOWN) == ("file:///a", "file:///b")


@pytest.mark.parametrize("status", ["queued", "saving", "importing", "uploading", "killed", "deactivated", "pending_delete", "of the future"])
def test_any_status_is_kept(status: str) -> None:
    """Statuses are Glance's own, also those that imagefs gives no meaning."""
    assert decode_image({**SHOWN, "status": status}, "test").status == status


def test_what_is_missing_has_its_default() -> None:
    """An id alone is an image."""
    record = decode_image({"id": ID}, "test")
    assert record == ImageRecord(id=ID, created_at="", updated_at="")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", None),
        ("id", 5),
        ("id", "../../etc"),
        ("id", ID.upper().replace("1", "A")),
        ("name", 5),
        ("size", -1),
        ("size", True),
        ("size", 2**63),
        ("size", "5"),
        ("size", 1.5),
        ("min_disk", []),
        ("protected", "yes"),
        ("tags", "a"),
        ("tags", [1]),
        ("tags", {"a": 1}),
        ("visibility", "secret"),
        ("status", {}),
    ],
)
def test_a_core_attribute_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    """The message has the origin and the attribute."""
    with pytest.raises(ImageRefused, match=f"somewhere.*{'id' if name == 'id' else name}"):
        decode_image({**SHOWN, name: value}, "somewhere")


def test_properties_that_are_no_text_become_text_or_are_left_out() -> None:
    """Numbers and booleans of a site's schema are their JSON, null is empty, and lists and objects are nothing a property can be."""
    odd = {"n": 5, "f": 0.5, "b": True, "none": None, "list": [1], "object": {"a": 1}, "half": "\ud800", "name\udfff": "x"}
    record = decode_image({"id": ID, **odd}, "test")
    assert record.properties == {"n": "5", "f": "0.5", "b": "true", "none": "", "half": "\\ud800"}


@given(st.dictionaries(st.sampled_from([*SHOWN, "x"]), json_values))
def test_whatever_json_gives_a_record_that_can_be_kept_or_a_refusal(odd: dict[str, object]) -> None:
    """No image crashes the reader, and what is read can be stored and read again."""
    try:
        record = decode_image({**SHOWN, **odd}, "test")
    except ImageRefused:
        return
    assert decode_record(encode_record(record), "test") == record
    locations({**SHOWN, **odd})
    decode_members(odd)


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}{', b'{"a": ' + b"1" * 5000 + b"}"])
def test_what_is_no_object_is_a_value_error(body: bytes) -> None:
    """Garbage, other JSON, and JSON that is too deep or too long."""
    with pytest.raises(ValueError, match=r".+"):
        parse_object(body)


def test_members_are_sorted_and_what_is_none_is_passed_over() -> None:
    """One membership for each project."""
    entries = [{"member_id": "p2", "status": "accepted"}, {"member_id": "p1", "status": "pending"}, {"member_id": 5, "status": "x"}, "p3", {}]
    assert decode_members({"members": entries}) == (Member("p1"), Member("p2", "accepted"))
    assert decode_members({"members": {}}) == decode_members({}) == ()


def test_the_version_changes_with_anything_and_only_then() -> None:
    """Also with members, which leave updated_at as it is; not with the order of tags."""
    record = decode_image(SHOWN, "test")
    assert stored(decode_image({**SHOWN, "tags": ["a", "b"]}, "test")).version == stored(record).version
    others: tuple[dict[str, object], ...] = ({"members": (Member("p"),)}, {"properties": {}}, {"os_hidden": True}, {"name": "x"})
    for other in others:
        assert stored(msgspec.structs.replace(record, **other)).version != stored(record).version


def test_a_new_image_is_sent_without_what_is_not_set() -> None:
    """Neither nulls nor what Glance finds out itself nor the protection are in the body."""
    record = ImageRecord(id=ID, created_at="", updated_at="", protected=True, size=5, properties={"a": "b"}, tags=("t",))
    body = {"id": ID, "tags": ["t"], "visibility": "shared", "min_disk": 0, "min_ram": 0, "os_hidden": False, "a": "b"}
    assert encode_new(record) == body
    assert json.loads(json.dumps(body)) == body
    with pytest.raises(InvalidInput, match="'size' is an attribute"):
        encode_new(msgspec.structs.replace(record, properties={"size": "9"}))
