"""This module decides whether an identity may store a new image, as Glance decides it: policies first, then the property protections."""

from imagefs.errors import Denied
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.change import VISIBILITY_POLICIES
from imagefs.store.record import ImageRecord


def check_create(
    identity: Identity, access: Access, record: ImageRecord, what: str | None = None, *, setting: str = "the property", remedy: str = ""
) -> None:
    """Return if the identity may store such an image. Raises Denied with the reason.

    The policies of a new image are asked with its owner and visibility alone. For the message `what` says what is being done, `setting` what
    a property is called there, and `remedy` what to do about one that may not be set.
    """
    doing = f"image {record.name}" if what is None else what
    foreign = record.owner != identity.project_id and not access.is_admin(identity)
    if foreign or not access.may_create("add_image", identity, record.owner, record.visibility):
        owner = "without an owner" if record.owner is None else f"of project {record.owner}"
        why = "only admins may, since it is not your project" if foreign else "the policy add_image does not allow it"
        raise Denied(f"{doing}: you may not create images {owner}: {why}")
    policy = VISIBILITY_POLICIES.get(record.visibility)
    if policy is not None and not access.may_create(policy, identity, record.owner, record.visibility):
        raise Denied(f"{doing}: you may not make it {record.visibility}: the policy {policy} does not allow it: choose another visibility")
    for name in record.properties:
        if not access.may("create", name, identity):
            raise Denied(f"{doing}: you may not set {setting} {name}: the property protections do not allow it{remedy}")
