"""Tests of an image as the target of a policy."""

from imagefs.properties.target import ImageTarget
from tests.support.access import IMAGE_ID, image


def target(project: str | None = "other", properties: dict[str, str] | None = None, **attributes: object) -> ImageTarget:
    """Return the target for a caller of this project, which may not read `secret`."""
    return ImageTarget(image(properties, None, **attributes), project, lambda name: name != "secret")


def test_core_attributes_have_glance_s_names_and_aliases() -> None:
    """The owner is project_id too, and the id image_id; values have their types, and what the image has not is None."""
    found = target(protected=True, size=5)
    assert found["id"] == found["image_id"] == IMAGE_ID
    assert found["owner"] == found["project_id"] == "owner"
    assert (found["protected"], found["size"], found["visibility"], found["virtual_size"]) == (True, 5, "shared", None)


def test_properties_that_are_not_readable_are_not_there() -> None:
    """Neither is what Glance hides, nor what is missing; the others are there."""
    found = target(properties={"secret": "x", "shown": "y", "os_glance_stage_host": "z"})
    assert found["shown"] == "y"
    assert "secret" not in found
    assert "os_glance_stage_host" not in found
    assert "missing" not in found
    assert dict(found).keys() - {"shown"} == dict(target()).keys()
    assert len(found) == len(dict(found))


def test_no_property_covers_an_attribute() -> None:
    """A property cannot make an image another project's, or the caller a member."""
    forged = {"owner": "other", "project_id": "other", "member_id": "other", "member": "other", "image_id": "x", "visibility": "public"}
    found = target(properties=forged, visibility="private")
    assert found["project_id"] == found["owner"] == "owner"
    assert found["member_id"] is found["member"] is None
    assert found["visibility"] == "private"
    assert found["image_id"] == IMAGE_ID
    assert len(found) == len(set(found))


def test_the_caller_counts_as_member_of_shared_images_of_others() -> None:
    """As in Glance, which takes for granted that the caller was let see the image as a member."""
    assert target("other", visibility="shared")["member_id"] == "other"
    assert target("owner", visibility="shared")["member_id"] is None
    assert target("other", visibility="community")["member_id"] is None
    assert target(None, visibility="shared")["member_id"] is None
