"""This module is Glance's rule of who sees which image: by visibility, owner and membership, before any policy is asked.

It is what Glance's database layer does (33.0.0, db/utils.py and db/sqlalchemy/api.py), with one difference: a caller without a
project is a member of nothing. Glance lists all shared images to such a caller.
"""

from typing import Final

from imagefs.store.record import ImageRecord

GONE: Final = frozenset({"deleted", "pending_delete"})
"""Statuses of images that Glance's v2 API does not show to anybody any more."""
UNLISTED: Final = GONE | {"killed"}
"""Statuses of images that are in no list."""


def membership(record: ImageRecord, project_id: str | None) -> str | None:
    """Return the status of the project's membership (pending, accepted, rejected), None if the image is not shared with it."""
    if project_id is None or record.visibility != "shared":
        return None
    return next((member.status for member in record.members if member.project_id == project_id), None)


def owns(record: ImageRecord, project_id: str | None) -> bool:
    """Tell whether the image is the project's; one without an owner is nobody's."""
    return project_id is not None and record.owner == project_id


def visible(record: ImageRecord, project_id: str | None, *, admin: bool) -> bool:
    """Tell whether the image may be got by its id: a membership of any status is enough, and an image without owner is everybody's."""
    if record.status in GONE:
        return False
    if admin or record.owner is None or record.visibility in ("public", "community"):
        return True
    return owns(record, project_id) or membership(record, project_id) is not None


def in_listing(record: ImageRecord, project_id: str | None, *, admin: bool, member_status: str = "accepted", hidden: bool = False) -> bool:
    """Tell whether a list has the image. `member_status` is pending, accepted, rejected or all: which shared images of others are listed.

    `hidden` lists those that are os_hidden, and only those. Community images of others are in no list, admin's included.
    """
    if record.status in UNLISTED or record.os_hidden != hidden:
        return False
    if owns(record, project_id):
        return True
    if admin or record.visibility == "public":
        return record.visibility != "community"
    status = membership(record, project_id)
    return status is not None and member_status in (status, "all")


def mutable(record: ImageRecord, project_id: str | None, *, admin: bool) -> bool:
    """Tell whether the image may be changed at all: by admin, and by its owner."""
    return admin or owns(record, project_id)
