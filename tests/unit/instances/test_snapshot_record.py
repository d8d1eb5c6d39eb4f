"""The record of a snapshot is what Nova would make it."""

import uuid

import pytest

from imagefs.errors import QuotaExceeded
from imagefs.flavors import Flavor
from imagefs.identity.map import Identity
from imagefs.instances.record import BaseImage, InstanceRecord, Maker
from imagefs.instances.snapshot_record import snapshot_record
from imagefs.instances.snapshot_request import SnapshotRequest
from imagefs.store.record import ImageRecord, is_image_id
from imagefs.units import GIB

IMAGE = "6ad2b0e4-7a3f-4c57-9a0c-2f3f6b0a9c11"
INSTANCE = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
CALLER = Identity(frozenset({"member"}), "caller-project", "caller")
SNAPSHOT = SnapshotRequest("web1-before")


def snapshot(
    properties: dict[str, str] | None = None,
    *,
    request: SnapshotRequest = SNAPSHOT,
    size: int = GIB,
    maker: Maker | None = None,
    identity: Identity = CALLER,
) -> ImageRecord:
    """Return the record of a snapshot of an instance of an image with these properties."""
    instance = InstanceRecord(
        uuid=INSTANCE,
        name="web1",
        uid=1000,
        gid=1000,
        mode=0o700,
        created_at="2026-01-01T00:00:00Z",
        flavor=Flavor("2", "m1.small", 1, 2048, 20),
        image=BaseImage(IMAGE, "v1", GIB, "qcow2", 512, properties or {}),
        maker=maker if maker is not None else Maker("booter", "booter-project", ("reader", "member")),
    )
    return snapshot_record(request, instance, size, identity)


def test_it_says_where_it_comes_from() -> None:
    """All that Nova writes and that is known here; names of users and projects are not."""
    assert snapshot().properties == {
        "instance_uuid": INSTANCE,
        "user_id": "caller",
        "image_type": "snapshot",
        "base_image_ref": IMAGE,
        "boot_roles": "member,reader",
        "image_location": "snapshot",
        "image_state": "available",
        "owner_id": "booter-project",
    }


def test_its_attributes_are_those_of_a_new_private_image() -> None:
    """Of the caller's project, in the format asked for, for a flavor with a root disk like this one's; each with an id of its own."""
    record = snapshot(size=5 * GIB + 1)
    assert (record.name, record.status, record.visibility, record.owner) == ("web1-before", "queued", "private", "caller-project")
    assert (record.disk_format, record.container_format, record.min_disk, record.min_ram) == ("qcow2", "bare", 6, 512)
    assert (record.size, record.checksum, record.tree, record.members, record.tags, record.protected) == (None, None, None, (), (), False)
    assert record.virtual_size == 5 * GIB + 512
    assert is_image_id(record.id)
    assert uuid.UUID(record.id).version == 4
    assert snapshot().id != record.id
    assert snapshot(size=5 * GIB).min_disk == 5


def test_it_is_as_asked() -> None:
    """Format, visibility and properties are the request's, also where the image has other ones."""
    request = SnapshotRequest("raw one", "raw", "shared", {"os_distro": "mine", "new": "1"})
    record = snapshot({"os_distro": "debian", "hw_disk_bus": "scsi"}, request=request, size=GIB + 7)
    assert (record.name, record.disk_format, record.visibility, record.virtual_size) == ("raw one", "raw", "shared", GIB + 7)
    assert (record.properties["os_distro"], record.properties["new"], record.properties["hw_disk_bus"]) == ("mine", "1", "scsi")


def test_properties_are_inherited_but_for_those_of_other_bytes() -> None:
    """What says how to run the guest is; signatures, keys, caches and another snapshot's origin are not."""
    kept = {
        "os_type": "linux",
        "kernel_id": str(uuid.uuid4()),
        "ramdisk_id": str(uuid.uuid4()),
        "hw_firmware_type": "uefi",
        "os_secure_boot": "required",
        "owner_specified.x": "1",
        "my_img_signature": "not one",
        "cinder_encryption_key": "no key of Cinder's",
        "bittorrent_x": "1",
    }
    dropped = {
        "cache_in_nova": "true",
        "bittorrent": "true",
        "img_signature": "c2ln",
        "img_signature_hash_method": "SHA-256",
        "cinder_encryption_key_id": str(uuid.uuid4()),
        "cinder_encryption_key_deletion_policy": "on_image_deletion",
        "os_glance_importing_to_stores": "x",
        "owner_user_name": "somebody",
        "owner_project_name": "something",
    }
    overwritten = {"instance_uuid": "other", "base_image_ref": "other", "image_type": "backup", "user_id": "other", "owner_id": "other"}
    found = snapshot({**kept, **dropped, **overwritten}).properties
    assert {name: found[name] for name in kept} == kept
    assert not found.keys() & dropped.keys()
    assert all(found[name] != "other" for name in overwritten)
    assert found["image_type"] == "snapshot"


def test_what_is_not_known_is_left_out() -> None:
    """A caller without user or project, an instance whose maker is not known: no property stands there without a value."""
    record = snapshot(maker=Maker(), identity=Identity())
    assert record.owner is None
    assert record.properties.keys() == {"instance_uuid", "image_type", "base_image_ref", "image_location", "image_state"}
    assert snapshot(maker=Maker()).properties["owner_id"] == "caller-project"
    assert snapshot(identity=Identity()).owner == "booter-project"


def test_more_properties_than_an_image_may_have_are_refused() -> None:
    """Inherited ones, own ones and those asked for count together, as in Glance."""
    own = len(snapshot().properties)
    inherited = {f"p{number}": "" for number in range(128 - own)}
    assert len(snapshot(inherited).properties) == 128
    with pytest.raises(QuotaExceeded, match="web1-before"):
        snapshot(inherited, request=SnapshotRequest("web1-before", properties={"one": "too many"}))
