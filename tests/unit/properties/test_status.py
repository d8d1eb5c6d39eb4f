"""Tests of deactivating and reactivating images."""

import pytest

from imagefs.errors import NoAttribute, NotPermitted
from imagefs.properties.access import Access
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.policy import Policies
from tests.support.access import ADMIN, OWNER, READER, STRANGER, Table, image, open_access

DEFAULT = Access(Policies.of({}), Table())


@pytest.mark.parametrize(("action", "before", "after"), [("deactivate", "active", "deactivated"), ("reactivate", "deactivated", "active")])
@pytest.mark.parametrize("identity", [OWNER, ADMIN])
def test_owner_and_admin_do_and_undo(action: str, before: str, after: str, identity: object) -> None:
    """Whatever is written; doing it again changes nothing."""
    assert identity in (OWNER, ADMIN)
    who = OWNER if identity == OWNER else ADMIN
    changed = set_attribute(image({"p": "1"}, status=before), f"imagefs.{action}", b"anything", Mode.SET, who, DEFAULT)
    assert changed == image({"p": "1"}, status=after)
    assert set_attribute(changed, f"imagefs.{action}", b"", Mode.SET, who, DEFAULT) is changed


@pytest.mark.parametrize("action", ["deactivate", "reactivate"])
@pytest.mark.parametrize("status", ["queued", "saving", "killed"])
def test_other_statuses_are_refused(action: str, status: str) -> None:
    """There is nothing to deactivate in an image without its bytes."""
    with pytest.raises(NotPermitted, match=status):
        set_attribute(image(status=status), f"imagefs.{action}", b"", Mode.SET, ADMIN, DEFAULT)


@pytest.mark.parametrize("action", ["deactivate", "reactivate"])
def test_policy_and_ownership_are_needed(action: str) -> None:
    """The reader of the project, a stranger with every policy, and the owner without the policy are refused."""
    record = image(visibility="public", status="active" if action == "deactivate" else "deactivated")
    for access, identity in ((DEFAULT, READER), (DEFAULT, STRANGER), (open_access(), STRANGER), (open_access(action), OWNER)):
        with pytest.raises(NotPermitted, match=action):
            set_attribute(record, f"imagefs.{action}", b"", Mode.SET, identity, access)
    assert set_attribute(record, f"imagefs.{action}", b"", Mode.SET, OWNER, open_access("modify_image")).status != record.status


def test_actions_cannot_be_removed() -> None:
    """There is nothing to remove: they are only written."""
    with pytest.raises(NoAttribute):
        remove_attribute(image(), "imagefs.deactivate", OWNER, DEFAULT)
