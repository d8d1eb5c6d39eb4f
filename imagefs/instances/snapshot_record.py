"""This module decides what the record of a snapshot says: what Nova writes on the snapshots that it makes. Pure but for the new id.

The rules are those of Nova 33 (compute API, libvirt driver), as far as there is something here that they speak of.
"""

import uuid
from typing import Final

from imagefs.identity.map import Identity
from imagefs.instances.flatten import virtual_size
from imagefs.instances.record import InstanceRecord
from imagefs.instances.snapshot_request import OWN, SnapshotRequest
from imagefs.properties.core import NUMBER_LIMIT, check_property_quota, is_reserved
from imagefs.store.record import ImageRecord
from imagefs.units import GIB

NOT_INHERITED: Final = frozenset({"cache_in_nova", "bittorrent"})
"""Properties about one image's bytes: Nova's default of non_inheritable_image_properties."""
NEVER_INHERITED: Final = ("img_signature", "cinder_encryption_key_", "os_glance")
"""Beginnings of names of properties that would be wrong of other bytes: a signature, a key, and what Glance writes for itself."""


def snapshot_record(request: SnapshotRequest, instance: InstanceRecord, root_size: int, identity: Identity) -> ImageRecord:
    """Return the record of the image that a snapshot of an instance becomes; its bytes, and so its size, are yet to be made.

    `root_size` is the root disk's, in bytes; `identity` is the caller, whose project will own the image, or the instance's maker's if the
    caller has none: an image without an owner is anybody's to see. Raises QuotaExceeded if it has more
    properties than an image may have.
    """
    properties = inherited(instance.image_properties) | origin(instance, identity) | request.properties
    check_property_quota(properties, f"the snapshot '{request.name}' with the properties that it inherits")
    return ImageRecord(
        id=str(uuid.uuid4()),
        created_at="",  # the store knows the time
        updated_at="",
        name=request.name,
        visibility=request.visibility,
        owner=identity.project_id if identity.project_id is not None else instance.maker.project_id,
        disk_format=request.disk_format,
        container_format="bare",
        virtual_size=virtual_size(root_size, request.disk_format),
        min_disk=min(-(-root_size // GIB), NUMBER_LIMIT),
        min_ram=instance.image.min_ram if instance.image is not None else 0,
        properties=properties,
    )


def inherited(properties: dict[str, str]) -> dict[str, str]:
    """Return those of an image's properties that a snapshot of an instance of it has too; os_type, kernel_id and ramdisk_id are of them.

    What an image that was a snapshot itself says of its own origin is not passed on.
    """
    return {
        name: value
        for name, value in properties.items()
        if name not in NOT_INHERITED and name not in OWN and not name.startswith(NEVER_INHERITED) and not is_reserved(name)
    }


def origin(instance: InstanceRecord, identity: Identity) -> dict[str, str]:
    """Return the properties that say where a snapshot comes from; those are left out of which nothing is known.

    Nothing here knows the names of users and projects, so owner_user_name and owner_project_name are never among them.
    """
    known = {
        "instance_uuid": instance.uuid,
        "user_id": identity.user_id,
        "image_type": "snapshot",
        "base_image_ref": instance.image.id if instance.image is not None else None,
        "boot_roles": ",".join(sorted(instance.maker.roles)) or None,
        "image_location": "snapshot",
        "image_state": "available",
        "owner_id": instance.maker.project_id or identity.project_id,
    }
    return {name: value for name, value in known.items() if value is not None}
