"""This module decides on the members of a shared image: projects that it is shared with, and whether they took it up.

The owner adds and removes members; a member accepts or rejects, which decides only whether lists show it the image. Memberships
that a caller may not read are to it as if they were not there.
"""

from typing import Final

import msgspec

from imagefs.errors import InvalidInput, NoAttribute, NotPermitted, QuotaExceeded
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.core import MEMBER_LIMIT, check_text, parse_text
from imagefs.properties.mode import Mode
from imagefs.store.record import ImageRecord, Member

PREFIX: Final = "imagefs.member."
STATUSES: Final = ("pending", "accepted", "rejected")


def set_member(record: ImageRecord, project_id: str, value: bytes, mode: Mode, identity: Identity, access: Access) -> ImageRecord:
    """Return the record with the project as a member of status `value`; the same record if it is one. The identity must see the image.

    Raises NotPermitted, AlreadyExists (CREATE), NoAttribute (REPLACE), InvalidInput, QuotaExceeded.
    """
    subject = _subject(record, project_id)
    _check_shared(record, subject)
    present = access.member(identity, record, project_id)
    mode.check(subject, present=present is not None)
    may_add = access.mutable(identity, record) and access.allows("add_member", identity, record)
    may_modify = access.allows("modify_member", identity, record)
    if present is None and not may_add:
        raise NotPermitted(f"{subject} may not be added by this caller: the image's owner and admins may, if the policy add_member allows it")
    check_text(project_id, "a project")
    wanted = parse_text(value, subject).removesuffix("\n")
    if wanted not in STATUSES:
        raise InvalidInput(f"{subject}: {wanted[:40]!r} is not one of {', '.join(STATUSES)}")
    if not may_modify and (wanted != "pending" if present is None else wanted != present.status or not may_add):
        raise NotPermitted(f"{subject} may not be made {wanted} by this caller: the policy modify_member does not allow it")
    if present is None:
        return _added(record, project_id, wanted, subject)
    if present.status == wanted:
        return record
    changed = Member(project_id, wanted)
    return msgspec.structs.replace(record, members=tuple(changed if member is present else member for member in record.members))


def remove_member(record: ImageRecord, project_id: str, identity: Identity, access: Access) -> ImageRecord:
    """Return the record without the member. The identity must see the image. Raises NotPermitted, NoAttribute."""
    subject = _subject(record, project_id)
    _check_shared(record, subject)
    if access.member(identity, record, project_id) is None:
        raise NoAttribute(f"{subject} is not there")
    if not access.allows("delete_member", identity, record):
        raise NotPermitted(f"{subject} may not be removed by this caller: the policy delete_member does not allow it")
    return msgspec.structs.replace(record, members=tuple(member for member in record.members if member.project_id != project_id))


def _added(record: ImageRecord, project_id: str, status: str, subject: str) -> ImageRecord:
    if any(member.project_id == project_id for member in record.members):
        raise NotPermitted(f"{subject} may not be changed by this caller: the policy get_member does not let it see members")
    if len(record.members) >= MEMBER_LIMIT:
        raise QuotaExceeded(f"{subject}: an image has at most {MEMBER_LIMIT} members: remove another first")
    return msgspec.structs.replace(record, members=(*record.members, Member(project_id, status)))


def _check_shared(record: ImageRecord, subject: str) -> None:
    if record.visibility != "shared":
        raise NotPermitted(f"{subject}: the image is {record.visibility}, and only shared images have members")


def _subject(record: ImageRecord, project_id: str) -> str:
    return f"image {record.id}: member {project_id[:80]!r}"
