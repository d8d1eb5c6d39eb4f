"""A mount over a real Glance: the same tree, attributes written through, bytes over the API and directly."""

import hashlib
import os
import uuid
from pathlib import Path

import pytest

from tests.mount.test_snapshots import finished, patch, request
from tests.support.glance import Glance
from tests.support.mounted import mounted, run_imagefs, write_config

pytestmark = [pytest.mark.mount, pytest.mark.glance]

BODY = os.urandom(3_000_000)


def configured(directory: Path, glance: Glance, *, direct: bool) -> Path:
    """Write a configuration of a mount over the Glance."""
    extra = f'[store.glance]\ncloud = "{glance.cloud}"\n'
    if direct:
        extra += f'direct_stores = ["{glance.images.as_uri()}"]\n'
    return write_config(directory, store=glance.url, extra=extra)


def first_bytes(file: Path, length: int) -> bytes:
    """Return the first bytes of a disk, which has many more."""
    with file.open("rb") as disk:
        return disk.read(length)


@pytest.mark.parametrize("direct", [False, True], ids=["api", "direct"])
def test_images_of_a_glance_are_files(tmp_path: Path, glance_cloud: Glance, direct: bool) -> None:
    """An image made behind imagefs's back reads back in images/ and raw/, without a request for its bytes where they are read directly."""
    image_id = str(uuid.uuid4())
    glance_cloud.add_image(image_id, BODY, name=f"glance {image_id}", visibility="public", hw_disk_bus="scsi")
    with mounted(tmp_path, configured(tmp_path, glance_cloud, direct=direct)) as mount:
        for directory in ("images", "raw"):
            assert (mount.mountpoint / directory / image_id).read_bytes() == BODY
        assert (mount.mountpoint / "names" / f"glance {image_id}").readlink() == Path(f"../images/{image_id}")
        assert os.getxattr(mount.mountpoint / "images" / image_id, "user.hw_disk_bus") == b"scsi"
        assert (mount.stats()["store_data_requests"] == 0) == direct


def test_a_property_written_to_the_mount_is_in_glance(tmp_path: Path, glance_cloud: Glance) -> None:
    """Setfattr goes through to Glance and leaves what others have set there since."""
    image_id = str(uuid.uuid4())
    glance_cloud.add_image(image_id, BODY[:1000], colour="red")
    with mounted(tmp_path, configured(tmp_path, glance_cloud, direct=False)) as mount:
        glance_cloud.request("PATCH", f"/v2/images/{image_id}", json=[{"op": "add", "path": "/theirs", "value": "1"}])
        file = mount.mountpoint / "images" / image_id
        os.setxattr(file, "user.colour", b"blue")
        os.removexattr(file, "user.theirs")
        assert os.getxattr(file, "user.colour") == b"blue"
    shown = glance_cloud.show(image_id)
    assert (shown["colour"], "theirs" in shown) == ("blue", False)


def test_the_disk_of_an_image_without_hashes_lasts(tmp_path: Path, glance_cloud: Glance) -> None:
    """An image that was registered by its location has no hashes: its disks outlive a change of a property, and hashes that come later."""
    image_id, hashes = str(uuid.uuid4()), (hashlib.md5(BODY).hexdigest(), hashlib.sha512(BODY).hexdigest())
    glance_cloud.add_image(image_id, BODY, colour="red")
    glance_cloud.set_hashes(image_id, None, None)
    config = configured(tmp_path, glance_cloud, direct=False)
    disk = tmp_path / "mnt" / "instances" / "one" / "vda"
    with mounted(tmp_path, config) as mount:
        mount.imagefs("instance", "create", "one", "--image", image_id, "--flavor", "m1.tiny")
        os.setxattr(mount.mountpoint / "images" / image_id, "user.colour", b"blue")
    with mounted(tmp_path, config):
        assert first_bytes(disk, len(BODY)) == BODY
    glance_cloud.set_hashes(image_id, *hashes)
    with mounted(tmp_path, config):
        assert first_bytes(disk, len(BODY)) == BODY


def test_the_commands_work_on_a_glance(tmp_path: Path, glance_cloud: Glance) -> None:
    """Image create stores, save brings the same bytes back, and delete removes."""
    config = configured(tmp_path, glance_cloud, direct=False)
    source, saved, image_id = tmp_path / "source", tmp_path / "saved", str(uuid.uuid4())
    source.write_bytes(BODY)
    run_imagefs(config, "image", "create", "--id", image_id, "--disk-format", "raw", "--property", "a=b", "--file", str(source), "made")
    assert glance_cloud.show(image_id)["a"] == "b"
    run_imagefs(config, "image", "save", image_id, "--file", str(saved))
    assert saved.read_bytes() == BODY
    run_imagefs(config, "image", "delete", image_id)
    assert glance_cloud.leftovers(image_id) == []


def test_a_snapshot_is_an_image_of_glance(tmp_path: Path, glance_cloud: Glance) -> None:
    """A snapshot is stored in Glance with Nova's properties, and an instance of it has what was written before."""
    image_id, name = str(uuid.uuid4()), f"shot {uuid.uuid4()}"
    glance_cloud.add_image(image_id, BODY, hw_disk_bus="scsi")
    with mounted(tmp_path, configured(tmp_path, glance_cloud, direct=False)) as mount:
        mount.imagefs("instance", "create", "one", "--image", image_id)
        one = mount.mountpoint / "instances" / "one"
        patch(one / "vda", 4096, b"before")
        request(one, name)
        patch(one / "vda", 4096, b"after!")
        found = finished(one)
        mount.imagefs("instance", "create", "two", "--image", found["id"])
        shown = first_bytes(mount.mountpoint / "instances" / "two" / "vda", len(BODY))
    assert shown == BODY[:4096] + b"before" + BODY[4102:]
    stored = glance_cloud.show(found["id"])
    assert (stored["name"], stored["status"], stored["visibility"], stored["disk_format"]) == (name, "active", "private", "qcow2")
    assert (stored["base_image_ref"], stored["image_type"], stored["hw_disk_bus"]) == (image_id, "snapshot", "scsi")
