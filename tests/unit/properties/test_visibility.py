"""Tests of Glance's visibility: who gets an image by its id, whose lists have it, and who may change it."""

import pytest

from imagefs.properties.visibility import in_listing, membership, mutable, visible
from tests.support.access import image

# visibility, owner, caller's project, admin, members -> by id, in the default listing, mutable
CASES = [
    ("public", "owner", "owner", False, {}, True, True, True),
    ("public", "owner", "other", False, {}, True, True, False),
    ("public", "owner", None, False, {}, True, True, False),
    ("public", None, "other", False, {}, True, True, False),
    ("public", None, "other", True, {}, True, True, True),
    ("community", "owner", "owner", False, {}, True, True, True),
    ("community", "owner", "other", False, {}, True, False, False),
    ("community", "owner", None, False, {}, True, False, False),
    ("community", "owner", "other", True, {}, True, False, True),
    ("community", "owner", "owner", True, {}, True, True, True),
    ("community", None, None, True, {}, True, False, True),
    ("shared", "owner", "owner", False, {}, True, True, True),
    ("shared", "owner", "other", False, {}, False, False, False),
    ("shared", "owner", None, False, {}, False, False, False),
    ("shared", "owner", None, False, {"other": "accepted"}, False, False, False),
    ("shared", "owner", "other", False, {"other": "accepted"}, True, True, False),
    ("shared", "owner", "other", False, {"other": "pending"}, True, False, False),
    ("shared", "owner", "other", False, {"other": "rejected"}, True, False, False),
    ("shared", "owner", "other", False, {"third": "accepted"}, False, False, False),
    ("shared", "owner", "other", True, {}, True, True, True),
    ("shared", None, "other", False, {}, True, False, False),
    ("private", "owner", "owner", False, {}, True, True, True),
    ("private", "owner", "other", False, {"other": "accepted"}, False, False, False),
    ("private", "owner", "other", True, {}, True, True, True),
    ("private", "owner", None, False, {}, False, False, False),
    ("private", None, "other", False, {}, True, False, False),
    ("private", None, None, False, {}, True, False, False),
    ("private", None, None, True, {}, True, True, True),
]


@pytest.mark.parametrize(("shown", "owner", "project", "admin", "members", "by_id", "listed", "changed"), CASES)
def test_visibility_is_glance_s(
    shown: str, owner: str | None, project: str | None, admin: bool, members: dict[str, str], by_id: bool, listed: bool, changed: bool
) -> None:
    """Each kind of image answers each kind of caller as Glance's database layer does."""
    record = image(visibility=shown, owner=owner, members=members)
    assert visible(record, project, admin=admin) is by_id
    assert in_listing(record, project, admin=admin) is listed
    assert mutable(record, project, admin=admin) is changed


@pytest.mark.parametrize("status", ["pending", "accepted", "rejected"])
def test_lists_choose_memberships_by_status(status: str) -> None:
    """A list may be of pending, rejected or all shared images; the owner's own are in each."""
    record = image(members={"other": status})
    for wanted in ("pending", "accepted", "rejected", "all"):
        assert in_listing(record, "other", admin=False, member_status=wanted) is (wanted in (status, "all"))
        assert in_listing(record, "owner", admin=False, member_status=wanted)


def test_hidden_images_are_in_lists_of_hidden_ones_only() -> None:
    """os_hidden takes an image out of the default list, for its owner and admin too, and out of nothing else."""
    record = image(visibility="public", os_hidden=True)
    for project, admin in (("owner", False), ("other", False), ("other", True)):
        assert visible(record, project, admin=admin)
        assert not in_listing(record, project, admin=admin)
        assert in_listing(record, project, admin=admin, hidden=True)
    assert not in_listing(image(visibility="public"), "owner", admin=False, hidden=True)


@pytest.mark.parametrize(("status", "by_id", "listed"), [("killed", True, False), ("deleted", False, False), ("pending_delete", False, False)])
def test_images_that_are_gone_are_nobody_s(status: str, by_id: bool, listed: bool) -> None:
    """Deleted images are not there for admin either; killed ones are in no list."""
    record = image(visibility="public", status=status)
    assert visible(record, "owner", admin=True) is by_id
    assert in_listing(record, "owner", admin=True) is listed


def test_memberships_count_while_the_image_is_shared() -> None:
    """Members of an image that is not shared any more have no membership, and a caller without a project never has."""
    record = image(members={"other": "accepted"})
    assert membership(record, "other") == "accepted"
    assert membership(image(visibility="private", members={"other": "accepted"}), "other") is None
    assert membership(record, None) is None
    assert membership(record, "owner") is None
