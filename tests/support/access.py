"""This module makes records, identities and rules for tests of who may do what to an image."""

import dataclasses
from collections.abc import Mapping

import msgspec

from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.store.record import ImageRecord, Member

IMAGE_ID = "0d5a3e3e-6a4c-4b11-9c6b-0f3c1d2e4f50"
OWNER = Identity(frozenset({"member", "reader"}), "owner", "u1")
STRANGER = Identity(frozenset({"member", "reader"}), "stranger", "u2")
READER = Identity(frozenset({"reader"}), "owner", "u3")
ADMIN = Identity(frozenset({"admin", "member", "reader"}), "admin", "u4")
NOBODY = Identity(frozenset({"member", "reader"}))
"""A caller with roles and without a project."""


def image(properties: Mapping[str, str] | None = None, members: Mapping[str, str] | None = None, **attributes: object) -> ImageRecord:
    """Return an active image of the project `owner`, with these properties, and members by status."""
    record = ImageRecord(
        id=IMAGE_ID,
        created_at="2026-01-01T00:00:00Z",
        updated_at="2026-01-01T00:00:00Z",
        status="active",
        owner="owner",
        properties=dict(properties or {}),
        members=tuple(Member(project, status) for project, status in (members or {}).items()),
    )
    return msgspec.structs.replace(record, **attributes)


class Anything:
    """Policies that allow everything but the `refused` names, to anybody; admins are those with the role."""

    def __init__(self, *refused: str) -> None:
        self.refused = set(refused)
        self.asked: list[tuple[str, Mapping[str, object]]] = []

    def allows(self, name: str, target: Mapping[str, object], identity: Identity) -> bool:
        """As Policies does."""
        self.asked.append((name, target))
        return "admin" in identity.roles if name == "context_is_admin" else name not in self.refused


@dataclasses.dataclass
class Table:
    """Protections that deny these, each written `operation name`, whatever the identity; or allow just these."""

    exceptions: frozenset[str] = frozenset()
    others: bool = True

    def allows(self, name: str, operation: str, identity: Identity) -> bool:
        """As Protection does."""
        return self.others is not (f"{operation} {name}" in self.exceptions)


def denied(*exceptions: str) -> Table:
    """Return protections that allow all but these, each written `operation name`."""
    return Table(frozenset(exceptions))


def open_access(*refused: str, protection: Table | None = None) -> Access:
    """Return rules with everything allowed but the refused policies, under these protections."""
    return Access(Anything(*refused), protection or Table())
