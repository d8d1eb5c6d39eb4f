"""This module says what an identity may see of an image and do with it: visibility, policies and property protections together.

Policies are asked with the image as their target, and of its properties with those only that the caller may read. Property
protections know no exception, for admin neither.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final, Protocol

from imagefs.errors import Denied, NotFound
from imagefs.identity.map import Identity
from imagefs.properties import visibility
from imagefs.properties.core import CORE, HIDDEN
from imagefs.properties.target import ImageTarget
from imagefs.store.record import ImageRecord, Member

_NOT_PROPERTIES: Final = frozenset(CORE) | HIDDEN


class PolicyRules(Protocol):
    """What is needed of imagefs.properties.policy.Policies."""

    def allows(self, name: str, target: Mapping[str, object], identity: Identity) -> bool:
        """Tell whether the policy `name` allows the target to the identity."""
        ...


class PropertyRules(Protocol):
    """What is needed of imagefs.properties.protection.Protection."""

    def allows(self, name: str, operation: str, identity: Identity) -> bool:
        """Tell whether the identity may create, read, update or delete the property `name`."""
        ...


class Access:
    """One set of rules, as it was loaded; it never changes, so that threads may share it.

    Invariant: an answer depends on the rules, the identity and the record alone. Nothing is remembered here: with Glance's default
    policies `sees` takes 5 us and `readable` less than 1 us for each property (November 2026), and who asks often knows what to keep.
    """

    def __init__(self, policies: PolicyRules, protection: PropertyRules) -> None:
        """Take the rules."""
        self._policies = policies
        self._protection = protection

    def is_admin(self, identity: Identity) -> bool:
        """Tell whether the policy context_is_admin makes the identity one that sees and changes every image."""
        target = {"project_id": identity.project_id, "user_id": identity.user_id, "roles": sorted(identity.roles)}
        return self._policies.allows("context_is_admin", target, identity)

    def may_list(self, identity: Identity) -> bool:
        """Tell whether the identity may list images: the policy get_images.

        The target is the caller's own project, as in Glance. A caller without one has a project of no name here, which owns nothing: Glance
        comes to the same by comparing None with None, and a reader without a project may so list what is public.
        """
        project_id = identity.project_id or ""
        return self._policies.allows("get_images", {"project_id": project_id}, dataclasses.replace(identity, project_id=project_id))

    def may(self, operation: str, name: str, identity: Identity) -> bool:
        """Tell whether the protections let the identity create, read, update or delete a property of this name."""
        return self._protection.allows(name, operation, identity)

    def readable(self, identity: Identity, record: ImageRecord) -> dict[str, str]:
        """Return the additional properties that the identity may read. The caller must not change it: it may be the record's own."""
        properties, allows = record.properties, self._protection.allows
        readable = {name: value for name, value in properties.items() if name not in _NOT_PROPERTIES and allows(name, "read", identity)}
        return properties if len(readable) == len(properties) else readable  # most images, and then without a copy to keep

    def sees(self, identity: Identity, record: ImageRecord) -> bool:
        """Tell whether the identity may know that the image exists: it is visible by its id, and the policy get_image allows it."""
        return visibility.visible(record, identity.project_id, admin=self.is_admin(identity)) and self.allows("get_image", identity, record)

    def lists(self, identity: Identity, record: ImageRecord, *, member_status: str = "accepted", hidden: bool = False) -> bool:
        """Tell whether the identity sees the image in a list (see `visibility.in_listing`); `may_list` is another question."""
        admin = self.is_admin(identity)
        return visibility.in_listing(record, identity.project_id, admin=admin, member_status=member_status, hidden=hidden) and self.sees(
            identity, record
        )

    def mutable(self, identity: Identity, record: ImageRecord) -> bool:
        """Tell whether the identity is admin or the owner: who is not changes nothing of the image, whatever policies say."""
        return visibility.mutable(record, identity.project_id, admin=self.is_admin(identity))

    def allows(self, policy_name: str, identity: Identity, record: ImageRecord) -> bool:
        """Tell whether a policy allows the image to the identity; not whether the identity sees or owns the image."""

        def readable(name: str) -> bool:
            return self._protection.allows(name, "read", identity)

        return self._policies.allows(policy_name, ImageTarget(record, identity.project_id, readable), identity)

    def may_manage(self, policy_name: str, identity: Identity) -> bool:
        """Tell whether a policy allows what is about no image, or about all: Glance asks those of its cache so."""
        return self._policies.allows(policy_name, {}, identity)

    def may_create(self, policy_name: str, identity: Identity, owner: str | None, visibility: str) -> bool:
        """Tell whether a policy allows a new image: Glance asks add_image and those about visibility with these two attributes alone."""
        return self._policies.allows(policy_name, {"project_id": owner, "owner": owner, "visibility": visibility}, identity)

    def check_seen(self, identity: Identity, record: ImageRecord) -> None:
        """Raise NotFound, in the words for an image that does not exist, unless the identity sees the image."""
        if not self.sees(identity, record):
            raise NotFound(f"there is no image {record.id}")

    def check_download(self, identity: Identity, record: ImageRecord) -> None:
        """Return if the identity may read the image's bytes. Raises NotFound if it does not see the image, Denied with the reason."""
        self.check_seen(identity, record)
        if record.status == "deactivated" and not self.is_admin(identity):
            raise Denied(f"image {record.id} is deactivated: until it is reactivated only an admin may read it")
        if not self.allows("download_image", identity, record):
            raise Denied(f"image {record.id}: the policy download_image does not let this caller read it")

    def may_see_members(self, identity: Identity, record: ImageRecord) -> bool:
        """Tell whether the identity may ask for the image's members: it sees the image, which is shared, and get_members allows it."""
        return record.visibility == "shared" and self.sees(identity, record) and self.allows("get_members", identity, record)

    def members(self, identity: Identity, record: ImageRecord) -> tuple[Member, ...]:
        """Return the memberships that the identity may read: all for the owner and admin, for a member its own."""
        return self._members(identity, record) if self.may_see_members(identity, record) else ()

    def member(self, identity: Identity, record: ImageRecord, project_id: str) -> Member | None:
        """Return one project's membership if there is one that the identity may read. Only the policy get_member is asked for it."""
        if record.visibility != "shared" or not self.sees(identity, record):
            return None
        return next((member for member in self._members(identity, record) if member.project_id == project_id), None)

    def _members(self, identity: Identity, record: ImageRecord) -> tuple[Member, ...]:
        if not self.allows("get_member", identity, record):
            return ()
        if self.mutable(identity, record):
            return record.members
        return tuple(member for member in record.members if identity.project_id is not None and member.project_id == identity.project_id)
