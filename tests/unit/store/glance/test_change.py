"""What of a change is sent to Glance, and what counts as lost."""

import msgspec
import pytest

from imagefs.errors import InvalidInput, NotPermitted
from imagefs.store.glance.change import Difference, difference, member_requests
from imagefs.store.record import ImageRecord, Member

OLD = ImageRecord(
    id="11111111-2222-4333-8444-555555555555",
    created_at="2026",
    updated_at="2026",
    status="active",
    size=5,
    tags=("a", "b"),
    properties={"keep": "1", "drop": "2", "set": "3"},
    members=(Member("p1"), Member("p2", "accepted")),
)


def changed(**attributes: object) -> ImageRecord:
    return msgspec.structs.replace(OLD, **attributes)


def between(**attributes: object) -> Difference:
    return difference(OLD, changed(**attributes))


def test_an_equal_record_is_no_difference() -> None:
    """updated_at is Glance's own."""
    assert not between(updated_at="2027")


def test_a_patch_has_the_touched_keys_alone() -> None:
    """Names are JSON pointers; a property is added or removed, tags are replaced as a whole."""
    touched = between(name="new", properties={"keep": "1", "set": "4", "a/b~c": "5"}, tags=("b", "c"))
    assert touched.patch(OLD) == [
        {"op": "replace", "path": "/name", "value": "new"},
        {"op": "add", "path": "/a~1b~0c", "value": "5"},
        {"op": "remove", "path": "/drop"},
        {"op": "add", "path": "/set", "value": "4"},
        {"op": "replace", "path": "/tags", "value": ["b", "c"]},
    ]


def test_a_patch_fits_what_is_there_now() -> None:
    """Another writer's tag is kept, and what it has removed is not removed again: Glance would refuse all of it."""
    touched = between(properties={"keep": "1", "set": "3"}, tags=("b", "c"))
    assert touched.patch(changed(properties={}, tags=("a", "b", "theirs"))) == [{"op": "replace", "path": "/tags", "value": ["b", "c", "theirs"]}]


def test_what_is_as_before_is_lost_and_a_third_value_is_not() -> None:
    """Lost is what another writer's old copy of the image brought back."""
    new = {"name": "new", "properties": {"keep": "1", "set": "4", "more": "5"}, "tags": ("b", "c"), "status": "deactivated"}
    touched = between(**new, members=(Member("p2", "rejected"), Member("p3", "accepted")))
    there = changed(**new, members=(Member("p2", "rejected"), Member("p3", "accepted")))
    assert not touched.lost(there)
    lost = touched.lost(OLD)
    assert lost == touched
    third = changed(name="third", properties={"keep": "9", "drop": "other", "set": "third", "more": "x"}, tags=("c",), status="queued")
    assert not touched.lost(msgspec.structs.replace(third, members=(Member("p1", "accepted"), Member("p2"), Member("p3", "rejected"))))
    half = touched.lost(msgspec.structs.replace(there, properties={**OLD.properties, "more": "5"}, members=(Member("p2", "rejected"), Member("p3"))))
    assert (dict(half.properties), dict(half.members)) == ({"drop": ("2", None), "set": ("3", "4")}, {"p3": ("pending", "accepted")})
    assert half.described() == "drop, set, member p3"


@pytest.mark.parametrize("attribute", ["id", "size", "checksum", "os_hash_value", "created_at", "virtual_size"])
def test_what_glance_sets_cannot_be_changed(attribute: str) -> None:
    """NotPermitted names the attribute."""
    with pytest.raises(NotPermitted, match=attribute):
        between(**{attribute: 9 if attribute in ("size", "virtual_size") else "x"})


def test_only_active_and_deactivated_change_into_each_other() -> None:
    """Other statuses are Glance's own."""
    assert between(status="deactivated").action == "deactivate"
    assert difference(changed(status="deactivated"), OLD).action == "reactivate"
    with pytest.raises(NotPermitted, match="from active to killed"):
        between(status="killed")


@pytest.mark.parametrize("name", ["", " ", " x", "x\n"])
def test_a_name_that_a_pointer_cannot_carry_is_refused(name: str) -> None:
    """Glance strips blanks from paths, and would write another property."""
    with pytest.raises(InvalidInput, match="no blanks"):
        between(properties={**OLD.properties, name: "x"})


def test_memberships_go_by_their_own_requests() -> None:
    """A new one is pending, and gets another status by a second request."""
    assert member_requests("p/ 1".replace("/", ""), (None, "pending")) == [("POST", "/members", {"member": "p 1"})]
    assert member_requests("p", (None, "accepted")) == [("POST", "/members", {"member": "p"}), ("PUT", "/members/p", {"status": "accepted"})]
    assert member_requests("p?", ("pending", "rejected")) == [("PUT", "/members/p%3F", {"status": "rejected"})]
    assert member_requests("p", ("pending", None)) == [("DELETE", "/members/p", None)]
    for project in ("", ".", "..", "a/b"):
        with pytest.raises(InvalidInput, match="cannot be a project"):
            member_requests(project, ("pending", None))


def test_members_of_an_image_that_is_not_shared_any_more_are_left_alone() -> None:
    """Glance keeps them without effect, and would refuse their removal."""
    assert not between(visibility="private", members=()).members
    assert not between(visibility="private").members
    with pytest.raises(NotPermitted, match="make it shared first"):
        between(visibility="private", members=(Member("p9"),))
