"""This module decides what writing or removing one attribute of an image does: which record comes of it, or why it is refused.

It is what PATCH does in Glance under policies and property protections, for one name at a time: nothing but that name changes, so
that properties which the caller cannot read are kept. A property that the caller cannot read is told from one that is not there
only where it may create one of that name: then the write is refused, in the words for one that it may not create.
"""

from typing import Final

import msgspec

from imagefs.errors import InvalidInput, NoAttribute, NotPermitted
from imagefs.identity.map import Identity
from imagefs.properties import members, status
from imagefs.properties.access import Access
from imagefs.properties.core import (
    CORE,
    OWN_PREFIX,
    RESERVED_PREFIXES,
    TEXT_LIMIT,
    WRITABLE,
    check_property_quota,
    is_reserved,
    is_text,
    parse_core,
    parse_text,
)
from imagefs.properties.mode import Mode
from imagefs.store.record import ImageRecord

__all__ = ["VISIBILITY_POLICIES", "Mode", "remove_attribute", "set_attribute"]

VISIBILITY_POLICIES: Final = {"public": "publicize_image", "community": "communitize_image"}
"""What is asked, besides whether the image may be changed or made, before it is given one of these visibilities."""


def set_attribute(record: ImageRecord, name: str, value: bytes, mode: Mode, identity: Identity, access: Access) -> ImageRecord:
    """Return the record with the attribute `name` (without `user.`) set; the very same record if that changes nothing.

    updated_at is the store's to set. Raises NotFound if the identity does not see the image, NotPermitted, AlreadyExists (CREATE),
    NoAttribute (REPLACE), InvalidInput, QuotaExceeded.
    """
    access.check_seen(identity, record)
    if name.startswith(members.PREFIX):
        return members.set_member(record, name.removeprefix(members.PREFIX), value, mode, identity, access)
    if name in status.ACTIONS:
        return status.act(record, name, identity, access)
    _check_modifiable(record, name, identity, access)
    subject = _subject(record, name)
    if name in CORE:
        return _set_core(record, name, value, mode, identity, access)
    if is_reserved(name):
        raise NotPermitted(f"{subject} cannot be set: {_meaning(name)}")
    return _set_property(record, name, value, mode, identity, access)


def remove_attribute(record: ImageRecord, name: str, identity: Identity, access: Access) -> ImageRecord:
    """Return the record without the attribute `name` (without `user.`). Core attributes are never removed.

    Raises NotFound if the identity does not see the image, NotPermitted, NoAttribute, InvalidInput.
    """
    access.check_seen(identity, record)
    if name.startswith(members.PREFIX):
        return members.remove_member(record, name.removeprefix(members.PREFIX), identity, access)
    if name in status.ACTIONS:
        raise NoAttribute(f"{_subject(record, name)} is written, never read or removed")
    _check_modifiable(record, name, identity, access)
    subject = _subject(record, name)
    if name in CORE:
        if getattr(record, name) is None:
            raise NoAttribute(f"{subject} is not there")
        raise NotPermitted(f"{subject} cannot be removed: every image has it")
    if is_reserved(name):
        raise NotPermitted(f"{subject} cannot be removed: {_meaning(name)}")
    if name not in record.properties or not access.may("read", name, identity):
        raise NoAttribute(f"{subject} is not there")
    if not access.may("delete", name, identity):
        raise NotPermitted(f"{subject} may not be removed by this caller: the property protections keep it")
    return msgspec.structs.replace(record, properties={key: kept for key, kept in record.properties.items() if key != name})


def _check_modifiable(record: ImageRecord, name: str, identity: Identity, access: Access) -> None:
    """Return if the identity may change the image and `name` can be a name at all. Raises NotPermitted, InvalidInput."""
    if not access.mutable(identity, record):
        raise NotPermitted(f"image {record.id} may not be changed by this caller: only its owner and admins may")
    if not access.allows("modify_image", identity, record):
        raise NotPermitted(f"image {record.id} may not be changed by this caller: the policy modify_image does not allow it")
    if not name or len(name) > TEXT_LIMIT or not is_text(name):
        raise InvalidInput(f"image {record.id}: {name[:40]!r} cannot be a property's name: it has 1 to {TEXT_LIMIT} characters of UTF-8")


def _set_core(record: ImageRecord, name: str, value: bytes, mode: Mode, identity: Identity, access: Access) -> ImageRecord:
    subject = _subject(record, name)
    if name not in WRITABLE:
        raise NotPermitted(f"{subject} is read-only")
    mode.check(subject, present=getattr(record, name) is not None)
    wanted = parse_core(name, value, subject)
    if name == "visibility":
        # Glance asks although nothing may change, and with the image as it is before the change.
        policy = VISIBILITY_POLICIES.get(str(wanted))
        if policy is not None and not access.allows(policy, identity, record):
            raise NotPermitted(f"{subject} may not be set to {wanted} by this caller: the policy {policy} does not allow it")
    return record if getattr(record, name) == wanted else msgspec.structs.replace(record, **{name: wanted})


def _set_property(record: ImageRecord, name: str, value: bytes, mode: Mode, identity: Identity, access: Access) -> ImageRecord:
    subject = _subject(record, name)
    exists = name in record.properties
    visible = exists and access.may("read", name, identity)
    mode.check(subject, present=visible)
    if visible:
        if not access.may("update", name, identity):
            raise NotPermitted(f"{subject} may not be changed by this caller: the property protections keep it")
    elif exists or not access.may("create", name, identity):
        raise NotPermitted(f"{subject} may not be created by this caller: the property protections do not allow it")
    wanted = parse_text(value, subject)
    if not exists:
        check_property_quota([*record.properties, name], subject)
    elif record.properties[name] == wanted:
        return record
    return msgspec.structs.replace(record, properties=record.properties | {name: wanted})


def _subject(record: ImageRecord, name: str) -> str:
    return f"image {record.id}: {f'user.{name}'!r}"


def _meaning(name: str) -> str:
    if name.startswith(OWN_PREFIX):
        return "imagefs has no such attribute to write"
    return "Glance keeps such names for itself" if name.startswith(RESERVED_PREFIXES) else "Glance gives that name a meaning of its own"
