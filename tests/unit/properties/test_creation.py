"""Who may store a new image, said in the words of whoever asks."""

import pytest

from imagefs.errors import Denied
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.creation import check_create
from imagefs.properties.policy import Policies
from tests.support.access import ADMIN, NOBODY, OWNER, READER, Anything, Table, denied, image, open_access

DEFAULT = Access(Policies.of({}), Table())


def refusal(identity: Identity, access: Access, **attributes: object) -> str:
    """Return why the identity may not store such an image."""
    with pytest.raises(Denied) as found:
        check_create(identity, access, image(name="web1-before", **attributes))  # type: ignore[arg-type]
    return str(found.value)


@pytest.mark.parametrize("visibility", ["private", "shared", "community"])
def test_members_store_images_of_their_project(visibility: str) -> None:
    """With Glance's own policies, with whatever properties."""
    check_create(OWNER, DEFAULT, image({"a": "1", "hw_disk_bus": "scsi"}, visibility=visibility))


def test_admin_stores_images_of_any_project_and_public_ones() -> None:
    """Others do not."""
    for record in (image(owner="somebody"), image(owner=None), image(visibility="public")):
        check_create(ADMIN, DEFAULT, record)
    assert refusal(OWNER, DEFAULT, owner="somebody").endswith("images of project somebody: only admins may, since it is not your project")
    assert refusal(OWNER, DEFAULT, owner=None).endswith("images without an owner: only admins may, since it is not your project")
    assert "you may not make it public: the policy publicize_image does not allow it" in refusal(OWNER, DEFAULT, visibility="public")


def test_readers_and_callers_without_a_project_store_none() -> None:
    """The policy says so."""
    assert refusal(READER, DEFAULT) == "image web1-before: you may not create images of project owner: the policy add_image does not allow it"
    assert "images without an owner: the policy add_image" in refusal(NOBODY, DEFAULT, owner=None)
    assert "communitize_image" in refusal(OWNER, open_access("communitize_image"), visibility="community")


def test_every_property_must_be_one_that_may_be_created() -> None:
    """Whether it was asked for or inherited; admin is no exception."""
    access = open_access(protection=denied("create locked"))
    check_create(OWNER, access, image({"open": "1"}))
    for identity in (OWNER, ADMIN):
        assert refusal(identity, access, properties={"open": "1", "locked": "1"}).endswith(
            "you may not set the property locked: the property protections do not allow it"
        )


def test_the_message_is_in_the_callers_words() -> None:
    """What was being done, what a property is called there, and what to do about it."""
    access = open_access(protection=denied("create locked"))
    with pytest.raises(Denied, match=r"^image create x: you may not set --property locked: the property protections do not allow it: leave it out$"):
        check_create(OWNER, access, image({"locked": ""}), "image create x", setting="--property", remedy=": leave it out")


def test_policies_see_owner_and_visibility_alone() -> None:
    """A new image is no more than that to Glance."""
    policies = Anything()
    check_create(OWNER, Access(policies, Table()), image({"a": "1"}, visibility="public", name="x"))
    assert [(name, dict(target)) for name, target in policies.asked if name != "context_is_admin"] == [
        (name, {"project_id": "owner", "owner": "owner", "visibility": "public"}) for name in ("add_image", "publicize_image")
    ]
