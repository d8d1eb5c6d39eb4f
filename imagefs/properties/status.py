"""This module decides on deactivating an image, which keeps its bytes from all but admins, and on reactivating it."""

from typing import Final

import msgspec

from imagefs.errors import NotPermitted
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.store.record import ImageRecord

ACTIONS: Final = {"imagefs.deactivate": ("deactivate", "active", "deactivated"), "imagefs.reactivate": ("reactivate", "deactivated", "active")}
"""Attributes that are written to act on an image: the policy that is asked, the status before and the status after."""


def act(record: ImageRecord, action: str, identity: Identity, access: Access) -> ImageRecord:
    """Return the record after one of ACTIONS; the same record if that is done already. The identity must see the image.

    Raises NotPermitted: by the policy, for who is neither owner nor admin, and for an image in any other status.
    """
    policy, before, after = ACTIONS[action]
    if not access.mutable(identity, record) or not access.allows(policy, identity, record):
        raise NotPermitted(f"image {record.id}: this caller may not {policy} it: its owner and admins may, if the policy {policy} allows it")
    if record.status == after:
        return record
    if record.status != before:
        raise NotPermitted(f"image {record.id} is {record.status}: only an image that is {before} can be {policy}d")
    return msgspec.structs.replace(record, status=after)
